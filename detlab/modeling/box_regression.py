"""Boxes as offsets from reference boxes, there and back, and the losses on them.

Shapes: ... any leading sizes, k boxes per reference box, N images, A anchors per image.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detlab.layers.losses import ciou_loss, diou_loss, giou_loss, smooth_l1_loss
from detlab.modeling.packing import pack
from detlab.structures.boxes import Boxes

__all__ = ["Box2BoxTransform", "Box2BoxTransformLinear", "Box2BoxTransformRotated", "box_regression_loss"]

# Boxes may grow by at most this factor in one step, before exp() overflows.
DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) corners -> centers (..., 2) and sizes (..., 2)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    return low + 0.5 * size, size


class Box2BoxTransform:
    """The parametrisation of R-CNN (Girshick et al. 2014, appendix C).

    ``dx = wx (x - xa) / wa``, ``dy`` likewise, ``dw = ww log(w / wa)``, ``dh`` likewise, where (x, y) is the center
    and a marks the reference box.

    Args:
        weights: (wx, wy, ww, wh), which scale the offsets to about unit variance.
        scale_clamp: the largest ``dw`` and ``dh`` (before the weights) that decoding allows.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = DEFAULT_SCALE_CLAMP) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The offsets that move ``src_boxes`` onto ``target_boxes``.

        Args:
            src_boxes: (..., 4) xyxy, of positive size.
            target_boxes: (..., 4) xyxy, of positive size.

        Returns:
            (..., 4): dx, dy, dw, dh.
        """
        src_center, src_size = _center_size(src_boxes)
        target_center, target_size = _center_size(target_boxes)
        wx, wy, ww, wh = self.weights
        shift = (target_center - src_center) / src_size
        growth = torch.log(target_size / src_size)
        return torch.stack((wx * shift[..., 0], wy * shift[..., 1], ww * growth[..., 0], wh * growth[..., 1]), dim=-1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Move ``boxes`` by ``deltas``, in float32 at least.

        Args:
            deltas: (..., k * 4), k moves for each box.
            boxes: (..., 4) xyxy.

        Returns:
            (..., k * 4) xyxy.
        """
        dtype = torch.promote_types(deltas.dtype, torch.float32)
        moves = deltas.to(dtype).unflatten(-1, (-1, 4))
        center, size = _center_size(boxes.to(dtype).unsqueeze(-2))
        wx, wy, ww, wh = self.weights
        growth = torch.stack((moves[..., 2] / ww, moves[..., 3] / wh), dim=-1).clamp(max=self.scale_clamp)
        shift = torch.stack((moves[..., 0] / wx, moves[..., 1] / wy), dim=-1)
        new_center = shift * size + center
        half_size = 0.5 * growth.exp() * size
        return torch.cat((new_center - half_size, new_center + half_size), dim=-1).flatten(-2)


class Box2BoxTransformRotated:
    """As :class:`Box2BoxTransform` for (cx, cy, w, h, angle in degrees) boxes.

    The fifth offset is ``wa (angle - angle_a)`` in radians, where the difference lies in [-180, 180) degrees.

    Args:
        weights: (wx, wy, ww, wh, wa).
        scale_clamp: see :class:`Box2BoxTransform`.
    """

    def __init__(
        self, weights: tuple[float, float, float, float, float], scale_clamp: float = DEFAULT_SCALE_CLAMP
    ) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The offsets (..., 5) that move ``src_boxes`` (..., 5) onto ``target_boxes`` (..., 5)."""
        scale = src_boxes.new_tensor(self.weights)
        shift = (target_boxes[..., :2] - src_boxes[..., :2]) / src_boxes[..., 2:4]
        growth = torch.log(target_boxes[..., 2:4] / src_boxes[..., 2:4])
        turn = torch.remainder(target_boxes[..., 4:] - src_boxes[..., 4:] + 180.0, 360.0) - 180.0
        return torch.cat((shift, growth, turn * (math.pi / 180.0)), dim=-1) * scale

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Move ``boxes`` (..., 5) by ``deltas`` (..., k * 5); angles come back in [-180, 180) degrees."""
        dtype = torch.promote_types(deltas.dtype, torch.float32)
        moves = deltas.to(dtype).unflatten(-1, (-1, 5))
        moves = moves / moves.new_tensor(self.weights)
        boxes = boxes.to(dtype).unsqueeze(-2)
        center = moves[..., :2] * boxes[..., 2:4] + boxes[..., :2]
        size = moves[..., 2:4].clamp(max=self.scale_clamp).exp() * boxes[..., 2:4]
        angle = torch.remainder(moves[..., 4:] * (180.0 / math.pi) + boxes[..., 4:] + 180.0, 360.0) - 180.0
        return torch.cat((center, size, angle), dim=-1).flatten(-2)


