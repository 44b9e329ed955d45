"""What the operators must compute, slowly and in float64, straight from the definitions.

Shapes: N images, C channels, H x W cells, R regions, B boxes, h x w bins of a region, M x M cells of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from detlab.utils._polygon_fill import runs_of_polygons


def roi_align_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Differentiable with respect to the features. Regions that are not finite give NaN, unknown levels 0 to others."""
    pooled = []
    for r, (image, *corners) in enumerate(rois.double().tolist()):
        level = 0 if levels is None else int(levels[r])
        if all(map(math.isfinite, corners)) and not 0 <= level < len(features):
            pooled.append(features[0].new_zeros((features[0].shape[1], *output_size), dtype=torch.float64))
            continue
        feature = features[level].double()[int(image)]
        rows, columns = (
            axis_weights(
                corners[axis], corners[axis + 2], scales[level], bins, feature.shape[-1 - axis], sampling_ratio, aligned
            )
            for axis, bins in ((1, output_size[0]), (0, output_size[1]))
        )
        pooled.append(rows @ (feature @ columns.T))
    return stacked(pooled, features[0], output_size)


def stacked(pooled: list[Tensor], feature: Tensor, output_size: Sequence[int]) -> Tensor:
    return torch.stack(pooled) if pooled else feature.new_zeros((0, feature.shape[1], *output_size)).double()


def axis_weights(
    low: float, high: float, scale: float, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Share of each cell of an axis in the average of each bin's samples, (bins, size)."""
    if not math.isfinite(low) or not math.isfinite(high):
        return torch.full((bins, size), math.nan, dtype=torch.float64)
    start, length = low * scale - 0.5 * aligned, (high - low) * scale
    bin_size = (length if aligned else max(length, 1.0)) / bins
    grid = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_size), 0)
    weights = np.zeros((bins, size))
    for i in range(bins):
        positions = start + i * bin_size + (np.arange(grid) + 0.5) * bin_size / max(grid, 1)
        for cells, shares in neighbours(positions, size):
            np.add.at(weights[i], cells, shares / grid)
    return torch.from_numpy(weights)


