import random

import numpy as np
import pytest
import torch

from detlab.data.stream import SampleRef, StreamDataset, random_state_of, seed_of, with_own_randomness


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def drawn_at(seed, position):
    with random_state_of(seed, position):
        return draw()


def test_a_position_always_draws_the_same():
    first = drawn_at(1, 5)
    draw()
    assert drawn_at(1, 5) == first


def test_positions_and_seeds_draw_different_numbers():
    drawn = [drawn_at(seed, position) for seed in range(3) for position in range(3)]
    assert all(len(set(column)) == 9 for column in zip(*drawn))


def test_the_callers_generators_go_on_as_if_nothing_happened():
    def three_numbers():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        draw()
        return draw()

    expected = three_numbers()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    draw()
    drawn_at(3, 4)
    assert draw() == expected


def test_the_callers_generators_are_put_back_after_an_error():
    state = np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError), random_state_of(1, 2):
        draw()
        raise ZeroDivisionError
    assert (np.random.get_state()[1] == state).all()


def test_a_stream_dataset_gives_entries_with_their_positions_randomness():
    class Noisy:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return index, draw()

    dataset = StreamDataset(Noisy())
    assert len(dataset) == 2
    assert dataset[SampleRef(1, 7, 3)] == (1, drawn_at(3, 7))


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_an_iterable_draws_by_its_key_whatever_happens_between(at_once):
    def noise():
        for _ in range(7):
            yield draw()

    expected = list(with_own_randomness(noise(), 4, 5))
    given = []
    for item in with_own_randomness(noise(), 4, 5, at_once=at_once):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        given.append(item)
    assert given == expected and len(set(given)) == 7
    for unwanted in (1, 4, 7, 50):
        assert list(with_own_randomness(noise(), 4, 5, at_once=at_once, unwanted=unwanted)) == expected
    assert list(with_own_randomness(noise(), 4, 6)) != expected


def test_an_iterable_leaves_the_callers_generators_alone_even_after_an_error():
    def broken():
        draw()
        yield 1
        draw()
        raise ZeroDivisionError

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError):
        list(with_own_randomness(broken(), 1))
    assert draw() == expected


def test_seeds_of_different_keys_differ():
    seeds = {seed_of(a, b, c, 2) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("entry", [3, -9])
def test_an_index_that_the_data_set_has_not_is_said_with_its_size(entry):
    with pytest.raises(IndexError, match=rf"the sampler gives index {entry}, but the data set has 3 entries"):
        StreamDataset(["a", "b", "c"])[SampleRef(entry, 0, 0)]


def test_an_index_error_of_the_data_sets_own_is_left_as_it_is():
    class Broken(list):
        def __getitem__(self, index):
            raise IndexError("no third column")

    with pytest.raises(IndexError, match=r"^no third column$"):
        StreamDataset(Broken("abc"))[SampleRef(1, 0, 0)]
