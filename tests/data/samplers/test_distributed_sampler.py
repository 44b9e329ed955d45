import itertools
import math

import numpy as np
import pytest
import torch

from detlab.data.samplers.distributed_sampler import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detlab.utils import comm


def take(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank, world_size):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    return pretend


def test_each_epoch_has_every_index_once_in_a_new_order():
    drawn = take(TrainingSampler(10, seed=1), 30)
    epochs = [drawn[:10], drawn[10:20], drawn[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


def test_the_same_seed_gives_the_same_stream_and_another_one_does_not():
    assert take(TrainingSampler(50, seed=1), 120) == take(TrainingSampler(50, seed=1), 120)
    assert take(TrainingSampler(50, seed=1), 120) != take(TrainingSampler(50, seed=2), 120)


def test_without_shuffling_indices_are_in_order():
    assert take(TrainingSampler(3, shuffle=False, seed=0), 7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    "make", [lambda: TrainingSampler(7, seed=3), lambda: RandomSubsetTrainingSampler(9, 0.7, True, 3)]
)
def test_the_processes_share_one_stream(as_rank, make):
    whole = take(make(), 30)
    parts = []
    for rank in range(3):
        as_rank(rank, 3)
        parts.append(take(make(), 10))
    assert [index for step in zip(*parts) for index in step] == whole


def test_a_sampler_without_seed_draws_one():
    sampler = TrainingSampler(5)
    assert isinstance(sampler.seed, int) and take(sampler, 12) == take(TrainingSampler(5, seed=sampler.seed), 12)


@pytest.mark.parametrize(("arguments", "error"), [((0,), ValueError), ((2.5,), TypeError), ((3, True, -1), ValueError)])
def test_senseless_sizes_and_seeds_are_refused(arguments, error):
    with pytest.raises(error):
        TrainingSampler(*arguments)


def test_a_random_subset_is_the_same_in_each_epoch():
    drawn = take(RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=0, seed_subset=5), 15)
    epochs = [set(drawn[:5]), set(drawn[5:10]), set(drawn[10:])]
    assert epochs[0] == epochs[1] == epochs[2] and len(epochs[0]) == 5
    other_order = take(RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=1, seed_subset=5), 5)
    assert set(other_order) == epochs[0]
    assert set(take(RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=0, seed_subset=6), 5)) != epochs[0]


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.5, float("nan"), float("inf")])
def test_an_impossible_subset_is_refused(ratio):
    with pytest.raises(ValueError, match="subset_ratio"):
        RandomSubsetTrainingSampler(20, ratio)


def test_repeat_factors_come_out_on_average():
    factors = torch.tensor([1.0, 2.0, 1.5, 0.25])
    sampler = RepeatFactorTrainingSampler(factors, seed=0)
    counts = np.mean([np.bincount(sampler.epoch_indices(epoch), minlength=4) for epoch in range(4000)], axis=0)
    assert np.abs(counts - factors.numpy()).max() < 0.05
    assert (counts[:2] == [1, 2]).all()


def test_repeat_factors_without_shuffling_are_in_order():
    drawn = take(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0]), shuffle=False, seed=0), 6)
    assert drawn == [0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("factors", "shown"),
    [
        ([], r"\(0,\)"),
        ([[1.0]], r"\(1, 1\)"),
        ([1.0, 0.0], r"\[0\.0\]"),
        ([float("inf")], "inf"),
        ([float("nan")], "nan"),
    ],
)
def test_senseless_repeat_factors_are_refused(factors, shown):
    with pytest.raises(ValueError, match=f"one positive number.*{shown}"):
        RepeatFactorTrainingSampler(torch.tensor(factors))


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_senseless_repeat_threshold_is_refused(threshold):
    images = [{"annotations": [{"category_id": 0}]}]
    with pytest.raises(ValueError, match=r"DATALOADER\.REPEAT_THRESHOLD\) is a share"):
        RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(images, threshold)


def test_more_processes_than_entries_still_share_every_epoch(as_rank):
    parts = []
    for rank in range(5):
        as_rank(rank, 5)
        parts.append(take(TrainingSampler(2, seed=1), 4))
    stream = [index for of_all in zip(*parts) for index in of_all]
    assert all(sorted(stream[n : n + 2]) == [0, 1] for n in range(0, 20, 2))


def slow_repeat_factors(dataset_dicts, threshold, sqrt):
    frequency = {}
    for image in dataset_dicts:
        for category in {obj["category_id"] for obj in image["annotations"]}:
            frequency[category] = frequency.get(category, 0) + 1 / len(dataset_dicts)
    repeat = {c: max(1.0, math.sqrt(threshold / f) if sqrt else threshold / f) for c, f in frequency.items()}
    return [max((repeat[obj["category_id"]] for obj in image["annotations"]), default=1.0) for image in dataset_dicts]


@pytest.mark.parametrize("sqrt", [True, False])
def test_repeat_factors_agree_with_the_definition(sqrt):
    random = np.random.default_rng(0)
    categories = [random.integers(0, 30, size=random.integers(0, 4)) for _ in range(40)]
    images = [{"annotations": [{"category_id": int(c)} for c in of_image]} for of_image in categories]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(images, 0.2, sqrt=sqrt)
    assert factors.dtype == torch.float32
    np.testing.assert_allclose(factors.numpy(), slow_repeat_factors(images, 0.2, sqrt), rtol=1e-6)


def test_images_without_objects_are_not_repeated():
    images = [{"annotations": []}, {"file_name": "a.jpg"}]
    assert RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(images, 0.5).tolist() == [1, 1]


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (2, 4), (0, 2), (8, 4)])
def test_inference_divides_the_dataset_without_rest(as_rank, size, world_size):
    parts = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        sampler = InferenceSampler(size)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
    assert [index for part in parts for index in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
