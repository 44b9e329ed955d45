import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler, get_worker_info

from detlab.data.build import build_batch_data_loader, build_detection_train_loader
from detlab.data.common import ToIterableDataset
from detlab.data.iterable_loader import IterableLoader
from detlab.data.loader import TrainingLoader, endless_batches
from detlab.data.samplers.distributed_sampler import TrainingSampler
from detlab.utils import comm

ENTRIES = [{"n": n, "width": 3 + n % 4, "height": 4} for n in range(21)]


class Noise(IterableDataset):
    """Draws from every generator, without end; tells which worker it is in."""

    def __init__(self, length=None):
        self.length = length

    def __iter__(self):
        worker = get_worker_info()
        for _ in itertools.count() if self.length is None else range(self.length):
            yield (worker.id if worker else 0), random.random(), float(np.random.rand()), float(torch.rand(1))


class Resumable(IterableDataset):
    """Numbers 0 ... 19, divided among the workers, with a state."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        worker = get_worker_info()
        step, first = (worker.num_workers, worker.id) if worker else (1, 0)
        while step * self.position + first < 20:
            self.position += 1
            yield step * (self.position - 1) + first
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Seekable(IterableDataset):
    """Numbers 0 ... 19, from a batch of two on."""

    def set_start_iteration(self, iteration):
        self.start = 2 * iteration % 20

    def __iter__(self):
        return iter(range(self.start, 20))


def take(loader, count):
    return list(itertools.islice(loader, count))


def make_loader(dataset, num_workers=0, seed=7, total=2, **options):
    return build_detection_train_loader(
        dataset,
        mapper=options.pop("mapper", None),
        total_batch_size=total,
        num_workers=num_workers,
        seed=seed,
        **{"aspect_ratio_grouping": False, **options},
    )


def test_an_iterable_dataset_is_batched_as_it_comes():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(ENTRIES)

    grouped = make_loader(Stream(), mapper=lambda e: e if e["n"] % 7 else None, aspect_ratio_grouping=True, total=4)
    batches = list(grouped)
    assert batches and all(len({s["width"] > s["height"] for s in batch}) == 1 for batch in batches)
    assert all(sample["n"] % 7 for batch in batches for sample in batch)
    one_worker = make_loader(Stream(), 1, mapper=lambda e: e["n"], total=4)
    assert list(one_worker) == [list(range(n, n + 4)) for n in range(0, 20, 4)]
    assert list(make_loader(Stream(), mapper=lambda e: e["n"], total=4, drop_last=False))[-1] == [20]
    with pytest.raises(ValueError, match="sampler cannot be used"):
        build_batch_data_loader(Stream(), TrainingSampler(3, seed=0), 4)


def test_a_collate_function_makes_the_batches_grouped_or_not():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(ENTRIES)

    assert take(make_loader(Stream(), collate_fn=len, total=3), 2) == [3, 3]
    assert take(make_loader(Stream(), collate_fn=len, total=3, aspect_ratio_grouping=True), 2) == [3, 3]


# -------------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_seed_draws_the_same_and_another_others(num_workers):
    drawn = take(make_loader(Noise(), num_workers), 6)
    assert take(make_loader(Noise(), num_workers), 6) == drawn
    assert not set(itertools.chain(*drawn)) & set(itertools.chain(*take(make_loader(Noise(), num_workers, seed=8), 6)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_workers_passes_and_runs_draw_different_numbers(monkeypatch, num_workers):
    numbers = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = make_loader(Noise(6), num_workers)
        numbers += itertools.chain(*take(endless_batches(loader, 0), 12))
        resumed = make_loader(Noise(6), num_workers)
        numbers += itertools.chain(*take(endless_batches(resumed, 5), 6))
    assert len(numbers) == 72
    # Each generator's draws are all different, so not even one was shared by two of them.
    for column in (1, 2, 3):
        assert len({number[column] for number in numbers}) == 72


def test_a_stream_in_this_process_neither_disturbs_nor_follows_the_model():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    undisturbed = take(make_loader(Noise()), 3)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = [draw() for _ in range(3)]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    batches = iter(make_loader(Noise()))
    assert [(next(batches), draw()) for _ in range(3)] == list(zip(undisturbed, expected))


def test_a_generator_of_the_users_own_is_used():
    def loader():
        return make_loader(Noise(), 1, generator=torch.Generator().manual_seed(3))

    assert take(loader(), 2) == take(loader(), 2) != take(make_loader(Noise(), 1), 2)


# ---------------------------------------------------------------------------------------------------------- resuming


def test_an_unresumable_stream_says_so_and_does_not_repeat_itself(caplog):
    whole = take(make_loader(Noise()), 8)
    loader = make_loader(Noise())
    loader.load_state_dict(make_loader(Noise()).state_dict())
    loader.set_start_iteration(4)
    assert "Noise cannot go on at iteration 4" in caplog.text and "state_dict() and load_state_dict" in caplog.text
    resumed = take(loader, 4)
    assert not set(itertools.chain(*resumed)) & set(itertools.chain(*whole))


def test_a_run_that_is_not_resumed_is_not_warned_of(caplog):
    take(endless_batches(make_loader(Noise(6)), 0), 9)
    assert caplog.text == ""


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("done", [1, 4, 10, 14])
def test_a_dataset_with_a_state_goes_on_where_each_worker_was(num_workers, done, caplog):
    first = make_loader(Resumable(), num_workers)
    batches = endless_batches(first, 0)
    given = take(batches, done)
    state = first.state_dict()
    following = take(batches, 20)

    second = make_loader(Resumable(), num_workers, seed=None)
    second.load_state_dict(state)
    resumed = take(endless_batches(second, done), 20)
    assert caplog.text == ""
    if num_workers < 2:
        assert resumed == following
    # What is left of the pass comes, each batch once, whoever's turn it is.
    left = -len(given) % 10
    assert sorted(resumed[:left]) == sorted(following[:left])
    assert sorted(resumed[left : left + 10]) == sorted(following[left : left + 10])


def test_the_state_is_that_of_the_batches_given_not_of_those_read_ahead():
    loader = make_loader(Resumable(), 1, prefetch_factor=4)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict()["streams"] == {0: {"position": 2}}


def test_a_mapped_dataset_goes_on_too():
    loader = make_loader(Resumable(), mapper=lambda n: -n)
    take(loader, 3)
    resumed = make_loader(Resumable(), mapper=lambda n: -n)
    resumed.load_state_dict(loader.state_dict())
    assert next(endless_batches(resumed, 3)) == [-6, -7]


def test_states_of_another_number_of_workers_are_not_taken(caplog):
    loader = make_loader(Resumable(), 1)
    take(loader, 3)
    other = make_loader(Resumable(), 2)
    other.load_state_dict(loader.state_dict())
    assert "saved by 1 workers, and 2 cannot go on" in caplog.text
    assert next(endless_batches(other, 3)) == [0, 2]
    assert "Resumable cannot go on at iteration 3" in caplog.text


def test_states_of_another_iteration_are_not_taken(caplog):
    loader = make_loader(Resumable())
    take(loader, 3)
    other = make_loader(Resumable())
    other.load_state_dict(loader.state_dict())
    assert next(endless_batches(other, 4)) == [0, 1]
    assert "cannot go on at iteration 4" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_that_can_be_told_where_to_begin_is(num_workers, caplog):
    assert take(endless_batches(make_loader(Seekable(), num_workers), 8), 4) == [[16, 17], [18, 19], [0, 1], [2, 3]]
    assert caplog.text == ""


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="not at -1"):
        make_loader(Noise()).set_start_iteration(-1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_and_a_sampler_made_iterable_go_on_to_the_bit(num_workers):
    def loader(workers):
        dataset = ToIterableDataset(ENTRIES, TrainingSampler(21, seed=3))
        return make_loader(dataset, workers, mapper=lambda e: (e["n"], random.random()), aspect_ratio_grouping=True)

    whole = take(loader(0), 30)
    assert take(endless_batches(loader(num_workers), 17), 13) == whole[17:]
    assert isinstance(loader(0), TrainingLoader) and isinstance(make_loader(Noise()), IterableLoader)


def test_a_sampler_that_divides_itself_among_workers_is_left_to_it():
    class OfWorker(SequentialSampler):
        def __iter__(self):
            return itertools.islice(super().__iter__(), get_worker_info().id, None, get_worker_info().num_workers)

    dataset = ToIterableDataset(list(range(8)), OfWorker(range(8)), shard_sampler=False)
    assert list(make_loader(dataset, 2)) == [[0, 2], [1, 3], [4, 6], [5, 7]]
