"""One numbered stream of samples for all processes, and randomness that belongs to a place in it.

A sample of a training run is told by its position in the stream and by the index of the dataset entry that stands
there. Both follow from the seed alone, and so does whatever a mapper draws for the sample: neither the number of
processes and workers nor where a run was interrupted makes a difference.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

__all__ = ["SampleRef", "StreamDataset", "random_state_of"]


class SampleRef(NamedTuple):
    """One sample of a stream."""

    entry: int  # index in the dataset
    position: int  # in the stream of all processes
    seed: int  # of the stream


@contextlib.contextmanager
def random_state_of(seed: int, position: int) -> Iterator[None]:
    """Seeds ``random``, numpy and torch (on the CPU) from (seed, position), and puts their states back in the end."""
    words = np.random.SeedSequence([seed, position]).generate_state(4)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int.from_bytes(words.tobytes(), "little"))
    np.random.seed(words)
    # torch.manual_seed would also seed the devices, whose states are not put back.
    torch.default_generator.manual_seed(int(words[:2].view(np.uint64)[0] >> 1))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


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
            return self.dataset[ref.entry]
