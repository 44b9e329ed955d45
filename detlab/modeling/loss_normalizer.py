"""What a summed loss is divided by.

Averaging gradients over ranks equals one process with the whole batch only if every rank divides by the same number:
the mean of the ranks' counts. A rank whose images have no objects would otherwise weigh its few samples too much.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from detlab.structures.object_batch import StepNotes
from detlab.utils.comm import all_reduce_mean

__all__ = ["Exchanged", "exchange_normalizers", "mean_over_ranks", "normalizer_of"]


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of ``count`` over all ranks, at least 1; all ranks must call it.

    Args:
        count: numbers of samples, the same kind of number on every rank.
    """
    return all_reduce_mean(count).clamp(min=1)


class Exchanged(NamedTuple):
    """One count of a step, after the exchange."""

    mean: Tensor  # of all ranks, at least 1, 0-dim
    own: Tensor  # of this rank, 0-dim


def exchange_normalizers(counts: Mapping[str, Tensor]) -> dict[str, Exchanged]:
    """:func:`mean_over_ranks` of several 0-dim counts with one exchange."""
    own = torch.stack(list(counts.values()))
    return {name: Exchanged(*pair) for name, *pair in zip(counts, mean_over_ranks(own).unbind(), own.unbind())}


def normalizer_of(notes: StepNotes, name: str, count: Tensor) -> Tensor:
    """What a loss of this step is divided by: what was exchanged for all losses at once, else an exchange of its own.

    Somebody may have dropped objects after the exchange. Another one might wait for ever for a rank that has none left
    and leaves the loss out, so the mean then shrinks as this rank's count did.

    Args:
        notes: of the step.
        name: of the count.
        count: of this rank, 0-dim.
    """
    if name not in notes.normalizers:
        notes.normalizers |= exchange_normalizers({name: count})
    mean, own = notes.normalizers[name]
    return torch.where(own > 0, mean * (count / own.clamp(min=1)), torch.maximum(mean, count)).clamp(min=1)
