"""Keypoints of objects, and the heat maps that a network predicts instead of them.

Shapes: N objects, R regions, K keypoints, S x S a heat map over a region. Points are continuous: the cell i of a map
covers [i, i + 1), its center is i + 0.5 (Heckbert 1990, "What are the coordinates of a pixel?").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["HeatmapTargets", "Keypoints", "heatmaps_to_keypoints", "keypoints_to_heatmap"]


class HeatmapTargets(NamedTuple):
    """Where a keypoint head should fire."""

    cell: Tensor  # (N, K) int64: row * S + column of the cell, 0 where not valid
    valid: Tensor  # (N, K) bool: labelled, and inside the region


class Keypoints:
    """The keypoints of N objects. Iterates over (K, 3) tensors.

    Attributes:
        tensor: (N, K, 3) float32: x, y in pixels, visibility (0 not labelled, 1 labelled but hidden, 2 visible).

    Args:
        keypoints: (N, K, 3), a tensor, array or nested list.

    Raises:
        ValueError: for another shape.
    """

    def __init__(self, keypoints: Tensor | np.ndarray | list[list[float]]) -> None:
        values = keypoints if isinstance(keypoints, Tensor) else torch.as_tensor(np.asarray(keypoints))
        if values.dim() != 3 or values.shape[2] != 3:
            raise ValueError(f"Keypoints need a tensor (N, K, 3): x, y, visibility; got {tuple(values.shape)}")
        self.tensor = values.to(torch.float32)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        """The keypoints on another device."""
        return Keypoints(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the keypoints are."""
        return self.tensor.device

    def to_heatmap(self, boxes: Tensor, heatmap_size: int) -> HeatmapTargets:
        """The cell of a heat map over each object's box in which each keypoint falls.

        Args:
            boxes: (N, 4) xyxy in pixels.
            heatmap_size: S.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(self)} objects with keypoints but {len(boxes)} boxes; give one box for each")
        return keypoints_to_heatmap(self.tensor, boxes, heatmap_size)

    def __getitem__(self, item: int | slice | Tensor) -> Keypoints:
        """The keypoints of some of the objects; an int gives a set of one."""
        chosen = self.tensor[item]
        return Keypoints(chosen.unsqueeze(0) if isinstance(item, int) else chosen)

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)}, num_keypoints={self.tensor.shape[1]})"

    @staticmethod
    def cat(keypoints_list: Sequence[Keypoints]) -> Keypoints:
        """The keypoints of a list of sets, in order.

        Raises:
            ValueError: for an empty list: the number of keypoints is not known.
        """
        if not keypoints_list:
            raise ValueError("cat takes a list of at least one Keypoints; with none, their number K is not known")
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list], dim=0))


def keypoints_to_heatmap(keypoints: Tensor, rois: Tensor, heatmap_size: int) -> HeatmapTargets:
    """The cell of each keypoint in a map over its region.

    A point on the right or bottom border belongs to the last column or row.

    Args:
        keypoints: (N, K, 3) x, y, visibility.
        rois: (N, 4) xyxy.
        heatmap_size: S.
    """
    low, high = rois[:, None, :2], rois[:, None, 2:]
    points = keypoints[..., :2]
    cells = ((points - low) * (heatmap_size / (high - low))).floor()
    cells = torch.where(points == high, heatmap_size - 1, cells)
    # Compared as floats: a region of no size gives NaN and infinity, which no integer can hold.
    inside = ((cells >= 0) & (cells < heatmap_size)).all(dim=-1)
    valid = inside & (keypoints[..., 2] > 0)
    column, row = torch.where(valid[..., None], cells, 0.0).to(torch.int64).unbind(-1)
    return HeatmapTargets(row * heatmap_size + column, valid)


# Upper bounds on the floats of enlarged heat maps at one time: what fits a CPU's cache, and 128 MiB elsewhere.
_ENLARGED_VALUES_ON_CPU = 1 << 18
_ENLARGED_VALUES_ELSEWHERE = 1 << 25


@torch.no_grad()
def heatmaps_to_keypoints(maps: Tensor, rois: Tensor) -> Tensor:
    """Reads keypoints off predicted heat maps.

    Each map is enlarged (bicubic) to its region's size, rounded up to whole pixels; the keypoint is the center of
    the highest pixel.

    Args:
        maps: (R, K, S, S) logits.
        rois: (R, 4) xyxy in pixels.

    Returns:
        (R, K, 4): x, y in pixels, logit at that place, and its probability under a softmax over the map of S x S
        cells (so that small and large regions compare).
    """
    num_rois, num_keypoints = maps.shape[:2]
    maps = maps.float()
    sizes = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    grid_sizes = sizes.ceil()
    found = maps.new_empty(num_rois, num_keypoints, 3)
    max_values = _ENLARGED_VALUES_ON_CPU if maps.device.type == "cpu" else _ENLARGED_VALUES_ELSEWHERE
    for chunk in _chunks_of_like_size(grid_sizes, max_values // max(num_keypoints, 1)):
        width, height = (int(side) for side in grid_sizes[chunk].amax(dim=0))
        found[chunk] = _peaks(maps[chunk], grid_sizes[chunk], (height, width))
    pixels, logits = found[..., :2], found[..., 2:]
    points = (pixels + 0.5) * (sizes / grid_sizes)[:, None] + rois[:, None, :2]
    scores = 1 / (maps - logits[..., None]).exp().sum(dim=(2, 3))
    return torch.cat([points, logits, scores[..., None]], dim=2)


def _chunks_of_like_size(grid_sizes: Tensor, max_pixels: int) -> Iterator[Tensor]:
    """Splits (R, 2) widths and heights into sets of indices, each within ``max_pixels`` when padded to its largest."""
    order = grid_sizes.prod(dim=1).argsort()
    sizes = grid_sizes[order].tolist()
    start = 0
    width = height = 0.0
    for position, (w, h) in enumerate(sizes):
        width, height = max(width, w), max(height, h)
        if (position + 1 - start) * width * height > max_pixels and position > start:
            yield order[start:position]
            start, width, height = position, w, h
    if start < len(sizes):
        yield order[start:]


def _peaks(maps: Tensor, grid_sizes: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """The highest pixel of each enlarged map.

    Args:
        maps: (R, K, S, S).
        grid_sizes: (R, 2), width and height in whole pixels to which the maps are enlarged.
        padded_size: (height, width), at least as large as every grid.

    Returns:
        (R, K, 3): column, row, value.
    """
    height, width = padded_size
    map_size = maps.shape[-1]
    rows = _bicubic_matrix(grid_sizes[:, 1], height, map_size)
    columns = _bicubic_matrix(grid_sizes[:, 0], width, map_size)
    bordered = F.pad(maps, (2, 2, 2, 2), mode="replicate")
    enlarged = rows[:, None] @ bordered @ columns[:, None].transpose(-1, -2)  # (R, K, height, width)
    value, position = enlarged.flatten(2).max(dim=2)
    # Beyond a map's own size its last row and column go on, so a peak found there is a peak on the border.
    pixel = torch.stack([position % width, position // width], dim=2).to(value.dtype)
    return torch.cat([torch.minimum(pixel, grid_sizes[:, None] - 1), value[..., None]], dim=2)


def _bicubic_matrix(lengths: Tensor, padded_length: int, source_length: int) -> Tensor:
    """Matrices that resample a vector to a length of its own each.

    Args:
        lengths: (R,) wanted lengths.
        padded_length: L, rows of the matrices; those past a length repeat its last one.
        source_length: S of the vector, which has its end values repeated twice on each side.

    Returns:
        (R, L, S + 4).
    """
    target = torch.arange(padded_length, device=lengths.device, dtype=lengths.dtype)
    target = torch.minimum(target, lengths[:, None] - 1)
    source = (source_length / lengths)[:, None] * (target + 0.5) - 0.5
    taps = torch.arange(-2, source_length + 2, device=lengths.device, dtype=lengths.dtype)
    return _cubic_kernel(source[:, :, None] - taps)


def _cubic_kernel(distance: Tensor, a: float = -0.75) -> Tensor:
    """Weight of a sample at a distance in cells (Keys 1981), with the free parameter that torch's bicubic has."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
