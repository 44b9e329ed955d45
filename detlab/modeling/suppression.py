"""Non-maximum suppression with results of a known size.

Shapes: N images, B candidates of each, P boxes kept of each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from detlab.layers import _ops
from detlab.structures.object_batch import ImageSizes, gather_places

__all__ = ["Kept", "clip_boxes_to_images", "keep_best_boxes", "sizes_tensor"]


class Kept(NamedTuple):
    """P boxes of each image, best first; where ``valid`` is False they are padding of zeros."""

    boxes: Tensor  # (N, P, 4) xyxy in pixels, inside the image
    scores: Tensor  # (N, P)
    rows: Tensor  # (N, P) int64: the candidate each came from
    valid: Tensor  # (N, P) bool


def sizes_tensor(image_sizes: ImageSizes, like: Tensor) -> Tensor:
    """Sizes of N images as a (N, 2) float32 tensor, height and width, on the device of ``like``."""
    if isinstance(image_sizes, Tensor):
        return image_sizes
    return torch.tensor(image_sizes, dtype=torch.float32).reshape(-1, 2).to(like.device, non_blocking=True)


def clip_boxes_to_images(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (N, ..., 4) xyxy moved inside images of ``image_sizes`` (N, 2) (height, width)."""
    limit = image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)
    limit = limit.view(limit.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def keep_best_boxes(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    image_sizes: Tensor,
    nms_thresh: float,
    max_boxes: int,
    min_box_size: float = -math.inf,
    are_finite: bool = False,
) -> Kept:
    """Clip, drop what is too small or not finite, suppress overlaps within a group, keep the best.

    Args:
        boxes: (N, B, 4) xyxy; B may be 0.
        scores: (N, B); a candidate of -inf is none.
        groups: (N, B) int64, the class or the level of each; boxes of different groups leave each other alone.
        image_sizes: (N, 2), height and width.
        nms_thresh: a box that overlaps a better one of its group by more than this IoU goes.
        max_boxes: P.
        min_box_size: boxes must be wider and higher than this, in pixels.
        are_finite: the caller has looked: a candidate whose box is not finite has the score -inf.
    """
    if not torch.compiler.is_compiling() and boxes.shape[1] == 0:  # padding needs a candidate to come from
        scores, groups = scores.new_full((len(boxes), 1), -math.inf), groups.new_zeros(len(boxes), 1)
        boxes = boxes.new_zeros(len(boxes), 1, boxes.shape[2])
    clipped = clip_boxes_to_images(boxes, image_sizes)
    counts = scores.isfinite() if are_finite else scores.isfinite() & boxes.isfinite().all(dim=-1)
    if min_box_size > -math.inf:
        counts = counts & ((clipped[..., 2:] - clipped[..., :2]) > min_box_size).all(dim=-1)
    scores = scores.float().masked_fill(~counts, -math.inf)
    rows, num_kept = _ops.nms_fixed(clipped, scores, groups, nms_thresh, max_boxes)
    valid = torch.arange(max_boxes, device=boxes.device) < num_kept[:, None]
    return Kept(
        boxes=gather_places(clipped, rows).masked_fill(~valid[..., None], 0.0),
        scores=scores.gather(1, rows).masked_fill(~valid, 0.0),
        rows=rows,
        valid=valid,
    )
