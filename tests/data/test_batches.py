import itertools

import numpy as np
import pytest
import torch

from detlab.data.batches import GlobalBatches, OwnBatches
from detlab.data.samplers.distributed_sampler import RepeatFactorTrainingSampler, TrainingSampler
from detlab.utils import comm

GROUPS = (np.random.default_rng(0).random(23) < 0.3).astype(np.int64)


def take(plan, count):
    return list(itertools.islice(plan, count))


def make_plan(total=4, seed=5, groups=GROUPS):
    return GlobalBatches(TrainingSampler(23, seed=seed), total, groups)


def slow_plan(sampler, total, groups, count):
    """The definition: walk along the stream, give a batch when its group has enough."""
    waiting, batches = {}, []
    for position, entry in enumerate(sampler):
        batch = waiting.setdefault(0 if groups is None else int(groups[entry]), [])
        batch.append((entry, position, sampler.seed))
        if len(batch) == total:
            batches.append(list(batch))
            batch.clear()
            if len(batches) == count:
                return batches


@pytest.mark.parametrize("groups", [GROUPS, None], ids=["grouped", "ungrouped"])
@pytest.mark.parametrize("total", [1, 4, 50])
def test_batches_agree_with_the_definition(groups, total):
    expected = slow_plan(TrainingSampler(23, seed=5), total, groups, 40)
    assert take(make_plan(total, groups=groups), 40) == expected


def test_epochs_of_changing_length_agree_with_the_definition():
    sampler = RepeatFactorTrainingSampler(torch.full((23,), 0.6), seed=1)
    assert take(GlobalBatches(sampler, 4, GROUPS), 40) == slow_plan(sampler, 4, GROUPS, 40)


def test_epochs_without_any_sample_are_passed_over():
    sampler = RepeatFactorTrainingSampler(torch.tensor([0.1]), seed=1)
    assert len(take(GlobalBatches(sampler, 2), 3)) == 3


def test_all_samples_of_a_batch_are_of_one_group():
    assert all(len({int(GROUPS[ref.entry]) for ref in batch}) == 1 for batch in take(make_plan(), 50))


@pytest.mark.parametrize("start", [0, 1, 7, 40])
def test_a_later_start_gives_the_tail(start):
    plan = make_plan()
    whole = take(plan, 50)
    plan.start = start
    assert take(plan, 50 - start) == whole[start:]


def test_the_start_counts_from_when_iterating_begins():
    plan = make_plan()
    batches = iter(plan)
    plan.start = 5
    assert next(batches) == take(make_plan(), 1)[0]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_the_batches_of_one(monkeypatch, world_size):
    whole = take(make_plan(), 30)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        parts.append(take(make_plan(), 30))
    assert [list(itertools.chain(*parts_of_batch)) for parts_of_batch in zip(*parts)] == whole


def test_the_seed_can_be_taken_over_from_another_run():
    plan = make_plan(seed=1)
    plan.seed = 5
    assert take(plan, 20) == take(make_plan(seed=5), 20)


def test_a_users_sampler_is_taken_as_this_process_has_it(monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    plan = OwnBatches([3, 1, 4, 1, 5], 2, seed=9)
    assert take(plan, 9) == [[(3, 1, 9), (1, 3, 9)], [(4, 5, 9), (1, 7, 9)]]
    plan.start = 1
    assert len(take(plan, 9)) == 1
    assert len(take(OwnBatches([3, 1, 4, 1, 5], 2, seed=9, drop_last=False), 9)) == 3


def test_a_users_sampler_is_grouped_too():
    plan = OwnBatches(range(23), 3, seed=0, group_ids=GROUPS)
    assert all(len({int(GROUPS[ref.entry]) for ref in batch}) == 1 for batch in plan)


def test_positions_go_on_in_the_next_pass():
    plan = OwnBatches([3, 1, 4], 2, seed=9, drop_last=False)
    assert list(plan) == [[(3, 0, 9), (1, 1, 9)], [(4, 2, 9)]]
    plan.start = 2
    assert list(plan) == [[(3, 3, 9), (1, 4, 9)], [(4, 5, 9)]]
    plan.start = 1
    assert list(plan) == [[(4, 2, 9)]]


def test_the_seed_decides_what_a_sampler_draws():
    def order(seed):
        plan = OwnBatches(torch.utils.data.RandomSampler(range(23)), 3, seed=0)
        list(plan)
        plan.seed = seed
        return list(plan)

    assert order(1) == order(1) and [r.entry for b in order(1) for r in b] != [r.entry for b in order(2) for r in b]
