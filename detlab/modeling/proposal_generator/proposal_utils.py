"""From dense predictions to the few boxes worth a second look.

Shapes: N images, L feature levels, Al anchors of level l, B candidates of all levels together, P proposals wanted.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detlab.layers import _ops
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances

__all__ = [
    "Candidates",
    "Proposals",
    "add_ground_truth_to_proposals",
    "add_ground_truth_to_proposals_single_image",
    "clip_boxes_to_images",
    "find_top_rpn_proposals",
    "image_sizes_tensor",
    "proposals_to_instances",
    "suppress_candidates",
]


class Candidates(NamedTuple):
    """The best boxes of every level before suppression."""

    boxes: Tensor  # (N, B, 4) xyxy in pixels
    logits: Tensor  # (N, B)
    levels: Tensor  # (N, B) int64


class Proposals(NamedTuple):
    """A fixed number of boxes for each image, best first; where ``valid`` is False the rest is padding."""

    boxes: Tensor  # (N, P, 4) xyxy in pixels
    logits: Tensor  # (N, P)
    valid: Tensor  # (N, P) bool


def image_sizes_tensor(image_sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """[(height, width)] as a (N, 2) float tensor on the device of ``like``."""
    return torch.tensor(image_sizes, dtype=torch.float32).to(like.device, non_blocking=True)


def clip_boxes_to_images(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (N, ..., 4) xyxy moved inside images of ``image_sizes`` (N, 2) (height, width)."""
    limit = image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)
    limit = limit.view(len(limit), *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def suppress_candidates(
    candidates: Candidates, image_sizes: Tensor, nms_thresh: float, num_proposals: int, min_box_size: float
) -> Proposals:
    """Clip, drop what is too small or not finite, suppress overlaps within a level, keep the best.

    Args:
        candidates: of N images.
        image_sizes: (N, 2), height and width.
        nms_thresh: a box that overlaps a better one of its level by more than this IoU goes.
        num_proposals: P.
        min_box_size: boxes must be wider and higher than this, in pixels.
    """
    boxes = clip_boxes_to_images(candidates.boxes, image_sizes)
    finite = candidates.boxes.isfinite().all(dim=-1) & candidates.logits.isfinite()
    large = ((boxes[..., 2:] - boxes[..., :2]) > min_box_size).all(dim=-1)
    scores = candidates.logits.float().masked_fill(~(finite & large), -math.inf)
    kept, counts = _ops.nms_fixed(boxes, scores, candidates.levels, nms_thresh, num_proposals)
    valid = torch.arange(num_proposals, device=boxes.device) < counts[:, None]
    return Proposals(
        boxes=boxes.gather(1, kept[..., None].expand(-1, -1, 4)).masked_fill(~valid[..., None], 0.0),
        logits=scores.gather(1, kept).masked_fill(~valid, -math.inf),
        valid=valid,
    )


def proposals_to_instances(proposals: Proposals, image_sizes: list[tuple[int, int]]) -> list[Instances]:
    """The valid proposals of each image, with ``proposal_boxes`` and ``objectness_logits``."""
    counts = proposals.valid.sum(dim=1).tolist()
    return [
        Instances(size, proposal_boxes=Boxes(boxes[:count]), objectness_logits=logits[:count])
        for size, count, boxes, logits in zip(image_sizes, counts, proposals.boxes, proposals.logits)
    ]


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best decoded boxes of each image.

    Args:
        proposals: L tensors (N, Al, 4) xyxy.
        pred_objectness_logits: L tensors (N, Al).
        image_sizes: N times (height, width).
        nms_thresh: see :func:`suppress_candidates`.
        pre_nms_topk: how many of each level, by logit, enter the suppression.
        post_nms_topk: how many of all levels are kept after it.
        min_box_size: see :func:`suppress_candidates`.
        training: not used; kept for callers of old.

    Returns:
        N instances with ``proposal_boxes`` and ``objectness_logits``, by falling logit.
    """
    boxes, logits, levels = [], [], []
    for level, (level_boxes, level_logits) in enumerate(zip(proposals, pred_objectness_logits)):
        top_logits, chosen = level_logits.topk(min(pre_nms_topk, level_logits.shape[1]), dim=1)
        boxes.append(level_boxes.gather(1, chosen[..., None].expand(-1, -1, 4)))
        logits.append(top_logits)
        levels.append(torch.full_like(chosen, level))
    candidates = Candidates(torch.cat(boxes, 1), torch.cat(logits, 1), torch.cat(levels, 1))
    sizes = image_sizes_tensor(image_sizes, candidates.boxes)
    found = suppress_candidates(candidates, sizes, nms_thresh, post_nms_topk, min_box_size)
    return proposals_to_instances(found, image_sizes)


def add_ground_truth_to_proposals(gt: Sequence[Instances | Boxes], proposals: list[Instances]) -> list[Instances]:
    """:func:`add_ground_truth_to_proposals_single_image` for each image of the batch.

    Raises:
        ValueError: if the lists are not of one length.
    """
    if len(gt) != len(proposals):
        raise ValueError(f"ground truth of {len(gt)} images came with proposals of {len(proposals)}")
    return [add_ground_truth_to_proposals_single_image(g, p) for g, p in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """The proposals followed by the ground-truth boxes as proposals of near-certain objectness.

    Args:
        gt: the boxes, or instances with ``gt_boxes`` and whatever else the proposals carry.
        proposals: with ``proposal_boxes`` and ``objectness_logits``.

    Raises:
        ValueError: if the proposals carry a field that the ground truth cannot fill.
    """
    fields = {} if isinstance(gt, Boxes) else gt.get_fields()
    boxes = gt if isinstance(gt, Boxes) else gt.gt_boxes
    certain = math.log((1.0 - 1e-10) / 1e-10)
    logits = proposals.objectness_logits.new_full((len(boxes),), certain)
    fields = {**fields, "proposal_boxes": boxes, "objectness_logits": logits}
    missing = [name for name in proposals.get_fields() if name not in fields]
    if missing:
        raise ValueError(f"proposals have the fields {missing}, which the ground truth to be added to them lacks")
    extra = Instances(proposals.image_size, **{name: fields[name] for name in proposals.get_fields()})
    return Instances.cat([proposals, extra])
