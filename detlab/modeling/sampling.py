"""Choosing the few boxes of an image that take part in a loss.

Shapes: N images, B boxes of each, S drawn of each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Drawn", "draw_balanced", "subsample_labels"]


class Drawn(NamedTuple):
    """S places of each image in random order, positives before negatives; the rest of them is not valid."""

    places: Tensor  # (N, S) int64, all different
    valid: Tensor  # (N, S) bool


def draw_balanced(labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int) -> Drawn:
    """Draw positives and negatives at random, without replacement and without a shape that depends on values.

    At most ``num_samples * positive_fraction`` positives are drawn; negatives fill up to ``num_samples``. Each box gets
    a random key; the largest keys of each kind are drawn.

    Args:
        labels: (N, B) class labels; -1 is ignored, ``bg_label`` is negative, everything else is positive.
        num_samples: how many to draw together; S is this, or B if that is less.
        positive_fraction: the most that may be positive, in [0, 1].
        bg_label: the label of the background.
    """
    num_boxes = labels.shape[1]
    is_negative = labels == bg_label
    is_positive = (labels != -1) & ~is_negative
    keys = torch.rand(labels.shape, device=labels.device)
    drawn = is_positive & _largest(keys.masked_fill(~is_positive, -1.0), int(num_samples * positive_fraction))
    # Positives come first: their keys lie in [2, 3), those of the negatives in [0, 1).
    order = torch.where(drawn, keys + 2, keys.masked_fill(~is_negative, -1.0))
    best, places = order.topk(torch.sym_min(num_samples, num_boxes), dim=1)
    return Drawn(places, best >= 0)


def _largest(keys: Tensor, count: int) -> Tensor:
    """(N, B) bool: the ``count`` largest keys of each row."""
    if isinstance(keys.shape[1], int) and count >= keys.shape[1]:
        return torch.ones_like(keys, dtype=torch.bool)
    chosen = keys.topk(torch.sym_min(count, keys.shape[1]), dim=1).indices
    return torch.zeros_like(keys, dtype=torch.bool).scatter(1, chosen, True)


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """:func:`draw_balanced` for one image; waits for the device.

    Args:
        labels: (B,), see :func:`draw_balanced`.
        num_samples: likewise.
        positive_fraction: likewise.
        bg_label: likewise.

    Returns:
        Indices of the positives and of the negatives, each a 1-D int64 tensor in random order; fewer than asked for
        where there are not enough.
    """
    drawn = draw_balanced(labels[None], num_samples, positive_fraction, bg_label)
    places = drawn.places[drawn.valid]
    is_negative = labels[places] == bg_label
    return places[~is_negative], places[is_negative]
