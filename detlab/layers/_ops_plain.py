"""The operators in plain PyTorch and torchvision: what runs where the compiled library has no kernel.

Each function takes exactly the arguments of the operator of its name in ``_ops.SCHEMAS``.

Shapes: N images, C channels, H x W cells, R regions, B boxes, h x w bins of a region, S samples of a bin,
M x M cells of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from detlab.layers import _ops_library
from detlab.layers.box_overlap import box_iou
from detlab.utils.mask_codes import draw_polygons

# Pairs of boxes, and pixels of masks, handled at once: bounds the memory of the intermediates.
PAIRS_PER_CHUNK = 1 << 20
PIXELS_PER_CHUNK = 1 << 24
# What a polygon is stretched to may lie so far off, in pixels: up to there float64 counts fifths of a pixel.
FARTHEST_POINT = 1e15


def new_pooled(feature: Tensor, num_regions: int, output_size: Sequence[int]) -> Tensor:
    """What pooling returns, not set to anything: (R, C, h, w), on a GPU channels last in memory where the map's are.

    On a CPU it is in the usual order: most heads flatten regions, which would copy what is channels-last.
    """
    channels = feature.shape[1]
    if feature.device.type != "cpu" and feature.stride(1) == 1 and feature.stride(3) != 1:
        return feature.new_empty((num_regions, *output_size, channels)).permute(0, 3, 1, 2)
    return feature.new_empty((num_regions, channels, *output_size))


def roi_align_levels(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: list[int],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    kernel = _torchvision().roi_align
    exists = _are_somewhere(rois, len(features[0]))
    wide = _wide(features[0].dtype)
    pooled = torch.zeros((len(rois), features[0].shape[1], *output_size), dtype=wide, device=rois.device)
    for level, (feature, scale) in enumerate(zip(features, scales)):
        chosen, reads = _regions_of_level(rois.to(wide), exists, levels, level, scale, sampling_ratio, aligned)
        values = kernel(feature.to(wide), chosen, scale, *output_size, sampling_ratio, aligned)
        pooled = torch.where(reads[:, None, None, None], values, pooled)
    pooled = torch.where(exists[:, None, None, None], pooled, math.nan)
    return new_pooled(features[0], len(rois), output_size).copy_(pooled)


def roi_align_levels_backward(
    grad: Tensor,
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: list[int],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    deterministic: bool,
) -> list[Tensor]:
    kernel = _torchvision()._roi_align_backward
    exists = _are_somewhere(rois, len(features[0]))
    wide = grad.to(_wide(grad.dtype)).contiguous()
    grads = []
    for level, (feature, scale) in enumerate(zip(features, scales)):
        chosen, _ = _regions_of_level(rois.to(wide.dtype), exists, levels, level, scale, sampling_ratio, aligned)
        result = kernel(wide, chosen, scale, *output_size, *feature.shape, sampling_ratio, aligned)
        grads.append(torch.empty_like(feature).copy_(result))
    return grads


def _torchvision():
    try:
        import torchvision  # noqa: F401  registers its operators
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"this operator needs detlab's compiled library ({_ops_library.load().explanation}) or torchvision "
            f"({error}); install the torchvision made for torch {torch.__version__}, or a C++ compiler such as g++"
        ) from error
    return torch.ops.torchvision


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: half precision is too coarse for coordinates and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _are_somewhere(rois: Tensor, num_images: int) -> Tensor:
    """Which regions are finite and of an image that exists; the result of the others is NaN."""
    numbers = rois.to(_wide(rois.dtype))
    return numbers.isfinite().all(dim=1) & (numbers[:, 0] >= 0) & (numbers[:, 0] < num_images)


def _regions_of_level(
    rois: Tensor, exists: Tensor, levels: Tensor | None, level: int, scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Regions for torchvision, those that do not read the level replaced by one that reads nothing; and which do.

    To leave them out instead would mean to wait until a GPU has counted them. torchvision asks for finite regions, and
    for sizes that are not negative where the number of samples follows from them.
    """
    reads = exists & rois.isfinite().all(dim=1)
    if levels is not None:
        reads = reads & (levels == level)
    if aligned and sampling_ratio <= 0:
        reads = reads & (rois[:, 3:5] > rois[:, 1:3]).all(dim=1)
    nowhere = rois.new_full((5,), -1000 / scale)
    nowhere[0] = 0
    return torch.where(reads[:, None], rois, nowhere), reads


