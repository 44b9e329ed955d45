import hashlib
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler

from detlab.data.build import build_batch_data_loader, build_detection_train_loader
from detlab.data.common import DatasetFromList
from detlab.data.samplers.distributed_sampler import TrainingSampler
from detlab.data.workers import worker_options
from detlab.utils import comm

ENTRIES = [{"n": n, "width": 3 + n % 4, "height": 4} for n in range(21)]


def noisy_mapper(entry):
    """Draws from every generator; rejects some entries."""
    if entry["n"] % 7 == 3:
        return None
    return {**entry, "noise": (random.random(), float(np.random.rand()), float(torch.rand(1)))}


def make_loader(num_workers=0, seed=4, total=6, **options):
    return build_detection_train_loader(
        ENTRIES, mapper=noisy_mapper, total_batch_size=total, num_workers=num_workers, seed=seed, **options
    )


def take(loader, count):
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    assert take(make_loader(num_workers), 12) == take(make_loader(0), 12)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 9])
def test_a_later_start_gives_the_tail_of_a_full_run(num_workers, start):
    whole = take(make_loader(), 12)
    loader = make_loader(num_workers)
    loader.set_start_iteration(start)
    assert take(loader, 12 - start) == whole[start:]


def test_a_later_start_reads_no_earlier_image():
    read = []
    loader = build_detection_train_loader(
        ENTRIES, mapper=lambda e: read.append(e["n"]) or e, total_batch_size=3, seed=0
    )
    loader.set_start_iteration(100_000)
    next(iter(loader))
    assert len(read) == 3


def test_the_state_of_a_loader_continues_its_run():
    first, second = make_loader(seed=None), make_loader(seed=None)
    whole = take(first, 8)
    state = first.state_dict()
    assert state == {"seed": first.sampler.seed}
    second.load_state_dict(state)
    second.set_start_iteration(5)
    assert take(second, 3) == whole[5:]


def test_each_process_gets_its_part_of_the_batches_of_one(monkeypatch):
    whole = take(make_loader(), 10)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        loader = make_loader()
        assert loader.batch_size == 3
        parts.append(take(loader, 10))
    assert [one + other for one, other in zip(*parts)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_callers_randomness_alone(num_workers):
    def digest():
        states = repr(random.getstate()), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
        return hashlib.sha256(repr(states).encode()).hexdigest()

    before = digest()
    take(make_loader(num_workers), 3)
    assert digest() == before


def test_another_seed_gives_other_samples():
    assert take(make_loader(seed=1), 3) != take(make_loader(seed=2), 3)


def test_batches_of_one_shape_reach_the_model():
    for batch in take(make_loader(), 20):
        rejected_were_replaced = [sample for sample in batch if sample["n"] % 7 == 3]
        assert len(batch) == 6 and not rejected_were_replaced
    grouped = build_detection_train_loader(ENTRIES, mapper=None, total_batch_size=6, seed=0)
    assert all(len({s["width"] > s["height"] for s in batch}) == 1 for batch in take(grouped, 20))
    mixed = build_detection_train_loader(ENTRIES, mapper=None, total_batch_size=6, seed=0, aspect_ratio_grouping=False)
    assert any(len({s["width"] > s["height"] for s in batch}) == 2 for batch in take(mixed, 20))


def test_a_collate_function_makes_the_batches():
    loader = make_loader(collate_fn=len, num_workers=1, persistent_workers=True, prefetch_factor=3)
    assert take(loader, 3) == [6, 6, 6] and take(loader, 1) == [6]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_users_sampler_and_dataset_are_used_as_they_are(num_workers):
    class Squares:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return index**2

    loader = build_batch_data_loader(
        Squares(), SequentialSampler(range(10)), 4, aspect_ratio_grouping=True, num_workers=num_workers
    )
    assert list(loader) == [[0, 1, 4, 9], [16, 25, 36, 49]]
    loader.set_start_iteration(1)
    assert list(loader) == [[16, 25, 36, 49]]
    kept = build_batch_data_loader(Squares(), SequentialSampler(range(10)), 4, drop_last=False)
    assert list(kept)[-1] == [64, 81]


def test_an_iterable_dataset_is_batched_as_it_comes():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(ENTRIES)

    loader = build_detection_train_loader(Stream(), mapper=noisy_mapper, total_batch_size=4)
    batches = list(loader)
    assert batches and all(len({s["width"] > s["height"] for s in batch}) == 1 for batch in batches)
    ungrouped = build_detection_train_loader(
        Stream(), mapper=lambda e: e["n"], total_batch_size=4, aspect_ratio_grouping=False, num_workers=1
    )
    assert next(iter(ungrouped)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="sampler cannot be used"):
        build_batch_data_loader(Stream(), TrainingSampler(3, seed=0), 4)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH .* is 6, which 4 processes .* 4, 8, 12"):
        make_loader(total=6)
    with pytest.raises(ValueError, match="not both"):
        build_batch_data_loader(DatasetFromList(ENTRIES), TrainingSampler(21, seed=0), 8, single_gpu_batch_size=2)


def test_the_batch_of_one_process_can_be_given():
    loader = build_batch_data_loader(
        DatasetFromList(ENTRIES), TrainingSampler(21, seed=0), None, single_gpu_batch_size=5
    )
    assert loader.batch_size == 5 and len(next(iter(loader))) == 5


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="not at -1"):
        make_loader().set_start_iteration(-1)


def test_an_error_in_a_worker_reaches_the_caller():
    def broken(entry):
        raise ValueError(f"cannot read {entry['n']}")

    for num_workers in (0, 1):
        loader = build_detection_train_loader(ENTRIES, mapper=broken, total_batch_size=2, num_workers=num_workers)
        with pytest.raises(ValueError, match="cannot read"):
            next(iter(loader))


def test_workers_do_not_need_picklable_mappers_where_processes_can_be_forked():
    loader = build_detection_train_loader(ENTRIES, mapper=lambda e: e["n"], total_batch_size=2, num_workers=1, seed=0)
    assert len(next(iter(loader))) == 2
    assert worker_options(0).keys() == {"num_workers", "generator"}
