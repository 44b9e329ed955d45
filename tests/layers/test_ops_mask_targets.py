"""Mask targets from polygons and from bitmaps on every backend.

Shapes: R boxes, O objects, P polygons, V corners, H x W a bitmap, M x M a target.
"""

import math
import os

import numpy as np
import pytest
import torch

from detlab.layers import _ops_plain
from tests.layers import plain_ops
from tests.layers.backends import plain_backend

NO_POINTS = torch.zeros(0, 2, dtype=torch.float64)
OFFSETS_OF_ONE = torch.tensor([0, 1])


def seeded(seed):
    return np.random.default_rng(seed)


def packed(objects):
    """Lists of (V, 2) polygons for each object -> corners and both offsets."""
    flat = [polygon for own in objects for polygon in own]
    coords = torch.from_numpy(np.concatenate(flat).astype(np.float64)) if flat else NO_POINTS
    return coords, offsets_of([len(polygon) for polygon in flat]), offsets_of([len(own) for own in objects])


def offsets_of(counts):
    return torch.from_numpy(np.cumsum([0, *counts]))


def blob(rng, center, radius, is_simple=True):
    angles = rng.uniform(0, 2 * np.pi, rng.integers(3, 25))
    angles = np.sort(angles) if is_simple else angles
    radii = radius * rng.uniform(0.4, 1, len(angles))
    return np.stack([center[0] + radii * np.cos(angles), center[1] + radii * np.sin(angles)], axis=1)


def scene(count=25, whole=False, seed=0):
    """Objects of 0 to 3 pieces that may cross themselves, and boxes around most of each. ``whole``: on half pixels."""
    rng = seeded(seed)
    objects, boxes = [], []
    for i in range(count):
        center, radius = rng.uniform(20, 180, 2), rng.uniform(1, 60)
        objects.append([blob(rng, center, radius, i % 3 > 0) for _ in range(rng.integers(0, 4))])
        boxes.append([*(center - radius * rng.uniform(0.1, 1.2, 2)), *(center + radius * rng.uniform(0.1, 1.2, 2))])
    boxes = np.array(boxes, dtype=np.float32)
    boxes[3, 2:] = boxes[3, :2]
    boxes[4] = boxes[4, [2, 3, 0, 1]]
    if whole:
        objects = [[np.round(polygon * 2) / 2 for polygon in own] for own in objects]
        boxes = np.round(boxes)
    return objects, torch.from_numpy(boxes)


