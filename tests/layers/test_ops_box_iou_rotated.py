"""Overlap of rotated boxes on every backend.

Shapes: boxes (N, 5) and (M, 5), center x y, width, height, angle in degrees, counter-clockwise.
"""

import math

import pytest
import torch

from tests.layers import plain_ops


def rotated_boxes(count, seed=0, size=30.0, spread=50.0, dtype=torch.float64):
    numbers = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.tensor([spread, spread, size, size, 720.0], dtype=torch.float64)
    offset = torch.tensor([0.0, 0.0, size / 10, size / 10, -360.0], dtype=torch.float64)
    return (numbers * scale + offset).to(dtype)


def check_ious(ops, boxes1, boxes2, tolerance=None):
    wide = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    ious = ops.box_iou_rotated(boxes1, boxes2)
    assert ious.dtype == wide
    expected = plain_ops.box_iou_rotated(boxes1, boxes2)
    tolerance = tolerance if tolerance is not None else 64 * torch.finfo(wide).eps
    torch.testing.assert_close(ious.double(), expected, atol=tolerance, rtol=0)
    return ious


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_area_of_the_common_polygon_over_that_of_both(ops, dtype):
    boxes1, boxes2 = rotated_boxes(13, dtype=dtype), rotated_boxes(37, seed=1, dtype=dtype)
    ious = check_ious(ops, boxes1, boxes2)
    assert (ious > 0.1).sum() > 20
    assert (ious == 0).any()


def test_reference_equals_shapely():
    geometry = pytest.importorskip("shapely.geometry")
    boxes = rotated_boxes(30)
    polygons = [geometry.Polygon(plain_ops.rotated_corners(box)) for box in boxes.tolist()]
    expected = [[a.intersection(b).area / a.union(b).area for b in polygons] for a in polygons]
    torch.testing.assert_close(plain_ops.box_iou_rotated(boxes, boxes), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 90.0, 123.4, 180.0, -75.0, 359.0, 1000.0])
@pytest.mark.parametrize("size", [(6.0, 4.0), (1e4, 1e4), (1e4, 3.0), (1e-3, 2e-3)])
def test_identical_boxes_overlap_wholly(ops, angle, size):
    box = torch.tensor([[7.0, 11.0, *size, angle]])
    torch.testing.assert_close(ops.box_iou_rotated(box, box), torch.ones(1, 1), atol=2e-6, rtol=0)
    torch.testing.assert_close(
        ops.box_iou_rotated(box.double(), box.double()), torch.ones(1, 1).double(), atol=1e-13, rtol=0
    )


@pytest.mark.parametrize("angle", [360.0, 720.0, -1080.0, 3600.0, 180.0, -180.0])
def test_whole_and_half_turns_change_nothing(ops, angle):
    boxes1, boxes2 = rotated_boxes(6), rotated_boxes(9, seed=1)
    turned = boxes2 + torch.tensor([0.0, 0, 0, 0, angle])
    torch.testing.assert_close(
        ops.box_iou_rotated(boxes1, turned), ops.box_iou_rotated(boxes1, boxes2), atol=1e-11, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("turn", [0.0, 90.0, 45.0, 17.0])
def test_boxes_that_share_sides_or_corners(ops, turn, dtype):
    """Touching, nested, crossing and half covered, all turned about the origin together."""
    boxes = torch.tensor(
        [
            [0, 0, 4, 2, 0],
            [4, 0, 4, 2, 0],
            [4, 2, 4, 2, 0],
            [0, 0, 2, 1, 0],
            [1, 0.5, 2, 1, 0],
            [2, 0, 4, 2, 0],
            [0, 0, 2, 4, 0],
            [0, 0, 4, 2, 90],
            [0, 0, 4, 2, 45],
            [0, 1, 4, 0.5, 0],
        ],
        dtype=torch.float64,
    )
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    x, y = boxes[:, 0].clone(), boxes[:, 1].clone()
    boxes[:, 0], boxes[:, 1] = x * cos + y * sin, y * cos - x * sin
    boxes[:, 4] += turn
    ious = check_ious(ops, boxes.to(dtype), boxes.to(dtype))
    assert ious[0, 5].item() == pytest.approx(1 / 3, abs=1e-5)
    assert ious[0, 3].item() == pytest.approx(1 / 4, abs=1e-5)
    assert ious[0, 1].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_boxes_of_any_size(ops, size):
    boxes1, boxes2 = rotated_boxes(8, 2, size, size), rotated_boxes(17, 3, size, size)
    check_ious(ops, boxes1, boxes2)
    check_ious(ops, boxes1.float(), boxes2.float())


def test_boxes_of_very_different_sizes(ops):
    large, small = rotated_boxes(5, size=1e4, spread=50.0), rotated_boxes(9, seed=1, size=3.0)
    for first, second in ((large, small), (small, large)):
        check_ious(ops, first, second)
        check_ious(ops, first.float(), second.float())


def test_long_thin_boxes(ops):
    boxes = torch.tensor([[100.0, 50, 1000, 1, angle] for angle in (0.0, 0.01, 1.0, 45.0, 89.99, 90.0)])
    check_ious(ops, boxes.double(), boxes.double(), tolerance=1e-12)
    check_ious(ops, boxes, boxes, tolerance=1e-4)


def test_distant_boxes_lose_no_digits(ops):
    boxes1, boxes2 = rotated_boxes(8), rotated_boxes(9, seed=1)
    for boxes in (boxes1, boxes2):
        boxes[:, :2] = boxes[:, :2].round() + 2.0**20
    check_ious(ops, boxes1, boxes2)
    check_ious(ops, boxes1.float(), boxes2.float())


def test_boxes_without_area_overlap_nothing(ops):
    flat = torch.tensor([[5.0, 5, 0, 4, 20], [5, 5, 4, 0, 20], [5, 5, 0, 0, 0]])
    others = torch.cat([flat, torch.tensor([[5.0, 5, 8, 8, 0]])])
    for dtype in (torch.float32, torch.float64):
        assert ops.box_iou_rotated(flat.to(dtype), others.to(dtype)).count_nonzero() == 0
        assert ops.box_iou_rotated(others.to(dtype), flat.to(dtype)).count_nonzero() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(5))
def test_boxes_that_are_not_finite_overlap_nothing(ops, value, column):
    boxes = rotated_boxes(20, spread=10.0)
    broken = boxes.clone()
    broken[:, column] = value
    assert ops.box_iou_rotated(broken, boxes).count_nonzero() == 0
    assert ops.box_iou_rotated(boxes, broken).count_nonzero() == 0
    assert ops.box_iou_rotated(broken, broken).count_nonzero() == 0


def test_input_that_is_not_contiguous(ops):
    boxes1, boxes2 = rotated_boxes(8), rotated_boxes(19, seed=1)
    apart = boxes2.t().contiguous().t()
    assert torch.equal(
        ops.box_iou_rotated(boxes1.repeat_interleave(2, dim=0)[::2], apart), ops.box_iou_rotated(boxes1, boxes2)
    )


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_give_an_empty_table(ops, rows, columns):
    assert ops.box_iou_rotated(torch.zeros(rows, 5), torch.zeros(columns, 5)).shape == (rows, columns)
