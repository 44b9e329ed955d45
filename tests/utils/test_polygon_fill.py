"""Long outlines are filled as the COCO tools would."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detlab.utils import _polygon_fill
from detlab.utils._polygon_fill import runs_between, runs_of_polygons


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
        runs = runs_of_polygons([polygon], height, width)
        assert runs.sum() == height * width
        assert np.array_equal(filled(runs, height, width), expected)


@pytest.mark.parametrize("chunk", [7, 200, 1 << 18])
@pytest.mark.parametrize("span", [0.3, 1.5, 100])
def test_several_polygons_make_the_union_that_the_coco_tools_make(monkeypatch, span, chunk):
    monkeypatch.setattr(_polygon_fill, "CHUNK", chunk)
    made = list(polygons(np.random.default_rng(2), 200, span))
    for start in range(0, len(made), 5):
        own = [polygon for polygon, _, _ in made[start : start + 5]]
        height, width = made[start][1:]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(own, height, width)))
        assert np.array_equal(filled(runs_of_polygons(own, height, width), height, width), expected)


def test_edges_that_are_level_or_upright_and_off_the_canvas_count_as_for_the_coco_tools():
    rng = np.random.default_rng(3)
    for _ in range(300):
        x, y = np.repeat(rng.integers(-60, 90, 6), 2), np.roll(np.repeat(rng.integers(-60, 90, 6), 2), 1)
        polygon = np.stack([x, y], axis=1).reshape(-1) / 2
        expected = coco_mask.decode(coco_mask.frPyObjects([polygon], 20, 30))[:, :, 0]
        assert np.array_equal(filled(runs_of_polygons([polygon], 20, 30), 20, 30), expected)


def test_no_polygons_are_all_outside():
    assert runs_of_polygons([], 4, 5).tolist() == [20]


def test_edges_far_off_the_canvas_are_not_walked_along(monkeypatch):
    walked = []
    keys = _polygon_fill._crossing_keys
    monkeypatch.setattr(
        _polygon_fill,
        "_crossing_keys",
        lambda edges, *rest: walked.append(int((edges.last - edges.first + 1).sum())) or keys(edges, *rest),
    )
    runs_of_polygons([np.random.default_rng(0).uniform(-3e7, 3e7, 40_000)], 480, 640)
    assert sum(walked) < 100_000


def test_a_work_load_in_pieces_gives_the_same(monkeypatch):
    polygon, height, width = next(polygons(np.random.default_rng(1), 1, 3))
    whole = runs_of_polygons([polygon], height, width)
    monkeypatch.setattr(_polygon_fill, "CHUNK", 7)
    assert np.array_equal(runs_of_polygons([polygon], height, width), whole)


def test_corners_where_the_coco_tools_overflow_are_drawn_right():
    far = 1e14
    band = np.array([-far, 10, far, 10, far, 20, -far, 20])
    expected = np.zeros((40, 50), dtype=bool)
    expected[10:20] = True
    assert np.array_equal(filled(runs_of_polygons([band], 40, 50), 40, 50), expected)
    below_the_diagonal = np.array([-far, -far, far, far, -far, far])
    rows, columns = np.mgrid[:40, :40]
    drawn = filled(runs_of_polygons([below_the_diagonal], 40, 40), 40, 40)
    assert np.array_equal(drawn[rows != columns], (rows > columns)[rows != columns])


def test_changes_at_one_place_undo_each_other():
    assert runs_between(np.array([7, 3, 5, 5, 10]), 10).tolist() == [3, 4, 3]
    assert runs_between(np.array([0, 4]), 10).tolist() == [0, 4, 6]
    assert runs_between(np.array([], dtype=int), 10).tolist() == [10]
