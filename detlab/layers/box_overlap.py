"""How much axis-aligned boxes overlap, as formulas on tensors.

Shapes: N and M boxes (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, in any unit; leading dimensions are batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["box_area", "box_intersection", "box_ioa", "box_iou", "matched_box_iou"]


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...), in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _columns_of(boxes: Tensor) -> tuple[Tensor, ...]:
    """(..., N, 4) -> four (..., N), each dense, for elementwise kernels are slow on strided input."""
    return boxes.transpose(-1, -2).contiguous().unbind(-2)


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """The area that each pair of boxes shares.

    Args:
        boxes1: (..., N, 4) xyxy.
        boxes2: (..., M, 4) xyxy.

    Returns:
        (..., N, M).
    """
    left1, top1, right1, bottom1 = (c.unsqueeze(-1) for c in _columns_of(boxes1))
    left2, top2, right2, bottom2 = (c.unsqueeze(-2) for c in _columns_of(boxes2))
    # In place: for anchors against objects, fresh memory for each step would take most of the time.
    width = torch.minimum(right1, right2).sub_(torch.maximum(left1, left2)).clamp_(min=0)
    height = torch.minimum(bottom1, bottom2).sub_(torch.maximum(top1, top2)).clamp_(min=0)
    return width.mul_(height)


def _ratio_or_zero(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` in the memory of ``part``, and 0 where both are 0."""
    return part.div_(whole).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes; 0 for empty boxes.

    Args:
        boxes1: (..., N, 4) xyxy.
        boxes2: (..., M, 4) xyxy.

    Returns:
        (..., N, M), in [0, 1].
    """
    shared = box_intersection(boxes1, boxes2)
    sum_of_areas = box_area(boxes1).unsqueeze(-1) + box_area(boxes2).unsqueeze(-2)
    return _ratio_or_zero(shared, sum_of_areas.sub_(shared))


def box_ioa(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """How much of each box of the second set a box of the first covers; 0 for empty boxes.

    Args:
        boxes1: (..., N, 4) xyxy.
        boxes2: (..., M, 4) xyxy.

    Returns:
        (..., N, M), in [0, 1].
    """
    return _ratio_or_zero(box_intersection(boxes1, boxes2), box_area(boxes2).unsqueeze(-2))


def matched_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of boxes in step: (..., 4) and (..., 4) -> (...)."""
    size = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(boxes1[..., :2], boxes2[..., :2])
    width, height = size.clamp(min=0).unbind(-1)
    shared = width * height
    return _ratio_or_zero(shared, box_area(boxes1) + box_area(boxes2) - shared)
