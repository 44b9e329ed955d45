"""Matching of boxes with objects on every backend.

Shapes: N images, G objects, B boxes.
"""

import math

import pytest
import torch

from detlab.layers import _ops, _ops_plain
from detlab.layers.box_overlap import box_iou
from tests.layers import plain_ops


def random_boxes(*shape, seed=0, reach=60.0, whole=False):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * reach
    boxes = torch.cat([low, low + torch.rand(*shape, 2, generator=generator) * reach / 3], dim=-1)
    return boxes.round() if whole else boxes


def turned(boxes, seed=0):
    """Rotated boxes of any angle around the same places."""
    angles = torch.rand(*boxes.shape[:-1], 1, generator=torch.Generator().manual_seed(seed)) * 360
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], angles], dim=-1)


def some_valid(images=3, objects=9, seed=0):
    """Of the last image none."""
    valid = torch.rand(images, objects, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid[-1] = False
    return valid


def check_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_boxes", [1, 15, 16, 255, 256, 257, 700])
@pytest.mark.parametrize("is_shared", [False, True])
def test_every_box_and_every_object_finds_its_best(ops, num_boxes, is_shared):
    boxes = random_boxes(1 if is_shared else 3, num_boxes, seed=1)
    arguments = random_boxes(3, 9), some_valid(), boxes
    check_same(ops.match_boxes(*arguments), plain_ops.match_boxes(*arguments))


def test_overlaps_are_those_of_the_table_bit_for_bit(ops):
    objects, boxes = random_boxes(1, 20, reach=300.0), random_boxes(1, 999, seed=1, reach=300.0)
    table = box_iou(objects[0], boxes[0])
    overlaps, rows, object_overlaps, is_best = ops.match_boxes(objects, torch.ones(1, 20, dtype=torch.bool), boxes)
    best, best_rows = table.max(dim=0)
    assert torch.equal(overlaps[0], best)
    assert torch.equal(rows[0], best_rows)
    assert torch.equal(object_overlaps[0], table.amax(dim=1))
    assert torch.equal(is_best[0], (table == table.amax(dim=1, keepdim=True)).any(dim=0) & (best > 0))


def test_of_equal_overlaps_the_first_object_wins_and_every_box_counts_as_best(ops):
    """Boxes on a grid, of which many are alike."""
    objects, boxes = random_boxes(2, 12, reach=9.0, whole=True), random_boxes(2, 300, seed=1, reach=9.0, whole=True)
    arguments = objects, torch.ones(2, 12, dtype=torch.bool), boxes
    actual = ops.match_boxes(*arguments)
    check_same(actual, plain_ops.match_boxes(*arguments))
    assert actual[3].sum() > 2 * 12


def test_objects_that_are_not_valid_take_no_part(ops):
    objects, boxes = random_boxes(1, 3), random_boxes(1, 40, seed=1)
    objects[0, 0] = boxes[0, 0]
    overlaps, rows, object_overlaps, is_best = ops.match_boxes(objects, torch.tensor([[False, True, True]]), boxes)
    assert rows.min() == 1
    assert object_overlaps[0, 0] == 0
    alone = ops.match_boxes(objects[:, 1:], torch.ones(1, 2, dtype=torch.bool), boxes)
    check_same((overlaps, rows - 1, object_overlaps[:, 1:], is_best), alone)


def test_without_objects_boxes_overlap_nothing_and_name_the_first(ops):
    for objects in (random_boxes(2, 5), torch.zeros(2, 0, 4)):
        valid = torch.zeros(objects.shape[:2], dtype=torch.bool)
        overlaps, rows, object_overlaps, is_best = ops.match_boxes(objects, valid, random_boxes(1, 30))
        assert overlaps.shape == rows.shape == is_best.shape == (2, 30)
        assert object_overlaps.shape == valid.shape
        assert not overlaps.any() and not rows.any() and not object_overlaps.any() and not is_best.any()


def test_an_object_that_nothing_overlaps_makes_no_box_its_best(ops):
    objects = torch.tensor([[[900.0, 900, 950, 950], [0.0, 0, 4, 4]]])
    boxes = torch.tensor([[[0.0, 0, 4, 3], [50.0, 50, 60, 60]]])
    overlaps, rows, object_overlaps, is_best = ops.match_boxes(objects, torch.ones(1, 2, dtype=torch.bool), boxes)
    assert overlaps.tolist() == [[0.75, 0]]
    assert rows.tolist() == [[1, 0]]
    assert object_overlaps.tolist() == [[0, 0.75]]
    assert is_best.tolist() == [[True, False]]


@pytest.mark.parametrize(("images", "num_boxes"), [(0, 7), (2, 0), (0, 0)])
def test_no_images_or_no_boxes(ops, images, num_boxes):
    overlaps, rows, object_overlaps, is_best = ops.match_boxes(
        torch.zeros(images, 3, 4), torch.ones(images, 3, dtype=torch.bool), torch.zeros(max(images, 1), num_boxes, 4)
    )
    assert overlaps.shape == rows.shape == is_best.shape == (images, num_boxes)
    assert torch.equal(object_overlaps, torch.zeros(images, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_boxes_that_are_not_finite_overlap_what_they_do_in_the_table(ops, value):
    objects, boxes = random_boxes(2, 12), random_boxes(2, 90, seed=1)
    for column in range(4):
        objects[:, column, column] = value
        boxes[:, column::7, column] = value
    boxes[:, 5::7] = boxes[:, 5::7, [2, 3, 0, 1]]
    boxes[:, 6::7, 2:] = boxes[:, 6::7, :2]
    valid = torch.ones(2, 12, dtype=torch.bool)
    actual = ops.match_boxes(objects, valid, boxes)
    check_same(actual, plain_ops.match_boxes(objects, valid, boxes))
    table = box_iou(objects, boxes)
    assert torch.equal(actual[0], table.amax(dim=1))
    assert torch.equal(actual[2], table.amax(dim=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_in_single_precision(ops, dtype):
    objects, boxes, valid = random_boxes(2, 8).to(dtype), random_boxes(2, 50, seed=1).to(dtype), some_valid(2, 8)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = plain_ops.match_boxes(objects.to(wide), valid, boxes.to(wide))
    check_same(ops.match_boxes(objects, valid, boxes), expected)


def test_more_objects_than_are_looked_at_together(ops):
    arguments = random_boxes(1, 300), some_valid(2, 300)[:1], random_boxes(1, 70, seed=1)
    check_same(ops.match_boxes(*arguments), plain_ops.match_boxes(*arguments))


def test_input_that_is_not_contiguous(ops):
    objects, boxes, valid = random_boxes(3, 9), random_boxes(3, 70, seed=1), some_valid()
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (objects, valid, boxes)]
    check_same(ops.match_boxes(*apart), ops.match_boxes(objects, valid, boxes))


@pytest.mark.parametrize("is_shared", [False, True])
def test_rotated_boxes_follow_the_rules_on_their_own_overlaps(ops, is_shared):
    objects, valid = turned(random_boxes(3, 9)), some_valid()
    boxes = turned(random_boxes(1 if is_shared else 3, 270, seed=1), seed=1)
    actual = ops.match_boxes(objects, valid, boxes)
    tables = [ops.box_iou_rotated(own, boxes[image if not is_shared else 0]) for image, own in enumerate(objects)]
    expected = [plain_ops.matches_of_table(table.numpy(), v.numpy()) for table, v in zip(tables, valid)]
    check_same(actual, [torch.stack([torch.from_numpy(x) for x in parts]) for parts in zip(*expected)])
    slow = plain_ops.match_boxes(objects, valid, boxes)
    torch.testing.assert_close(actual[0].double(), slow[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual[2].double(), slow[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sides", [4, 5])
def test_plain_form_works_a_part_of_the_boxes_at_a_time(monkeypatch, sides):
    objects, boxes, valid = random_boxes(3, 9), random_boxes(1, 50, seed=1), some_valid()
    if sides == 5:
        objects, boxes = turned(objects), turned(boxes, seed=1)
    whole = _ops_plain.match_boxes(objects, valid, boxes)
    monkeypatch.setattr(_ops_plain, "PAIRS_PER_CHUNK", 70)
    check_same(_ops_plain.match_boxes(objects, valid, boxes), whole)


def test_results_have_names():
    found = _ops.match_boxes(random_boxes(2, 5), some_valid(2, 5), random_boxes(1, 30))
    assert found.overlaps.shape == found.objects.shape == found.is_best.shape == (2, 30)
    assert found.object_overlaps.shape == (2, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_matching_does_not_wait_for_the_gpu():
    arguments = [x.cuda() for x in (random_boxes(3, 9), some_valid(), random_boxes(1, 300))]
    torch.ops.detlab.match_boxes(*arguments)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.ops.detlab.match_boxes(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
