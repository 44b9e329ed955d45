"""Colours are fixed, in range, and apart from each other."""

import random

import numpy as np
import pytest

from detlab.utils.colormap import NUM_COLORS, colormap, random_color, random_colors


def test_the_table_is_fixed_and_in_range():
    table = colormap(rgb=True)
    assert table.shape == (NUM_COLORS, 3) and table.min() >= 0 and 200 < table.max() <= 255
    assert np.array_equal(table, colormap(rgb=True))
    assert np.allclose(colormap(rgb=True, maximum=1) * 255, table)
    assert np.array_equal(colormap(), table[:, ::-1])


def test_no_two_colours_are_near():
    table = colormap(rgb=True)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 1000 * np.eye(NUM_COLORS)
    assert distance.min() > 20 and distance[:10, :10].min() > 80


def test_changing_a_table_leaves_the_next_alone():
    colormap(rgb=True)[:] = 0
    assert colormap(rgb=True).max() > 0


def test_random_colours_are_of_the_table_and_different():
    table = {tuple(color) for color in colormap(rgb=True, maximum=1)}
    random.seed(0)
    drawn = random_colors(30, rgb=True, maximum=1)
    assert {tuple(color) for color in drawn} <= table and len({tuple(color) for color in drawn}) == 30
    assert tuple(random_color(rgb=True, maximum=1)) in table
    assert len(random_colors(NUM_COLORS + 5)) == NUM_COLORS + 5


def test_an_odd_maximum_is_refused():
    with pytest.raises(ValueError, match="maximum=100"):
        colormap(maximum=100)
