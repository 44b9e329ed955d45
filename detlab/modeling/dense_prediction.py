"""What detectors share that predict at every cell of their feature maps (RPN, RetinaNet, FCOS).

Shapes: N images, L feature levels, A predictions per cell, Hl x Wl cells of level l, Pl = Hl * Wl * A predictions of
level l, S of all levels, G objects of ground truth, D values of a box, k candidates taken of a level, B of all levels.

Levels are flattened, predictions labelled by the objects they overlap; in inference the best of each level are decoded
and suppressed within their level or class.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detlab.modeling.matcher import Matcher
from detlab.structures.boxes import Boxes
from detlab.structures.object_batch import ObjectBatch, gather_places

__all__ = ["Candidates", "best_of_levels", "flatten_cells", "inside_images", "label_boxes"]


def flatten_cells(maps: Tensor, num_values: int) -> Tensor:
    """(N, A * D, H, W) -> (N, H * W * A, D), where D is ``num_values``."""
    cells = maps.unflatten(1, (-1, num_values)).permute(0, 3, 4, 1, 2)  # N, H, W, A, D
    return cells.flatten(1, 3)


def label_boxes(matcher: Matcher, boxes: Boxes | Tensor, targets: ObjectBatch) -> tuple[Tensor, Tensor]:
    """The object that each box belongs to, by overlap.

    Args:
        matcher: has the rules.
        boxes: (S, D), the same for all images, or (N, S, D).
        targets: with ``gt_boxes``.

    Returns:
        The place of the best object, (N, S) int64, 0 where there is none; and the labels, (N, S) int8: 1 positive,
        0 negative, -1 ignored.
    """
    targets.require("gt_boxes")
    tensor = boxes if isinstance(boxes, Tensor) else boxes.tensor
    tensor = tensor[None] if tensor.dim() == 2 else tensor
    return matcher.match_batch(targets.tensor("gt_boxes"), targets.valid, tensor)


def inside_images(boxes: Tensor, image_sizes: Tensor, margin: float) -> Tensor:
    """(N, S) bool: which ``boxes`` (S, 4) leave an image of ``image_sizes`` (N, 2) by at most ``margin`` pixels."""
    height, width = image_sizes[:, :1], image_sizes[:, 1:]
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x1 >= -margin) & (y1 >= -margin) & (x2 < width + margin) & (y2 < height + margin)


class Candidates(NamedTuple):
    """The best predictions of every level before suppression."""

    boxes: Tensor  # (N, B, D)
    scores: Tensor  # (N, B)
    levels: Tensor  # (N, B) int64


def best_of_levels(
    scores: Sequence[Tensor], values: Sequence[Tensor], topk: int, decode: Callable[[int, Tensor, Tensor], Tensor]
) -> Candidates:
    """The ``topk`` best predictions of each level, decoded.

    Only what enters the suppression is decoded: a few thousand of up to a hundred thousand predictions.

    Args:
        scores: L tensors (N, Pl).
        values: L tensors (N, Pl, D).
        topk: k; all of a level that has fewer.
        decode: from a level, its chosen values (N, k, D) and their places in it (N, k) to boxes (N, k, D).
    """
    found = []
    for level, (own_scores, own_values) in enumerate(zip(scores, values)):
        best, places = own_scores.topk(torch.sym_min(topk, own_scores.shape[1]), dim=1)
        boxes = decode(level, gather_places(own_values, places), places)
        found.append(Candidates(boxes, best, torch.full_like(places, level)))
    return Candidates(*(torch.cat(parts, dim=1) for parts in zip(*found)))
