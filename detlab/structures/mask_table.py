"""The masks of all objects of a batch in one place, from which each region cuts its own.

Shapes: N images, R regions, M x M a mask's resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detlab.structures.masks import BitMasks, PolygonMasks

__all__ = ["MaskTable"]


class MaskTable:
    """Masks of the objects of N images, one image after another.

    A mask is large and many proposals belong to one object: a proposal knows its object's row here.

    Args:
        masks: of each image.
        device: where regions will be.
    """

    def __init__(self, masks: Sequence[PolygonMasks | BitMasks], device: torch.device) -> None:
        self._masks = masks
        counts = [len(own) for own in masks]
        starts = np.cumsum([0, *counts[:-1]])
        self.starts = torch.from_numpy(starts).to(device, non_blocking=True)  # (N,) int64, row of the first object

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
        parts = boxes.new_zeros((len(boxes), mask_size, mask_size), dtype=torch.bool)
        for i, own in enumerate(self._masks):
            chosen = ((images == i) & counts).nonzero().squeeze(1)
            if len(chosen) > 0:
                parts[chosen] = own[rows[chosen]].crop_and_resize(boxes[chosen], mask_size)
        return parts
