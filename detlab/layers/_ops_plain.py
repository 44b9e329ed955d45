"""The operators in plain PyTorch and torchvision: what runs where the compiled library has no kernel.

Each function takes exactly the arguments of the operator of its name in ``_ops.SCHEMAS``.

Shapes: N images, C channels, H x W cells, R regions, B boxes, h x w bins of a region, S samples of a bin,
M x M cells of a mask.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detlab.layers import _ops_library
from detlab.layers.box_overlap import box_iou
from detlab.utils.mask_codes import draw_polygons

# Pairs of boxes, and pixels of masks, handled at once: bounds the memory of the intermediates.
PAIRS_PER_CHUNK = 1 << 20
PIXELS_PER_CHUNK = 1 << 24
# What a polygon is stretched to may lie so far off, in pixels: up to there float64 counts fifths of a pixel.
FARTHEST_POINT = 1e15


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
    _check_images(rois, len(features[0]))
    shape = (len(rois), features[0].shape[1], *output_size)
    pooled = torch.zeros(shape, dtype=features[0].dtype, device=features[0].device)
    for level, (feature, scale) in enumerate(zip(features, scales)):
        rows = _rows_of_level(rois, levels, level)
        pooled[rows[~rois[rows].isfinite().all(dim=1)]] = math.nan
        rows = rows[_have_samples(rois[rows], sampling_ratio, aligned)]
        wide = feature.to(_wide(feature.dtype))
        pooled[rows] = kernel(wide, rois[rows].to(wide.dtype), scale, *output_size, sampling_ratio, aligned).to(
            feature.dtype
        )
    return pooled


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
    _check_images(rois, len(features[0]))
    wide = grad.to(_wide(grad.dtype)).contiguous()
    grads = []
    for level, (feature, scale) in enumerate(zip(features, scales)):
        rows = _rows_of_level(rois, levels, level)
        rows = rows[_have_samples(rois[rows], sampling_ratio, aligned)]
        chosen = rois[rows].to(wide.dtype)
        result = kernel(wide[rows], chosen, scale, *output_size, *feature.shape, sampling_ratio, aligned)
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


def _rows_of_level(rois: Tensor, levels: Tensor | None, level: int) -> Tensor:
    if levels is None:
        return torch.arange(len(rois), device=rois.device)
    return (levels == level).nonzero().squeeze(1)


def _check_images(rois: Tensor, num_images: int) -> None:
    exists = (rois[:, 0] >= 0) & (rois[:, 0] < num_images)
    if not exists.all():
        region = int((~exists).nonzero()[0])
        raise RuntimeError(f"region {region} names image {rois[region, 0]:g} of a batch of {num_images}")


def _have_samples(rois: Tensor, sampling_ratio: int, aligned: bool) -> Tensor:
    """Which regions torchvision can pool: it counts on finite ones, and on a number of samples above 0."""
    sizes = rois[:, 3:5] - rois[:, 1:3]
    has_samples = (sizes > 0).all(dim=1) if aligned and sampling_ratio <= 0 else True
    return rois.isfinite().all(dim=1) & has_samples


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    wide = _wide(boxes.dtype)
    return _suppress_by_class(boxes.to(wide), scores, classes, iou_threshold, _nms_of_one_class)


def nms_rotated(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    return _suppress_by_class(boxes, scores, classes, iou_threshold, _nms_rotated_of_one_class)


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
    overlaps = (box_iou_rotated(boxes, boxes) > iou_threshold).cpu().numpy()
    alive = torch.ones(len(boxes), dtype=torch.bool).numpy()
    for row, overlapped in enumerate(overlaps):
        if alive[row]:
            alive[row + 1 :] &= ~overlapped[row + 1 :]
    return torch.from_numpy(alive).nonzero().squeeze(1).to(boxes.device)


def nms_fixed(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
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
    _check_images(rois, len(input))
    wide = _wide(input.dtype)
    cells = input.to(wide).flatten(2).transpose(1, 2).flatten(0, 1)  # (N * H * W, C)
    pooled = torch.zeros((len(rois), input.shape[1], *output_size), dtype=input.dtype, device=input.device)
    pooled[~rois.isfinite().all(dim=1)] = math.nan
    if pooled.numel() == 0:
        return pooled
    for rows, samples, index, weight in _rotated_samples(
        rois.to(wide), input.shape, output_size, spatial_scale, sampling_ratio
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
    _check_images(rois, len(input))
    wide = _wide(input.dtype)
    n, channels, height, width = input.shape
    cells = torch.zeros((n * height * width, channels), dtype=wide, device=input.device)
    grad = grad.to(wide).flatten(2).transpose(1, 2)  # (R, h * w, C)
    for rows, samples, index, weight in _rotated_samples(
        rois.to(wide), input.shape, output_size, spatial_scale, sampling_ratio
    ):
        spread = grad[rows].repeat_interleave(samples, dim=1) * weight[..., None]
        cells.index_add_(0, index.flatten(), spread.flatten(0, 1))
    result = torch.empty_like(input)
    return result.copy_(cells.view(n, height, width, channels).permute(0, 3, 1, 2))


def _rotated_samples(rois: Tensor, input_shape, output_size: list[int], spatial_scale: float, sampling_ratio: int):
    """What each bin reads, for groups of regions with equally many samples.

    Yields:
        The group's regions (G,), the number of cells S a bin reads, the flat indices of the cells (G, h * w * S), and
        their weights, which sum to 1 in a bin that lies inside the map.
    """
    _, _, height, width = input_shape
    bins_h, bins_w = output_size
    is_finite = rois.isfinite().all(dim=1)
    geometry = torch.where(is_finite[:, None], rois[:, 1:5] * spatial_scale, 0.0)
    center_x, center_y = geometry[:, 0] - 0.5, geometry[:, 1] - 0.5
    turn = torch.deg2rad(rois[:, 5])
    if sampling_ratio > 0:
        grids = torch.full((len(rois), 2), sampling_ratio, device=rois.device)
    else:
        grids = torch.stack(((geometry[:, 3] / bins_h).ceil(), (geometry[:, 2] / bins_w).ceil()), dim=1).long()
    for grid_h, grid_w in torch.unique(grids, dim=0).tolist():
        if grid_h < 1 or grid_w < 1:
            continue
        rows = ((grids == grids.new_tensor([grid_h, grid_w])).all(dim=1) & is_finite).nonzero().squeeze(1)
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
