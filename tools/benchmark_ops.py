#!/usr/bin/env python3
"""Times the operators against torchvision's, or, where torchvision has none, against plain PyTorch, in one run.

    python tools/benchmark_ops.py                            # CPU or GPU, every row
    python tools/benchmark_ops.py --rows "nms|paste"         # those whose name matches the expression
    python tools/benchmark_ops.py --device cpu --threads 1 --repeats 7

Before a row is timed its two results are compared, and the program fails where they differ. The two sides take turns
and of each the fastest turn counts. ``bytes ms`` is how long it takes here to move the bytes that the row cannot do
without: each number that is needed read once, each number of the result written once, at the speed of a copy.

Shapes: N images, C channels, R regions, B boxes.
"""

from detlab.utils.threads import wait_asleep

wait_asleep()

import argparse
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from benchmark import alternate
from torch import Tensor

from detlab.layers import _ops, _ops_library, _ops_plain
from detlab.modeling.anchor_generator import DefaultAnchorGenerator
from detlab.modeling.matcher import Matcher
from detlab.modeling.poolers import ROIPooler, levels_of_areas
from detlab.structures import BitMasks, Boxes, PackedPolygons, PolygonMasks, pairwise_iou

IMAGE_SIZE_HW = (800, 1216)
BINS = 7
NUM_CLASSES = 80
IOU_THRESH = 0.5
MAX_OUTPUT = 1000
TARGET_SIZE = 28
SECONDS_PER_TURN = 0.02
BANDWIDTH_BYTES = 1 << 28


class Sizes(NamedTuple):
    """How large the inputs are."""

    channels: int = 256
    strides: tuple[int, ...] = (4, 8)  # of the single maps
    regions: tuple[int, ...] = (512, 1000)
    boxes: tuple[int, ...] = (1000, 5000, 12000)
    rotated: int = 500
    masks: int = 100
    objects: int = 20
    proposals: tuple[int, ...] = (512, 2000)
    image_size_hw: tuple[int, int] = IMAGE_SIZE_HW


QUICK_SIZES = Sizes(
    channels=16, strides=(8,), regions=(8,), boxes=(100,), rotated=10, masks=3, objects=3, proposals=(20,),
    image_size_hw=(200, 304),
)  # fmt: skip
PYRAMID_STRIDES = (4, 8, 16, 32)


class Case(NamedTuple):
    """The two sides of a row, ready to run, and the bytes that either has to move."""

    own: Callable[[], object]
    other: Callable[[], object]
    num_bytes: float


class Row(NamedTuple):
    """A line of the table; its inputs are made when its turn comes."""

    name: str
    against: str
    make: Callable[[], Case]


# Inputs.


def draw_boxes(count: int, size_hw: tuple[int, int]) -> Tensor:
    """(count, 4) xyxy inside the image, from small to most of its height, evenly by the logarithm of their sides."""
    generator = torch.Generator().manual_seed(count)
    size = torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float32)
    sides = size_hw[0] * 0.02 * 40 ** torch.rand(count, 1, generator=generator)
    extent = sides * 2 ** (torch.rand(count, 2, generator=generator) - 0.5)
    low = torch.rand(count, 2, generator=generator) * (size - extent).clamp(min=0)
    return torch.cat((low, torch.minimum(low + extent, size)), dim=1)


def draw_crowd(count: int, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of a detector: ten jittered boxes around each object; with scores (count,) and classes (count,)."""
    generator = torch.Generator().manual_seed(count)
    objects = draw_boxes(-(-count // 10), size_hw).repeat_interleave(10, dim=0)[:count]
    extent = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
    boxes = objects + 0.15 * extent * torch.randn(count, 4, generator=generator)
    boxes = torch.cat((torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)
    # No two alike: of equal scores torchvision takes either first.
    scores = torch.randperm(count, generator=generator) / count
    return boxes, scores, torch.randint(0, NUM_CLASSES, (count,), generator=generator)


def draw_rotated(count: int, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Candidates of any angle, (count, 5) center x y, width, height, degrees; with scores (count,)."""
    boxes, scores, _ = draw_crowd(count, size_hw)
    angles = torch.rand(count, 1, generator=torch.Generator().manual_seed(0)) * 360 - 180
    return torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], angles), dim=1), scores


def with_image(boxes: Tensor) -> Tensor:
    """Regions of the first image."""
    return torch.cat((boxes.new_zeros(len(boxes), 1), boxes), dim=1)


