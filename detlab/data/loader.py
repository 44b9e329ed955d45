"""The loader that training takes its batches from, and how a training goes through any loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from detlab.data.batches import BatchPlan
from detlab.data.stream import StreamDataset
from detlab.data.workers import worker_options
from detlab.utils.serialize import PicklableWrapper

__all__ = ["TrainingLoader", "checked_start", "endless_batches"]

logger = logging.getLogger(__name__)


class TrainingLoader:
    """Batches of training samples, the same for any number of worker processes.

    Each ``iter()`` begins with the batch that :meth:`set_start_iteration` names, at first 0, and reads no image of
    earlier ones. Everything else follows from the seed, so a run that was interrupted goes on as if it had not been::

        loader.load_state_dict(state)
        loader.set_start_iteration(iteration)
        for batch in loader: ...

    With a sampler that ends, batches are counted over all passes, an ``iter()`` ends with the pass that it begins in,
    and when it was taken to its end the next one is the whole next pass.

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
            collate_fn=PicklableWrapper(collate_fn),
            **worker_options(num_workers, **options),
        )

    @property
    def sampler(self) -> Any:
        """What gives the indices."""
        return getattr(self.plan, "sampler", None)

    def __iter__(self) -> Iterator[Any]:
        # Workers begin now, not when the first batch is asked for.
        return self._give(iter(self._loader), self.plan.start)

    def _give(self, batches: Iterator[Any], number: int) -> Iterator[Any]:
        for batch in batches:
            number += 1
            yield batch
            # The next one is waited for without keeping this one.
            del batch
        self.plan.start = number

    def set_start_iteration(self, iteration: int) -> None:
        """The next ``iter()`` begins with batch number ``iteration``, counted from 0 for a fresh training.

        Raises:
            ValueError: ``iteration`` is negative.
        """
        self.plan.start = checked_start(iteration)

    def state_dict(self) -> dict[str, int]:
        """What, with the number of an iteration, tells all batches from there on."""
        return {"seed": self.plan.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes over the stream of another run, from the next ``iter()`` on."""
        self.plan.seed = int(state["seed"])


def checked_start(iteration: int) -> int:
    """The number of a batch to start with.

    Raises:
        ValueError: it is negative.
    """
    if iteration < 0:
        raise ValueError(f"a training starts at iteration 0 or later, not at {iteration}")
    return iteration


# ------------------------------------------------------------------------------------------------- any loader


def endless_batches(data_loader: Iterable[Any], start_iteration: int) -> Iterator[Any]:
    """The batches of a loader, over and over, as a training takes them that goes on at an iteration.

    Args:
        data_loader: if it has ``set_start_iteration(iteration)``, that is called before each pass with the number of
            the batch that comes next: counted over all passes, or if the loader has a length, within the pass. If it
            has a length, or cannot begin anywhere but at the front, its ``set_epoch`` or that of its ``sampler`` is
            called with the number of the pass.
        start_iteration: the number of the first batch, counted over all passes.

    Raises:
        TypeError: it cannot be iterated over.
        ValueError: a pass has no batch.
    """
    if not isinstance(data_loader, Iterable) and not hasattr(data_loader, "__getitem__"):
        raise TypeError(
            f"the data loader must be an iterable of batches, got {data_loader!r}; does build_train_loader return it?"
        )
    seek = getattr(data_loader, "set_start_iteration", None)
    length = _length_of(data_loader)
    number, pass_number = start_iteration, start_iteration // length if length else 0
    if seek is None and isinstance(data_loader, Sequence) and length:
        yield from data_loader[number % length :]
        number, pass_number = 0, pass_number + 1
    elif seek is None and (number % length if length else number):
        logger.warning(
            f"{type(data_loader).__name__} cannot begin at iteration {number}: the resumed run starts a new pass "
            "through it. Give it set_start_iteration(iteration), as the loaders of build_detection_train_loader have"
        )
    while True:
        if length or seek is None:
            _set_epoch(data_loader, pass_number)
        if seek is not None:
            seek(number % length if length else number)
        is_empty = True
        for batch in data_loader:
            is_empty = False
            number += 1
            yield batch
            # The next one is waited for without keeping this one.
            del batch
        if not is_empty:
            pass_number += 1
        elif isinstance(data_loader, Iterator):
            raise ValueError(
                f"the data loader is an iterator, which ended after {number - start_iteration} batches and cannot "
                f"begin again ({type(data_loader).__name__}); give a list, a DataLoader or another iterable that can"
            )
        elif seek is None or number == 0:
            raise ValueError("the data loader gives no batch: is the data set smaller than one batch?")
        else:
            # It seems to count within a pass, and to be at its end.
            number = 0


def _length_of(data_loader: Any) -> int | None:
    """Batches in a pass; None if the loader does not know."""
    try:
        return len(data_loader)
    except TypeError:
        return None


def _set_epoch(data_loader: Any, number: int) -> None:
    owner = data_loader if hasattr(data_loader, "set_epoch") else getattr(data_loader, "sampler", None)
    set_epoch = getattr(owner, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(number)