class TestPolygons:
    @pytest.mark.parametrize("size", [1, 7, 28, 63, 64, 65, 130])
    @pytest.mark.parametrize("whole", [False, True])
    def test_pixels_are_those_of_filling_one_polygon_after_the_other(self, ops, size, whole):
        objects, boxes = scene(whole=whole)
        arguments = *packed(objects), torch.arange(25), boxes, size
        targets = ops.mask_targets_from_polygons(*arguments)
        assert targets.dtype == torch.bool
        assert targets.any()
        assert torch.equal(targets, plain_ops.mask_targets_from_polygons(*arguments))

    def test_a_large_target_is_drawn_in_strips(self, ops):
        objects, boxes = scene(5)
        arguments = *packed(objects), torch.arange(5), boxes, 600
        targets = ops.mask_targets_from_polygons(*arguments)
        assert targets[:, :, 400:].any()
        assert torch.equal(targets, plain_ops.mask_targets_from_polygons(*arguments))

    def test_rows_choose_objects_and_one_that_is_none_gives_an_empty_mask(self, ops):
        objects, boxes = scene()
        rows = torch.from_numpy(seeded(1).integers(-1, 26, 25))
        rows[:4] = torch.tensor([-1, 25, 1 << 40, -(1 << 40)])
        arguments = *packed(objects), rows, boxes, 14
        targets = ops.mask_targets_from_polygons(*arguments)
        assert torch.equal(targets, plain_ops.mask_targets_from_polygons(*arguments))
        assert not targets[:4].any()

    def test_overlapping_pieces_are_one_and_a_crossing_outline_leaves_holes(self, ops):
        square = np.array([[0.0, 0], [8, 0], [8, 8], [0, 8]])
        twice_around = np.concatenate([square, square])
        coords, starts, firsts = packed([[square, square + 4], [twice_around]])
        whole = torch.tensor([[0.0, 0, 16, 16]] * 2)
        union, hollow = ops.mask_targets_from_polygons(coords, starts, firsts, torch.tensor([0, 1]), whole, 16)
        expected = torch.zeros(16, 16, dtype=torch.bool)
        expected[:8, :8] = expected[4:12, 4:12] = True
        assert torch.equal(union, expected)
        assert not hollow.any()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_boxes_of_every_type(self, ops, dtype):
        objects, boxes = scene()
        boxes = boxes.to(dtype)
        exact = boxes if dtype == torch.float64 else boxes.float()
        parts = *packed(objects), torch.arange(25)
        expected = plain_ops.mask_targets_from_polygons(*parts, exact, 14)
        assert torch.equal(ops.mask_targets_from_polygons(*parts, boxes, 14), expected)

    def test_corners_far_away_fill_what_they_surround(self, ops):
        band = np.array([[-1e9, 10], [1e9, 10], [1e9, 20], [-1e9, 20]])
        boxes = torch.tensor([[50.0, 10, 50.1, 15], [0, 0, 10, 20], [0, 30, 10, 40]])
        coords, starts, firsts = packed([[band]])
        targets = ops.mask_targets_from_polygons(coords, starts, firsts, torch.zeros(3, dtype=torch.int64), boxes, 28)
        assert targets[0].all()
        assert torch.equal(targets[1], torch.arange(28)[:, None].expand(28, 28) >= 14)
        assert not targets[2].any()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e16])
    def test_a_polygon_with_a_corner_that_is_no_place_is_left_out(self, ops, value):
        square = np.array([[0.0, 0], [8, 0], [8, 8], [0, 8]])
        for corner in range(4):
            for axis in range(2):
                bad = square.copy()
                bad[corner, axis] = value
                coords, starts, firsts = packed([[bad, square / 2]])
                whole = torch.tensor([[0.0, 0, 8, 8]])
                (target,) = ops.mask_targets_from_polygons(coords, starts, firsts, torch.tensor([0]), whole, 8)
                assert target[:4, :4].all()
                assert target.sum() == 16

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("column", range(4))
    def test_a_box_that_is_not_finite_gives_an_empty_mask(self, ops, value, column):
        objects, boxes = scene(6)
        parts = *packed(objects), torch.arange(6)
        expected = ops.mask_targets_from_polygons(*parts, boxes, 9)
        boxes[::2, column] = value
        targets = ops.mask_targets_from_polygons(*parts, boxes, 9)
        assert not targets[::2].any()
        assert torch.equal(targets[1::2], expected[1::2])

    @pytest.mark.parametrize("box", [[3e38, 0, 3e38, 9], [0, -3e38, 9, -2e38], [-3e38, -3e38, 3e38, 3e38]])
    def test_a_box_at_the_end_of_the_world_holds_nothing_that_can_be_seen(self, ops, box):
        square = np.array([[0.0, 0], [8, 0], [8, 8], [0, 8]])
        parts = *packed([[square]]), torch.tensor([0])
        assert not ops.mask_targets_from_polygons(*parts, torch.tensor([box]), 9).any()

    def test_offsets_that_lie_read_nothing_that_is_not_there(self, ops):
        objects, boxes = scene(6)
        coords, starts, firsts = packed(objects)
        rows = torch.arange(6)
        lies = [(torch.full_like(starts, lie), firsts) for lie in (1 << 60, -(1 << 60), 7)]
        lies += [(starts, torch.full_like(firsts, lie)) for lie in (1 << 60, -(1 << 60), 7)]
        for bad_starts, bad_firsts in (*lies, (starts.flip(0), firsts.flip(0))):
            assert not ops.mask_targets_from_polygons(coords, bad_starts, bad_firsts, rows, boxes, 9).any()

    def test_polygons_of_fewer_than_three_corners_fill_nothing(self, ops):
        points = np.array([[1.0, 1], [7, 5]])
        coords, starts, firsts = packed([[points[:0], points[:1], points]])
        whole = torch.tensor([[0.0, 0, 8, 8]])
        assert not ops.mask_targets_from_polygons(coords, starts, firsts, torch.tensor([0]), whole, 8).any()

    def test_no_boxes_no_objects_no_polygons(self, ops):
        none = torch.zeros(0, dtype=torch.int64)
        zero = torch.tensor([0])
        assert ops.mask_targets_from_polygons(NO_POINTS, zero, zero, none, torch.zeros(0, 4), 5).shape == (0, 5, 5)
        assert not ops.mask_targets_from_polygons(NO_POINTS, zero, zero, zero, torch.ones(1, 4), 5).any()
        assert not ops.mask_targets_from_polygons(
            NO_POINTS, zero, torch.tensor([0, 0]), zero, torch.ones(1, 4), 5
        ).any()

    def test_input_that_is_not_contiguous(self, ops):
        objects, boxes = scene(10)
        coords, starts, firsts = packed(objects)
        apart = [x.repeat_interleave(2, dim=0)[::2] for x in (coords, starts, firsts, torch.arange(10), boxes)]
        expected = ops.mask_targets_from_polygons(coords, starts, firsts, torch.arange(10), boxes, 9)
        assert torch.equal(ops.mask_targets_from_polygons(*apart, 9), expected)


