"""What heads are trained on: sums over the rows that count, not yet divided by how many these are.

Shapes: R rows, of which some may be padding, K classes, M x M a mask's resolution, J keypoints, S x S a heat map.

Padding takes part in no sum and gets no gradient, whatever numbers it holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detlab.modeling.packing import pack

__all__ = [
    "class_cross_entropy",
    "every_class_cross_entropy",
    "heatmap_cross_entropy",
    "mask_cross_entropy",
    "masked_binary_cross_entropy",
]


def masked_binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The summed binary cross entropy of the predictions that ``mask`` chooses.

    Args:
        logits: (N, P).
        targets: (N, P) bool, or probabilities.
        mask: (N, P) bool.
    """
    return _binary_cross_entropy(*pack(mask, logits, targets))


def class_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """The summed cross entropy of a softmax.

    Args:
        logits: (R, K).
        classes: (R,) int64; rows of -1 do not count.
    """
    known = logits.float().masked_fill((classes == -1)[:, None], 0.0)
    return F.cross_entropy(known, classes, ignore_index=-1, reduction="sum")


def every_class_cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """The summed binary cross entropy of classes that are independent of each other.

    Args:
        logits: (R, K).
        targets: (R, K) bool, or probabilities.
        counts: (R, K) bool, the predictions that count.
    """
    return _binary_cross_entropy(counts, logits, targets)


def mask_cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """The summed binary cross entropy of the pixels of masks.

    Args:
        logits: (R, M, M).
        targets: (R, M, M) bool.
        counts: (R,) bool, the rows that count.
    """
    return _binary_cross_entropy(counts[:, None, None], logits, targets)


def heatmap_cross_entropy(logits: Tensor, cells: Tensor, counts: Tensor) -> Tensor:
    """The summed cross entropy of a softmax over the cells of each keypoint's heat map.

    Args:
        logits: (R, J, S, S).
        cells: (R, J) int64, row * S + column of the cell that is right.
        counts: (R, J) bool, the keypoints that count.
    """
    counts, logits, cells = pack(counts, logits.flatten(2), cells)
    return class_cross_entropy(logits, torch.where(counts, cells, -1))


def _binary_cross_entropy(counts: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over what ``counts``; of the rest neither the logits nor the targets may be seen.

    A loss that is put to 0 afterwards still has a gradient: of 0 times the slope, which is no number if the logit is
    none.
    """
    known = logits.float().masked_fill(~counts, 0.0)
    losses = F.binary_cross_entropy_with_logits(known, targets.float(), reduction="none")
    return losses.masked_fill(~counts, 0.0).sum()
