import hashlib
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from detlab.data.build import build_batch_data_loader, build_detection_train_loader
from detlab.data.common import DatasetFromList
from detlab.data.loader import endless_batches
from detlab.data.samplers.distributed_sampler import TrainingSampler
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
    assert list(loader) == [[0, 1, 4, 9], [16, 25, 36, 49]]
    kept = build_batch_data_loader(Squares(), SequentialSampler(range(10)), 4, drop_last=False)
    assert list(kept)[-1] == [64, 81]


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


def test_a_sampler_for_a_map_style_dataset_is_asked_for():
    with pytest.raises(ValueError, match="list is map-style: a sampler has to say"):
        build_batch_data_loader(ENTRIES, None, 4)
    with pytest.raises(ValueError, match="single_gpu_batch_size=0"):
        build_batch_data_loader(ENTRIES, TrainingSampler(21, seed=0), None, single_gpu_batch_size=0)


# ---------------------------------------------------------------------------------- loaders that end, and are resumed


def finite_loader(sampler, num_workers=0, seed=3, **options):
    dataset = DatasetFromList(ENTRIES)
    return build_detection_train_loader(
        dataset, mapper=noisy_mapper, sampler=sampler, total_batch_size=4, num_workers=num_workers, seed=seed, **options
    )


class Rare:
    """Knows neither its length nor its epoch; every other pass is shorter."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(range(0, 21, 1 + self.passes % 2))


SAMPLERS = {
    "in order": lambda: SequentialSampler(range(21)),
    "shuffled": lambda: RandomSampler(range(21)),
    "own generator": lambda: RandomSampler(range(21), generator=torch.Generator().manual_seed(5)),
    "by epoch": lambda: DistributedSampler(range(21), num_replicas=2, rank=1, seed=1),
    "passes of different lengths": Rare,
    "a list": lambda: list(range(20)),
}


@pytest.mark.parametrize("grouped", [False, True], ids=["mixed", "grouped"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("start", [2, 5, 10, 13])
def test_a_resumed_run_over_a_finite_loader_sees_the_batches_of_one_that_was_never_stopped(sampler, start, grouped):
    whole = take(endless_batches(finite_loader(sampler(), aspect_ratio_grouping=grouped), 0), 17)
    resumed = endless_batches(finite_loader(sampler(), aspect_ratio_grouping=grouped), start)
    assert take(resumed, 17 - start) == whole[start:]


def test_passes_through_a_finite_loader_are_the_same_for_any_number_of_workers():
    whole = take(endless_batches(finite_loader(RandomSampler(range(21))), 0), 17)
    assert take(endless_batches(finite_loader(RandomSampler(range(21)), num_workers=2), 3), 14) == whole[3:]


def test_each_pass_is_shuffled_and_augmented_anew():
    batches = take(endless_batches(finite_loader(RandomSampler(range(20)), aspect_ratio_grouping=False), 0), 10)
    orders = [[sample["n"] for batch in batches[n : n + 5] for sample in batch] for n in (0, 5)]
    assert orders[0] != orders[1]
    noise = {sample["noise"] for batch in batches for sample in batch}
    assert len(noise) == 40
    in_order = take(endless_batches(build_batch_data_loader(range(20), list(range(20)), 4), 0), 10)
    assert in_order[5:] == in_order[:5] == [list(range(n, n + 4)) for n in range(0, 20, 4)]


def test_processes_shuffle_a_sampler_without_a_seed_differently(monkeypatch):
    orders = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        orders.append([s["n"] for batch in finite_loader(RandomSampler(range(21))) for s in batch])
    assert orders[0] != orders[1]


def test_a_sampler_that_draws_leaves_the_callers_randomness_alone():
    before = torch.get_rng_state()
    list(finite_loader(RandomSampler(range(21))))
    assert torch.equal(before, torch.get_rng_state())


def test_a_sampler_of_batches_is_refused():
    with pytest.raises(TypeError, match=r"list gives \[0, 1\], which is no index"):
        next(iter(build_batch_data_loader(range(4), [[0, 1], [2, 3]], 2)))


class Naive:
    """A finite loader that keeps the start it was told, within a pass."""

    def __init__(self):
        self.start = 0
        self.starts = []

    def set_start_iteration(self, iteration):
        self.start = iteration
        self.starts.append(iteration)

    def __iter__(self):
        return iter(["a", "b", "c"][self.start :])


class NaiveOfKnownLength(Naive):
    def __init__(self):
        super().__init__()
        self.epochs = []

    def __len__(self):
        return 3

    def set_epoch(self, number):
        self.epochs.append(number)


def test_a_loader_that_keeps_its_start_still_gives_whole_passes():
    assert take(endless_batches(Naive(), 2), 6) == list("cabcab")
    assert take(endless_batches(NaiveOfKnownLength(), 2), 6) == list("cabcab")


def test_a_loader_of_known_length_is_told_the_place_in_the_pass_and_the_pass():
    loader = NaiveOfKnownLength()
    assert take(endless_batches(loader, 7), 6) == list("bcabca")
    assert loader.starts == [1, 0, 0] and loader.epochs == [2, 3, 4]


@pytest.mark.parametrize("taken_before", [0, 3])
def test_an_iterator_that_cannot_begin_again_is_said_to_be_one(taken_before):
    batches = iter("abc")
    assert take(batches, taken_before) == list("abc")[:taken_before]
    left = 3 - taken_before
    with pytest.raises(ValueError, match=rf"is an iterator, which ended after {left} batches.*cannot begin again"):
        take(endless_batches(batches, 5), left + 1)


def test_what_is_no_loader_is_refused_with_its_value():
    with pytest.raises(TypeError, match=r"must be an iterable of batches, got None; does build_train_loader return it"):
        next(endless_batches(None, 0))


def test_a_sequence_of_batches_is_entered_where_the_run_was():
    assert take(endless_batches(["a", "b", "c"], 7), 5) == list("bcabc")


def test_the_sampler_of_a_loader_of_torch_is_told_the_pass():
    sampler = DistributedSampler(range(8), num_replicas=1, rank=0, seed=1)
    loader = DataLoader(range(8), sampler=sampler, batch_size=4, collate_fn=list)
    whole = take(endless_batches(loader, 0), 8)
    assert len({(*whole[n], *whole[n + 1]) for n in range(0, 8, 2)}) == 4
    assert take(endless_batches(loader, 4), 4) == whole[4:]


def test_a_loader_that_cannot_begin_in_the_middle_says_so(caplog):
    loader = DataLoader(range(8), batch_size=4, collate_fn=list)
    assert take(endless_batches(loader, 3), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert "DataLoader cannot begin at iteration 3" in caplog.text and "set_start_iteration" in caplog.text
    caplog.clear()
    take(endless_batches(loader, 4), 3), take(endless_batches(loader, 0), 3)
    assert caplog.text == ""


@pytest.mark.parametrize("loader", [[], build_batch_data_loader(range(3), [0, 1, 2], 4)], ids=["list", "loader"])
@pytest.mark.parametrize("start", [0, 5])
def test_a_loader_without_batches_is_refused(loader, start):
    with pytest.raises(ValueError, match="gives no batch"):
        next(endless_batches(loader, start))
