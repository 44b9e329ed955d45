"""Long outlines are filled as the COCO tools would."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detlab.utils import _polygon_fill
from detlab.utils._polygon_fill import runs_between, runs_of_polygon


def filled(runs, height, width):
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def polygons(rng, count, span):
    """Crossing themselves, with corners on all kinds of places of the lattice, up to ``span`` image sizes apart."""
    for i in range(count):
        height, width = rng.integers(1, 120, 2).tolist()
        corners = (rng.uniform(-0.5, 0.5, (rng.integers(3, 30), 2)) * span + 0.5) * [width, height]
        step = [None, 1, 0.5, 0.2, 0.1][i % 5]
        if step is not None:
            corners = np.round(corners / step) * step
        if i % 3 == 0:
            corners[rng.integers(len(corners))] = corners[0]
        yield corners.reshape(-1), height, width


@pytest.mark.parametrize("span", [1, 1.5, 5, 100])
def test_fills_equal_those_of_the_coco_tools(span):
    for polygon, height, width in polygons(np.random.default_rng(0), 150, span):
        expected = coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[:, :, 0]
        runs = runs_of_polygon(polygon, height, width)
        assert runs.sum() == height * width
        assert np.array_equal(filled(runs, height, width), expected)


def test_a_work_load_in_pieces_gives_the_same(monkeypatch):
    polygon, height, width = next(polygons(np.random.default_rng(1), 1, 3))
    whole = runs_of_polygon(polygon, height, width)
    monkeypatch.setattr(_polygon_fill, "CHUNK", 7)
    assert np.array_equal(runs_of_polygon(polygon, height, width), whole)


def test_corners_where_the_coco_tools_overflow_are_drawn_right():
    far = 1e14
    band = np.array([-far, 10, far, 10, far, 20, -far, 20])
    expected = np.zeros((40, 50), dtype=bool)
    expected[10:20] = True
    assert np.array_equal(filled(runs_of_polygon(band, 40, 50), 40, 50), expected)
    below_the_diagonal = np.array([-far, -far, far, far, -far, far])
    rows, columns = np.mgrid[:40, :40]
    drawn = filled(runs_of_polygon(below_the_diagonal, 40, 40), 40, 40)
    assert np.array_equal(drawn[rows != columns], (rows > columns)[rows != columns])


def test_changes_at_one_place_undo_each_other():
    assert runs_between(np.array([7, 3, 5, 5, 10]), 10).tolist() == [3, 4, 3]
    assert runs_between(np.array([0, 4]), 10).tolist() == [0, 4, 6]
    assert runs_between(np.array([], dtype=int), 10).tolist() == [10]
