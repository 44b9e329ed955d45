"""Suppression of boxes that overlap a better one of their class.

Shapes: N images, B boxes. All functions but the last return the indices kept, int64, by decreasing score.
"""

from __future__ import annotations

from torch import Tensor

from detlab.layers import _ops

__all__ = ["batched_nms", "batched_nms_rotated", "nms", "nms_fixed", "nms_rotated"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppression among all boxes.

    Args:
        boxes: (B, 4) xyxy.
        scores: (B,).
        iou_threshold: a box that overlaps a better one by more than this goes.
    """
    return _ops.nms(boxes.float(), scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppression inside each class; boxes of different classes leave each other alone.

    Args:
        boxes: (B, 4) xyxy.
        scores: (B,).
        idxs: (B,) int64, the class (or image, or level) of each box.
        iou_threshold: a box that overlaps a better one of its class by more than this goes.
    """
    return _ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppression among rotated boxes, by the area in which they truly overlap.

    Args:
        boxes: (B, 5) center x y, width, height, angle in degrees, counter-clockwise.
        scores: (B,).
        iou_threshold: a box that overlaps a better one by more than this goes.
    """
    return _ops.nms_rotated(boxes.float(), scores, iou_threshold)


def batched_nms_rotated(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppression among rotated boxes inside each class.

    Args:
        boxes: (B, 5) center x y, width, height, angle in degrees, counter-clockwise.
        scores: (B,).
        idxs: (B,) int64, the class of each box.
        iou_threshold: a box that overlaps a better one of its class by more than this goes.
    """
    return _ops.batched_nms_rotated(boxes.float(), scores, idxs, iou_threshold)


def nms_fixed(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Suppression inside each class of each image of a batch, upright or rotated, with a result of known size.

    The host does not wait for the device, so it suits captured graphs and compiled or exported models.

    Args:
        boxes: (N, B, 4) xyxy, or (N, B, 5) center x y, width, height, angle in degrees, counter-clockwise.
        scores: (N, B); -inf or NaN marks padding, which is never kept and suppresses nothing.
        idxs: (N, B) int64, the class of each box.
        iou_threshold: a box that overlaps a better one of its class by more than this goes.
        max_output: P, the number of boxes to keep at most.

    Returns:
        Indices (N, P) int64 into B by decreasing score, 0 past the count; and the counts (N,) int64.
    """
    return _ops.nms_fixed(boxes.float(), scores, idxs, iou_threshold, max_output)
