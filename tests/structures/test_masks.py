"""Masks as polygons, bitmaps and regions' maps."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detlab.layers.roi_align import ROIAlign
from detlab.structures.masks import (
    BitMasks,
    PolygonMasks,
    ROIMasks,
    polygon_area,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)
from tests.limits import run_limited

SQUARE = np.array([2.0, 2, 8, 2, 8, 8, 2, 8])
TRIANGLE = np.array([10.0, 1, 15, 9, 10, 9])


def blob(rng, center, radius):
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 30)))
    radii = radius * rng.uniform(0.5, 1, len(angles))
    return np.stack([center[0] + radii * np.cos(angles), center[1] + radii * np.sin(angles)], 1).reshape(-1)


def scene(count=60):
    """Objects of 0 to 3 pieces, and boxes that do not quite fit them."""
    rng = np.random.default_rng(0)
    objects, boxes = [], []
    for _ in range(count):
        center, radius = rng.uniform(20, 180, 2), rng.uniform(3, 60)
        objects.append([blob(rng, center, radius) for _ in range(rng.integers(0, 4))])
        boxes.append([*(center - radius * rng.uniform(0.3, 1.2, 2)), *(center + radius * rng.uniform(0.3, 1.2, 2))])
    boxes[3][2:] = boxes[3][:2]
    return PolygonMasks(objects), torch.tensor(np.array(boxes), dtype=torch.float32)


def plain_crop(polygons, box, size):
    """One object after the other: shift, stretch, draw."""
    width, height = box[2] - box[0], box[3] - box[1]
    moved = []
    for polygon in polygons:
        x = (polygon[0::2] - box[0]) * (size / max(width, np.float32(0.1)))
        y = (polygon[1::2] - box[1]) * (size / max(height, np.float32(0.1)))
        moved.append(np.stack([x, y], 1).reshape(-1))
    if not moved:
        return np.zeros((size, size), bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, size, size))).astype(bool)


class TestPolygonMasks:
    @pytest.mark.parametrize("size", [14, 28])
    def test_crops_equal_drawing_one_by_one(self, size):
        masks, boxes = scene()
        expected = [plain_crop(p, b, size) for p, b in zip(masks.polygons, boxes.numpy())]
        got = masks.crop_and_resize(boxes, size)
        assert got.dtype == torch.bool
        assert np.array_equal(got.numpy(), np.stack(expected))

    def test_one_object_is_drawn_as_in_a_set(self):
        masks, boxes = scene(10)
        for i in range(10):
            one = rasterize_polygons_within_box(masks.polygons[i], boxes[i].numpy(), 28)
            assert torch.equal(one, masks.crop_and_resize(boxes, 28)[i])

    def test_rows_name_the_object_of_each_box(self):
        masks, boxes = scene(10)
        rows = torch.tensor([7, 7, -1, 0, 9])
        crops = masks.crop_and_resize(boxes[:5], 28, rows=rows)
        kept = rows >= 0
        assert torch.equal(crops[kept], masks[rows[kept]].crop_and_resize(boxes[:5][kept], 28))
        assert not crops[~kept].any()

    def test_crop_needs_one_box_for_each_object(self):
        with pytest.raises(ValueError, match="2 masks but 3 boxes"):
            PolygonMasks([[SQUARE], [TRIANGLE]]).crop_and_resize(torch.zeros(3, 4), 28)

    def test_no_objects_give_no_crops(self):
        assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
        assert PolygonMasks([[]]).crop_and_resize(torch.ones(1, 4), 28).sum() == 0

    def test_bounding_boxes_surround_all_pieces(self):
        masks = PolygonMasks([[SQUARE, TRIANGLE], [], [TRIANGLE], []])
        boxes = masks.get_bounding_boxes()
        assert boxes.tensor.dtype == torch.float32
        assert boxes.tensor.tolist() == [[2, 1, 15, 9], [0, 0, 0, 0], [10, 1, 15, 9], [0, 0, 0, 0]]
        assert masks.nonempty().tolist() == [True, False, True, False]
        assert PolygonMasks([]).get_bounding_boxes().tensor.shape == (0, 4)

    def test_area_sums_the_pieces(self):
        assert PolygonMasks([[SQUARE, TRIANGLE], []]).area().tolist() == [56, 0]
        assert polygon_area(SQUARE[0::2], SQUARE[1::2]) == 36

    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            (1, [1]),
            (-1, [2]),
            (np.int64(2), [2]),
            (slice(0, 2), [0, 1]),
            ([2, 0], [2, 0]),
            ([], []),
            (torch.tensor([2, 2]), [2, 2]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.zeros(0, dtype=torch.int64), []),
            (np.array([False, True, False]), [1]),
        ],
    )
    def test_index_chooses_objects(self, item, expected):
        masks = PolygonMasks([[SQUARE + i] for i in range(3)])
        assert [own[0][0] for own in masks[item]] == [2 + i for i in expected]

    def test_an_index_that_is_none_is_refused(self):
        masks = PolygonMasks([[SQUARE]])
        for item in (torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0.5]), "a"):
            with pytest.raises(IndexError, match="ints, slices, or vectors"):
                masks[item]

    def test_pieces_become_float64_arrays(self):
        masks = PolygonMasks([[torch.tensor([0, 0, 4, 0, 4, 4])], [[1, 1, 2, 2, 3, 1]]])
        assert all(p.dtype == np.float64 for own in masks for p in own)

    def test_what_is_no_polygon_is_refused(self):
        with pytest.raises(ValueError, match="object 1 of PolygonMasks: a polygon has 4 values"):
            PolygonMasks([[SQUARE], [np.zeros(4)]])
        with pytest.raises(ValueError, match="object 0 of PolygonMasks: a polygon has 7 values"):
            PolygonMasks([[np.zeros(7)]])
        with pytest.raises(ValueError, match=r"object 0 of PolygonMasks: .* needs a list of polygons"):
            PolygonMasks([SQUARE])

    @pytest.mark.parametrize("value", [np.nan, np.inf, None, 1e300])
    def test_a_coordinate_that_is_no_place_is_refused(self, value):
        bad = [0, 0, 5, 0, 5, value]
        with pytest.raises(ValueError, match=r"object 1 of PolygonMasks: a polygon has y = .* at its corner 2"):
            PolygonMasks([[SQUARE], [TRIANGLE, bad]])
        for draw in (
            lambda: polygons_to_bitmask([bad], 20, 30),
            lambda: rasterize_polygons_within_box([bad], np.array([0, 0, 9, 9]), 28),
            lambda: BitMasks.from_polygon_masks([[bad]], 20, 30),
        ):
            assert run_limited(draw, seconds=10).error.startswith("ValueError")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_crop_to_a_box_that_is_not_finite_is_refused(self, value):
        masks = PolygonMasks([[SQUARE], [TRIANGLE]])
        boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, value, 9]])
        outcome = run_limited(masks.crop_and_resize, boxes, 28, seconds=10)
        assert outcome.error.startswith("ValueError: box 1 of 2 to draw a mask in is [0.0, 0.0,")

    def test_a_crop_from_far_away_corners_costs_little(self):
        band = np.array([-1e8, 10, 1e8, 10, 1e8, 20, -1e8, 20])
        boxes = torch.tensor([[50.0, 10, 50.1, 15], [0, 0, 10, 20]])

        def crop():
            small, large = PolygonMasks([[band], [band]]).crop_and_resize(boxes, 28)
            assert small.all()
            assert torch.equal(large, torch.arange(28)[:, None].expand(28, 28) >= 14)

        assert run_limited(crop, seconds=10).error == ""
        with pytest.raises(ValueError, match="got ndarray"):
            PolygonMasks(np.zeros((1, 6)))

    def test_cat_joins_and_devices_do_not_matter(self):
        masks = PolygonMasks([[SQUARE], [TRIANGLE]])
        assert len(PolygonMasks.cat([masks, masks[:1]])) == 3
        assert len(PolygonMasks.cat([])) == 0
        assert masks.to("cpu") is masks
        assert masks.device == torch.device("cpu")
        assert "num_instances=2" in repr(masks)


class TestBitMasks:
    def test_polygons_are_drawn_as_the_coco_tools_do(self):
        masks, _ = scene(20)
        bitmaps = BitMasks.from_polygon_masks(masks, 190, 210)
        assert bitmaps.image_size == (190, 210)
        for own, bitmap in zip(masks, bitmaps):
            assert np.array_equal(polygons_to_bitmask(own, 190, 210), bitmap.numpy())
        assert torch.equal(BitMasks.from_polygon_masks(masks.polygons, 190, 210).tensor, bitmaps.tensor)
        assert BitMasks.from_polygon_masks([], 5, 6).tensor.shape == (0, 5, 6)
        assert polygons_to_bitmask([SQUARE], 10, 10).sum() == 36

    def test_anything_not_zero_is_inside(self):
        masks = BitMasks(np.array([[[0, 2], [255, 0]]], dtype=np.uint8))
        assert masks.tensor.tolist() == [[[False, True], [True, False]]]
        with pytest.raises(ValueError, match=r"\(N, H, W\); got \(4, 4\)"):
            BitMasks(torch.zeros(4, 4))

    def test_crops_are_close_to_those_of_polygons(self):
        masks, boxes = scene(40)
        boxes[3, 2:] += 20
        bitmaps = BitMasks.from_polygon_masks(masks, 300, 300)
        drawn, sampled = masks.crop_and_resize(boxes, 28), bitmaps.crop_and_resize(boxes, 28)
        assert sampled.dtype == torch.bool
        assert (drawn != sampled).float().mean() < 0.05

    def test_crop_at_original_size_is_the_mask(self):
        bits = torch.rand(3, 28, 28) > 0.5
        whole = torch.tensor([[0.0, 0, 28, 28]]).expand(3, 4)
        assert torch.equal(BitMasks(bits).crop_and_resize(whole, 28), bits)

    @pytest.mark.parametrize("whole", [False, True])
    def test_crops_are_those_of_roi_align_on_the_bitmaps_as_maps(self, whole):
        masks, boxes = scene(40)
        bitmaps = BitMasks.from_polygon_masks(masks, 200, 190)
        boxes = boxes.round() if whole else boxes
        regions = torch.cat([torch.arange(40)[:, None], boxes], dim=1)
        pool = ROIAlign((28, 28), spatial_scale=1.0, sampling_ratio=0, aligned=True)
        expected = pool(bitmaps.tensor[:, None].float(), regions).squeeze(1) >= 0.5
        assert torch.equal(bitmaps.crop_and_resize(boxes, 28), expected)

    def test_rows_name_the_mask_of_each_box(self):
        masks, boxes = scene(10)
        bitmaps = BitMasks.from_polygon_masks(masks, 200, 200)
        rows = torch.tensor([7, 7, -1, 0, 9])
        crops = bitmaps.crop_and_resize(boxes[:5], 28, rows=rows)
        kept = rows >= 0
        assert torch.equal(crops[kept], bitmaps[rows[kept]].crop_and_resize(boxes[:5][kept], 28))
        assert not crops[~kept].any()

    def test_crops_by_row_copy_no_bitmap(self):
        bitmaps = BitMasks(torch.ones(1, 1000, 1000, dtype=torch.bool))
        boxes = torch.tensor([[100.0, 100, 140, 140]]).repeat(2000, 1)
        rows = torch.zeros(2000, dtype=torch.int64)

        def crop():
            assert bitmaps.crop_and_resize(boxes, 7, rows=rows).all()

        # A copy for each box would be 2 GB.
        assert run_limited(crop, seconds=60).error == ""

    def test_crop_needs_one_box_for_each_mask_and_allows_none(self):
        assert BitMasks(torch.zeros(0, 5, 5)).crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
        with pytest.raises(ValueError, match="1 masks but 2 boxes"):
            BitMasks(torch.zeros(1, 5, 5)).crop_and_resize(torch.zeros(2, 4), 28)

    def test_bounding_boxes_cover_the_outermost_pixels(self):
        bits = torch.zeros(4, 10, 12)
        bits[0, 2:5, 3:9] = 1
        bits[1, 9, 11] = 1
        bits[2, 0, 0] = bits[2, 4, 6] = 1
        masks = BitMasks(bits)
        assert masks.get_bounding_boxes().tensor.tolist() == [[3, 2, 9, 5], [11, 9, 12, 10], [0, 0, 7, 5], [0] * 4]
        assert masks.nonempty().tolist() == [True, True, True, False]
        assert BitMasks(torch.zeros(0, 4, 4)).get_bounding_boxes().tensor.shape == (0, 4)
        assert BitMasks(torch.zeros(2, 0, 0)).get_bounding_boxes().tensor.tolist() == [[0] * 4] * 2

    def test_index_cat_and_iteration(self):
        masks = BitMasks(torch.rand(3, 4, 5) > 0.5)
        assert len(masks[1]) == 1
        assert len(masks[torch.tensor([True, False, True])]) == 2
        assert [tuple(m.shape) for m in masks] == [(4, 5)] * 3
        assert torch.equal(BitMasks.cat([masks[:1], masks[1:]]).tensor, masks.tensor)
        with pytest.raises(ValueError, match="at least one"):
            BitMasks.cat([])
        with pytest.raises(IndexError, match="along one dimension"):
            masks[0, 0]
        assert "image_height=4, image_width=5" in repr(masks)
        assert masks.to("cpu").device == torch.device("cpu")


class TestROIMasks:
    def test_maps_are_stretched_over_their_boxes(self):
        masks = ROIMasks(torch.ones(2, 28, 28))
        boxes = torch.tensor([[1.0, 2, 5, 6], [0.0, 0, 8, 10]])
        pasted = masks.to_bitmasks(boxes, 10, 8)
        assert isinstance(pasted, BitMasks)
        assert pasted.tensor[0].nonzero().amin(0).tolist() == [2, 1]
        assert pasted.tensor[0].sum() == 16
        assert pasted.tensor[1].all()
        assert torch.equal(BitMasks.from_roi_masks(masks, 10, 8, boxes).tensor, pasted.tensor)
        with pytest.raises(ValueError, match="pass boxes="):
            BitMasks.from_roi_masks(masks, 10, 8)

    def test_threshold_decides(self):
        masks = ROIMasks(torch.full((1, 4, 4), 0.3))
        whole = torch.tensor([[-4.0, -4, 12, 12]])
        assert masks.to_bitmasks(whole, 8, 8, threshold=0.25).tensor.all()
        assert not masks.to_bitmasks(whole, 8, 8).tensor.any()

    def test_index_and_refusal(self):
        masks = ROIMasks(torch.rand(3, 4, 4))
        assert len(masks[1]) == 1
        assert len(masks[1:]) == 2
        assert masks.to("cpu").device == torch.device("cpu")
        with pytest.raises(ValueError, match=r"got \(3, 1, 4, 4\)"):
            ROIMasks(torch.zeros(3, 1, 4, 4))
        with pytest.raises(IndexError, match="along one dimension"):
            masks[:, 0]
