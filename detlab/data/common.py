"""Datasets made of other things: of a list, of a dataset and a function, of a dataset and a sampler."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from detlab.utils.garbage import no_garbage_collection
from detlab.utils.serialize import PicklableWrapper

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "MappedIterable",
    "ToIterableDataset",
    "set_default_dataset_from_list_serialize_method",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

SHARED_MEMORY = "/dev/shm"
# A mapper that rejects this many entries in a row most likely rejects all.
MOST_REJECTIONS = 1000


# --------------------------------------------------------------------------------------------------------- a list


class SerializedList:
    """Items pickled one after the other into a single tensor in shared memory.

    Processes started later use the same memory, however they are started. Python objects would be copied into each of
    them page by page, because counting references to an object writes to it.

    Args:
        items: any objects that can be pickled.
    """

    def __init__(self, items: list):
        with no_garbage_collection():
            pickled = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in items]
        ends = np.cumsum([len(data) for data in pickled], dtype=np.int64)
        self._ends = _shared(torch.from_numpy(ends))
        self._data = _shared(torch.from_numpy(np.concatenate(pickled) if pickled else np.zeros(0, np.uint8)))
        logger.info(f"Holding {len(items)} dataset entries in {len(self._data) / 2**20:.2f} MiB of shared memory")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no item {index} among {len(self)}")
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._data[start : int(self._ends[index])].numpy().data)


def _shared(data: torch.Tensor) -> torch.Tensor:
    """Moves a tensor to shared memory where there is room for it (containers often have 64 MiB).

    Elsewhere it stays in memory of this process, that forked processes share as well, as long as nobody writes to it.
    """
    # Windows has no such call: there, shared memory is no file system that could be full.
    if hasattr(os, "statvfs"):
        with contextlib.suppress(OSError):
            room = os.statvfs(SHARED_MEMORY)
            if room.f_bavail * room.f_frsize < 2 * data.nbytes:
                return data
    return data.share_memory_()


Serializer = Callable[[list], Any]
_default_serializer: Serializer = SerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Serializer) -> Iterator[None]:
    """Within the block, ``DatasetFromList(serialize=True)`` holds its items in ``new(items)``."""
    global _default_serializer
    previous, _default_serializer = _default_serializer, new
    try:
        yield
    finally:
        _default_serializer = previous


class DatasetFromList(Dataset):
    """A list as a dataset.

    Args:
        lst: the items.
        copy: give deep copies of the items, so that their users may change them. Serialized items are new objects
            anyway.
        serialize: hold the items in one block of shared memory instead of the list, or in whatever this function makes
            of the list, with ``len`` and indexing.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Serializer = True):
        self._copy = copy
        self._serialized = bool(serialize)
        self.is_wide = _which_are_wide(lst)
        if self._serialized:
            self._items: Any = (serialize if callable(serialize) else _default_serializer)(lst)
        else:
            self._items = lst

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, idx: int) -> Any:
        item = self._items[idx]
        return copy.deepcopy(item) if self._copy and not self._serialized else item


def _which_are_wide(items: list) -> np.ndarray | None:
    """(len,) bool: wider than high; None unless all items are dictionaries that say so."""
    if not all(isinstance(item, dict) for item in items):
        return None
    try:
        return np.array([item["width"] > item["height"] for item in items], dtype=bool)
    except (KeyError, TypeError):
        return None


# ----------------------------------------------------------------------------------------------- a mapped dataset


class MapDataset(Dataset):
    """Applies a function to the entries of a dataset.

    The function may reject an entry by giving None. Then another one is taken instead, drawn by :mod:`random`: under
    the seeding of a training loader the same each time. With an iterable dataset, rejected entries are left out.

    Args:
        dataset: map-style or iterable.
        map_func: called with an entry.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(dataset, IterableDataset):
            return MappedIterable(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any], reject: str = "replace"):
        if not callable(map_func):
            raise TypeError(f"a mapper is called with an entry of the dataset; {map_func!r} cannot be called")
        if reject not in ("replace", "raise"):
            raise ValueError(f"reject={reject!r}: rejected entries are replaced ('replace') or an error ('raise')")
        self.dataset = dataset
        self.map_func = PicklableWrapper(map_func)
        self.reject = reject

    def __getnewargs__(self) -> tuple:
        return self.dataset, self.map_func

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        asked = idx
        for _ in range(MOST_REJECTIONS):
            result = self.map_func(self.dataset[idx])
            if result is not None:
                return result
            if self.reject == "raise":
                raise ValueError(f"the mapper gave None for entry {asked}; every image of an evaluation has to count")
            idx = random.randrange(len(self.dataset))
        raise RuntimeError(
            f"the mapper gave None for entry {asked} and for {MOST_REJECTIONS - 1} others drawn in its place; "
            "a mapper has to return a sample for most entries"
        )


class MappedIterable(IterableDataset):
    """A function applied to what an iterable dataset gives; None is left out."""

    def __init__(self, dataset: IterableDataset, map_func: Callable[[Any], Any]):
        self.dataset = dataset
        self.map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (result for result in map(self.map_func, self.dataset) if result is not None)


# -------------------------------------------------------------------------------------------- dataset and sampler


class ToIterableDataset(IterableDataset):
    """A map-style dataset in the order of a sampler, as an iterable dataset.

    Args:
        dataset: map-style.
        sampler: gives indices; the same in every worker process.
        shard_sampler: give each worker process its part of the indices. Turn it off if the sampler does that itself;
            otherwise the workers give everything several times.
        shard_chunk_size: how many successive indices go to the same worker. With the batch size, batches are the same
            for any number of workers.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1):
        if isinstance(dataset, IterableDataset):
            raise TypeError("the dataset is iterable already; only a map-style one needs a sampler")
        if not isinstance(sampler, Iterable):
            raise TypeError(f"a sampler gives indices one after the other; {type(sampler).__name__} cannot be iterated")
        if shard_chunk_size < 1:
            raise ValueError(f"shard_chunk_size={shard_chunk_size}: a chunk has at least one index")
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[index] for index in self._own_indices())

    def _own_indices(self) -> Iterator[int]:
        worker = get_worker_info()
        if worker is None or not self.shard_sampler:
            yield from self.sampler
            return
        indices = iter(self.sampler)
        for number in itertools.count():
            chunk = list(itertools.islice(indices, self.shard_chunk_size))
            if not chunk:
                return
            if number % worker.num_workers == worker.id:
                yield from chunk


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of entries that are all wider than high, or all not, so that less of a batch is padding.

    A batch is given as soon as it is full, so the order of entries changes little. What is left when the dataset ends
    is dropped. To group map-style datasets by index, before images are read, see ``build_batch_data_loader``.

    Args:
        dataset: gives dictionaries with ``width`` and ``height``.
        batch_size: entries in a batch.

    Raises:
        ValueError: while iterating, an entry has no width or height.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        waiting: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for entry in self.dataset:
            is_wide = _is_wide(entry)
            waiting[is_wide].append(entry)
            if len(waiting[is_wide]) == self.batch_size:
                yield waiting[is_wide]
                waiting[is_wide] = []


def _is_wide(entry: Any) -> bool:
    try:
        return bool(entry["width"] > entry["height"])
    except (KeyError, TypeError, IndexError):
        sizes = {key: entry.get(key) for key in ("file_name", "width", "height")} if isinstance(entry, dict) else entry
        raise ValueError(
            f"images are grouped by their width and height, but an entry has {str(sizes)[:200]}; give each both, or "
            "set aspect_ratio_grouping=False (DATALOADER.ASPECT_RATIO_GROUPING False)"
        ) from None
