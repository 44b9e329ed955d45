"""How fast data come, and which step holds them up."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from detlab.data.build import build_batch_data_loader, trivial_batch_collator, worker_init_reset_seed
from detlab.data.common import DatasetFromList, MapDataset
from detlab.data.samplers.distributed_sampler import TrainingSampler
from detlab.data.workers import worker_options
from detlab.utils import comm

__all__ = ["DataLoaderBenchmark", "iter_benchmark"]

logger = logging.getLogger(__name__)


def iter_benchmark(
    iterator: Iterator[Any], num_iter: int, warmup: int = 5, max_time_seconds: float = 60
) -> tuple[float, list[float]]:
    """Times an iterator.

    Args:
        iterator: gives at least ``warmup + num_iter`` things.
        num_iter: how many to time.
        warmup: how many to take before.
        max_time_seconds: stop early after this time.

    Returns:
        The mean and the single times of one step, in seconds.
    """
    deadline = time.perf_counter() + max_time_seconds
    for _ in range(warmup):
        next(iterator)
        if time.perf_counter() > deadline:
            break
    times = []
    for _ in range(num_iter):
        begin = time.perf_counter()
        next(iterator)
        times.append(time.perf_counter() - begin)
        if time.perf_counter() > deadline:
            break
    return float(np.mean(times)), times


class _FixedSamples(Dataset):
    """The same few samples again and again: what remains of a loader is moving them between processes."""

    def __init__(self, samples: list[Any]):
        self.samples = samples

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, index: int) -> Any:
        return self.samples[index % len(self.samples)]


class DataLoaderBenchmark:
    """Times the parts of a training data loader; each measurement logs its result.

    Args:
        dataset: a list of dataset dicts, or a map-style dataset.
        mapper: makes a sample of an entry.
        sampler: gives this process's indices; None for a ``TrainingSampler``.
        total_batch_size: samples in a batch of all processes.
        num_workers: worker processes of each process.
        max_time_seconds: for each measurement.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        mapper: Callable[[dict[str, Any]], Any],
        sampler: Sampler | None = None,
        total_batch_size: int,
        num_workers: int = 0,
        max_time_seconds: int = 90,
    ):
        self.dataset = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        self.mapper = mapper
        self.sampler = TrainingSampler(len(self.dataset)) if sampler is None else sampler
        self.total_batch_size = total_batch_size
        self.own_batch_size = total_batch_size // comm.get_world_size()
        self.num_workers = num_workers
        self.max_time_seconds = max_time_seconds

    def _endless_indices(self) -> Iterator[int]:
        return itertools.chain.from_iterable(iter(self.sampler) for _ in itertools.count())

    def _measure(self, what: str, samples_per_step: int, iterable: Iterable[Any], num_iter: int, warmup: int) -> float:
        """Seconds of a step."""
        mean, times = iter_benchmark(iter(iterable), num_iter, warmup, self.max_time_seconds)
        fast, slow = np.percentile(times, [10, 90]) * 1000
        logger.info(
            f"{what}: {samples_per_step / mean:.1f} samples/s, {mean * 1000:.1f} ms a step "
            f"(80% within {fast:.1f} to {slow:.1f} ms, {len(times)} steps)"
        )
        return mean

    def benchmark_dataset(self, num_iter: int, warmup: int = 5) -> None:
        """Taking entries out of the dataset."""
        entries = (self.dataset[index] for index in self._endless_indices())
        self._measure("dataset", 1, entries, num_iter, warmup)

    def benchmark_mapper(self, num_iter: int, warmup: int = 5) -> None:
        """Making samples of entries: reading and augmenting."""
        samples = (self.mapper(self.dataset[index]) for index in self._endless_indices())
        self._measure("dataset and mapper", 1, samples, num_iter, warmup)

    def benchmark_workers(self, num_iter: int, warmup: int = 10) -> None:
        """The whole loader, in this process alone and with the worker processes."""
        for num_workers in sorted({0, self.num_workers}):
            loader = self._loader(num_workers)
            self._measure(f"loader, {num_workers} workers", self.own_batch_size, loader, num_iter, warmup)

    def benchmark_IPC(self, num_iter: int, warmup: int = 10) -> None:
        """Moving finished samples between processes."""
        first = itertools.islice(self._endless_indices(), self.own_batch_size)
        samples = _FixedSamples([self.mapper(self.dataset[index]) for index in first])
        for num_workers in sorted({0, self.num_workers}):
            loader: DataLoader = DataLoader(
                samples,
                batch_size=self.own_batch_size,
                collate_fn=trivial_batch_collator,
                **worker_options(num_workers, worker_init_fn=worker_init_reset_seed),
            )
            self._measure(f"moving samples, {num_workers} workers", self.own_batch_size, loader, num_iter, warmup)

    def benchmark_distributed(self, num_iter: int, warmup: int = 10) -> None:
        """The whole loader in all processes at once; all must call it. The slowest sets the pace of a training."""
        mean = self._measure("loader", self.own_batch_size, self._loader(self.num_workers), num_iter, warmup)
        means = comm.all_gather(mean)
        logger.info(
            f"{len(means)} processes: {self.total_batch_size / max(means):.1f} samples/s at the pace of the slowest, "
            f"which takes {max(means) * 1000:.1f} ms a batch; the fastest takes {min(means) * 1000:.1f} ms"
        )

    def _loader(self, num_workers: int) -> Iterable[Any]:
        return build_batch_data_loader(
            MapDataset(self.dataset, self.mapper), self.sampler, self.total_batch_size, num_workers=num_workers
        )
