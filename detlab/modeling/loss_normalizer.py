"""What a summed loss is divided by.

Averaging gradients over ranks equals one process with the whole batch only if every rank divides by the same number:
the mean of the ranks' counts. A rank whose images have no objects would otherwise weigh its few samples too much.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from detlab.structures.object_batch import StepNotes
from detlab.utils.comm import all_reduce_mean

__all__ = ["exchange_normalizers", "mean_over_ranks", "normalizer_of"]


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of ``count`` over all ranks, at least 1; all ranks must call it.

    Args:
        count: numbers of samples, the same kind of number on every rank.
    """
    return all_reduce_mean(count).clamp(min=1)


def exchange_normalizers(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`mean_over_ranks` of several 0-dim counts with one exchange."""
    return dict(zip(counts, mean_over_ranks(torch.stack(list(counts.values()))).unbind()))


def normalizer_of(notes: StepNotes, name: str, count: Tensor) -> Tensor:
    """What a loss of this step is divided by: what was exchanged for all losses at once, else an exchange of its own.

    Args:
        notes: of the step.
        name: of the count.
        count: of this rank, 0-dim.
    """
    if name not in notes.normalizers:
        notes.normalizers[name] = mean_over_ranks(count)
    return notes.normalizers[name]
