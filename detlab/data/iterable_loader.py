"""The loader of iterable datasets, which have an order of their own."""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from detlab.data.common import AspectRatioGroupedDataset, MappedIterable
from detlab.data.loader import checked_start
from detlab.data.stream import seed_of, with_own_randomness
from detlab.data.workers import worker_options
from detlab.utils import comm
from detlab.utils.serialize import PicklableWrapper

__all__ = ["IterableLoader"]

logger = logging.getLogger(__name__)

Collator = Callable[[list[Any]], Any]


class IterableLoader:
    """Batches of what an iterable dataset gives, in its own order; each ``iter()`` is one pass through it.

    Whatever the dataset draws from global generators follows from the seed, the rank, the worker and the number of the
    batch that the pass begins with. How a resumed run goes on depends on what the dataset offers:

    - ``state_dict()`` and ``load_state_dict(state)``: each worker's is saved as it was after the last batch that was
      given, and taken back before the dataset is iterated. The same number of workers is needed; they take turns from
      the first again. Images that waited for others of their shape are passed over;
    - ``set_start_iteration(iteration)``: called in this process before each pass with the number of the batch, counted
      from 0 over all passes, that this process takes next;
    - neither: the stream begins anew, with other random numbers than at first, and a warning says so.

    (A ``ToIterableDataset`` does not come here from ``build_batch_data_loader``: as a dataset and a sampler, it goes on
    exactly.)

    Args:
        dataset: iterable; gives samples.
        batch_size: samples in a batch of this process.
        collate_fn: called with the list of a batch's samples.
        seed: the same for all processes.
        aspect_ratio_grouping: put wide and high images into different batches.
        drop_last: leave out what does not fill a batch at the end; with ``aspect_ratio_grouping`` it always is.
        num_workers: processes that iterate over the dataset, each over a copy; 0 does so in this one.
        options: of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        *,
        batch_size: int,
        collate_fn: Collator,
        seed: int,
        aspect_ratio_grouping: bool = False,
        drop_last: bool = True,
        num_workers: int = 0,
        **options: Any,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self.seed = seed
        self._is_grouped = aspect_ratio_grouping
        self._stream = _SeededStream(dataset)
        self._next_batch = 0
        self._states: dict[int, Any] = {}  # by the number of the worker
        # Decides the seeds of workers; a generator of the user's own does what it does.
        self._generator = None if "generator" in options else torch.Generator()
        self._loader: DataLoader = DataLoader(
            self._stream,
            batch_size=1 if aspect_ratio_grouping else batch_size,
            drop_last=drop_last,
            collate_fn=_Stamping(
                operator.itemgetter(0) if aspect_ratio_grouping else collate_fn,
                self._stream if num_workers == 0 else None,
            ),
            **worker_options(num_workers, **{"generator": self._generator, **options}),
        )

    def __iter__(self) -> Iterator[Any]:
        return self._give(self._begin_pass(), goes_on=bool(self._states))

    def _begin_pass(self) -> Iterator[_Stamped]:
        # The last number tells this key from those of samples and samplers.
        key = self.seed, self._next_batch, comm.get_rank(), 2
        if self._generator is not None:
            self._generator.manual_seed(seed_of(*key))
        if hasattr(self._stream.source, "set_start_iteration"):
            self._stream.source.set_start_iteration(self._next_batch)
        self._stream.key, self._stream.states = key, dict(self._states)
        return iter(self._loader)

    def _give(self, stamped: Iterator[_Stamped], goes_on: bool) -> Iterator[Any]:
        is_empty = True
        for batch in self._grouped(stamped) if self._is_grouped else self._unstamped(stamped):
            is_empty = False
            self._next_batch += 1
            yield batch
            # The next one is waited for without keeping this one.
            del batch
        self._states = {}
        if goes_on and is_empty:
            # It was saved at the end of a pass.
            yield from self._give(self._begin_pass(), goes_on=False)

    def _grouped(self, stamped: Iterator[_Stamped]) -> Iterator[Any]:
        return map(self.collate_fn, AspectRatioGroupedDataset(self._unstamped(stamped), self.batch_size))

    def _unstamped(self, stamped: Iterator[_Stamped]) -> Iterator[Any]:
        for content, worker, state in stamped:
            if state is not None:
                self._states[worker] = state
            yield content
            del content

    def set_start_iteration(self, iteration: int) -> None:
        """The next ``iter()`` begins with batch number ``iteration``, if the dataset can: see :class:`IterableLoader`.

        Raises:
            ValueError: ``iteration`` is negative.
        """
        if checked_start(iteration) == self._next_batch:
            return
        self._next_batch, self._states = iteration, {}
        source = self._stream.source
        if iteration and not hasattr(source, "set_start_iteration"):
            logger.warning(
                f"{type(source).__name__} cannot go on at iteration {iteration}: its stream begins anew, with other "
                "random numbers. Give it state_dict() and load_state_dict(state), or set_start_iteration(iteration), "
                "or train on a map-style dataset, which goes on where it was"
            )

    def state_dict(self) -> dict[str, Any]:
        """The seed and, if the dataset has states, where each worker's stream stands after the last batch given."""
        state: dict[str, Any] = {"seed": self.seed}
        if self._states:
            state |= {"next_batch": self._next_batch, "num_workers": self.num_workers, "streams": dict(self._states)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the stream of another run, from the next ``iter()`` on."""
        self.seed = int(state["seed"])
        streams = state.get("streams", {})
        if not streams or not _has_state(self._stream.source):
            return
        if max(state["num_workers"], 1) != max(self.num_workers, 1):
            logger.warning(
                f"the streams of {type(self._stream.source).__name__} were saved by {state['num_workers']} workers, "
                f"and {self.num_workers} cannot go on with them: set DATALOADER.NUM_WORKERS as it was"
            )
            return
        self._next_batch, self._states = int(state["next_batch"]), dict(streams)


class _Stamped(NamedTuple):
    """What a worker hands over."""

    content: Any
    worker: int
    state: Any  # of the dataset there, after this; None if it has no states


class _Stamping:
    """Makes batches, and notes where they come from.

    Args:
        collate_fn: called with the list of a batch's samples.
        stream: what they come from, if that is iterated over in this process.
    """

    def __init__(self, collate_fn: Collator, stream: _SeededStream | None):
        self.collate_fn = PicklableWrapper(collate_fn)
        self.stream = stream

    def __call__(self, samples: list[Any]) -> _Stamped:
        worker = get_worker_info()
        source = (self.stream if worker is None else worker.dataset).source  # type: ignore[union-attr]
        # A copy: here the dataset itself goes on, and with it perhaps the state.
        state = copy.deepcopy(source.state_dict()) if _has_state(source) else None
        return _Stamped(self.collate_fn(samples), 0 if worker is None else worker.id, state)


def _has_state(dataset: Any) -> bool:
    return hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")


class _SeededStream(IterableDataset):
    """An iterable dataset whose randomness is its own, and which goes on with the state of a worker."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset
        self.key: tuple[int, ...] = (0,)
        self.states: dict[int, Any] = {}

    @property
    def source(self) -> Any:
        """What the samples are made of: the dataset without the functions applied to it."""
        source: Any = self.dataset
        while isinstance(source, MappedIterable):
            source = source.dataset
        return source

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        # A worker that is kept for the next pass must not go back.
        state = self.states.pop(0 if worker is None else worker.id, None)
        if state is not None:
            self.source.load_state_dict(state)
        # DataLoader has seeded the generators of a worker; those of this process are the model's, too.
        return iter(self.dataset) if worker is not None else with_own_randomness(self.dataset, *self.key)
