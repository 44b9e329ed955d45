import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from detlab.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    SerializedList,
    ToIterableDataset,
    set_default_dataset_from_list_serialize_method,
)

ENTRIES = [{"file_name": f"{n}.jpg", "width": 4 + n % 3, "height": 5, "boxes": [[n, 0.5]]} for n in range(7)]


class Counting(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


@pytest.mark.parametrize("serialize", [True, False])
def test_a_list_comes_back_as_it_was(serialize):
    dataset = DatasetFromList(ENTRIES, serialize=serialize)
    assert len(dataset) == 7 and [dataset[n] for n in range(7)] == ENTRIES and dataset[-1] == ENTRIES[-1]
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize("serialize", [True, False])
def test_changing_an_item_does_not_change_the_dataset(serialize):
    dataset = DatasetFromList(ENTRIES, serialize=serialize)
    dataset[0]["boxes"][0][0] = 100
    assert dataset[0]["boxes"] == [[0, 0.5]]


def test_without_copy_and_serializing_the_items_themselves_are_given():
    assert DatasetFromList(ENTRIES, copy=False, serialize=False)[2] is ENTRIES[2]


def test_serialized_items_lie_in_one_tensor():
    items = SerializedList(ENTRIES)
    assert items._data.dtype == torch.uint8 and items._data.ndim == 1
    assert pickle.loads(pickle.dumps(items))[3] == ENTRIES[3]


def test_a_system_without_statvfs_shares_memory_too(monkeypatch):
    monkeypatch.delattr("os.statvfs")
    dataset = DatasetFromList(ENTRIES)
    assert dataset[3] == ENTRIES[3] and dataset._items._data.is_shared()


def test_full_shared_memory_is_not_used(monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 1

    monkeypatch.setattr("os.statvfs", lambda path: Full)
    assert not SerializedList(ENTRIES)._data.is_shared() and SerializedList(ENTRIES)[3] == ENTRIES[3]


def test_an_empty_list_is_an_empty_dataset():
    assert len(DatasetFromList([])) == 0


def test_the_way_of_serializing_can_be_chosen():
    assert DatasetFromList([1, 2], serialize=lambda items: [10 * item for item in items])[1] == 20
    with set_default_dataset_from_list_serialize_method(lambda items: [item + 1 for item in items]):
        assert DatasetFromList([1, 2])[1] == 3
    assert DatasetFromList([1, 2])[1] == 2


def test_a_dataset_of_dictionaries_tells_which_are_wide():
    assert DatasetFromList(ENTRIES).is_wide.tolist() == [False, False, True, False, False, True, False]
    assert DatasetFromList([1, 2]).is_wide is None
    assert DatasetFromList([{"width": 1}]).is_wide is None
    assert DatasetFromList([{"width": 1, "height": None}]).is_wide is None


def test_a_mapped_dataset_applies_the_function():
    mapped = MapDataset([1, 2, 3], lambda x: 10 * x)
    assert len(mapped) == 3 and [mapped[n] for n in range(3)] == [10, 20, 30]
    assert pickle.loads(pickle.dumps(mapped))[1] == 20


def test_a_rejected_entry_is_replaced_by_one_that_the_seed_decides():
    mapped = MapDataset(list(range(100)), lambda x: x if x % 2 else None)
    random.seed(3)
    drawn = [mapped[n] for n in range(0, 20, 2)]
    assert all(value % 2 for value in drawn) and len(set(drawn)) > 3
    random.seed(3)
    assert [mapped[n] for n in range(0, 20, 2)] == drawn


def test_a_mapper_that_rejects_everything_is_reported():
    with pytest.raises(RuntimeError, match="gave None for entry 1 and for 999 others"):
        MapDataset([1, 2, 3], lambda x: None)[1]


def test_rejections_can_be_errors():
    with pytest.raises(ValueError, match="entry 1; every image of an evaluation"):
        MapDataset([1, 2, 3], lambda x: None, reject="raise")[1]
    with pytest.raises(ValueError, match="reject='never'"):
        MapDataset([1], lambda x: x, reject="never")


def test_an_iterable_dataset_is_mapped_without_the_rejected():
    mapped = MapDataset(Counting(range(5)), lambda x: 10 * x if x != 2 else None)
    assert isinstance(mapped, IterableDataset) and list(mapped) == [0, 10, 30, 40]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_share_the_indices_of_a_sampler(num_workers):
    dataset = ToIterableDataset([10 * n for n in range(12)], torch.utils.data.SequentialSampler(range(12)), True, 2)
    assert len(dataset) == 12
    loader = DataLoader(dataset, batch_size=2, num_workers=num_workers, collate_fn=list)
    assert list(loader) == [[20 * n, 20 * n + 10] for n in range(6)]


def test_unsharded_workers_all_give_everything():
    dataset = ToIterableDataset(list(range(4)), torch.utils.data.SequentialSampler(range(4)), shard_sampler=False)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(loader) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_iterable_dataset_takes_no_sampler():
    with pytest.raises(TypeError, match="iterable already"):
        ToIterableDataset(Counting([1]), torch.utils.data.SequentialSampler(range(1)))
    with pytest.raises(TypeError, match="cannot be iterated"):
        ToIterableDataset([1], 3)
    with pytest.raises(ValueError, match="shard_chunk_size=0"):
        ToIterableDataset([1], torch.utils.data.SequentialSampler(range(1)), shard_chunk_size=0)


def test_batches_hold_wide_or_high_images_only():
    shapes = np.random.default_rng(0).integers(1, 9, size=(60, 2)).tolist()
    entries = [{"width": w, "height": h, "n": n} for n, (w, h) in enumerate(shapes)]
    batches = list(AspectRatioGroupedDataset(entries, 4))
    assert all(len(batch) == 4 and len({e["width"] > e["height"] for e in batch}) == 1 for batch in batches)
    given = [e["n"] for e in itertools.chain(*batches)]
    assert len(set(given)) == len(given) >= 60 - 2 * 3
    assert [max(e["n"] for e in batch) for batch in batches] == sorted(max(e["n"] for e in batch) for batch in batches)


@pytest.mark.parametrize("entry", [{"width": 3, "file_name": "a.jpg"}, {"width": 3, "height": None}, 5])
def test_an_entry_without_size_cannot_be_grouped(entry):
    with pytest.raises(ValueError, match=r"grouped by their width and height.*ASPECT_RATIO_GROUPING False"):
        list(AspectRatioGroupedDataset([entry], 2))


def test_a_mapper_has_to_be_callable():
    with pytest.raises(TypeError, match="None cannot be called"):
        MapDataset([1], None)