class Box2BoxTransformLinear:
    """Distances from the center of a reference box to the four sides (FCOS, Tian et al. 2019, equation 1).

    Args:
        normalize_by_size: give the distances in units of the reference box's size.
    """

    def __init__(self, normalize_by_size: bool = True) -> None:
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The distances (..., 4): left, top, right, bottom; negative where the center lies outside."""
        center, size = _center_size(src_boxes)
        distances = torch.cat((center - target_boxes[..., :2], target_boxes[..., 2:] - center), dim=-1)
        return distances / torch.cat((size, size), dim=-1) if self.normalize_by_size else distances

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (..., k * 4) from distances (..., k * 4), negative distances taken as 0, and ``boxes`` (..., 4)."""
        dtype = torch.promote_types(deltas.dtype, torch.float32)
        distances = F.relu(deltas.to(dtype)).unflatten(-1, (-1, 4))
        center, size = _center_size(boxes.to(dtype).unsqueeze(-2))
        if self.normalize_by_size:
            distances = distances * torch.cat((size, size), dim=-1)
        return torch.cat((center - distances[..., :2], center + distances[..., 2:]), dim=-1).flatten(-2)


def box_regression_loss(
    box2box_transform: Box2BoxTransform | Box2BoxTransformRotated | Box2BoxTransformLinear,
    loss_type: str,
    *,
    pred_deltas: Tensor,
    src_boxes: Tensor,
    target_boxes: Tensor,
    smooth_l1_beta: float = 0.0,
    counts: Tensor | None = None,
) -> Tensor:
    """The summed loss of R matched boxes.

    Args:
        box2box_transform: how ``pred_deltas`` move ``src_boxes``.
        loss_type: ``smooth_l1`` on the offsets, or ``giou``, ``diou`` or ``ciou`` on the decoded boxes.
        pred_deltas: (R, 4).
        src_boxes: (R, 4) xyxy.
        target_boxes: (R, 4) xyxy.
        smooth_l1_beta: where the smooth L1 loss turns from a parabola into a line; 0 is plain L1.
        counts: (R,) bool, the rows that take part, whatever numbers the others hold; None for all.

    Raises:
        ValueError: if the loss type is unknown.
    """
    if counts is not None:
        # An offset from a box of no size is infinite, and infinity times a weight of 0 is no number.
        unit = _unit_box(src_boxes)
        src_boxes, target_boxes = (torch.where(counts[:, None], b, unit) for b in (src_boxes, target_boxes))
        pred_deltas = pred_deltas.masked_fill(~counts[:, None], 0.0)
    losses = _box_losses(box2box_transform, loss_type, pred_deltas, src_boxes, target_boxes, smooth_l1_beta)
    return (losses if counts is None else losses.masked_fill(~counts, 0.0)).sum()


def _unit_box(like: Tensor) -> Tensor:
    """(D,): a box of side 1 at the origin, as corners or, with five numbers, as center and sides."""
    place = torch.arange(like.shape[1], device=like.device)
    return ((place == 2) | (place == 3)).to(like.dtype)


def _box_losses(transform, loss_type: str, pred_deltas, src_boxes, target_boxes, smooth_l1_beta: float) -> Tensor:
    """(R,)."""
    if loss_type == "smooth_l1":
        targets = transform.get_deltas(src_boxes, target_boxes)
        return smooth_l1_loss(pred_deltas, targets, beta=smooth_l1_beta, reduction="none").sum(dim=1)
    overlap_losses = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if loss_type not in overlap_losses:
        raise ValueError(f"box regression loss '{loss_type}' is unknown; use smooth_l1, {', '.join(overlap_losses)}")
    decoded = transform.apply_deltas(pred_deltas, src_boxes)
    return overlap_losses[loss_type](decoded, target_boxes, reduction="none")


def dense_box_regression_loss(
    anchors: Sequence[Boxes],
    box2box_transform: Box2BoxTransform | Box2BoxTransformRotated | Box2BoxTransformLinear,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    fg_mask: Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """The summed regression loss of the anchors that matched an object.

    Args:
        anchors: one :class:`Boxes` for each feature level.
        box2box_transform: how offsets move anchors.
        pred_anchor_deltas: one (N, Al, 4) for each level.
        gt_boxes: N tensors (A, 4), the matched ground truth of every anchor.
        fg_mask: (N, A), where an anchor matched an object.
        box_reg_loss_type: see :func:`box_regression_loss`.
        smooth_l1_beta: see :func:`box_regression_loss`.
    """
    all_anchors = torch.cat([a.tensor for a in anchors]).expand(len(fg_mask), -1, -1)
    deltas, targets = torch.cat(pred_anchor_deltas, dim=1), torch.stack(list(gt_boxes))
    counts, deltas, sources, targets = pack(fg_mask, deltas, all_anchors, targets)
    return box_regression_loss(
        box2box_transform,
        box_reg_loss_type,
        pred_deltas=deltas,
        src_boxes=sources,
        target_boxes=targets,
        smooth_l1_beta=smooth_l1_beta,
        counts=counts,
    )