def draw_map(channels: int, stride: int, size_hw: tuple[int, int], layout: torch.memory_format, device: str) -> Tensor:
    """(1, C, H, W), which takes gradients."""
    shape = (1, channels, size_hw[0] // stride, size_hw[1] // stride)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(stride))
    return values.to(device).contiguous(memory_format=layout).requires_grad_()


# Pooling.


def count_cells(rois: Tensor, stride: int, size_hw: tuple[int, int], sampling_ratio: int) -> int:
    """Cells of the map that some sample of the (aligned) regions lies next to."""
    is_read = torch.zeros(size_hw, dtype=torch.bool)
    for x1, y1, x2, y2 in (rois[:, 1:].cpu() / stride - 0.5).tolist():
        rows = _cells_of_axis(y1, y2, size_hw[0], sampling_ratio)
        columns = _cells_of_axis(x1, x2, size_hw[1], sampling_ratio)
        is_read[rows[:, None], columns[None, :]] = True
    return int(is_read.sum())


def _cells_of_axis(low: float, high: float, size: int, sampling_ratio: int) -> Tensor:
    num_samples = BINS * (sampling_ratio or max(1, -int(-(high - low) // BINS)))
    positions = low + (torch.arange(num_samples) + 0.5) * (high - low) / num_samples
    below = positions.floor().long()
    return torch.cat((below, below + 1)).clamp(0, size - 1).unique()


def pooling_case(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: tuple[int, ...],
    sampling_ratio: int,
    own: Callable[[], Tensor],
    other: Callable[[], Tensor],
    with_backward: bool,
) -> Case:
    """Forward reads the cells in reach and writes the result; backward reads that much and writes every cell."""
    channels = features[0].shape[1]
    cells = sum(
        count_cells(rois[levels == level], stride, tuple(feature.shape[2:]), sampling_ratio)
        for level, (feature, stride) in enumerate(zip(features, strides))
    )
    result_size = len(rois) * channels * BINS * BINS
    forward_bytes = 4 * (cells * channels + result_size)
    if not with_backward:
        return Case(torch.no_grad()(own), torch.no_grad()(other), forward_bytes)
    grad = torch.randn((len(rois), channels, BINS, BINS), generator=torch.Generator().manual_seed(1)).to(rois.device)

    def both_ways(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), features, grad)

    map_bytes = 4 * sum(feature.numel() for feature in features)
    return Case(both_ways(own), both_ways(other), forward_bytes + 4 * result_size + map_bytes)


def roi_align_case(
    sizes: Sizes, device: str, stride: int, count: int, ratio: int, layout: torch.memory_format, with_backward: bool
) -> Case:
    feature = draw_map(sizes.channels, stride, sizes.image_size_hw, layout, device)
    rois = with_image(draw_boxes(count, sizes.image_size_hw)).to(device)
    levels = torch.zeros(count, dtype=torch.int64, device=device)
    arguments = (feature, rois, (BINS, BINS), 1 / stride, ratio, True)
    return pooling_case(
        [feature], rois, levels, (stride,), ratio, lambda: _ops.roi_align(*arguments),
        lambda: torchvision.ops.roi_align(*arguments), with_backward,
    )  # fmt: skip


def pyramid_case(
    sizes: Sizes, device: str, count: int, ratio: int, layout: torch.memory_format, with_backward: bool
) -> Case:
    """The level of each region is known; torchvision's users pool level by level and put the rows into place."""
    features = [draw_map(sizes.channels, s, sizes.image_size_hw, layout, device) for s in PYRAMID_STRIDES]
    boxes = draw_boxes(count, sizes.image_size_hw).to(device)
    rois, levels = with_image(boxes), levels_of_areas(Boxes(boxes).area(), 2, 5, 224, 4)
    scales = [1 / stride for stride in PYRAMID_STRIDES]

    def level_by_level() -> Tensor:
        result = features[0].new_zeros((count, sizes.channels, BINS, BINS))
        for level, (feature, scale) in enumerate(zip(features, scales)):
            rows = (levels == level).nonzero().squeeze(1)
            pooled = torchvision.ops.roi_align(feature, rois[rows], (BINS, BINS), scale, ratio, True)
            result.index_put_((rows,), pooled)
        return result

    return pooling_case(
        features, rois, levels, PYRAMID_STRIDES, ratio,
        lambda: _ops.roi_align_levels(features, rois, levels, (BINS, BINS), scales, ratio, True),
        level_by_level, with_backward,
    )  # fmt: skip


def pooler_case(sizes: Sizes, device: str, count: int, ratio: int, with_backward: bool) -> Case:
    """The modules that users call, which also find each box's level."""
    features = [
        draw_map(sizes.channels, s, sizes.image_size_hw, torch.contiguous_format, device) for s in PYRAMID_STRIDES
    ]
    boxes = draw_boxes(count, sizes.image_size_hw).to(device)
    levels = levels_of_areas(Boxes(boxes).area(), 2, 5, 224, 4)
    own = ROIPooler(BINS, [1 / stride for stride in PYRAMID_STRIDES], ratio, "ROIAlign")
    names = [str(stride) for stride in PYRAMID_STRIDES]
    other = torchvision.ops.MultiScaleRoIAlign(names, BINS, ratio)
    return pooling_case(
        features, with_image(boxes), levels, PYRAMID_STRIDES, ratio,
        lambda: own(features, [Boxes(boxes)]),
        lambda: other(dict(zip(names, features)), [boxes], [sizes.image_size_hw]), with_backward,
    )  # fmt: skip


def pooling_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    maps = {f"{sizes.image_size_hw[0] // s}x{sizes.image_size_hw[1] // s}": s for s in sizes.strides}
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for with_backward, passes in ((False, "forward"), (True, "forward+backward")):
        for map_name in (*maps, "FPN"):
            for count in sizes.regions:
                for ratio in (0, 2):
                    for layout_name, layout in layouts.items():
                        name = f"roi_align {passes} {map_name} {count} boxes ratio {ratio} {layout_name}"
                        if map_name == "FPN":
                            arguments = (sizes, device, count, ratio, layout, with_backward)
                            yield Row(name, "torchvision", _lazily(pyramid_case, *arguments))
                        else:
                            arguments = (sizes, device, maps[map_name], count, ratio, layout, with_backward)
                            yield Row(name, "torchvision", _lazily(roi_align_case, *arguments))
        for ratio in (0, 2):
            name = f"pooler {passes} FPN {sizes.regions[0]} boxes ratio {ratio}"
            yield Row(name, "torchvision", _lazily(pooler_case, sizes, device, sizes.regions[0], ratio, with_backward))


def _lazily(make: Callable[..., Case], *arguments: object) -> Callable[[], Case]:
    return lambda: make(*arguments)


# Suppression.


def nms_case(sizes: Sizes, device: str, count: int, is_crowd: bool) -> Case:
    """Of a crowd most boxes go; of boxes drawn alone most stay, and each is compared with all the others."""
    boxes, scores, _ = draw_crowd(count, sizes.image_size_hw)
    if not is_crowd:
        boxes = draw_boxes(count, sizes.image_size_hw)
    boxes, scores = boxes.to(device), scores.to(device)
    return Case(
        lambda: _ops.nms(boxes, scores, IOU_THRESH), lambda: torchvision.ops.nms(boxes, scores, IOU_THRESH), 28 * count
    )


def batched_nms_case(sizes: Sizes, device: str, count: int) -> Case:
    boxes, scores, classes = (t.to(device) for t in draw_crowd(count, sizes.image_size_hw))
    return Case(
        lambda: _ops.batched_nms(boxes, scores, classes, IOU_THRESH),
        lambda: torchvision.ops.batched_nms(boxes, scores, classes, IOU_THRESH),
        36 * count,
    )


def nms_fixed_case(sizes: Sizes, device: str, count: int) -> Case:
    """One image; torchvision's users cut the result of ``batched_nms`` and pad it where sizes must be fixed."""
    boxes, scores, classes = (t.to(device) for t in draw_crowd(count, sizes.image_size_hw))

    def padded() -> tuple[Tensor, Tensor]:
        kept = torchvision.ops.batched_nms(boxes, scores, classes, IOU_THRESH)[:MAX_OUTPUT]
        indices = kept.new_zeros((1, MAX_OUTPUT))
        indices[0, : len(kept)] = kept
        return indices, torch.tensor([len(kept)], device=boxes.device)

    return Case(
        lambda: _ops.nms_fixed(boxes[None], scores[None], classes[None], IOU_THRESH, MAX_OUTPUT),
        padded,
        28 * count + 8 * MAX_OUTPUT,
    )


def suppression_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    for is_crowd, kind in ((True, ""), (False, " few overlap")):
        for count in sizes.boxes:
            yield Row(f"nms {count} boxes{kind}", "torchvision", _lazily(nms_case, sizes, device, count, is_crowd))
    for count in sizes.boxes:
        name = f"batched_nms {count} boxes {NUM_CLASSES} classes"
        yield Row(name, "torchvision", _lazily(batched_nms_case, sizes, device, count))
    for count in sizes.boxes:
        name = f"nms_fixed {count} boxes {NUM_CLASSES} classes"
        yield Row(name, "torchvision", _lazily(nms_fixed_case, sizes, device, count))


# Matching.


def match_case(objects: Tensor, boxes: Tensor, allow_low_quality_matches: bool) -> Case:
    """The labels of an image's boxes; plain, from the table of all overlaps."""
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches)
    valid = torch.ones((1, len(objects)), dtype=torch.bool, device=objects.device)

    def by_table() -> list[Tensor]:
        return [x[None] for x in matcher(pairwise_iou(Boxes(objects), Boxes(boxes)))]

    num_bytes = 16 * len(objects) + (16 + 9) * len(boxes)
    return Case(lambda: matcher.match_batch(objects[None], valid, boxes[None]), by_table, num_bytes)


def anchors_case(sizes: Sizes, device: str) -> Case:
    strides = (*PYRAMID_STRIDES, 64)
    generator = DefaultAnchorGenerator(
        sizes=[[8 * stride] for stride in strides], aspect_ratios=[[0.5, 1.0, 2.0]], strides=list(strides)
    )
    maps = [torch.empty(1, 1, *(-(-side // stride) for side in sizes.image_size_hw)) for stride in strides]
    anchors = torch.cat(generator.anchors_of_maps(maps)).to(device)
    return match_case(draw_boxes(sizes.objects, sizes.image_size_hw).to(device), anchors, True)


def proposals_case(sizes: Sizes, device: str, count: int) -> Case:
    objects, boxes = (draw_boxes(n, sizes.image_size_hw).to(device) for n in (sizes.objects, count))
    return match_case(objects, boxes, False)


def matching_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    yield Row(f"match_boxes anchors with {sizes.objects} objects", "plain", _lazily(anchors_case, sizes, device))
    for count in sizes.proposals:
        name = f"match_boxes {count} proposals with {sizes.objects} objects"
        yield Row(name, "plain", _lazily(proposals_case, sizes, device, count))


# Rotated operators.


def roi_align_rotated_case(sizes: Sizes, device: str, ratio: int, with_backward: bool) -> Case:
    stride = 8
    feature = draw_map(sizes.channels, stride, sizes.image_size_hw, torch.contiguous_format, device)
    boxes, _ = draw_rotated(sizes.rotated, sizes.image_size_hw)
    rois = with_image(boxes).to(device)
    result_shape = (len(rois), sizes.channels, BINS, BINS)
    grad = torch.randn(result_shape, generator=torch.Generator().manual_seed(1)).to(device)
    settings = ([BINS, BINS], 1 / stride, ratio)

    def own() -> object:
        if not with_backward:
            with torch.no_grad():
                return _ops.roi_align_rotated(feature, rois, *settings)
        return torch.autograd.grad(_ops.roi_align_rotated(feature, rois, *settings), feature, grad)

    def plain() -> object:
        with torch.no_grad():
            result = _ops_plain.roi_align_rotated(feature, rois, *settings)
            if not with_backward:
                return result
            return (_ops_plain.roi_align_rotated_backward(grad, feature, rois, *settings, False),)

    map_bytes, result_bytes = 4 * feature.numel(), 4 * grad.numel()
    return Case(own, plain, (map_bytes + result_bytes) * (2 if with_backward else 1))


def nms_rotated_case(sizes: Sizes, device: str) -> Case:
    boxes, scores = (t.to(device) for t in draw_rotated(sizes.rotated, sizes.image_size_hw))
    return Case(
        lambda: _ops.nms_rotated(boxes, scores, IOU_THRESH),
        lambda: _ops_plain.nms_rotated(boxes, scores, None, IOU_THRESH),
        32 * len(boxes),
    )


def box_iou_rotated_case(sizes: Sizes, device: str) -> Case:
    boxes = draw_rotated(sizes.rotated, sizes.image_size_hw)[0].to(device)
    return Case(
        lambda: _ops.box_iou_rotated(boxes, boxes),
        lambda: _ops_plain.box_iou_rotated(boxes, boxes),
        40 * len(boxes) + 4 * len(boxes) ** 2,
    )


def rotated_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    for with_backward, passes in ((False, "forward"), (True, "forward+backward")):
        for ratio in (0, 2):
            name = f"roi_align_rotated {passes} {sizes.rotated} boxes ratio {ratio}"
            yield Row(name, "plain", _lazily(roi_align_rotated_case, sizes, device, ratio, with_backward))
    yield Row(f"nms_rotated {sizes.rotated} boxes", "plain", _lazily(nms_rotated_case, sizes, device))
    yield Row(f"box_iou_rotated {sizes.rotated} boxes", "plain", _lazily(box_iou_rotated_case, sizes, device))


# Masks.


def paste_case(sizes: Sizes, device: str, threshold: float) -> Case:
    masks = torch.rand((sizes.masks, 28, 28), generator=torch.Generator().manual_seed(0)).to(device)
    boxes = draw_boxes(sizes.masks, sizes.image_size_hw).to(device)
    height, width = sizes.image_size_hw
    return Case(
        lambda: _ops.paste_masks(masks, boxes, (height, width), threshold),
        lambda: _ops_plain.paste_masks(masks, boxes, height, width, threshold),
        4 * masks.numel() + sizes.masks * height * width,
    )


def draw_polygon_masks(boxes: Tensor) -> PolygonMasks:
    """A star with 40 corners in each box."""
    rng = np.random.default_rng(0)
    angles = np.arange(40) * (2 * np.pi / 40)
    objects = []
    for x1, y1, x2, y2 in boxes.tolist():
        radii = rng.uniform(0.5, 1, 40)
        xs = (x1 + x2) / 2 + (x2 - x1) / 2 * radii * np.cos(angles)
        ys = (y1 + y2) / 2 + (y2 - y1) / 2 * radii * np.sin(angles)
        objects.append([np.stack([xs, ys], axis=1).reshape(-1)])
    return PolygonMasks(objects)


def draw_foreground(sizes: Sizes, device: str) -> tuple[PolygonMasks, Tensor, Tensor]:
    """Objects, and proposals (R, 4) around them with the row (R,) of each one's object."""
    generator = torch.Generator().manual_seed(1)
    objects = draw_boxes(sizes.objects, sizes.image_size_hw)
    rows = torch.randint(0, sizes.objects, (sizes.proposals[0],), generator=generator)
    extent = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)[rows]
    boxes = objects[rows] + 0.1 * extent * torch.randn(len(rows), 4, generator=generator)
    return draw_polygon_masks(objects), boxes.to(device), rows.to(device)


def polygon_target_case(sizes: Sizes, device: str) -> Case:
    """The COCO tools draw each polygon moved to its box, on the CPU."""
    masks, boxes, rows = draw_foreground(sizes, device)
    packed = PackedPolygons.from_polygons(masks).to(device)
    parts = (packed.coords, packed.polygon_offsets, packed.object_offsets)
    num_bytes = 16 * len(packed.coords) + 24 * len(rows) + TARGET_SIZE**2 * len(rows)
    return Case(
        lambda: packed.crop_and_resize(rows, boxes, TARGET_SIZE),
        lambda: _ops_plain.mask_targets_from_polygons(*parts, rows, boxes, TARGET_SIZE),
        num_bytes,
    )


def bitmap_target_case(sizes: Sizes, device: str) -> Case:
    """A copy of its bitmap for each proposal, pooled as a feature map."""
    masks, boxes, rows = draw_foreground(sizes, device)
    bitmaps = BitMasks.from_polygon_masks(masks, *sizes.image_size_hw).to(device)
    index = torch.arange(len(rows), dtype=torch.float32, device=device)[:, None]

    def from_copies() -> Tensor:
        copies = bitmaps.tensor[rows, None].float()
        shape = (TARGET_SIZE, TARGET_SIZE)
        return _ops.roi_align(copies, torch.cat((index, boxes), dim=1), shape, 1.0, 0, True).squeeze(1) >= 0.5

    num_bytes = bitmaps.tensor.numel() + (24 + TARGET_SIZE**2) * len(rows)
    return Case(lambda: bitmaps.crop_and_resize(boxes, TARGET_SIZE, rows=rows), from_copies, num_bytes)


def mask_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    name = f"{sizes.proposals[0]} of {TARGET_SIZE}x{TARGET_SIZE} from {sizes.objects}"
    yield Row(f"mask_targets {name} polygons", "plain", _lazily(polygon_target_case, sizes, device))
    yield Row(f"mask_targets {name} bitmaps", "plain", _lazily(bitmap_target_case, sizes, device))
    height, width = sizes.image_size_hw
    for threshold, kind in ((0.5, "bits"), (-1.0, "soft values")):
        name = f"paste_masks {sizes.masks} of 28x28 into {height}x{width} {kind}"
        yield Row(name, "plain", _lazily(paste_case, sizes, device, threshold))


# Calls so small that what surrounds the kernel decides.

TINY_SIZE_HW = (200, 304)


def tiny_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    tiny = sizes._replace(image_size_hw=TINY_SIZE_HW)
    for with_backward, passes in ((False, "forward"), (True, "forward+backward")):
        arguments = (tiny, device, 8, 8, 0, torch.contiguous_format, with_backward)
        yield Row(f"tiny roi_align {passes} 25x38 8 boxes", "torchvision", _lazily(roi_align_case, *arguments))
    yield Row("tiny nms 10 boxes", "torchvision", _lazily(nms_case, tiny, device, 10, True))
    yield Row("tiny batched_nms 10 boxes", "torchvision", _lazily(batched_nms_case, tiny, device, 10))


# The table.


def measure_bandwidth(device: str, repeats: int, num_bytes: int) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds, _ = alternate(lambda: target.copy_(source), lambda: None, repeats, device)
    return 2 * num_bytes / seconds


def check_same(name: str, own: object, other: object) -> None:
    """Raises AssertionError unless the results agree: integers exactly, up to one step of rounding for masks."""
    own_tensors, other_tensors = ([x] if isinstance(x, Tensor) else list(x) for x in (own, other))
    assert len(own_tensors) == len(other_tensors), name
    for a, b in zip(own_tensors, other_tensors):
        if a.is_floating_point():
            # Positions of several hundred cells are rounded at some 1e-5 of a cell, in any single-precision kernel, and
            # in a map of noise a cell's neighbour is as far from it as any other.
            tolerance = 1e-4 * max(float(b.abs().max()), 1)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=tolerance, msg=lambda text: f"{name}: {text}")
        elif a.dtype in (torch.bool, torch.uint8):
            assert a.dtype == b.dtype and a.shape == b.shape, name
            apart = (a.to(torch.int16) - b.to(torch.int16)).abs()
            # A value that falls on the threshold, or between two steps, may be rounded to either side.
            assert apart.max() <= 1 and apart.float().mean() < 1e-5, f"{name}: {int(apart.sum())} pixels differ"
        else:
            assert torch.equal(a, b), f"{name}: the boxes kept differ"


def print_row(row: Row, device: str, repeats: int, seconds_per_turn: float, bandwidth: float) -> None:
    case = row.make()
    check_same(row.name, case.own(), case.other())
    own, other = alternate(case.own, case.other, repeats, device, seconds_per_turn)
    bytes_ms = case.num_bytes / bandwidth * 1e3
    print(f"{row.name:70}{own * 1e3:11.3f}{other * 1e3:11.3f}  {row.against:12}{other / own:7.1f}{bytes_ms:11.3f}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's default otherwise")
    parser.add_argument("--rows", default="", help="regular expression that the names of rows must contain")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: every row, but no times worth reading")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    sizes = QUICK_SIZES if args.quick else Sizes()
    bandwidth = measure_bandwidth(args.device, args.repeats, BANDWIDTH_BYTES >> (8 if args.quick else 0))
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, torchvision "
          f"{torchvision.__version__}; a copy reads and writes {bandwidth / 1e9:.1f} GB/s")  # fmt: skip
    print(f"operators: {_ops.report()}")
    if torch.device(args.device).type not in _ops_library.load().devices:
        print("warning: the compiled library does not serve this device; detlab's times are those of its substitutes")
    print(f"{'':70}{'detlab ms':>11}{'other ms':>11}  {'other':12}{'ratio':>7}{'bytes ms':>11}")
    groups = (pooling_rows, suppression_rows, matching_rows, rotated_rows, mask_rows, tiny_rows)
    for row in (row for group in groups for row in group(sizes, args.device)):
        if re.search(args.rows, row.name):
            print_row(row, args.device, args.repeats, 0 if args.quick else SECONDS_PER_TURN, bandwidth)


if __name__ == "__main__":
    main()
