"""Cutting polygons: against shapely, against rasterised masks, and on shapes that come apart."""

import numpy as np
import pytest

from detlab.data import transforms as T
from detlab.data.transforms.polygons import clip_polygon, transform_polygons
from detlab.structures.masks import polygon_area, polygons_to_bitmask

SQUARE = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])


def star(rng: np.random.Generator, corners: int = 24) -> np.ndarray:
    """A concave polygon that does not cross itself, about (50, 50)."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(5, 60, corners)
    return np.stack([50 + radius * np.cos(angles), 50 + radius * np.sin(angles)], axis=1)


def area_of(parts) -> float:
    return sum(polygon_area(part[:, 0], part[:, 1]) for part in parts)


@pytest.mark.parametrize("seed", range(30))
def test_the_cut_parts_are_those_of_shapely(seed):
    geometry = pytest.importorskip("shapely.geometry")
    rng = np.random.default_rng(seed)
    polygon = star(rng)
    x0, y0 = rng.uniform(0, 60, 2)
    rect = (x0, y0, x0 + rng.uniform(5, 60), y0 + rng.uniform(5, 60))
    expected = geometry.Polygon(polygon).buffer(0).intersection(geometry.box(*rect))
    expected_parts = [p for p in getattr(expected, "geoms", [expected]) if p.geom_type == "Polygon" and p.area > 1e-9]
    parts = clip_polygon(polygon, rect)
    assert sorted(area_of([p]) for p in parts) == pytest.approx(sorted(p.area for p in expected_parts), abs=1e-6)
    if parts:
        corners = np.concatenate(parts)
        bounds = [*corners.min(axis=0), *corners.max(axis=0)]
        assert bounds == pytest.approx(
            [
                min(p.bounds[0] for p in expected_parts),
                min(p.bounds[1] for p in expected_parts),
                max(p.bounds[2] for p in expected_parts),
                max(p.bounds[3] for p in expected_parts),
            ],
            abs=1e-6,
        )


@pytest.mark.parametrize("seed", range(5))
def test_a_polygon_that_crosses_itself_keeps_its_even_odd_inside(seed):
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(0, 100, (9, 2))
    clipped = clip_polygon(polygon, (20.0, 30.0, 80.0, 70.0))
    outline = np.zeros((100, 100), dtype=int)
    for part in clipped:
        outline += inside_even_odd(part)
    expected = inside_even_odd(polygon)
    outside = np.ones((100, 100), dtype=bool)
    outside[30:70, 20:80] = False
    expected[outside] = 0
    np.testing.assert_array_equal(outline % 2, expected)


def inside_even_odd(polygon: np.ndarray) -> np.ndarray:
    """(100, 100): whether the center of each pixel is inside, by counting the edges to its left."""
    rows, columns = np.indices((100, 100)) + 0.5
    crossings = np.zeros((100, 100), dtype=int)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0)):
        spans = (ay <= rows) != (by <= rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = ax + (rows - ay) / (by - ay) * (bx - ax)
        crossings += spans & (x < columns)
    return crossings % 2


def test_a_polygon_inside_stays_as_it_is():
    assert clip_polygon(SQUARE, (-1.0, -1.0, 11.0, 11.0))[0] is SQUARE
    assert clip_polygon(SQUARE, (0.0, 0.0, 10.0, 10.0))[0] is SQUARE


@pytest.mark.parametrize("rect", [(10, 0, 20, 10), (11, 11, 20, 20), (-5, -5, 0, 0), (0, 10, 10, 12)], ids=str)
def test_what_only_touches_the_rectangle_is_gone(rect):
    assert clip_polygon(SQUARE, rect) == []


def test_a_rectangle_inside_a_polygon_is_what_is_left():
    (part,) = clip_polygon(SQUARE, (2.0, 3.0, 5.0, 7.0))
    assert area_of([part]) == pytest.approx(12.0)
    assert len(part) == 4


def test_a_u_shape_cut_across_its_legs_comes_apart():
    u_shape = np.array([[0, 0], [2, 0], [2, 8], [8, 8], [8, 0], [10, 0], [10, 10], [0, 10]], dtype=float)
    parts = clip_polygon(u_shape, (-1.0, -1.0, 11.0, 5.0))
    boxes = sorted([*part.min(axis=0), *part.max(axis=0)] for part in parts)
    assert boxes == [[0.0, 0.0, 2.0, 5.0], [8.0, 0.0, 10.0, 5.0]]


def test_an_arm_around_the_rectangle_does_not_stretch_the_box_of_the_part_inside():
    # A ring open at the right, outside of the rectangle on three sides, whose tip enters at the lower right.
    ring = np.array(
        [[15, 0], [-5, 0], [-5, 20], [9, 20], [9, 8], [8, 8], [8, 18], [-3, 18], [-3, 2], [15, 2]], dtype=float
    )
    (part,) = clip_polygon(ring, (0.0, 3.0, 12.0, 12.0))
    np.testing.assert_allclose([*part.min(axis=0), *part.max(axis=0)], [8, 8, 9, 12])


# ------------------------------------------------------------------------------------------------- through transforms


def test_polygons_of_many_objects_move_as_each_by_itself():
    rng = np.random.default_rng(0)
    objects = [[star(rng) for _ in range(count)] for count in (2, 0, 1, 3)]
    transforms = T.TransformList([T.ResizeTransform(100, 100, 130, 70), T.HFlipTransform(70), T.NoOpTransform()])
    moved = transform_polygons(objects, transforms)
    assert [len(own) for own in moved] == [2, 0, 1, 3]
    for own, own_moved in zip(objects, moved):
        for polygon, polygon_moved in zip(own, own_moved):
            np.testing.assert_allclose(polygon_moved, transforms.apply_coords(polygon.copy()))


def test_the_given_polygons_are_not_changed():
    polygon = SQUARE.copy()
    transform_polygons([[polygon]], T.TransformList([T.HFlipTransform(30), T.CropTransform(2, 2, 20, 20)]))
    transform_polygons([[polygon]], T.VFlipTransform(30))
    np.testing.assert_array_equal(polygon, SQUARE)


@pytest.mark.parametrize("seed", range(10))
def test_cropped_polygons_cover_the_crop_of_the_mask(seed):
    polygon = star(np.random.default_rng(seed))
    crop = T.CropTransform(30, 20, 50, 45)
    transforms = T.TransformList([crop, T.HFlipTransform(50)])
    (moved,) = transform_polygons([[polygon]], transforms)
    mask = polygons_to_bitmask([polygon.reshape(-1)], 100, 100)
    expected = transforms.apply_segmentation(mask)
    found = polygons_to_bitmask([part.reshape(-1) for part in moved], 45, 50)
    # The COCO tools round corners to fractions of a pixel, so pixels along the outline may differ.
    assert (found != expected).mean() < 0.03


def test_an_object_outside_of_the_crop_is_left_without_polygons():
    transforms = T.TransformList([T.CropTransform(50, 50, 20, 20), T.ResizeTransform(20, 20, 40, 40)])
    assert transform_polygons([[SQUARE], [SQUARE + 45]], transforms)[0] == []
    assert transform_polygons([[SQUARE]], transforms) == [[]]


def test_a_transform_with_its_own_way_with_polygons_is_asked():
    class Halves(T.Transform):
        def apply_image(self, img):
            return img

        def apply_coords(self, coords):
            raise AssertionError("apply_polygons is asked instead")

        def apply_polygons(self, polygons):
            return [half for polygon in polygons for half in (polygon[:3], polygon[[0, 2, 3]])]

    first, second = transform_polygons([[SQUARE], [SQUARE + 5]], Halves())
    assert len(first) == len(second) == 2
    np.testing.assert_array_equal(second[0], SQUARE[:3] + 5)
