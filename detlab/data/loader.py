"""The loader that training takes its batches from."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detlab.data.batches import BatchPlan
from detlab.data.stream import StreamDataset

__all__ = ["TrainingLoader", "raise_open_file_limit", "worker_options"]

# Each tensor that a worker hands over holds a file open until it is freed.
OPEN_FILES = 65536


class TrainingLoader:
    """Batches of training samples, the same for any number of worker processes.

    Each ``iter()`` begins with the batch that :meth:`set_start_iteration` names, at first 0, and reads no image of
    earlier ones. Everything else follows from the seed, so a run that was interrupted goes on as if it had not been::

        loader.load_state_dict(state)
        loader.set_start_iteration(iteration)
        for batch in loader: ...

    Args:
        dataset: map-style; gives samples.
        plan: which samples make up each batch of this process.
        batch_size: samples in a batch of this process.
        collate_fn: called with the list of a batch's samples.
        num_workers: processes that read samples; 0 reads them in this one.
        options: of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: BatchPlan,
        *,
        batch_size: int,
        collate_fn: Callable[[list[Any]], Any],
        num_workers: int = 0,
        **options: Any,
    ):
        self.dataset = dataset
        self.plan = plan
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self._loader: DataLoader = DataLoader(
            StreamDataset(dataset),
            batch_sampler=plan,  # type: ignore[arg-type]
            collate_fn=collate_fn,
            **{**worker_options(num_workers), **options},
        )

    @property
    def sampler(self) -> Any:
        """What gives the indices."""
        return getattr(self.plan, "sampler", None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def set_start_iteration(self, iteration: int) -> None:
        """The next ``iter()`` begins with batch number ``iteration``, counted from 0 for a fresh training.

        Raises:
            ValueError: ``iteration`` is negative.
        """
        if iteration < 0:
            raise ValueError(f"a training starts at iteration 0 or later, not at {iteration}")
        self.plan.start = iteration

    def state_dict(self) -> dict[str, int]:
        """What, with the number of an iteration, tells all batches from there on."""
        return {"seed": self.plan.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes over the stream of another run, from the next ``iter()`` on."""
        self.plan.seed = int(state["seed"])


def worker_options(num_workers: int) -> dict[str, Any]:
    """Arguments of ``DataLoader`` for this many worker processes."""
    # With a generator of its own the loader does not draw from the global one, on which training depends.
    options: dict[str, Any] = {"num_workers": num_workers, "generator": torch.Generator().manual_seed(0)}
    if num_workers > 0:
        raise_open_file_limit()
        if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods():
            # Starts in milliseconds, shares the dataset's memory, and takes mappers that cannot be pickled. Processes
            # that were spawned themselves, as by ``launch``, would spawn their workers as well if nothing was said.
            options["multiprocessing_context"] = "fork"
    return options


def raise_open_file_limit() -> None:
    """Lets this process and its workers have as many files open as the system allows, up to 65,536."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
