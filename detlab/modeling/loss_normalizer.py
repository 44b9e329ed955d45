"""What a summed loss is divided by.

Averaging gradients over ranks equals one process with the whole batch only if every rank divides by the same number:
the mean of the ranks' counts. A rank whose images have no objects would otherwise weigh its few samples too much.
"""

import torch
from torch import Tensor

from detlab.utils.comm import all_reduce_mean, get_world_size

__all__ = ["mean_over_ranks"]


def mean_over_ranks(count: int | Tensor, like: Tensor) -> Tensor | int:
    """The mean of ``count`` over all ranks, at least 1.

    Args:
        count: a number of samples, the same kind of number on every rank.
        like: a tensor on the device that the result is used on.
    """
    if get_world_size() == 1:
        return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
    return all_reduce_mean(torch.as_tensor(count, dtype=torch.float32, device=like.device)).clamp(min=1)
