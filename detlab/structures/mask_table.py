"""The masks of all objects of a batch in one place, from which each region cuts its own.

Shapes: N images, R regions, M x M a mask's resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from detlab.layers._ops import mask_targets_from_bitmaps
from detlab.structures.masks import BitMasks, PolygonMasks
from detlab.structures.packed_polygons import PackedPolygons

__all__ = ["MaskTable"]


class _Croppable(Protocol):
    def crop_and_resize(self, rows: Tensor, boxes: Tensor, mask_size: int) -> Tensor: ...


class MaskTable:
    """Masks of the objects of N images, one image after another.

    A mask is large and many proposals belong to one object: a proposal knows its object's row here.

    Args:
        masks: of each image ``PolygonMasks`` or ``BitMasks``, or anything else that can be indexed and has their
            ``crop_and_resize(boxes, mask_size)``; for such a wait is needed.
        device: where regions will be.
    """

    def __init__(self, masks: Sequence[Any], device: torch.device) -> None:
        counts = [len(own) for own in masks]
        starts = torch.from_numpy(np.cumsum([0, *counts[:-1]]))
        self._starts = starts.to(device, non_blocking=True)  # (N,) int64, the row of each image's first object
        self._table: _Croppable
        if all(isinstance(own, PolygonMasks) for own in masks):
            packed = PackedPolygons.from_polygons(itertools.chain.from_iterable(masks))
            self._table = _pinned_for(packed, device).to(device, non_blocking=True)
        elif all(isinstance(own, BitMasks) for own in masks):
            self._table = _Bitmaps(masks, counts, device)
        else:
            self._table = _AnyMasks(masks, counts)

    def crop(self, images: Tensor, rows: Tensor, counts: Tensor, boxes: Tensor, mask_size: int) -> Tensor:
        """The part of each object's mask that lies in a box, stretched to a square.

        Args:
            images: (R,) int64, the image of each region.
            rows: (R,) int64, its object among those of the image.
            counts: (R,) bool; what is False gives an empty mask.
            boxes: (R, 4) xyxy in pixels.
            mask_size: M.

        Returns:
            (R, M, M) bool.
        """
        table_rows = torch.where(counts, self._starts[images] + rows, -1)
        return self._table.crop_and_resize(table_rows, boxes.detach().float(), mask_size)


def _pinned_for(holder: Any, device: torch.device) -> Any:
    """In memory from which a GPU copies while the host goes on, if that is where it goes."""
    goes_to_gpu = device.type == "cuda" and holder.device.type == "cpu" and torch.cuda.is_available()
    return holder.pin_memory() if goes_to_gpu else holder


class _Bitmaps:
    """Bitmaps of one size together, those of each size by themselves."""

    def __init__(self, masks: Sequence[BitMasks], counts: list[int], device: torch.device) -> None:
        first_rows = np.cumsum([0, *counts[:-1]]).tolist()
        one_size = len({own.image_size for own in masks}) == 1
        parts = (
            [(0, torch.cat([own.tensor for own in masks]))] if one_size else zip(first_rows, (m.tensor for m in masks))
        )
        self._parts = [
            (start, _pinned_for(bitmaps, device).to(device, non_blocking=True))
            for start, bitmaps in parts
            if len(bitmaps) > 0
        ]

    def crop_and_resize(self, rows: Tensor, boxes: Tensor, mask_size: int) -> Tensor:
        found = boxes.new_zeros((len(boxes), mask_size, mask_size), dtype=torch.bool)
        for start, bitmaps in self._parts:
            # A row outside of these bitmaps gives an empty mask.
            found = found | mask_targets_from_bitmaps(bitmaps, rows - start, boxes, mask_size)
        return found


class _AnyMasks:
    """Masks of a user's own kind."""

    def __init__(self, masks: Sequence[Any], counts: list[int]) -> None:
        self._masks = masks
        self._bounds = np.cumsum([0, *counts]).tolist()

    def crop_and_resize(self, rows: Tensor, boxes: Tensor, mask_size: int) -> Tensor:
        found = boxes.new_zeros((len(boxes), mask_size, mask_size), dtype=torch.bool)
        for own, (start, end) in zip(self._masks, itertools.pairwise(self._bounds)):
            chosen = ((rows >= start) & (rows < end)).nonzero().squeeze(1)
            if len(chosen) > 0:
                found[chosen] = own[rows[chosen] - start].crop_and_resize(boxes[chosen], mask_size).to(torch.bool)
        return found
