"""Masks turned from one form into another."""

import numpy as np
import pytest
from pycocotools import mask as mask_tools

from detlab.utils._generic_mask import GenericMask, middle_of_longest_run, shoelace_area, trace

HEIGHT, WIDTH = 12, 20


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


@pytest.fixture
def ring():
    return rectangle(2, 2, 12, 10) - rectangle(5, 4, 9, 8)


def test_a_bitmap_polygons_and_run_lengths_say_the_same():
    bitmap = rectangle(3, 2, 13, 9)
    compressed = mask_tools.encode(np.asfortranarray(bitmap))
    counts = [3 * HEIGHT + 2] + [7, 5] * 9 + [7, 7 * HEIGHT - 9]
    counts[-1] = HEIGHT * WIDTH - sum(counts[:-1])
    forms = [bitmap, [[3, 2, 13, 2, 13, 9, 3, 9]], compressed, {"size": [HEIGHT, WIDTH], "counts": counts}]
    for form in forms:
        mask = GenericMask(form, HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask.mask, bitmap)
        assert mask.bbox().tolist() == [3, 2, 13, 9] and mask.area() == 70 and not mask.has_holes


def test_outlines_run_along_the_edges_of_the_pixels():
    (outline,) = GenericMask(rectangle(3, 2, 13, 9), HEIGHT, WIDTH).polygons
    points = outline.reshape(-1, 2)
    assert points.min(axis=0).tolist() == [3, 2] and points.max(axis=0).tolist() == [13, 9]
    assert shoelace_area(points) == pytest.approx(70, abs=1)


def test_a_mask_at_the_border_has_a_closed_outline():
    (part,) = trace(np.ones((HEIGHT, WIDTH)))
    assert part.area == pytest.approx(HEIGHT * WIDTH, abs=1) and not part.holes


def test_holes_belong_to_their_part(ring):
    parts = sorted(trace(ring + rectangle(15, 2, 18, 5)), key=lambda part: -part.area)
    assert [len(part.holes) for part in parts] == [1, 0]
    assert parts[0].area == pytest.approx(ring.sum(), abs=2)
    mask = GenericMask(ring, HEIGHT, WIDTH)
    assert mask.has_holes and len(mask.polygons) == 2
    assert mask.mask_to_polygons(rectangle(0, 0, 2, 2))[1] is False


def test_an_outline_filled_again_gives_the_mask_but_for_its_corners():
    mask = GenericMask(rectangle(3, 2, 13, 9), HEIGHT, WIDTH)
    assert np.abs(mask.polygons_to_mask(mask.polygons).astype(int) - mask.mask).sum() <= 4


def test_an_empty_mask_has_no_outline_and_no_box():
    for form in (np.zeros((HEIGHT, WIDTH)), []):
        mask = GenericMask(form, HEIGHT, WIDTH)
        assert mask.polygons == [] and mask.area() == 0 and mask.bbox().tolist() == [0, 0, 0, 0]


def test_masks_of_other_sizes_and_kinds_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) in an image of \(12, 20\)"):
        GenericMask(np.zeros((3, 4)), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        GenericMask({"size": [3, 4], "counts": [12]}, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="add up to 20 pixels"):
        GenericMask({"size": [HEIGHT, WIDTH], "counts": [10, 10]}, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="a polygon has y = nan at its corner 1"):
        GenericMask([[1, 1, 5, float("nan"), 5, 5]], HEIGHT, WIDTH)
    with pytest.raises(TypeError, match="int"):
        GenericMask(5, HEIGHT, WIDTH)


def test_the_place_for_a_text_is_inside_the_mask(ring):
    assert middle_of_longest_run(rectangle(4, 2, 10, 7)) == (7.0, 4.5)
    rows, columns = np.mgrid[:50, :50]
    for mask in (ring, (np.hypot(rows - 20, columns - 30) < 15) & (rows + columns > 40)):
        x, y = middle_of_longest_run(mask)
        assert mask[int(y), int(x)]
