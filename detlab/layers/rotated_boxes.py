"""Overlap of rotated boxes."""

from __future__ import annotations

from torch import Tensor

from detlab.layers import _ops

__all__ = ["pairwise_iou_rotated"]


def pairwise_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every box of one set with every box of the other.

    Args:
        boxes1: (N, 5) center x y, width, height, angle in degrees, counter-clockwise.
        boxes2: (M, 5).

    Returns:
        (N, M).
    """
    return _ops.box_iou_rotated(boxes1, boxes2)
