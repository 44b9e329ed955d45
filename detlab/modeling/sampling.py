"""Choosing the few boxes of an image that take part in a loss."""

import torch
from torch import Tensor

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Draw positives and negatives at random, without replacement.

    At most ``num_samples * positive_fraction`` positives are drawn; negatives fill up to ``num_samples``. Fewer come
    back when there are not enough.

    Args:
        labels: (B,) class labels; -1 is ignored, ``bg_label`` is negative, everything else is positive.
        num_samples: how many to draw together.
        positive_fraction: the most that may be positive, in [0, 1].
        bg_label: the label of the background.

    Returns:
        Indices of the positives and of the negatives, each a 1-D int64 tensor in random order.
    """
    positive = ((labels != -1) & (labels != bg_label)).nonzero().squeeze(1)
    negative = (labels == bg_label).nonzero().squeeze(1)
    num_positive = min(positive.numel(), int(num_samples * positive_fraction))
    num_negative = min(negative.numel(), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(candidates: Tensor, count: int) -> Tensor:
    """``count`` of the candidates, without replacement."""
    return candidates[torch.randperm(candidates.numel(), device=candidates.device)[:count]]
