"""From dense predictions to the few boxes worth a second look.

Shapes: N images, L feature levels, Al anchors of level l, P proposals wanted.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detlab.modeling.dense_prediction import Candidates, best_of_levels
from detlab.modeling.suppression import keep_best_boxes, sizes_tensor
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.object_batch import ImageSizes, ObjectBatch, as_batch

__all__ = [
    "add_ground_truth_to_proposals",
    "add_ground_truth_to_proposals_single_image",
    "find_top_rpn_proposals",
    "select_proposals",
]


def select_proposals(
    candidates: Candidates, image_sizes: ImageSizes, nms_thresh: float, num_proposals: int, min_box_size: float
) -> ObjectBatch:
    """The best candidates after suppression within their levels, with ``proposal_boxes`` and ``objectness_logits``.

    Args:
        candidates: of N images.
        image_sizes: of the images.
        nms_thresh: see :func:`keep_best_boxes`.
        num_proposals: P.
        min_box_size: see :func:`keep_best_boxes`.
    """
    sizes = sizes_tensor(image_sizes, candidates.boxes)
    kept = keep_best_boxes(*candidates, sizes, nms_thresh, num_proposals, min_box_size)
    fields = {"proposal_boxes": kept.boxes, "objectness_logits": kept.scores}
    return ObjectBatch(image_sizes, kept.valid, fields, {"proposal_boxes": Boxes})


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> Sequence[Instances]:
    """The best decoded boxes of each image.

    Args:
        proposals: L tensors (N, Al, 4) xyxy.
        pred_objectness_logits: L tensors (N, Al).
        image_sizes: N times (height, width).
        nms_thresh: see :func:`keep_best_boxes`.
        pre_nms_topk: how many of each level, by logit, enter the suppression.
        post_nms_topk: how many of all levels are kept after it.
        min_box_size: see :func:`keep_best_boxes`.
        training: not used; kept for callers of old.

    Returns:
        N instances with ``proposal_boxes`` and ``objectness_logits``, by falling logit.
    """
    candidates = best_of_levels(pred_objectness_logits, proposals, pre_nms_topk, lambda level, boxes, places: boxes)
    return select_proposals(candidates, image_sizes, nms_thresh, post_nms_topk, min_box_size)


# The logit of a probability of all but 1: what a ground-truth box has as a proposal.
_NEAR_CERTAIN = math.log((1.0 - 1e-10) / 1e-10)


def add_ground_truth_to_proposals(
    gt: Sequence[Instances | Boxes], proposals: Sequence[Instances]
) -> Sequence[Instances]:
    """The proposals of each image followed by its ground-truth boxes, as proposals of near-certain objectness.

    Args:
        gt: of each image the boxes, or instances with ``gt_boxes`` and whatever else the proposals carry.
        proposals: N instances with ``proposal_boxes`` and ``objectness_logits``.

    Raises:
        ValueError: if the lists are not of one length, or the proposals carry a field that the ground truth cannot
            fill.
    """
    if len(gt) != len(proposals):
        raise ValueError(f"ground truth of {len(gt)} images came with proposals of {len(proposals)}")
    whole: Any = gt
    if not isinstance(gt, ObjectBatch):
        whole = [Instances(p.image_size, gt_boxes=g) if isinstance(g, Boxes) else g for g, p in zip(gt, proposals)]
    targets, batch = as_batch(whole), as_batch(proposals)
    boxes = targets.tensor("gt_boxes")
    fields = {name: targets.tensor(name) for name in batch.names if targets.has(name)}
    fields |= {"proposal_boxes": boxes, "objectness_logits": torch.full_like(boxes[..., 0], _NEAR_CERTAIN)}
    return batch.join(ObjectBatch(batch.image_sizes, targets.valid, fields))


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """:func:`add_ground_truth_to_proposals` for one image."""
    return add_ground_truth_to_proposals([gt], [proposals])[0]
