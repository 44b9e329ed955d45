"""The one door to the operators.

Every operator is ``torch.ops.detlab.<name>``. Its schema, its shape rule (fake kernel) and its gradient stand here; the
kernels of the compiled library serve the devices it was built for, ``_ops_plain`` all others. The library is looked for
when a kernel is first needed, never on import.

Shapes: N images, C channels, L levels, R regions, B boxes, G objects of an image, h x w bins of a region, M x M cells
of a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detlab.layers import _ops_library, _ops_plain

__all__ = [
    "BoxMatches",
    "backend",
    "batched_nms",
    "batched_nms_rotated",
    "box_iou_rotated",
    "mask_targets_from_bitmaps",
    "mask_targets_from_polygons",
    "match_boxes",
    "nms",
    "nms_fixed",
    "nms_rotated",
    "paste_masks",
    "report",
    "roi_align",
    "roi_align_levels",
    "roi_align_rotated",
]

SCHEMAS = {
    "roi_align_levels": "(Tensor[] features, Tensor rois, Tensor? levels, int[] output_size, float[] scales, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "roi_align_levels_backward": "(Tensor grad, Tensor[] features, Tensor rois, Tensor? levels, int[] output_size, "
    "float[] scales, int sampling_ratio, bool aligned, bool deterministic) -> Tensor[]",
    "roi_align_rotated": "(Tensor input, Tensor rois, int[] output_size, float spatial_scale, int sampling_ratio) "
    "-> Tensor",
    "roi_align_rotated_backward": "(Tensor grad, Tensor input, Tensor rois, int[] output_size, float spatial_scale, "
    "int sampling_ratio, bool deterministic) -> Tensor",
    "nms": "(Tensor boxes, Tensor scores, Tensor? classes, float iou_threshold) -> Tensor",
    "nms_rotated": "(Tensor boxes, Tensor scores, Tensor? classes, float iou_threshold) -> Tensor",
    "nms_fixed": "(Tensor boxes, Tensor scores, Tensor classes, float iou_threshold, SymInt max_output) "
    "-> (Tensor indices, Tensor counts)",
    "box_iou_rotated": "(Tensor boxes1, Tensor boxes2) -> Tensor",
    "paste_masks": "(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor",
    "match_boxes": "(Tensor objects, Tensor object_valid, Tensor boxes) "
    "-> (Tensor overlaps, Tensor objects_of_boxes, Tensor object_overlaps, Tensor is_best)",
    "mask_targets_from_polygons": "(Tensor coords, Tensor polygon_offsets, Tensor object_offsets, Tensor rows, "
    "Tensor boxes, SymInt size) -> Tensor",
    "mask_targets_from_bitmaps": "(Tensor bitmaps, Tensor rows, Tensor boxes, SymInt size) -> Tensor",
}

# Side of the largest mask that is drawn; kLargestTarget of the compiled library.
LARGEST_TARGET = 1 << 14


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples in each bin of each region (He et al., Mask R-CNN, 2017).

    Args:
        input: (N, C, H, W), any memory format.
        rois: (R, 5), each the index of its image and x1 y1 x2 y2 in pixels.
        output_size: (h, w).
        spatial_scale: cells per pixel.
        sampling_ratio: samples per bin and axis; 0 takes ``ceil(region size / bins)``.
        aligned: cell (0, 0) has its center at (0.5, 0.5). Otherwise regions sit half a cell off and are at least one
            cell in size.

    Returns:
        (R, C, h, w), channels last in memory where those of ``input`` are. A sample more than one cell outside the map
        counts as 0. On every device, a region that is not finite, or whose image does not exist, gives NaN and gets no
        gradient: to refuse it would mean to wait for a GPU.

    Raises:
        ValueError: for shapes or devices that do not fit together.
        TypeError: for numbers that are not floating point.
    """
    return roi_align_levels([input], rois, None, output_size, [spatial_scale], sampling_ratio, aligned)


