"""Which samples make up each batch, decided on indices before any image is read.

Letters: W processes, B samples in a batch of all processes together, E samples in an epoch.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from detlab.data.samplers.distributed_sampler import EpochSampler
from detlab.data.stream import SampleRef, with_own_randomness
from detlab.utils import comm

__all__ = ["BatchPlan", "GlobalBatches", "OwnBatches"]


class BatchPlan(Protocol):
    """This process's batches; iterating starts with batch number ``start``, and has no end unless the sampler has.

    If it has, iterating ends with the pass through the sampler that ``start`` lies in; batches are counted over all
    passes.
    """

    seed: int
    start: int

    def __iter__(self) -> Iterator[list[SampleRef]]: ...


class GlobalBatches:
    """Batches of B samples from one stream, of which each process takes its part.

    The stream and its division into batches do not depend on W: two processes together see the batches that one
    process would. With groups, all samples of a batch are of one group, and a batch comes when it is full.

    Args:
        sampler: the stream.
        total_batch_size: B, a multiple of W.
        group_ids: (size of the dataset,) the group of each entry; None for no groups.
    """

    def __init__(self, sampler: EpochSampler, total_batch_size: int, group_ids: np.ndarray | None = None):
        self.sampler = sampler
        self.start = 0
        self._total = total_batch_size
        self._group_ids = group_ids
        own = total_batch_size // comm.get_world_size()
        self._part = slice(comm.get_rank() * own, (comm.get_rank() + 1) * own)

    @property
    def seed(self) -> int:
        """Of the stream."""
        return self.sampler.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.sampler.seed = seed

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return self._own_parts(self.start, self.seed)

    def _own_parts(self, to_skip: int, seed: int) -> Iterator[list[SampleRef]]:
        for batches in self._batches_by_epoch():
            for batch in batches[to_skip:]:
                yield [SampleRef(entry, position, seed) for entry, position in batch[self._part].tolist()]
            to_skip = max(to_skip - len(batches), 0)

    def _batches_by_epoch(self) -> Iterator[np.ndarray]:
        """(number of batches, B, 2) of (entry, position): the batches that become full within each epoch."""
        waiting: dict[int, np.ndarray] = {}
        position = 0
        for epoch in itertools.count():
            entries = self.sampler.epoch_indices(epoch)
            samples = np.stack([entries, position + np.arange(len(entries))], axis=1)  # (E, 2)
            position += len(entries)
            full = [self._take_full(waiting, group, members) for group, members in self._by_group(samples)]
            batches = np.concatenate(full) if full else samples.reshape(0, self._total, 2)
            yield batches[np.argsort(batches[:, -1, 1])]

    def _by_group(self, samples: np.ndarray) -> list[tuple[int, np.ndarray]]:
        if self._group_ids is None:
            return [(0, samples)]
        groups = self._group_ids[samples[:, 0]]
        return [(int(group), samples[groups == group]) for group in np.unique(groups)]

    def _take_full(self, waiting: dict[int, np.ndarray], group: int, members: np.ndarray) -> np.ndarray:
        """(number of batches, B, 2) from those that wait and the new members of a group; the rest waits."""
        queue = np.concatenate([waiting[group], members]) if group in waiting else members
        num_full = len(queue) // self._total
        waiting[group] = queue[num_full * self._total :]
        return queue[: num_full * self._total].reshape(num_full, self._total, 2)


class _Pass(NamedTuple):
    """Where a pass through a sampler begins."""

    number: int
    batch: int  # batches of all passes before
    entry: int  # entries of all passes before
    seed: int  # of the sampler's randomness


class OwnBatches:
    """Batches of one process from a sampler that gives this process's indices and knows nothing of a common stream.

    A sampler that ends is passed through again and again. Before each pass its ``set_epoch`` is called with the pass's
    number, if it has one; what it draws from global generators follows from the seed, the pass and the rank. So a run
    that is resumed in any pass sees what one that was never stopped would. What comes before is found by walking along
    the indices, without reading samples.

    Args:
        sampler: gives indices.
        batch_size: samples in a batch of this process.
        seed: of the samples' randomness and the sampler's.
        group_ids: (size of the dataset,) the group of each entry; None for no groups.
        drop_last: leave out what does not fill a batch when the sampler ends.

    Raises:
        TypeError: what the sampler gives is no index.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        seed: int,
        group_ids: np.ndarray | None = None,
        drop_last: bool = True,
    ):
        self.sampler = sampler
        self.seed = seed
        self.start = 0
        self._batch_size = batch_size
        self._group_ids = group_ids
        self._drop_last = drop_last
        # The latest pass whose begin is known: a sampler with a generator of its own cannot go back.
        self._known_pass = _Pass(0, 0, 0, seed)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return self._rest_of_pass(self.start)

    def _rest_of_pass(self, start: int) -> Iterator[list[SampleRef]]:
        """The batches from number ``start`` to the end of its pass; none if the sampler gives none."""
        if start < self._known_pass.batch or self.seed != self._known_pass.seed:
            self._known_pass = _Pass(0, 0, 0, self.seed)
        while True:
            begin = self._known_pass
            to_skip = start - begin.batch
            number = -1
            for number, batch in enumerate(self._batches_of(begin, to_skip)):
                if number >= to_skip:
                    yield batch
            if number >= to_skip or number < 0:
                return

    def _batches_of(self, begin: _Pass, unwanted: int) -> Iterator[list[SampleRef]]:
        """All batches of a pass, the first ``unwanted`` in haste. At its end, the begin of the next one is known."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        waiting: dict[int, list[SampleRef]] = {}
        num_batches, number = 0, begin.entry - 1
        for number, entry in enumerate(self._entries_of(begin, unwanted), begin.entry):
            group = 0 if self._group_ids is None else int(self._group_ids[entry])
            batch = waiting.setdefault(group, [])
            batch.append(SampleRef(entry, number * world_size + rank, begin.seed))
            if len(batch) == self._batch_size:
                num_batches += 1
                yield waiting.pop(group)
        rest = [] if self._drop_last else list(waiting.values())
        self._known_pass = _Pass(begin.number + 1, begin.batch + num_batches + len(rest), number + 1, begin.seed)
        yield from rest

    def _entries_of(self, begin: _Pass, unwanted: int) -> Iterator[int]:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(begin.number)
        # The last number tells this key from those of samples.
        key = begin.seed, begin.number, comm.get_rank(), 1
        size = self._batch_size
        for index in with_own_randomness(self.sampler, *key, at_once=size, unwanted=unwanted * size):
            try:
                yield operator.index(index)
            except TypeError:
                raise TypeError(
                    f"{type(self.sampler).__name__} gives {index!r}, which is no index of a dataset; a sampler gives "
                    "whole numbers one after the other (batches are made of them here)"
                ) from None
