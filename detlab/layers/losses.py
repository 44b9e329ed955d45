"""Losses on boxes and logits, with one calling convention.

Shapes: ... any leading sizes. ``reduction`` is "none", "mean" or "sum"; the mean of nothing is zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ciou_loss", "diou_loss", "giou_loss", "sigmoid_focal_loss", "smooth_l1_loss"]


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else loss.sum() * 0.0
    raise ValueError(f"reduction '{reduction}' is unknown; use 'none', 'mean' or 'sum'")


def smooth_l1_loss(input: Tensor, target: Tensor, beta: float, reduction: str = "none") -> Tensor:
    """Huber's loss divided by ``beta``: ``d^2 / (2 beta)`` below ``beta``, ``d - beta / 2`` above.

    Args:
        input, target: of one shape.
        beta: where the parabola meets the line; below 1e-5 the loss is plain L1, which the formula tends to.
        reduction: see the head of the file.
    """
    if beta < 1e-5:
        return _reduce((input - target).abs(), reduction)
    distance = (input - target).abs()
    loss = torch.where(distance < beta, distance.square() * (0.5 / beta), distance - 0.5 * beta)
    return _reduce(loss, reduction)


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Binary cross entropy that fades where the prediction is right already (Lin et al., RetinaNet, 2017).

    Args:
        inputs: logits, of any shape.
        targets: 0 or 1, of the same shape and a floating dtype.
        alpha: weight of the positives in [0, 1], ``1 - alpha`` of the negatives; negative for no weights.
        gamma: how fast easy examples fade.
        reduction: see the head of the file.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    prob = torch.sigmoid(inputs)
    miss = prob + targets - 2 * prob * targets  # 1 - p of the true class
    loss = cross_entropy * miss.pow(gamma)
    if alpha >= 0:
        loss = loss * (targets * (2 * alpha - 1) + (1 - alpha))
    return _reduce(loss, reduction)


class _PairGeometry(NamedTuple):
    """Of each pair of boxes, all (...)."""

    iou: Tensor
    union: Tensor
    hull_size: Tensor  # (..., 2), of the smallest box around both


def _pair_geometry(boxes1: Tensor, boxes2: Tensor, eps: float) -> _PairGeometry:
    low1, high1 = boxes1[..., :2], boxes1[..., 2:]
    low2, high2 = boxes2[..., :2], boxes2[..., 2:]
    common = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0)
    intersection = common.prod(-1)
    union = (high1 - low1).prod(-1) + (high2 - low2).prod(-1) - intersection
    hull_size = torch.maximum(high1, high2) - torch.minimum(low1, low2)
    return _PairGeometry(intersection / (union + eps), union, hull_size)


def _center_penalty(boxes1: Tensor, boxes2: Tensor, hull_size: Tensor, eps: float) -> Tensor:
    """Squared distance of the centers over the squared diagonal of the hull."""
    offset = (boxes1[..., :2] + boxes1[..., 2:] - boxes2[..., :2] - boxes2[..., 2:]) / 2
    return offset.square().sum(-1) / (hull_size.square().sum(-1) + eps)


def giou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """``1 - GIoU`` (Rezatofighi et al. 2019): IoU less the share of the hull that neither box covers.

    Args:
        boxes1, boxes2: (..., 4) xyxy with ``x1 <= x2`` and ``y1 <= y2``.
        reduction: see the head of the file.
        eps: keeps divisions by the area of empty boxes finite.
    """
    pair = _pair_geometry(boxes1, boxes2, eps)
    hull_area = pair.hull_size.prod(-1)
    return _reduce(1 - pair.iou + (hull_area - pair.union) / (hull_area + eps), reduction)


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """``1 - IoU`` and a penalty for the distance of the centers (Zheng et al., Distance-IoU, 2020).

    Args:
        boxes1, boxes2: (..., 4) xyxy with ``x1 <= x2`` and ``y1 <= y2``.
        reduction: see the head of the file.
        eps: keeps divisions by the area of empty boxes finite.
    """
    pair = _pair_geometry(boxes1, boxes2, eps)
    return _reduce(1 - pair.iou + _center_penalty(boxes1, boxes2, pair.hull_size, eps), reduction)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """The DIoU loss and a penalty for differing aspect ratios (Zheng et al., Complete-IoU, 2020).

    The trade-off factor of the aspect term is a constant for the gradient, as in the paper.

    Args:
        boxes1: (..., 4) xyxy, predictions, of positive size.
        boxes2: (..., 4) xyxy, targets, of positive size.
        reduction: see the head of the file.
        eps: keeps divisions finite.
    """
    pair = _pair_geometry(boxes1, boxes2, eps)
    angle1, angle2 = (torch.atan((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1])) for b in (boxes1, boxes2))
    aspect = (4 / math.pi**2) * (angle2 - angle1).square()
    with torch.no_grad():
        trade_off = aspect / (1 - pair.iou + aspect + eps)
    loss = 1 - pair.iou + _center_penalty(boxes1, boxes2, pair.hull_size, eps) + trade_off * aspect
    return _reduce(loss, reduction)