def roi_align_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """:func:`roi_align` where each region reads the feature level given for it.

    Args:
        features: L maps (N, C, Hl, Wl) of one type.
        rois: (R, 5), each the index of its image and x1 y1 x2 y2 in pixels.
        levels: (R,) int64, in [0, L); a region of any other reads nothing and gives 0. None with a single level.
        output_size: (h, w).
        scales: of each level, its cells per pixel.
        sampling_ratio: samples per bin and axis; 0 takes ``ceil(region size / bins)``.
        aligned: as for :func:`roi_align`.

    Returns:
        (R, C, h, w).
    """
    if len(features) == 0 or len(features) != len(scales):
        raise ValueError(f"{len(features)} feature levels but {len(scales)} scales; give one scale for each level")
    if levels is None and len(features) > 1:
        raise ValueError(f"regions on {len(features)} feature levels need 'levels', the level of each")
    _check("features", features[0], ("N", "C", "H", "W"))
    for feature in features:
        _check("features", feature, (*features[0].shape[:2], "H", "W"), like=features[0])
    _check("rois", rois, ("R", 5), near=features[0])
    for feature in features:
        _check_cells("features", feature, feature.shape[0], *feature.shape[2:], readers=rois)
    _check_output_size(output_size)
    if levels is not None:
        _check_integers("levels", levels, rois.shape[:1], near=rois)
    return torch.ops.detlab.roi_align_levels(
        list(features), rois, levels, list(output_size), list(scales), sampling_ratio, aligned
    )