def neighbours(positions: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The cells before and after each position, and their shares: none further than one cell off the map."""
    held = positions.clip(0, size - 1)
    before = np.floor(held).astype(np.int64)
    share = held - before
    on_map = (positions >= -1) & (positions <= size)
    return [(before, (1 - share) * on_map), (np.minimum(before + 1, size - 1), share * on_map)]


def roi_align_rotated(
    input: Tensor, rois: Tensor, output_size: Sequence[int], spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """Differentiable with respect to the input. Regions that are not finite give NaN."""
    pooled = []
    for image, *region in rois.double().tolist():
        feature = input.double()[int(image)]
        weights = turned_weights(region, feature.shape[1:], output_size, spatial_scale, sampling_ratio)
        pooled.append((feature.flatten(1) @ weights.T).unflatten(1, tuple(output_size)))
    return stacked(pooled, input, output_size)


def turned_weights(
    region: Sequence[float], map_size: Sequence[int], output_size: Sequence[int], scale: float, sampling_ratio: int
) -> Tensor:
    """Share of each cell in the average of each bin's samples, (h * w, H * W)."""
    height, width = map_size
    bins_h, bins_w = output_size
    if not all(map(math.isfinite, region)):
        return torch.full((bins_h * bins_w, height * width), math.nan, dtype=torch.float64)
    center_x, center_y, region_w, region_h = (value * scale for value in region[:4])
    cos, sin = math.cos(math.radians(region[4])), math.sin(math.radians(region[4]))
    grid_h = sampling_ratio if sampling_ratio > 0 else max(math.ceil(region_h / bins_h), 0)
    grid_w = sampling_ratio if sampling_ratio > 0 else max(math.ceil(region_w / bins_w), 0)
    weights = np.zeros((bins_h * bins_w, height * width))
    for i in range(bins_h):
        for j in range(bins_w):
            across = (i + (np.arange(grid_h)[:, None] + 0.5) / max(grid_h, 1)) * region_h / bins_h - region_h / 2
            along = (j + (np.arange(grid_w)[None, :] + 0.5) / max(grid_w, 1)) * region_w / bins_w - region_w / 2
            # The y axis points down, so a counter-clockwise turn takes (1, 0) to (cos, -sin).
            x = center_x - 0.5 + along * cos + across * sin
            y = center_y - 0.5 - along * sin + across * cos
            for rows, row_shares in neighbours(y, height):
                for columns, column_shares in neighbours(x, width):
                    share = row_shares * column_shares / (grid_h * grid_w)
                    np.add.at(weights[i * bins_w + j], rows * width + columns, share)
    return torch.from_numpy(weights)


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> list[int]:
    """The greedy loop, in the precision of the boxes."""
    numbers = boxes.numpy()
    return suppress(lambda i: box_iou(numbers[i], numbers), scores, classes, iou_threshold)


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(4,) xyxy with (B, 4) -> (B,)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def nms_rotated(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> list[int]:
    ious = box_iou_rotated(boxes, boxes).numpy()
    return suppress(lambda i: ious[i], scores, classes, iou_threshold)


def suppress(iou_with_all, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> list[int]:
    """Indices kept; NaN scores come last, equal ones in their order."""
    order = scores.double().masked_fill(scores.isnan(), -math.inf).argsort(descending=True, stable=True)
    values = torch.zeros_like(order) if classes is None else classes
    is_alive = np.ones(len(scores), dtype=bool)
    kept = []
    for i in order.tolist():
        if not is_alive[i]:
            continue
        kept.append(i)
        is_rival = (values == values[i]).numpy()
        is_alive &= ~((iou_with_all(i).astype(np.float64) > iou_threshold) & is_rival)
    return kept


def nms_fixed(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Image by image: drops the padding, suppresses, cuts."""
    indices = torch.zeros((len(boxes), max_output), dtype=torch.int64)
    counts = torch.zeros(len(boxes), dtype=torch.int64)
    for image in range(len(boxes)):
        real = [i for i, score in enumerate(scores[image].tolist()) if score > -math.inf]
        suppress_image = nms_rotated if boxes.shape[2] == 5 else nms
        kept = suppress_image(boxes[image, real], scores[image, real], classes[image, real], iou_threshold)[:max_output]
        indices[image, : len(kept)] = torch.tensor([real[i] for i in kept], dtype=torch.int64)
        counts[image] = len(kept)
    return indices, counts


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """By cutting polygons, (N, 5) and (M, 5) -> (N, M); 0 for boxes that are not finite."""
    ious = torch.zeros((len(boxes1), len(boxes2)), dtype=torch.float64)
    finite1, finite2 = [
        [(i, box) for i, box in enumerate(boxes.double().tolist()) if all(map(math.isfinite, box))]
        for boxes in (boxes1, boxes2)
    ]
    for i, first in finite1:
        for j, second in finite2:
            ious[i, j] = rotated_iou(first, second)
    return ious


def rotated_iou(first: Sequence[float], second: Sequence[float]) -> float:
    reach = math.hypot(*first[2:4]) + math.hypot(*second[2:4])
    if math.dist(first[:2], second[:2]) > reach:
        return 0.0
    # Around the first box's center, so that distant ones lose no digits.
    polygons = [rotated_corners([box[0] - first[0], box[1] - first[1], *box[2:]]) for box in (first, second)]
    shared = polygon_area(clipped_polygon(*polygons))
    union = sum(map(polygon_area, polygons)) - shared
    return shared / union if union > 0 else 0.0


def rotated_corners(box: Sequence[float]) -> list[tuple[float, float]]:
    x, y, width, height, angle = box
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    offsets = [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, height / 2), (-width / 2, height / 2)]
    return [(x + dx * cos + dy * sin, y - dx * sin + dy * cos) for dx, dy in offsets]


def clipped_polygon(polygon: list, window: list) -> list:
    """The part of a convex polygon inside another (Sutherland and Hodgman, 1974); both turn the same way."""
    for (x0, y0), (x1, y1) in zip(window, window[1:] + window[:1]):
        sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in polygon]
        inside = []
        for k, point in enumerate(polygon):
            if sides[k - 1] * sides[k] < 0:
                share = sides[k - 1] / (sides[k - 1] - sides[k])
                inside.append(tuple(a + (b - a) * share for a, b in zip(polygon[k - 1], point)))
            if sides[k] >= 0:
                inside.append(point)
        polygon = inside
    return polygon


def polygon_area(polygon: list) -> float:
    """Of a convex polygon; from its own first corner, so that a distant one loses no digits."""
    x0, y0 = polygon[0] if polygon else (0.0, 0.0)
    rays = [(x - x0, y - y0) for x, y in polygon]
    return abs(sum(ax * by - ay * bx for (ax, ay), (bx, by) in pairwise(rays))) / 2


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """The soft values in [0, 1], (N, height, width); 0 outside a box, and everywhere for one without area."""
    canvas = torch.zeros((len(masks), height, width), dtype=torch.float64)
    for mask, (x0, y0, x1, y1), image in zip(masks.double(), boxes.double().tolist(), canvas):
        if x1 > x0 and y1 > y0 and all(map(math.isfinite, (x0, y0, x1, y1))):
            rows, columns = (
                stretch_weights(y0, y1, mask.shape[0], height),
                stretch_weights(x0, x1, mask.shape[1], width),
            )
            image.copy_(rows @ mask @ columns.T)
    return canvas


def stretch_weights(low: float, high: float, cells: int, size: int) -> Tensor:
    """Share of each cell of a mask in each pixel, (size, cells), where cells outside the mask are 0."""
    weights = torch.zeros((size, cells), dtype=torch.float64)
    for pixel in range(size):
        position = (pixel + 0.5 - low) / (high - low) * cells - 0.5
        before = math.floor(position)
        for cell, share in ((before, 1 - (position - before)), (before + 1, position - before)):
            if 0 <= cell < cells:
                weights[pixel, cell] = share
    return weights


def match_boxes(objects: Tensor, object_valid: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the table of all overlaps, in the precision of the boxes; of rotated ones in float64."""
    results = []
    for image, (own, valid) in enumerate(zip(objects, object_valid)):
        candidates = boxes[image if len(boxes) > 1 else 0]
        if own.shape[1] == 5:
            table = box_iou_rotated(own, candidates).numpy()
        else:
            table = np.array([box_iou(box, candidates.numpy()) for box in own.numpy()]).reshape(len(own), -1)
        results.append(matches_of_table(table, valid.numpy()))
    return tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*results))


def matches_of_table(table: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """(G, B) overlaps, where what is no number counts as 0, and (G,) which objects there are."""
    table = np.where(np.isfinite(table), table, 0)
    num_objects, num_boxes = table.shape
    overlaps, rows = np.zeros(num_boxes, table.dtype), np.zeros(num_boxes, np.int64)
    object_overlaps, is_best = np.zeros(num_objects, table.dtype), np.zeros(num_boxes, bool)
    for row in np.flatnonzero(valid)[::-1]:
        takes = table[row] >= overlaps  # from the last on, so that the first of equals stays
        overlaps[takes], rows[takes] = table[row, takes], row
    for row in np.flatnonzero(valid):
        object_overlaps[row] = table[row].max(initial=0)
        is_best |= (table[row] == object_overlaps[row]) & (object_overlaps[row] > 0)
    return overlaps, rows, object_overlaps, is_best


def mask_targets_from_polygons(
    coords: Tensor, polygon_offsets: Tensor, object_offsets: Tensor, rows: Tensor, boxes: Tensor, size: int
) -> Tensor:
    """One polygon after the other: moved, stretched, filled edge by edge."""
    targets = np.zeros((len(rows), size, size), dtype=bool)
    points, corners = coords.double().numpy(), boxes.numpy()
    for target, row, box in zip(targets, rows.tolist(), corners):
        if not 0 <= row < len(object_offsets) - 1:
            continue
        stretch = np.asarray(size, box.dtype) / np.maximum(box[2:] - box[:2], np.asarray(0.1, box.dtype))
        for polygon in range(object_offsets[row], object_offsets[row + 1]):
            own = points[polygon_offsets[polygon] : polygon_offsets[polygon + 1]]
            runs = runs_of_polygons([((own - box[:2]) * stretch).reshape(-1)], size, size)
            inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            target |= inside.reshape(size, size).T
    return torch.from_numpy(targets)


def mask_averages_from_bitmaps(bitmaps: Tensor, rows: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The values that are cut at one half, (R, M, M); 0 where there is no object."""
    is_object = (rows >= 0) & (rows < len(bitmaps))
    rois = torch.cat([torch.where(is_object, rows, 0)[:, None], boxes.double()], dim=1)
    pooled = roi_align_levels([(bitmaps[:, None] != 0).double()], rois, None, (size, size), (1.0,), 0, True)
    return torch.where(is_object[:, None, None], pooled[:, 0].nan_to_num(0), 0.0)
