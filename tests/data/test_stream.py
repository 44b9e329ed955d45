import random

import numpy as np
import pytest
import torch

from detlab.data.stream import SampleRef, StreamDataset, random_state_of


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