def bitmap_scene(objects=4, height=60, width=70, boxes=40, seed=0, whole=False):
    """Blobs in images of noise, and boxes of any size on and around them, with their rows."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    centers = torch.rand(objects, 2, generator=generator) * torch.tensor([height, width])
    distance = (y - centers[:, :1, None]).square() + (x - centers[:, 1:, None]).square()
    noise = torch.rand(objects, height, width, generator=generator) > 0.8
    low = torch.rand(boxes, 2, generator=generator) * torch.tensor([width, height]) - 8
    sides = torch.rand(boxes, 2, generator=generator) ** 2 * 60
    regions = torch.cat([low, low + sides], dim=1)
    rows = torch.randint(-1, objects + 1, (boxes,), generator=generator)
    return (distance < 200) ^ noise, rows, regions.round() if whole else regions


class TestBitmaps:
    @pytest.mark.parametrize("size", [1, 7, 28])
    @pytest.mark.parametrize("shape", [(60, 70), (1, 1), (17, 130), (40, 3)])
    def test_pixels_are_averages_of_the_bitmap_cut_at_one_half(self, ops, size, shape):
        bitmaps, rows, boxes = bitmap_scene(height=shape[0], width=shape[1])
        boxes[5, 2:] = boxes[5, :2]
        boxes[6] = boxes[6, [2, 3, 0, 1]]
        targets = ops.mask_targets_from_bitmaps(bitmaps, rows, boxes, size)
        assert targets.dtype == torch.bool
        averages = plain_ops.mask_averages_from_bitmaps(bitmaps, rows, boxes, size)
        is_clear = (averages - 0.5).abs() > 1e-4
        assert is_clear.float().mean() > 0.5
        assert torch.equal(targets[is_clear], (averages >= 0.5)[is_clear])

    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("name", ["cpu", "plain"])
    def test_bits_are_those_of_roi_align_on_a_copy_for_each_box(self, backend, name, whole):
        ops = backend(name)
        bitmaps, rows, boxes = bitmap_scene(boxes=200, whole=whole)
        is_object = (rows >= 0) & (rows < len(bitmaps))
        rois = torch.cat([torch.arange(int(is_object.sum()))[:, None], boxes[is_object]], dim=1)
        copies = bitmaps[rows[is_object], None].float()
        pooled = ops.roi_align_levels([copies], rois, None, [14, 14], [1.0], 0, True)
        targets = ops.mask_targets_from_bitmaps(bitmaps, rows, boxes, 14)
        assert torch.equal(targets[is_object], pooled[:, 0] >= 0.5)
        assert not targets[~is_object].any()

    def test_bits_on_a_gpu_are_those_of_fused_sums_on_the_cpu(self, backend):
        arguments = *bitmap_scene(boxes=200, whole=True), 14
        on_cpu, emulated = (backend(name).mask_targets_from_bitmaps(*arguments) for name in ("cpu", "emulated"))
        # Processors without fused sums round differently where an average is one half.
        has_fused_sums = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        wants_others = os.environ.get("DETLAB_CPU_CAPABILITY") == "default"
        most_apart = 0.0 if has_fused_sums and not wants_others else 1e-3
        assert (on_cpu != emulated).float().mean() <= most_apart

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_box_that_is_not_finite_gives_an_empty_mask(self, ops, value):
        bitmaps = torch.ones(1, 9, 9, dtype=torch.bool)
        boxes = torch.tensor([[1.0, 1, 8, 8]]).repeat(5, 1)
        boxes[torch.arange(4), torch.arange(4)] = value
        targets = ops.mask_targets_from_bitmaps(bitmaps, torch.zeros(5, dtype=torch.int64), boxes, 7)
        assert not targets[:4].any()
        assert targets[4].all()

    @pytest.mark.parametrize("name", ["cpu", "emulated"])
    def test_a_box_of_any_size_costs_no_more_than_the_bitmap(self, backend, name):
        bitmaps = torch.ones(1, 9, 9, dtype=torch.bool)
        boxes = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [0.0, 0.0, 9.0, 3e38]])
        targets = backend(name).mask_targets_from_bitmaps(bitmaps, torch.zeros(2, dtype=torch.int64), boxes, 4)
        assert not targets.any()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_boxes_of_every_type(self, ops, dtype):
        bitmaps, rows, boxes = bitmap_scene()
        boxes = boxes.to(dtype)
        averages = plain_ops.mask_averages_from_bitmaps(bitmaps, rows, boxes, 7)
        is_clear = (averages - 0.5).abs() > 1e-4
        targets = ops.mask_targets_from_bitmaps(bitmaps, rows, boxes, 7)
        assert torch.equal(targets[is_clear], (averages >= 0.5)[is_clear])

    def test_what_is_not_zero_is_inside(self, ops):
        bitmaps, rows, boxes = bitmap_scene()
        expected = ops.mask_targets_from_bitmaps(bitmaps, rows, boxes, 7)
        assert torch.equal(ops.mask_targets_from_bitmaps(bitmaps.to(torch.uint8) * 255, rows, boxes, 7), expected)

    def test_no_boxes_or_no_objects(self, ops):
        bitmaps, rows, boxes = bitmap_scene()
        assert ops.mask_targets_from_bitmaps(bitmaps, rows[:0], boxes[:0], 7).shape == (0, 7, 7)
        assert not ops.mask_targets_from_bitmaps(bitmaps[:0], rows, boxes, 7).any()
        assert not ops.mask_targets_from_bitmaps(bitmaps[:0, :0, :0], rows, boxes, 7).any()

    def test_input_that_is_not_contiguous(self, ops):
        bitmaps, rows, boxes = bitmap_scene()
        apart = (
            bitmaps.transpose(0, 2).contiguous().transpose(0, 2),
            rows.repeat_interleave(2)[::2],
            boxes.t().contiguous().t(),
        )
        expected = ops.mask_targets_from_bitmaps(bitmaps, rows, boxes, 7)
        assert torch.equal(ops.mask_targets_from_bitmaps(*apart, 7), expected)

    def test_plain_form_works_some_bitmaps_at_a_time(self, monkeypatch):
        plain_backend()  # skips where torchvision cannot be imported
        arguments = *bitmap_scene(), 7
        whole = _ops_plain.mask_targets_from_bitmaps(*arguments)
        monkeypatch.setattr(_ops_plain, "PIXELS_PER_CHUNK", 2 * 60 * 70)
        assert torch.equal(_ops_plain.mask_targets_from_bitmaps(*arguments), whole)
