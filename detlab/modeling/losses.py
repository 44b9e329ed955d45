"""What heads are trained on: sums over the rows that count, not yet divided by how many these are.

Shapes: R rows, of which some may be padding, K classes, M x M a mask's resolution, J keypoints, S x S a heat map.

Padding takes part in no sum and gets no gradient, whatever numbers it holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detlab.modeling.packing import pack

__all__ = ["class_cross_entropy", "heatmap_cross_entropy", "mask_cross_entropy", "masked_binary_cross_entropy"]


def masked_binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The summed binary cross entropy of the predictions that ``mask`` chooses.

    Args:
        logits: (N, P).
        targets: (N, P) bool, or probabilities.
        mask: (N, P) bool.
    """
    counts, logits, targets = pack(mask, logits, targets)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.masked_fill(~counts, 0.0).sum()


def class_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """The summed cross entropy of a softmax.

    Args:
        logits: (R, K).
        classes: (R,) int64; rows of -1 do not count.
    """
    return F.cross_entropy(logits.float(), classes, ignore_index=-1, reduction="sum")


def mask_cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """The summed binary cross entropy of the pixels of masks.

    Args:
        logits: (R, M, M).
        targets: (R, M, M) bool.
        counts: (R,) bool, the rows that count.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.masked_fill(~counts[:, None, None], 0.0).sum()


def heatmap_cross_entropy(logits: Tensor, cells: Tensor, counts: Tensor) -> Tensor:
    """The summed cross entropy of a softmax over the cells of each keypoint's heat map.

    Args:
        logits: (R, J, S, S).
        cells: (R, J) int64, row * S + column of the cell that is right.
        counts: (R, J) bool, the keypoints that count.
    """
    counts, logits, cells = pack(counts, logits.flatten(2), cells)
    return class_cross_entropy(logits, torch.where(counts, cells, -1))