def roi_align_rotated(
    input: Tensor, rois: Tensor, output_size: Sequence[int], spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """:func:`roi_align` (aligned) for rotated regions, whose bins are turned with them.

    Args:
        input: (N, C, H, W).
        rois: (R, 6), each the index of its image, center x y, width, height in pixels, and the angle in degrees,
            counter-clockwise.
        output_size: (h, w).
        spatial_scale: cells per pixel.
        sampling_ratio: samples per bin and axis; 0 takes ``ceil(region size / bins)``.

    Returns:
        (R, C, h, w).
    """
    _check("input", input, ("N", "C", "H", "W"))
    _check("rois", rois, ("R", 6), near=input)
    _check_cells("input", input, input.shape[0], *input.shape[2:], readers=rois)
    _check_output_size(output_size)
    return torch.ops.detlab.roi_align_rotated(input, rois, list(output_size), spatial_scale, sampling_ratio)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Goes through boxes (B, 4) xyxy by decreasing score (B,) and drops those that overlap a kept one by more.

    Returns:
        The indices kept, int64, by decreasing score; of equal scores the first comes first.
    """
    _check_candidates(boxes, scores, None, 4)
    return torch.ops.detlab.nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` where boxes leave those with another value in ``idxs`` (B,) int64 alone."""
    _check_candidates(boxes, scores, idxs, 4)
    return torch.ops.detlab.nms(boxes, scores, idxs, iou_threshold)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` for rotated boxes (B, 5): center x y, width, height, angle in degrees, counter-clockwise."""
    _check_candidates(boxes, scores, None, 5)
    return torch.ops.detlab.nms_rotated(boxes, scores, None, iou_threshold)


def batched_nms_rotated(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms_rotated` where boxes leave those with another value in ``idxs`` (B,) int64 alone."""
    _check_candidates(boxes, scores, idxs, 5)
    return torch.ops.detlab.nms_rotated(boxes, scores, idxs, iou_threshold)


def nms_fixed(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """:func:`batched_nms` for a batch, with a result of known size and without waiting for the device.

    Args:
        boxes: (N, B, 4) xyxy; or (N, B, 5) rotated boxes as for :func:`nms_rotated`.
        scores: (N, B); -inf or NaN marks padding, which is never kept and suppresses nothing.
        classes: (N, B) int64.
        iou_threshold: a box that overlaps a better one of its class by more than this goes.
        max_output: P, the number of boxes to keep at most.

    Returns:
        Indices (N, P) int64 into B by decreasing score, 0 past the count; and the counts (N,) int64.
    """
    _check_box_batch("boxes", boxes, ("N", "B"))
    _check("scores", scores, boxes.shape[:2], near=boxes)
    _check_integers("classes", classes, boxes.shape[:2], near=boxes)
    if max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")
    return torch.ops.detlab.nms_fixed(boxes, scores, classes, iou_threshold, max_output)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Exact IoU of every pair of rotated boxes: (N, 5) and (M, 5) as for :func:`nms_rotated` -> (N, M)."""
    _check("boxes1", boxes1, ("N", 5))
    _check("boxes2", boxes2, ("M", 5), like=boxes1)
    return torch.ops.detlab.box_iou_rotated(boxes1, boxes2)


def paste_masks(masks: Tensor, boxes: Tensor, image_size: Sequence[int], threshold: float) -> Tensor:
    """Stretches masks over their boxes, bilinearly, in images that are empty elsewhere.

    Args:
        masks: (N, M, M) in [0, 1].
        boxes: (N, 4) xyxy in pixels; the center of the first pixel is at (0.5, 0.5). A box without area gets nothing.
        image_size: (height, width).
        threshold: pixels at or above it are set; a negative one asks for the soft values.

    Returns:
        (N, height, width): bool, or uint8 in 0..255 for a negative threshold.
    """
    _check("masks", masks, ("N", "M", "M"))
    _check("boxes", boxes, (masks.shape[0], 4), near=masks)
    _check_cells("masks", masks, *masks.shape[1:], readers=masks)
    height, width = image_size
    if height < 0 or width < 0:
        raise ValueError(f"image_size must be a height and width that are not negative, got {tuple(image_size)}")
    return torch.ops.detlab.paste_masks(masks, boxes, height, width, threshold)


class BoxMatches(NamedTuple):
    """What B boxes and G objects of each of N images are to each other. Objects that are not valid take no part."""

    overlaps: Tensor  # (N, B) float32 (float64 for such boxes): IoU of the box with its best object, 0 without objects
    objects: Tensor  # (N, B) int64: that object, the first of equals; 0 in an image without objects
    object_overlaps: Tensor  # (N, G): the largest IoU of the object with a box; 0 where it is not valid
    is_best: Tensor  # (N, B) bool: with some object the box has the largest IoU that this has with any, and above 0


def match_boxes(objects: Tensor, object_valid: Tensor, boxes: Tensor) -> BoxMatches:
    """Finds each box's best object and each object's best overlap, never holding the overlaps of all pairs.

    Args:
        objects: (N, G, 4) xyxy; or (N, G, 5) rotated boxes as for :func:`nms_rotated`.
        object_valid: (N, G) bool: which of them exist, the others being padding.
        boxes: (N, B, 4), or (1, B, 4) for all images the same; 5 numbers if the objects have 5; of their type.

    Returns:
        The overlaps are those of ``box_iou`` in ``box_overlap.py`` (of :func:`box_iou_rotated` for rotated boxes) bit
        for bit, also where they are compared. A box that is not finite overlaps nothing.
    """
    _check_box_batch("objects", objects, ("N", "G"))
    _check_shape("object_valid", object_valid, objects.shape[:2])
    _check("boxes", boxes, ("N or 1", "B", objects.shape[2]), like=objects)
    if object_valid.dtype != torch.bool:
        raise TypeError(f"'object_valid' must hold bool, got {object_valid.dtype}; convert it with .bool()")
    if object_valid.device != objects.device:
        raise ValueError(
            f"'object_valid' is on {object_valid.device}, the other tensors on {objects.device}; move them together"
        )
    if boxes.shape[0] not in (1, objects.shape[0]):
        raise ValueError(
            f"'boxes' are of {boxes.shape[0]} images but 'objects' of {objects.shape[0]}; give one set of boxes for "
            "each image, or one for all"
        )
    return BoxMatches(*torch.ops.detlab.match_boxes(objects, object_valid, boxes))


def mask_targets_from_polygons(
    coords: Tensor, polygon_offsets: Tensor, object_offsets: Tensor, rows: Tensor, boxes: Tensor, size: int
) -> Tensor:
    """Draws the part of an object that lies in a box, stretched to a square, as the COCO tools fill polygons.

    Args:
        coords: (V, 2) x y in pixels, the corners of all polygons, one after the other; computed with as float64.
        polygon_offsets: (P + 1,) int64, where each polygon's corners begin, and at last V.
        object_offsets: (O + 1,) int64, where each object's polygons begin, and at last P. An object is their union.
        rows: (R,) int64, the object of each box; a row outside of [0, O), such as -1, gives an empty mask.
        boxes: (R, 4) xyxy in pixels. A side below 0.1 pixels counts as so long; a box that is not finite gives an empty
            mask.
        size: M, in 1..16384.

    Returns:
        (R, M, M) bool. A polygon with a corner that is not finite, or that the stretch takes beyond 1e15, is left out.
    """
    _check("coords", coords, ("V", 2))
    for name, offsets in (("polygon_offsets", polygon_offsets), ("object_offsets", object_offsets)):
        _check_integers(name, offsets, ("entries",), near=coords)
        if offsets.shape[0] == 0:
            raise ValueError(f"'{name}' must have one entry more than it has parts, got none; begin with a 0")
    _check_targets(coords, rows, boxes, size)
    return torch.ops.detlab.mask_targets_from_polygons(coords, polygon_offsets, object_offsets, rows, boxes, size)


def mask_targets_from_bitmaps(bitmaps: Tensor, rows: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The part of a bitmap that lies in a box, pooled to a square by :func:`roi_align` and cut at one half.

    Args:
        bitmaps: (O, H, W) bool or uint8; what is not 0 is inside. No copy is made for a box.
        rows: (R,) int64, the bitmap of each box; a row outside of [0, O), such as -1, gives an empty mask.
        boxes: (R, 4) xyxy in pixels; one that is not finite gives an empty mask.
        size: M, in 1..16384.

    Returns:
        (R, M, M) bool.
    """
    _check_shape("bitmaps", bitmaps, ("O", "H", "W"))
    if bitmaps.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"'bitmaps' must hold bool or uint8, got {bitmaps.dtype}; convert them with .bool()")
    _check_targets(bitmaps, rows, boxes, size)
    if bitmaps.shape[0] > 0:
        _check_cells("bitmaps", bitmaps, *bitmaps.shape[1:], readers=rows)
    return torch.ops.detlab.mask_targets_from_bitmaps(bitmaps, rows, boxes, size)


def backend() -> str:
    """What serves tensors on the CPU: "compiled" or "torchvision"."""
    return "compiled" if _ops_library.serves("cpu") else "torchvision"


def report() -> str:
    """One sentence on which operators are in use, from where, and why."""
    return _ops_library.load().explanation


def _check(name: str, tensor: Tensor, shape: Sequence, near: Tensor | None = None, like: Tensor | None = None) -> None:
    """``shape`` holds a number where the size is known; the tensor must be on the device of ``near`` or ``like``."""
    _check_shape(name, tensor, shape)
    if not tensor.is_floating_point():
        raise TypeError(f"'{name}' must hold floating-point numbers, got {tensor.dtype}; convert it with .float()")
    other = near if near is not None else like
    if other is not None and tensor.device != other.device:
        raise ValueError(f"'{name}' is on {tensor.device}, the other tensors on {other.device}; move them together")
    if like is not None and tensor.dtype != like.dtype:
        raise TypeError(f"'{name}' mixes {tensor.dtype} and {like.dtype}; convert to one type")


def _check_shape(name: str, tensor: Tensor, shape: Sequence) -> None:
    fits = tensor.dim() == len(shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, tensor.shape)
    )
    if not fits:
        wanted_text = ", ".join(str(size) for size in shape)
        raise ValueError(f"'{name}' must have the shape ({wanted_text}), got {tuple(tensor.shape)}")


def _check_integers(name: str, tensor: Tensor, shape: Sequence, near: Tensor) -> None:
    _check_shape(name, tensor, shape)
    if tensor.dtype != torch.int64:
        raise TypeError(f"'{name}' must hold int64, got {tensor.dtype}; convert it with .long()")
    if tensor.device != near.device:
        raise ValueError(f"'{name}' is on {tensor.device}, the other tensors on {near.device}; move them together")


def _check_box_batch(name: str, boxes: Tensor, shape: Sequence) -> None:
    if boxes.dim() != 3 or boxes.shape[2] not in (4, 5):
        text = ", ".join(shape)
        raise ValueError(
            f"'{name}' must have the shape ({text}, 4), or ({text}, 5) if rotated, got {tuple(boxes.shape)}"
        )
    _check(name, boxes, (*shape, boxes.shape[2]))


def _check_candidates(boxes: Tensor, scores: Tensor, classes: Tensor | None, box_size: int) -> None:
    _check("boxes", boxes, ("B", box_size))
    _check("scores", scores, boxes.shape[:1], near=boxes)
    if classes is not None:
        _check_integers("idxs", classes, boxes.shape[:1], near=boxes)


def _check_cells(name: str, tensor: Tensor, *sizes: int, readers: Tensor) -> None:
    # The number of readers comes last: it may be unknown while a model is compiled.
    if any(size == 0 for size in sizes) and readers.shape[0] > 0:
        raise ValueError(
            f"'{name}' has no cells to read for {readers.shape[0]} entries, its shape is {tuple(tensor.shape)}"
        )


def _check_targets(masks: Tensor, rows: Tensor, boxes: Tensor, size: int) -> None:
    _check("boxes", boxes, ("R", 4), near=masks)
    _check_integers("rows", rows, boxes.shape[:1], near=masks)
    if not 1 <= size <= LARGEST_TARGET:
        raise ValueError(f"the size of a mask must be in 1..{LARGEST_TARGET}, got {size}")


def _check_output_size(output_size: Sequence[int]) -> None:
    if len(output_size) != 2 or min(output_size) < 1:
        raise ValueError(f"output_size must be a positive height and width, got {tuple(output_size)}")


def _fake_roi_align_levels(features, rois, levels, output_size, scales, sampling_ratio, aligned):
    return _ops_plain.new_pooled(features[0], rois.shape[0], output_size)


def _fake_roi_align_levels_backward(
    grad, features, rois, levels, output_size, scales, sampling_ratio, aligned, deterministic
):
    return [torch.empty_like(feature) for feature in features]


def _fake_roi_align_rotated(input, rois, output_size, spatial_scale, sampling_ratio):
    return _ops_plain.new_pooled(input, rois.shape[0], output_size)


def _fake_roi_align_rotated_backward(grad, input, rois, output_size, spatial_scale, sampling_ratio, deterministic):
    return torch.empty_like(input)


def _fake_nms(boxes, scores, classes, iou_threshold):
    num_kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((num_kept,), dtype=torch.int64)


def _fake_nms_fixed(boxes, scores, classes, iou_threshold, max_output):
    indices = boxes.new_empty((boxes.shape[0], max_output), dtype=torch.int64)
    return indices, boxes.new_empty((boxes.shape[0],), dtype=torch.int64)


def _fake_box_iou_rotated(boxes1, boxes2):
    wide = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]), dtype=wide)


def _fake_paste_masks(masks, boxes, height, width, threshold):
    return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool if threshold >= 0 else torch.uint8)


def _fake_match_boxes(objects, object_valid, boxes):
    wide = torch.float64 if objects.dtype == torch.float64 else torch.float32
    shape = (objects.shape[0], boxes.shape[1])
    return (
        objects.new_empty(shape, dtype=wide),
        objects.new_empty(shape, dtype=torch.int64),
        objects.new_empty(objects.shape[:2], dtype=wide),
        objects.new_empty(shape, dtype=torch.bool),
    )


def _fake_mask_targets_from_polygons(coords, polygon_offsets, object_offsets, rows, boxes, size):
    return boxes.new_empty((rows.shape[0], size, size), dtype=torch.bool)


def _fake_mask_targets_from_bitmaps(bitmaps, rows, boxes, size):
    return boxes.new_empty((rows.shape[0], size, size), dtype=torch.bool)


FAKE_KERNELS: dict[str, Callable] = {
    "roi_align_levels": _fake_roi_align_levels,
    "roi_align_levels_backward": _fake_roi_align_levels_backward,
    "roi_align_rotated": _fake_roi_align_rotated,
    "roi_align_rotated_backward": _fake_roi_align_rotated_backward,
    "nms": _fake_nms,
    "nms_rotated": _fake_nms,
    "nms_fixed": _fake_nms_fixed,
    "box_iou_rotated": _fake_box_iou_rotated,
    "paste_masks": _fake_paste_masks,
    "match_boxes": _fake_match_boxes,
    "mask_targets_from_polygons": _fake_mask_targets_from_polygons,
    "mask_targets_from_bitmaps": _fake_mask_targets_from_bitmaps,
}


def _save_levels(ctx, inputs, output) -> None:
    features, rois, levels, *ctx.settings = inputs
    ctx.save_for_backward(rois, levels, *features)


def _grad_of_levels(ctx, grad):
    rois, levels, *features = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = torch.ops.detlab.roi_align_levels_backward(grad, features, rois, levels, *ctx.settings, deterministic)
    return grads, None, None, None, None, None, None


def _save_levels_backward(ctx, inputs, output) -> None:
    _, _, rois, levels, *ctx.settings, _ = inputs
    ctx.save_for_backward(rois, levels)


def _grad_of_levels_backward(ctx, grads):
    """The backward is linear in the gradient that it spreads; what comes back to it is pooled."""
    pooled = torch.ops.detlab.roi_align_levels(grads, *ctx.saved_tensors, *ctx.settings)
    return pooled, [None] * len(grads), *[None] * 7


def _save_rotated(ctx, inputs, output) -> None:
    input, rois, *ctx.settings = inputs
    ctx.save_for_backward(input, rois)


def _grad_of_rotated(ctx, grad):
    input, rois = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    result = torch.ops.detlab.roi_align_rotated_backward(grad, input, rois, *ctx.settings, deterministic)
    return result, None, None, None, None


def _save_rotated_backward(ctx, inputs, output) -> None:
    _, _, rois, *ctx.settings, _ = inputs
    ctx.save_for_backward(rois)


def _grad_of_rotated_backward(ctx, grad):
    pooled = torch.ops.detlab.roi_align_rotated(grad, *ctx.saved_tensors, *ctx.settings)
    return pooled, *[None] * 6


def _plain_kernel(name: str) -> Callable:
    """The plain kernel, which first looks for the library: the operator's first use on a device comes by here."""
    plain = getattr(_ops_plain, name)

    @functools.wraps(plain)
    def kernel(*args):
        first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        if _ops_library.serves(first.device.type):
            return getattr(torch.ops.detlab, name)(*args)
        return plain(*args)

    return kernel


def _register() -> torch.library.Library:
    library = torch.library.Library("detlab", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, _plain_kernel(name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"detlab::{name}", FAKE_KERNELS[name], lib=library)
    for name, backward, setup in (
        ("roi_align_levels", _grad_of_levels, _save_levels),
        ("roi_align_levels_backward", _grad_of_levels_backward, _save_levels_backward),
        ("roi_align_rotated", _grad_of_rotated, _save_rotated),
        ("roi_align_rotated_backward", _grad_of_rotated_backward, _save_rotated_backward),
    ):
        torch.library.register_autograd(f"detlab::{name}", backward, setup_context=setup, lib=library)
    return library


# Kept alive: the registrations end with this object.
_LIBRARY = _register()
