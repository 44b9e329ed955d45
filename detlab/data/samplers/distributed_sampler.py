"""Which entries of a dataset a process takes, and in which order.

The training samplers follow one plan: a stream of indices for all processes, made of epochs, where the order within
epoch e is a function of (seed, e). Of that stream, process r of W takes every W-th index from the r-th on. A data
loader may also take the epochs themselves and divide batches among the processes.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from detlab.utils import comm

__all__ = [
    "EpochSampler",
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]

logger = logging.getLogger(__name__)


class EpochSampler(Sampler[int]):
    """An endless stream of indices, made of epochs that follow from the seed.

    Args:
        seed: the same for all processes; None draws one, for which all processes must call this together.
    """

    def __init__(self, seed: int | None = None):
        self.seed = comm.shared_random_seed() if seed is None else int(seed)
        if self.seed < 0:
            raise ValueError(f"the seed of a sampler is not negative, got {self.seed}")
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """(E,) int64: the indices of all processes in one epoch; E may differ from epoch to epoch."""
        raise NotImplementedError

    def random(self, epoch: int) -> np.random.Generator:
        """The generator of an epoch."""
        return np.random.default_rng([self.seed, epoch])

    def __iter__(self) -> Iterator[int]:
        epochs = (self.epoch_indices(epoch).tolist() for epoch in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), self._rank, None, self._world_size)


class TrainingSampler(EpochSampler):
    """All indices in each epoch, shuffled anew.

    Args:
        size: of the dataset.
        shuffle: otherwise each epoch is 0, 1, 2, ...
        seed: see :class:`EpochSampler`.

    Raises:
        ValueError: the dataset is empty.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"the size of a dataset is a whole number, got {size!r}")
        if size < 1:
            raise ValueError(f"a training sampler needs a dataset with at least one entry, got {size}")
        super().__init__(seed)
        self._size = size
        self._shuffle = shuffle

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """See :class:`EpochSampler`."""
        return self.random(epoch).permutation(self._size) if self._shuffle else np.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """The same random part of the indices in each epoch, shuffled anew.

    Args:
        size: of the dataset.
        subset_ratio: the share of it to use, in (0, 1].
        shuffle: otherwise each epoch has the same order.
        seed_shuffle: see :class:`EpochSampler`.
        seed_subset: decides which indices are used; None takes ``seed_shuffle``.

    Raises:
        ValueError: nothing would be left.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        super().__init__(size, shuffle=shuffle, seed=seed_shuffle)
        if not 0 < subset_ratio <= 1 or int(size * subset_ratio) < 1:
            raise ValueError(
                f"subset_ratio={subset_ratio} (DATALOADER.RANDOM_SUBSET_RATIO) of {size} entries should be between one "
                "entry and all"
            )
        self._subset_size = int(size * subset_ratio)
        self._seed_subset = seed_subset
        logger.info(f"Training on a random subset: {self._subset_size} of {size} entries")

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """See :class:`EpochSampler`."""
        seed = self.seed if self._seed_subset is None else self._seed_subset
        # One more number than an epoch's seed has, to be unlike any of them.
        subset = np.random.default_rng([seed, 0, 1]).permutation(self._size)[: self._subset_size]
        return self.random(epoch).permutation(subset) if self._shuffle else subset


class RepeatFactorTrainingSampler(EpochSampler):
    """Images with rare categories several times in an epoch ("repeat factor sampling" of the LVIS paper, section 4.1).

    Args:
        repeat_factors: (size,) how often each index should occur. Parts of a whole are rounded up or down at random in
            each epoch, so that their mean comes out.
        shuffle: otherwise indices are in order.
        seed: see :class:`EpochSampler`.
    """

    def __init__(self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None):
        super().__init__(seed)
        self._factors = np.asarray(repeat_factors, dtype=np.float64)
        is_valid = np.isfinite(self._factors) & (self._factors > 0)
        if self._factors.ndim != 1 or not self._factors.size or not is_valid.all():
            wrong = self._factors[~is_valid][:3].tolist() or f"the shape {self._factors.shape}"
            raise ValueError(f"repeat factors are one positive number for each entry of the dataset, got {wrong}")
        self._shuffle = shuffle

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """See :class:`EpochSampler`."""
        random = self.random(epoch)
        whole = np.floor(self._factors)
        counts = whole + (random.random(len(whole)) < self._factors - whole)
        indices = np.repeat(np.arange(len(whole)), counts.astype(np.int64))
        return random.permutation(indices) if self._shuffle else indices

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """Repeat factors of images from how rare their categories are.

        With f(c) the share of images that have category c, a category is repeated r(c) = max(1, sqrt(t / f(c))) times,
        and an image as often as its rarest category. Images without objects count 1.

        Args:
            dataset_dicts: in the standard format.
            repeat_thresh: t, a share of images; categories that are rarer are repeated.
            sqrt: without it, r(c) = max(1, t / f(c)).

        Returns:
            (number of images,) float32.

        Raises:
            ValueError: ``repeat_thresh`` is negative.
        """
        if not repeat_thresh >= 0:
            raise ValueError(
                f"repeat_thresh={repeat_thresh} (DATALOADER.REPEAT_THRESHOLD) is a share of images, 0 or more"
            )
        pairs = [
            (number, category)
            for number, image in enumerate(dataset_dicts)
            for category in {obj["category_id"] for obj in image.get("annotations", ())}
        ]
        factors = np.ones(len(dataset_dicts), dtype=np.float32)
        if pairs:
            images, categories = np.array(pairs).T
            _, category_numbers, counts = np.unique(categories, return_inverse=True, return_counts=True)
            rarity = repeat_thresh / (counts / len(dataset_dicts))
            per_category = np.maximum(1.0, np.sqrt(rarity) if sqrt else rarity)
            np.maximum.at(factors, images, per_category[category_numbers].astype(np.float32))
        return torch.from_numpy(factors)


class InferenceSampler(Sampler[int]):
    """Every index once, in order: process r of W takes the r-th of W contiguous parts, which differ by one at most.

    Args:
        size: of the dataset.
    """

    def __init__(self, size: int):
        if size < 0:
            raise ValueError(f"a dataset cannot have {size} entries")
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share, rest = divmod(size, world_size)
        begin = rank * share + min(rank, rest)
        self._own = range(begin, begin + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)