def _fetched(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU, in one transfer: the host waits once for the device."""
    raw = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    parts = torch.cat(raw).cpu().split([len(part) for part in raw])
    # Copied: a type's numbers must lie at multiples of its size.
    return [part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors)]


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    if boxes.device.type != "cpu" and classes is not None:
        return _on_cpu(torch.ops.detlab.nms, (boxes, scores, classes), iou_threshold)
    return _suppress_by_class(boxes.to(_wide(boxes.dtype)), scores, classes, iou_threshold, _nms_of_one_class)


def nms_rotated(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    if boxes.device.type != "cpu":
        given = (boxes, scores) if classes is None else (boxes, scores, classes)
        return _on_cpu(torch.ops.detlab.nms_rotated, given, *([None] if classes is None else []), iou_threshold)
    return _suppress_by_class(boxes, scores, classes, iou_threshold, _nms_rotated_of_one_class)


def _on_cpu(operator, tensors: Sequence[Tensor], *settings):
    """The operator on the CPU: a device without kernels would be waited for once for each class and more."""
    result = operator(*_fetched(*tensors), *settings)
    return tree_map_only(Tensor, lambda tensor: tensor.to(tensors[0].device, non_blocking=True), result)


def _suppress_by_class(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, suppress):
    """Sorts once, applies ``suppress`` to each class's boxes in that order, returns what is kept in that order."""
    order = scores.masked_fill(scores.isnan(), -math.inf).argsort(descending=True, stable=True)
    boxes = boxes[order]
    if classes is None:
        return order[suppress(boxes, iou_threshold)]
    classes = classes[order]
    is_kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for value in classes.unique():
        rows = (classes == value).nonzero().squeeze(1)
        is_kept[rows[suppress(boxes[rows], iou_threshold)]] = True
    return order[is_kept]


def _nms_of_one_class(boxes: Tensor, iou_threshold: float) -> Tensor:
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return _torchvision().nms(boxes, ranks, iou_threshold)


def _nms_rotated_of_one_class(boxes: Tensor, iou_threshold: float) -> Tensor:
    overlaps = (box_iou_rotated(boxes, boxes) > iou_threshold).numpy()
    alive = torch.ones(len(boxes), dtype=torch.bool).numpy()
    for row, overlapped in enumerate(overlaps):
        if alive[row]:
            alive[row + 1 :] &= ~overlapped[row + 1 :]
    return torch.from_numpy(alive).nonzero().squeeze(1)


def nms_fixed(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    if boxes.device.type != "cpu":
        return _on_cpu(torch.ops.detlab.nms_fixed, (boxes, scores, classes), iou_threshold, max_output)
    indices = torch.zeros((len(boxes), max_output), dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    suppress = nms_rotated if boxes.shape[2] == 5 else nms
    for image in range(len(boxes)):
        rows = (scores[image] > -math.inf).nonzero().squeeze(1)
        kept = rows[suppress(boxes[image, rows], scores[image, rows], classes[image, rows], iou_threshold)][:max_output]
        indices[image, : len(kept)] = kept
        counts[image] = len(kept)
    return indices, counts


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    wide1, wide2 = boxes1.double(), boxes2.double()
    ious = torch.empty((len(boxes1), len(boxes2)), dtype=_wide(boxes1.dtype), device=boxes1.device)
    if ious.numel() == 0:
        return ious
    rows_per_chunk = max(PAIRS_PER_CHUNK // len(boxes2), 1)
    areas2 = wide2[:, 2] * wide2[:, 3]
    for start in range(0, len(boxes1), rows_per_chunk):
        rows = wide1[start : start + rows_per_chunk]
        overlap = _rotated_intersection(rows[:, None], wide2[None])
        areas1 = (rows[:, 2] * rows[:, 3])[:, None]
        union = areas1 + areas2 - overlap
        # The parts of boxes that do not meet cancel up to rounding.
        meet = (overlap > areas1 * 4e-15) & (union > 0)
        ious[start : start + rows_per_chunk] = torch.where(meet, overlap / union, 0.0)
    return ious


def _rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area common to rotated boxes ``a`` (N, 1, 5) and ``b`` (1, M, 5) -> (N, M).

    In the frame of ``a``, where it is axis-aligned, the area under an edge of ``b``, cut to ``a``, has a closed form;
    summed with sign around ``b`` it gives the common area (Green's theorem), with no polygon to build or sort.
    """
    half_w, half_h = a[..., 2] / 2, a[..., 3] / 2
    xs, ys = _corners_in_frame(a, b)
    signed_area = torch.zeros_like(xs[0])
    for first, second in ((0, 1), (1, 2), (2, 3), (3, 0)):
        signed_area += _area_under_edge(xs[first], ys[first], xs[second], ys[second], half_w, half_h)
    return torch.minimum(signed_area.abs(), torch.minimum(a[..., 2] * a[..., 3], b[..., 2] * b[..., 3]))


def _corners_in_frame(a: Tensor, b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The corners of ``b``, in order around it, in coordinates along the width and height of ``a``."""
    turn_a, turn_b = torch.deg2rad(a[..., 4]), torch.deg2rad(b[..., 4])
    dx, dy = b[..., 0] - a[..., 0], b[..., 1] - a[..., 1]
    # Angles are counter-clockwise as seen, in coordinates whose y points down.
    center_x = dx * turn_a.cos() - dy * turn_a.sin()
    center_y = dx * turn_a.sin() + dy * turn_a.cos()
    cos, sin = (turn_b - turn_a).cos(), (turn_b - turn_a).sin()
    along_x, along_y = b[..., 2] / 2 * cos, -b[..., 2] / 2 * sin
    across_x, across_y = b[..., 3] / 2 * sin, b[..., 3] / 2 * cos
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    xs = [center_x + s * along_x + t * across_x for s, t in signs]
    ys = [center_y + s * along_y + t * across_y for s, t in signs]
    return xs, ys


def _area_under_edge(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, half_w: Tensor, half_h: Tensor) -> Tensor:
    """Signed area between the edge and the side ``y = -half_h`` of the axis-aligned box, inside that box."""
    left, right = torch.minimum(torch.maximum(x0, -half_w), half_w), torch.minimum(torch.maximum(x1, -half_w), half_w)
    dx = x1 - x0
    slope = torch.where(dx != 0, (y1 - y0) / dx, 0.0)
    # Heights over the lower side where the edge enters and leaves the box's columns.
    low, high = y0 + (left - x0) * slope + half_h, y0 + (right - x0) * slope + half_h
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    rise = (high - low).clamp(min=torch.finfo(low.dtype).tiny)
    full = 2 * half_h
    from_bottom = ((-low) / rise).clamp(0, 1)  # share of the edge below the box
    from_top = ((full - low) / rise).clamp(0, 1)  # share below the box's upper side
    middle = (low.clamp(min=0).minimum(full) + high.clamp(min=0).minimum(full)) / 2
    mean_height = (from_top - from_bottom) * middle + (1 - from_top) * full
    return (right - left) * mean_height


def roi_align_rotated(
    input: Tensor, rois: Tensor, output_size: list[int], spatial_scale: float, sampling_ratio: int
) -> Tensor:
    wide = _wide(input.dtype)
    exists = _are_somewhere(rois, len(input))
    cells = input.to(wide).flatten(2).transpose(1, 2).flatten(0, 1)  # (N * H * W, C)
    pooled = new_pooled(input, len(rois), output_size)
    if pooled.numel() == 0:
        return pooled
    pooled.copy_(torch.where(exists, 0.0, math.nan)[:, None, None, None].expand_as(pooled))
    for rows, samples, index, weight in _rotated_samples(
        rois.to(wide), exists, input.shape, output_size, spatial_scale, sampling_ratio
    ):
        values = (cells[index] * weight[..., None]).view(len(rows), -1, samples, input.shape[1]).sum(dim=2)
        pooled[rows] = values.transpose(1, 2).unflatten(2, output_size).to(input.dtype)
    return pooled


def roi_align_rotated_backward(
    grad: Tensor,
    input: Tensor,
    rois: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    deterministic: bool,
) -> Tensor:
    wide = _wide(input.dtype)
    exists = _are_somewhere(rois, len(input))
    n, channels, height, width = input.shape
    cells = torch.zeros((n * height * width, channels), dtype=wide, device=input.device)
    grad = grad.to(wide).flatten(2).transpose(1, 2)  # (R, h * w, C)
    for rows, samples, index, weight in _rotated_samples(
        rois.to(wide), exists, input.shape, output_size, spatial_scale, sampling_ratio
    ):
        spread = grad[rows].repeat_interleave(samples, dim=1) * weight[..., None]
        cells.index_add_(0, index.flatten(), spread.flatten(0, 1))
    result = torch.empty_like(input)
    return result.copy_(cells.view(n, height, width, channels).permute(0, 3, 1, 2))


def _rotated_samples(
    rois: Tensor, exists: Tensor, input_shape, output_size: list[int], spatial_scale: float, sampling_ratio: int
):
    """What each bin reads, for groups of regions with equally many samples. Waits for the device once, to learn those.

    Yields:
        The group's regions (G,), the number of cells S a bin reads, the flat indices of the cells (G, h * w * S), and
        their weights, which sum to 1 in a bin that lies inside the map.
    """
    _, _, height, width = input_shape
    bins_h, bins_w = output_size
    geometry = torch.where(exists[:, None], rois[:, 1:5] * spatial_scale, 0.0)
    center_x, center_y = geometry[:, 0] - 0.5, geometry[:, 1] - 0.5
    turn = torch.deg2rad(rois[:, 5])
    for (grid_h, grid_w), rows in _groups_of_grids(geometry, exists, output_size, sampling_ratio):
        along = _sample_offsets(bins_w, grid_w, geometry[rows, 2])[:, None, :, None, :]
        across = _sample_offsets(bins_h, grid_h, geometry[rows, 3])[:, :, None, :, None]
        cos, sin = turn[rows].cos().view(-1, 1, 1, 1, 1), turn[rows].sin().view(-1, 1, 1, 1, 1)
        y = across * cos - along * sin + center_y[rows].view(-1, 1, 1, 1, 1)
        x = across * sin + along * cos + center_x[rows].view(-1, 1, 1, 1, 1)
        inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
        first_row = rois[rows, 0].long().view(-1, 1, 1, 1, 1) * height
        indices, weights = [], []
        for cell_y, weight_y in _neighbours(y, height):
            for cell_x, weight_x in _neighbours(x, width):
                indices.append((first_row + cell_y) * width + cell_x)
                weights.append(weight_y * weight_x * inside / (grid_h * grid_w))
        index = torch.stack(indices, dim=-1).flatten(1)
        weight = torch.stack(weights, dim=-1).flatten(1)
        yield rows, 4 * grid_h * grid_w, index, weight


def _groups_of_grids(
    geometry: Tensor, exists: Tensor, output_size: list[int], sampling_ratio: int
) -> list[tuple[tuple[int, int], Tensor]]:
    """Numbers of samples of a bin, down and across, and the regions (G,) that take so many; none without samples."""
    bins_h, bins_w = output_size
    if sampling_ratio > 0:
        grids = torch.full((len(geometry), 2), sampling_ratio, device=geometry.device)
    else:
        grids = torch.stack(((geometry[:, 3] / bins_h).ceil(), (geometry[:, 2] / bins_w).ceil()), dim=1).long()
    grids = torch.where(exists[:, None], grids, 0)
    (counts,) = _fetched(grids) if geometry.device.type != "cpu" else (grids,)
    members: dict[tuple[int, int], list[int]] = {}
    for region, (grid_h, grid_w) in enumerate(counts.tolist()):
        if grid_h >= 1 and grid_w >= 1:
            members.setdefault((grid_h, grid_w), []).append(region)
    rows = torch.tensor([region for group in members.values() for region in group], dtype=torch.int64)
    groups = rows.to(geometry.device, non_blocking=True).split([len(group) for group in members.values()])
    return list(zip(members, groups))


def _sample_offsets(bins: int, grid: int, size: Tensor) -> Tensor:
    """Positions of samples relative to the region's center, (G, bins, grid), for sizes (G,)."""
    steps = torch.arange(bins * grid, dtype=size.dtype, device=size.device) + 0.5
    return ((steps / (bins * grid) - 0.5) * size[:, None]).unflatten(1, (bins, grid))


def _neighbours(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two cells between which a position lies, and their shares; held at the map's border."""
    position = position.clamp(0, size - 1)
    low = position.floor()
    share = position - low
    return [(low.long(), 1 - share), ((low.long() + 1).clamp(max=size - 1), share)]


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    dtype = torch.bool if threshold >= 0 else torch.uint8
    canvas = torch.zeros((len(masks), height, width), dtype=dtype, device=masks.device)
    if canvas.numel() == 0:
        return canvas
    wide = _wide(masks.dtype)
    per_chunk = max(PIXELS_PER_CHUNK // (height * width), 1)
    for start in range(0, len(masks), per_chunk):
        chunk = slice(start, start + per_chunk)
        values = _stretch(masks[chunk].to(wide), boxes[chunk].to(wide), height, width)
        canvas[chunk] = values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)
    return canvas


def _stretch(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, M, M) sampled at the centers of the image's pixels, 0 outside their boxes -> (N, H, W)."""
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(dim=1))
    has_area = ((x1 > x0) & (y1 > y0) & boxes.isfinite().all(dim=1)[:, None])[..., None]
    ys = (torch.arange(height, dtype=boxes.dtype, device=boxes.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
    xs = (torch.arange(width, dtype=boxes.dtype, device=boxes.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack((xs[:, None, :].expand(-1, height, -1), ys[:, :, None].expand(-1, -1, width)), dim=-1)
    grid = torch.where(has_area[..., None], grid, -2.0)  # two mask sizes away: reads zeros
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def match_boxes(objects: Tensor, object_valid: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(objects.dtype)
    objects, boxes = objects.to(wide), boxes.to(wide)
    num_images, num_objects = object_valid.shape
    num_boxes = boxes.shape[1]
    overlaps = objects.new_zeros((num_images, num_boxes))
    matches = torch.zeros_like(overlaps, dtype=torch.int64)
    object_overlaps = objects.new_zeros((num_images, num_objects))
    is_best = torch.zeros_like(overlaps, dtype=torch.bool)
    if overlaps.numel() == 0 or num_objects == 0:
        return overlaps, matches, object_overlaps, is_best
    boxes_per_chunk = max(PAIRS_PER_CHUNK // num_objects, 1)
    chunks = [slice(start, start + boxes_per_chunk) for start in range(0, num_boxes, boxes_per_chunk)]
    for image in range(num_images):
        own, valid = objects[image], object_valid[image, :, None]
        candidates = boxes[image if len(boxes) > 1 else 0]
        for chunk in chunks:
            # Below every overlap, so that an object that is not valid is none's best.
            table = torch.where(valid, _overlap_table(own, candidates[chunk]), -1.0)
            best, rows = table.max(dim=0)
            overlaps[image, chunk], matches[image, chunk] = best.clamp(min=0), torch.where(best < 0, 0, rows)
            object_overlaps[image] = torch.maximum(object_overlaps[image], table.amax(dim=1))
        for chunk in chunks:
            wanted = object_overlaps[image, :, None]
            table = _overlap_table(own, candidates[chunk])
            is_best[image, chunk] = ((table == wanted) & (wanted > 0) & valid).any(dim=0)
    return overlaps, matches, object_overlaps, is_best


def _overlap_table(objects: Tensor, boxes: Tensor) -> Tensor:
    """Of upright boxes, or of rotated ones, which have 5 numbers."""
    return box_iou_rotated(objects, boxes) if objects.shape[-1] == 5 else box_iou(objects, boxes)


def mask_targets_from_polygons(
    coords: Tensor, polygon_offsets: Tensor, object_offsets: Tensor, rows: Tensor, boxes: Tensor, size: int
) -> Tensor:
    points = coords.detach().to("cpu", torch.float64).numpy()
    corners = boxes.detach().to("cpu", _wide(boxes.dtype)).numpy()
    starts, first_polygons = _held(polygon_offsets, len(points)), _held(object_offsets, len(polygon_offsets) - 1)
    # Boxes of no size would ask for infinite stretch.
    with np.errstate(over="ignore", invalid="ignore"):
        extent = corners[:, 2:] - corners[:, :2]
    sides = np.maximum(extent, np.asarray(0.1, corners.dtype))
    stretch = np.asarray(size, corners.dtype) / sides
    drawn: list[list[np.ndarray]] = []
    for box, row in enumerate(rows.tolist()):
        own: list[np.ndarray] = []
        if 0 <= row < len(first_polygons) - 1 and np.isfinite(corners[box]).all():
            polygons = range(first_polygons[row], max(first_polygons[row + 1], first_polygons[row]))
            moved = [(points[starts[i] : starts[i + 1]] - corners[box, :2]) * stretch[box] for i in polygons]
            own = [p.reshape(-1) for p in moved if len(p) > 2 and (np.abs(p) <= FARTHEST_POINT).all()]
        drawn.append(own)
    return torch.from_numpy(draw_polygons(drawn, size, size)).to(boxes.device)


def _held(offsets: Tensor, count: int) -> list[int]:
    return offsets.clamp(0, count).tolist()


def mask_targets_from_bitmaps(bitmaps: Tensor, rows: Tensor, boxes: Tensor, size: int) -> Tensor:
    _, height, width = bitmaps.shape
    targets = torch.zeros((len(rows), size, size), dtype=torch.bool, device=bitmaps.device)
    # Maps of numbers take four times the memory of bitmaps.
    per_chunk = max(PIXELS_PER_CHUNK // max(height * width, 1), 1)
    for start in range(0, len(bitmaps), per_chunk):
        chunk = bitmaps[start : start + per_chunk]
        chosen = ((rows >= start) & (rows < start + len(chunk))).nonzero().squeeze(1)
        if len(chosen) == 0:
            continue
        own_boxes = boxes[chosen].to(_wide(boxes.dtype))
        rois = torch.cat([(rows[chosen] - start).to(own_boxes.dtype)[:, None], own_boxes], dim=1)
        pooled = roi_align_levels([(chunk != 0).float()[:, None]], rois, None, [size, size], [1.0], 0, True)
        targets[chosen] = pooled.squeeze(1) >= 0.5
    return targets
