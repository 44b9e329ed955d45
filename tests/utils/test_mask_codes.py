"""What reaches the COCO tools has been checked: nothing ends the process, hangs it, or invents pixels."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detlab.utils import mask_codes
from detlab.utils.mask_codes import (
    MAX_CORNERS,
    checked_objects,
    checked_polygons,
    checked_rle,
    decode_rle,
    draw_polygons,
    encode_bitmap,
    find_bad_code,
    polygons_to_rle,
    rle_area,
    with_bounded_outlines,
)
from tests.limits import MEBIBYTE, run_limited

SQUARE = [2.0, 2, 8, 2, 8, 8, 2, 8]


def random_bitmap(rng, height, width):
    bitmap = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(0, 4)):
        top, left = rng.integers(0, height), rng.integers(0, width)
        bitmap[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] ^= 1
    return bitmap


def runs_of(bitmap):
    flat = bitmap.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff(changes, prepend=0).tolist()


class TestRunLengths:
    @pytest.mark.parametrize("form", ["list", "tuple", "array", "text", "bytes"])
    def test_sound_codes_are_decoded_as_ever(self, form):
        rng = np.random.default_rng(0)
        for _ in range(40):
            height, width = rng.integers(1, 2000 if form == "text" else 60, 2).tolist()
            bitmap = random_bitmap(rng, height, width)
            code = coco_mask.encode(np.asfortranarray(bitmap))["counts"]
            runs = runs_of(bitmap)
            counts = {
                "list": runs,
                "tuple": tuple(runs),
                "array": np.array(runs, dtype=np.int32),
                "text": code.decode("ascii"),
                "bytes": code,
            }[form]
            rle = {"size": [height, width], "counts": counts}
            checked = checked_rle(rle, (height, width))
            assert np.array_equal(decode_rle(rle), bitmap)
            assert rle_area(rle) == bitmap.sum()
            assert checked["size"] == [height, width]
            assert checked["counts"] == (counts if form == "text" else code)

    @pytest.mark.parametrize("counts", [[10, 10], [10000, 10], [], [5], [0, 99]])
    @pytest.mark.parametrize("is_compressed", [False, True])
    def test_counts_that_do_not_fill_the_size_are_refused(self, counts, is_compressed):
        if is_compressed:
            size = [sum(counts), 1]
            counts = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"] if counts else b""
        elif not counts:
            counts = np.zeros(0, dtype=int)
        with pytest.raises(ValueError, match=r"of an RLE add up to \d+ pixels, but its size \[10, 10\] has 100"):
            checked_rle({"size": [10, 10], "counts": counts})

    def test_a_negative_run_is_refused_even_if_the_sum_is_right(self):
        with pytest.raises(ValueError, match="a run of -50 pixels"):
            checked_rle({"size": [10, 10], "counts": [100, -50, 50]})

    @pytest.mark.parametrize("counts", ["a", "0P", "nono", "\x00", "é", "\ud800", "9~", "oooooooooooooooo0"])
    def test_text_that_is_no_code_is_refused(self, counts):
        with pytest.raises(ValueError, match=r"of an RLE (are not in COCO's compressed form|hold a number|add up)"):
            checked_rle({"size": [10, 10], "counts": counts})

    @pytest.mark.parametrize(
        "counts", [None, 7, [1.5, 98.5], ["a"], [[100]], [None], {"a": 1}, [True], [10**30], [1, [2]]]
    )
    def test_counts_that_are_no_numbers_are_refused(self, counts):
        with pytest.raises(ValueError, match="the counts of an RLE are a list of whole numbers, or"):
            checked_rle({"size": [10, 10], "counts": counts})

    @pytest.mark.parametrize(
        "size", [None, 100, [10], [10, 10, 1], ["10", "10"], [10.5, 10], [-10, -10], [0, 10], [True, 9]]
    )
    def test_a_size_that_is_none_is_refused(self, size):
        with pytest.raises(ValueError, match="two positive whole numbers"):
            checked_rle({"size": size, "counts": [100]})

    @pytest.mark.parametrize("size", [[2**31, 2**31], [2**16, 2**16], [10**30, 1]])
    def test_a_size_beyond_reason_is_refused(self, size):
        with pytest.raises(ValueError, match="more than 268435456 pixels"):
            checked_rle({"size": size, "counts": [size[0] * size[1]]})

    @pytest.mark.parametrize("rle", [None, [1], "abc", {"counts": [1]}, {"size": [1, 1]}])
    def test_what_is_no_code_is_refused(self, rle):
        with pytest.raises(ValueError, match=r"an RLE is \{'size'"):
            checked_rle(rle)

    def test_another_size_than_the_image_has_is_refused(self):
        with pytest.raises(ValueError, match=r"size \(10, 20\) .* its image \(20, 10\)"):
            decode_rle({"size": [10, 20], "counts": [200]}, (20, 10))

    def test_an_error_begins_with_the_place(self):
        with pytest.raises(ValueError, match=r"^annotation 7 of a\.json: the counts"):
            checked_rle({"size": [10, 10], "counts": [1]}, where="annotation 7 of a.json")

    def test_an_error_about_a_long_code_is_short(self):
        with pytest.raises(ValueError, match="add up") as caught:
            checked_rle({"size": [10, 10], "counts": [1] * 100_000})
        assert len(str(caught.value)) < 300

    def test_empty_runs_amid_others_do_not_spoil_overlaps(self):
        # Both have an empty run at the same place, where the tools would take both for finished.
        with_empty_run = checked_rle({"size": [10, 1], "counts": [2, 3, 0, 3, 2]})
        assert with_empty_run["counts"] == coco_mask.encode(np.asfortranarray(decode_rle(with_empty_run)))["counts"]
        assert coco_mask.iou([with_empty_run], [with_empty_run], [0]).item() == 1
        for dtype in (np.uint8, np.int32, np.uint64):
            assert rle_area({"size": [10, 1], "counts": np.array([2, 3, 0, 3, 2], dtype=dtype)}) == 6

    @pytest.mark.parametrize("bad", ["", "\ud800zz", "abc", "é0", "0/", "0 0", "PPPPPPPP0", "0p"])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_text_that_cannot_be_a_code_is_found_without_decoding(self, bad, place):
        sound = coco_mask.encode(np.asfortranarray(np.eye(300, 400, dtype=np.uint8)))["counts"].decode()
        codes = [sound, sound]
        assert find_bad_code(codes) is None
        codes.insert(place, bad)
        assert find_bad_code(codes) == place

    def test_no_text_is_found_at_fault_that_is_decoded(self):
        rng = np.random.default_rng(0)
        bitmaps = [random_bitmap(rng, *rng.integers(1, 2000, 2)) for _ in range(30)]
        codes = [encode_bitmap(bitmap)["counts"].decode() for bitmap in bitmaps]
        assert find_bad_code(codes) is None
        assert find_bad_code([]) is None

    def test_encoding_takes_any_bitmap(self):
        bitmap = np.random.default_rng(0).random((5, 7)) > 0.5
        for given in (bitmap, bitmap.astype(np.float32), bitmap.astype(np.uint8) * 255):
            assert np.array_equal(decode_rle(encode_bitmap(given)), bitmap)

    def test_random_codes_are_decoded_or_refused_within_bounds(self):
        def decode_many():
            rng = np.random.default_rng(0)
            decoded = 0
            for _ in range(3000):
                length, alphabet = rng.integers(0, 12), rng.integers(1, 80)
                code = bytes((48 + rng.integers(0, alphabet, length)).astype(np.uint8))
                try:
                    bitmap = decode_rle({"size": [4, 5], "counts": code})
                except ValueError:
                    continue
                decoded += 1
                assert bitmap.shape == (4, 5)
                assert bitmap.max() <= 1
            assert decoded > 0

        assert run_limited(decode_many).error == ""


class TestPolygons:
    @pytest.mark.parametrize(
        "polygon",
        [SQUARE, tuple(SQUARE), np.array(SQUARE, np.float32), torch.tensor(SQUARE), np.reshape(SQUARE, (4, 2))],
    )
    def test_they_become_flat_arrays(self, polygon):
        (array,) = checked_polygons([polygon])
        assert array.dtype == np.float64
        assert array.tolist() == SQUARE

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None, 1e300, -1e10, 10**30])
    def test_a_coordinate_that_is_no_place_is_shown(self, value):
        with pytest.raises(ValueError, match=r"^here: a polygon has y = \S+ at its corner 2; coordinates are finite"):
            checked_polygons([SQUARE, [0, 0, 5, 0, 5, value]], "here")

    @pytest.mark.parametrize(
        ("polygon", "message"), [([1, 2, 3, 4], "4 values"), ([0] * 7, "7 values"), (5, "1 values")]
    )
    def test_the_number_of_values_is_checked(self, polygon, message):
        with pytest.raises(ValueError, match=f"a polygon has {message}, but needs x and y of at least 3 corners"):
            checked_polygons([polygon])

    @pytest.mark.parametrize("polygon", ["abc", ["a"] * 6, {"x": 1}, [[0, 0], [1]], [10**400] * 6])
    def test_what_holds_no_numbers_is_refused(self, polygon):
        with pytest.raises(ValueError, match="a polygon holds numbers x0, y0, x1, y1"):
            checked_polygons([polygon])

    @pytest.mark.parametrize("polygons", [None, "abc", 5, np.array([SQUARE]), {"size": 1}])
    def test_what_is_no_list_is_refused(self, polygons):
        with pytest.raises(ValueError, match="an object needs a list of polygons"):
            checked_polygons(polygons)

    def test_the_object_at_fault_is_named(self):
        bad = [SQUARE, [0, 0, 5, 0, float("nan"), 9]]
        with pytest.raises(ValueError, match="object 2: a polygon has x = nan at its corner 2"):
            checked_objects([[SQUARE], [], bad, bad], lambda index: f"object {index}")

    def test_no_polygons_are_sound(self):
        assert checked_polygons([]) == []
        assert draw_polygons([[], []], 4, 5).shape == (2, 4, 5)

    def test_ordinary_polygons_take_the_path_of_the_coco_tools(self, monkeypatch):
        monkeypatch.setattr(mask_codes, "runs_of_polygons", None)
        square = np.array(SQUARE)
        drawn = draw_polygons([[square, square + 20], [], [square * 50 - 300]], 40, 30)
        for bitmap, own in zip(drawn, ([square, square + 20], None, [square * 50 - 300])):
            expected = (
                coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(own, 40, 30))) if own else np.zeros((40, 30))
            )
            assert np.array_equal(bitmap, expected)

    def test_either_path_draws_the_same(self, monkeypatch):
        rng = np.random.default_rng(0)
        objects = [
            [rng.uniform(-60, 120, 2 * rng.integers(3, 20)) for _ in range(rng.integers(0, 3))] for _ in range(50)
        ]
        ordinary = draw_polygons(objects, 50, 60)
        monkeypatch.setattr(mask_codes, "LONG_IN_ALL", -1)
        monkeypatch.setattr(mask_codes, "LONG_OUTLINE", -1)
        assert np.array_equal(draw_polygons(objects, 50, 60), ordinary)
        assert ordinary.any()

    @pytest.mark.parametrize("far", [1e5, 1e8, 1e12])
    def test_a_corner_far_away_costs_little(self, far):
        band = np.array([-far, 10, far, 10, far, 20, -far, 20])
        expected = np.zeros((40, 50), dtype=bool)
        expected[10:20] = True
        assert np.array_equal(draw_polygons([[band]], 40, 50)[0], expected)
        outcome = run_limited(draw_polygons, [[band]], 40, 50, seconds=5, more_bytes=64 * MEBIBYTE)
        assert outcome.error == ""

    def test_an_outline_that_goes_to_and_fro_costs_little(self):
        zigzag = np.stack([np.arange(20_000) % 2 * 1000.0, np.linspace(0, 50, 20_000)], axis=1).reshape(-1)
        outcome = run_limited(draw_polygons, [[zigzag]], 50, 1000, seconds=20, more_bytes=200 * MEBIBYTE)
        assert outcome.error == ""

    @pytest.mark.parametrize(
        "make",
        [
            lambda rng: [rng.uniform(-3e7, 3e7, 40_000)],
            lambda rng: list(rng.uniform(0, 640, (5000, 6))),
            lambda rng: list(rng.uniform(0, 640, (20_000, 1)) + [0, 0, 9, 0, 9, 9]),
            lambda rng: [rng.uniform(0, 480, 100_000)],
        ],
    )
    def test_many_corners_or_polygons_take_the_time_that_the_canvas_allows(self, make):
        polygons = make(np.random.default_rng(0))
        assert run_limited(draw_polygons, [polygons], 480, 640, seconds=15, more_bytes=400 * MEBIBYTE).error == ""

    def test_many_polygons_take_the_path_that_unites_them_at_once(self, monkeypatch):
        rng = np.random.default_rng(0)
        own = list(rng.uniform(0, 50, (300, 1)) + [0, 0, 9, 0, 9, 9])
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(own, 60, 70)))
        monkeypatch.setattr(mask_codes, "_codes_by_coco", None)
        assert np.array_equal(draw_polygons([own], 60, 70)[0], expected)

    def test_more_corners_than_any_outline_needs_are_refused(self):
        corners = np.zeros(2 * MAX_CORNERS)
        assert len(checked_polygons([corners], "here")) == 1
        with pytest.raises(
            ValueError, match=r"^here: the polygons of an object have 65539 corners together, more than"
        ):
            checked_polygons([corners, SQUARE[:6]], "here")

    def test_transforms_may_move_and_cut_what_a_file_was_allowed(self):
        moved = [[1.25, 1.25, 1.25e9, 1.25, 10, 10], np.zeros(2 * MAX_CORNERS + 2)]
        (checked,) = checked_objects([moved], lambda _: "here", are_moved=True)
        assert checked[0].tolist() == moved[0]
        for value in (np.nan, np.inf, 1e13):
            with pytest.raises(ValueError, match="here: a polygon has y = "):
                checked_objects([[[0, 0, 5, 0, 5, value]]], lambda _: "here", are_moved=True)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_what_became_no_place_is_refused_before_it_is_drawn(self, value):
        outcome = run_limited(draw_polygons, [[np.array([0, 0, value, 5, 5, 9])]], 40, 50, seconds=5)
        assert outcome.error.startswith("ValueError: a polygon has x = ")

    def test_a_canvas_beyond_reason_is_refused(self):
        with pytest.raises(ValueError, match="more than 268435456 pixels"):
            polygons_to_rle([SQUARE], 2**20, 2**20)

    def test_the_code_of_several_is_that_of_their_union(self):
        code = polygons_to_rle([SQUARE, np.array(SQUARE) + 3], 20, 30)
        assert np.array_equal(
            decode_rle(code), draw_polygons([checked_polygons([SQUARE, np.array(SQUARE) + 3])], 20, 30)[0]
        )

    def test_only_long_outlines_are_replaced_for_other_code(self):
        ordinary = [SQUARE]
        assert with_bounded_outlines(ordinary, 20, 30) is ordinary
        long = [[-1e8, 10, 1e8, 10, 1e8, 20, -1e8, 20]]
        assert rle_area(with_bounded_outlines(long, 40, 50)) == 10 * 50
        with pytest.raises(ValueError, match="its image"):
            with_bounded_outlines({"size": [3, 4], "counts": [12]}, 40, 50)
        with pytest.raises(ValueError, match=r"a\.json: a polygon has x = nan"):
            with_bounded_outlines(json.loads("[[NaN, 1, 2, 3, 4, 5]]"), 40, 50, "a.json")


def test_the_coco_tools_say_nothing_where_warnings_are_errors(monkeypatch, project_root):
    code = (
        "import numpy as np\n"
        "from detlab.utils import mask_codes as codes\n"
        "rle = codes.encode_bitmap(np.eye(5))\n"
        "assert (codes.decode_rle(rle) == np.eye(5)).all()\n"
        "assert codes.rle_area(rle) == 5\n"
        "triangle = [np.array([0, 0, 4, 0, 4, 4.0])]\n"
        "assert codes.draw_polygons([triangle], 5, 5).any()\n"
        "codes.checked_rle({'size': [5, 5], 'counts': [0, 0, 25]})\n"
        "codes.polygons_to_rle([*triangle, *triangle], 5, 5)\n"
        "import warnings\n"
        "try:\n"
        '    warnings.warn("__array__ implementation doesn\'t accept a copy keyword", DeprecationWarning)\n'
        "except DeprecationWarning:\n"
        "    print('other warnings are still errors')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "other warnings are still errors", run.stderr
