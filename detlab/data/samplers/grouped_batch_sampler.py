"""Batches whose indices belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Batches of indices of the same group, each given as soon as it is full.

    What is left in the groups when the sampler ends is dropped, so the number of batches is not known beforehand.

    Args:
        sampler: gives indices.
        group_ids: (size of the dataset,) the group of each index, whole numbers.
        batch_size: indices in a batch.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int):
        if not isinstance(sampler, Sampler):
            raise TypeError(f"batches are made from a torch.utils.data.Sampler, got {type(sampler).__name__}")
        if batch_size < 1:
            raise ValueError(f"a batch has at least one index, got batch_size={batch_size}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        if self.group_ids.ndim != 1:
            raise ValueError(f"group_ids is one number for each entry, got the shape {self.group_ids.shape}")
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = defaultdict(list)
        for index in self.sampler:
            group = int(self.group_ids[index])
            waiting[group].append(index)
            if len(waiting[group]) == self.batch_size:
                yield waiting.pop(group)

    def __len__(self) -> int:
        raise TypeError("how many full batches the groups give is not known before they are made")
