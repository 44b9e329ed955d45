"""One numbered stream of samples for all processes, and randomness that belongs to a place in it.

A sample of a training run is told by its position in the stream and by the index of the dataset entry that stands
there. Both follow from the seed alone, and so does whatever a mapper draws for the sample: neither the number of
processes and workers nor where a run was interrupted makes a difference.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

__all__ = ["SampleRef", "StreamDataset", "random_state_of", "seed_of", "with_own_randomness"]

Item = TypeVar("Item")


class SampleRef(NamedTuple):
    """One sample of a stream."""

    entry: int  # index in the dataset
    position: int  # in the stream of all processes
    seed: int  # of the stream


def seed_of(*key: int) -> int:
    """A number in [0, 2**63) made of some that are not negative; zeros at their end make no difference."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _States(NamedTuple):
    """Of the generators of ``random``, numpy and torch (on the CPU)."""

    python: Any
    numpy: Any
    torch: torch.Tensor

    @classmethod
    def now(cls) -> _States:
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state())

    def put_back(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)


@contextlib.contextmanager
def random_state_of(*key: int) -> Iterator[None]:
    """Seeds ``random``, numpy and torch (on the CPU) from some numbers, and puts their states back in the end.

    Args:
        key: not negative; for a sample (seed, position). Zeros at its end make no difference.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    before = _States.now()
    random.seed(int.from_bytes(words.tobytes(), "little"))
    np.random.seed(words)
    # torch.manual_seed would also seed the devices, whose states are not put back.
    torch.default_generator.manual_seed(int(words[:2].view(np.uint64)[0] >> 1))
    try:
        yield
    finally:
        before.put_back()


# Items that are drawn in one go on the way to those that are wanted.
MOST_AT_ONCE = 65536


def with_own_randomness(iterable: Iterable[Item], *key: int, at_once: int = 1, unwanted: int = 0) -> Iterator[Item]:
    """What an iterable gives, while whatever it draws follows from the key and leaves the caller's generators alone.

    Args:
        iterable: gives items.
        key: see :func:`random_state_of`.
        at_once: items to draw in one go, as exchanging the states costs as much as many of them.
        unwanted: so many of the first, too, will not be looked at: they may be drawn far ahead.
    """
    with random_state_of(*key):
        items, states = iter(iterable), _States.now()
    while True:
        size = max(at_once, min(unwanted, MOST_AT_ONCE))
        unwanted -= size
        outside = _States.now()
        states.put_back()
        try:
            drawn = list(itertools.islice(items, size))
            states = _States.now()
        finally:
            outside.put_back()
        yield from drawn
        if len(drawn) < size:
            return


class StreamDataset(Dataset):
    """A dataset that is asked for :class:`SampleRef` and gives each entry with the randomness of its position.

    Args:
        dataset: map-style.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ref: SampleRef) -> Any:
        with random_state_of(ref.seed, ref.position):
            try:
                return self.dataset[ref.entry]
            except IndexError as error:
                if 0 <= ref.entry < len(self):
                    raise
                raise IndexError(
                    f"the sampler gives index {ref.entry}, but the data set has {len(self)} entries, numbered from 0; "
                    "was the sampler made for another one?"
                ) from error
