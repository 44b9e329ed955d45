"""Suppression on every backend: upright and rotated boxes, with and without classes, and the form of fixed size.

Shapes: N images, B boxes, P boxes to keep at most.
"""

import functools
import math

import pytest
import torch

from tests.layers import plain_ops

LARGE = 2**62
REAL_TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def grid_boxes(count, seed=0, side=8):
    """Corners on a coarse grid of whole numbers, so that overlaps of exactly 1/3 and 1/2 are common."""
    low = torch.randint(side, (count, 2), generator=seeded(seed))
    return torch.cat([low, low + torch.randint(1, 5, (count, 2), generator=seeded(seed + 1))], dim=1).double()


def random_boxes(count, seed=0):
    low = torch.rand(count, 2, generator=seeded(seed), dtype=torch.float64) * 60
    return torch.cat([low, low + 4 + torch.rand(count, 2, generator=seeded(seed + 1)) * 30], dim=1)


def random_scores(count, seed=3):
    return torch.rand(count, generator=seeded(seed))


def random_classes(count, num_classes=3, seed=4):
    return torch.randint(num_classes, (count,), generator=seeded(seed))


def check_nms(ops, boxes, scores, classes, iou_threshold):
    kept = ops.nms(boxes, scores, classes, iou_threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == plain_ops.nms(boxes, scores, classes, iou_threshold)
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.25, 1 / 3, 0.5, 2 / 3, 1.0])
def test_overlap_of_exactly_the_threshold_stays(ops, iou_threshold, dtype):
    """As exactly as the precision allows: in single precision 1/3 is rounded up, and more than a third."""
    boxes, scores = grid_boxes(150).to(dtype), random_scores(150)
    ious = torch.stack([torch.from_numpy(plain_ops.box_iou(box, boxes.numpy())) for box in boxes.numpy()])
    assert (ious == torch.tensor(iou_threshold, dtype=dtype)).any()
    check_nms(ops, boxes, scores, None, iou_threshold)
    check_nms(ops, boxes, scores, random_classes(150), iou_threshold)


def test_single_precision_compares_with_the_threshold_itself(ops):
    boxes, scores = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]]), torch.tensor([2.0, 1.0])
    assert ops.nms(boxes, scores, None, 1 / 3).tolist() == [0]
    assert ops.nms(boxes.double(), scores, None, 1 / 3).tolist() == [0, 1]
    third = torch.tensor(1.0).div(3).item()
    assert ops.nms(boxes, scores, None, third).tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 127, 129, 1000])
def test_any_number_of_boxes(ops, count):
    boxes, scores = random_boxes(count).float(), random_scores(count)
    check_nms(ops, boxes, scores, None, 0.4)
    check_nms(ops, boxes, scores, random_classes(count), 0.4)


@functools.cache
def thousands_of_boxes(num_classes):
    """Arguments, and the boxes to keep."""
    boxes = random_boxes(4400) + torch.rand(4400, 1, generator=seeded(8), dtype=torch.float64) * 400
    arguments = boxes.float(), random_scores(4400), random_classes(4400, num_classes), 0.5
    return arguments, plain_ops.nms(*arguments)


@pytest.mark.parametrize("num_classes", [1, 30])
def test_thousands_of_boxes(ops, num_classes):
    """More than are settled together."""
    arguments, expected = thousands_of_boxes(num_classes)
    assert ops.nms(*arguments).tolist() == expected


def test_thousands_of_boxes_that_all_stay(ops):
    corners = torch.arange(4200.0)[:, None] * 2
    boxes = torch.cat([corners, corners, corners + 1, corners + 1], dim=1)
    scores = random_scores(4200)
    assert ops.nms(boxes, scores, None, 0.5).tolist() == scores.argsort(descending=True, stable=True).tolist()


def test_copies_of_one_box_leave_the_first_of_the_best(ops):
    boxes = torch.tensor([[1.0, 2, 5, 7]]).repeat(200, 1)
    scores = torch.ones(200)
    assert ops.nms(boxes, scores, None, 0.99).tolist() == [0]
    scores[130:] = 2
    assert ops.nms(boxes, scores, None, 0.99).tolist() == [130]
    assert ops.nms(boxes, scores, None, 1.0).tolist() == [*range(130, 200), *range(130)]


def test_equal_scores_keep_the_order_of_the_boxes(ops):
    boxes = random_boxes(300).float()
    scores = torch.randint(3, (300,), generator=seeded(5)).float()
    check_nms(ops, boxes, scores, None, 0.6)
    check_nms(ops, boxes, scores, random_classes(300), 0.6)


def test_zero_and_minus_zero_are_equal_scores(ops):
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    assert ops.nms(boxes, torch.tensor([-0.0, 0.0, -0.0]), None, 0.5).tolist() == [0, 1, 2]


def test_scores_that_are_not_numbers_come_last(ops):
    boxes = random_boxes(100).float()
    scores = random_scores(100) - 0.5
    scores[::7] = math.nan
    scores[3], scores[5], scores[6] = math.inf, -math.inf, -math.inf
    check_nms(ops, boxes, scores, None, 0.5)
    check_nms(ops, boxes, scores, random_classes(100), 0.5)


@pytest.mark.parametrize("dtype", REAL_TYPES)
@pytest.mark.parametrize("scores_dtype", REAL_TYPES)
def test_every_pair_of_types(ops, dtype, scores_dtype):
    boxes, scores = random_boxes(90).to(dtype), random_scores(90).to(scores_dtype)
    exact = boxes if dtype == torch.float64 else boxes.float()
    expected = plain_ops.nms(exact, scores, random_classes(90), 0.4)
    assert ops.nms(boxes, scores, random_classes(90), 0.4).tolist() == expected


def test_classes_may_be_any_number(ops):
    boxes, scores = random_boxes(120).float(), random_scores(120)
    numbers = torch.tensor([-LARGE, -1, 0, LARGE, LARGE + 1, 2**24, 2**24 + 1])
    check_nms(ops, boxes, scores, numbers[random_classes(120, len(numbers))], 0.3)


@pytest.mark.parametrize("offset", [1e6, 1e7])
def test_distant_boxes_of_many_classes_are_told_apart_exactly(ops, offset):
    """Moving each class to a place of its own, the usual trick, would round these corners."""
    boxes = (grid_boxes(300) + offset).float()
    check_nms(ops, boxes, random_scores(300), random_classes(300, 90) * 1000, 0.5)


def test_boxes_without_area_suppress_nothing(ops):
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 0, 9], [0, 0, 0, 9], [0, 0, 9, 9], [9, 9, 0, 0]])
    assert ops.nms(boxes.repeat(12, 1), torch.ones(72), None, 0.5).tolist() == [
        i for i in range(72) if i % 6 != 4 or i == 4
    ]
    check_nms(ops, boxes.repeat(12, 1), random_scores(72), None, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", range(4))
def test_boxes_that_are_not_finite_suppress_nothing(ops, value, side):
    """Every overlap with them is 0 or not a number; wherever they stand among the others."""
    boxes, scores = random_boxes(80).float(), random_scores(80)
    boxes[::5, side] = value
    check_nms(ops, boxes, scores, None, 0.3)


def test_input_that_is_not_contiguous(ops):
    boxes, scores, classes = random_boxes(80).float(), random_scores(80), random_classes(80)
    expected = ops.nms(boxes, scores, classes, 0.4)
    apart = boxes.t().contiguous().t()
    assert torch.equal(
        ops.nms(apart, scores.repeat_interleave(2)[::2], classes.repeat_interleave(3)[::3], 0.4), expected
    )
    same_score = torch.tensor(0.5).expand(80)
    assert torch.equal(ops.nms(boxes, same_score, None, 0.4), ops.nms(boxes, same_score.contiguous(), None, 0.4))


@pytest.mark.parametrize("operator", ["nms", "nms_rotated"])
def test_no_boxes_leave_none(ops, operator):
    boxes = torch.zeros(0, 4 if operator == "nms" else 5)
    for classes in (None, torch.zeros(0, dtype=torch.int64)):
        kept = getattr(ops, operator)(boxes, torch.zeros(0), classes, 0.5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64


def rotated_boxes(count, seed=0, dtype=torch.float64):
    numbers = torch.rand(count, 5, generator=seeded(seed), dtype=torch.float64)
    scale = torch.tensor([50.0, 50.0, 25.0, 15.0, 360.0], dtype=torch.float64)
    offset = torch.tensor([0.0, 0.0, 3.0, 3.0, -180.0], dtype=torch.float64)
    return (numbers * scale + offset).to(dtype)


@functools.cache
def ious_of_rotated_boxes(count, dtype):
    boxes = rotated_boxes(count, dtype=dtype)
    return plain_ops.box_iou_rotated(boxes, boxes)


@pytest.mark.parametrize("dtype", REAL_TYPES)
@pytest.mark.parametrize("count", [1, 63, 65, 140])
def test_rotated_boxes(ops, count, dtype):
    boxes, scores, classes = rotated_boxes(count, dtype=dtype), random_scores(count), random_classes(count)
    threshold = 0.31
    ious = ious_of_rotated_boxes(count, dtype)
    assert (ious - threshold).abs().min() > 2e-5, "decisions must not hang on rounding"
    for chosen in (None, classes):
        assert ops.nms_rotated(boxes, scores, chosen, threshold).tolist() == plain_ops.suppress(
            lambda i: ious[i].numpy(), scores, chosen, threshold
        )


def test_rotated_boxes_far_from_the_origin(ops):
    boxes = rotated_boxes(80)
    expected = ops.nms_rotated(boxes, random_scores(80), random_classes(80), 0.3)
    boxes[:, :2] += 1e6
    assert torch.equal(ops.nms_rotated(boxes, random_scores(80), random_classes(80), 0.3), expected)


def test_rotated_copies_leave_the_first_of_the_best(ops):
    boxes = torch.tensor([[10.0, 10, 6, 4, 30]]).repeat(130, 1)
    boxes[:, 4] += 360 * torch.arange(130).remainder(3)
    scores = torch.ones(130)
    scores[70] = 2
    assert ops.nms_rotated(boxes, scores, None, 0.9).tolist() == [70]


def test_rotated_input_that_is_not_contiguous(ops):
    boxes, scores, classes = rotated_boxes(40), random_scores(40), random_classes(40)
    kept = ops.nms_rotated(boxes.t().contiguous().t(), scores.repeat_interleave(2)[::2], classes.expand(40), 0.3)
    assert torch.equal(kept, ops.nms_rotated(boxes, scores, classes, 0.3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(5))
def test_rotated_boxes_that_are_not_finite_suppress_nothing(ops, value, column):
    boxes, scores = rotated_boxes(60), random_scores(60)
    boxes[::5, column] = value
    assert ops.nms_rotated(boxes, scores, None, 0.0).tolist() == plain_ops.nms_rotated(boxes, scores, None, 0.0)


def padded_batch(counts=(0, 1, 70, 100), num_boxes=100, dtype=torch.float32):
    """Images with so many real boxes; the padding, scored -inf, lies on top of them, in between."""
    images = len(counts)
    boxes = torch.stack([random_boxes(num_boxes, seed=10 + image) for image in range(images)]).to(dtype)
    scores = torch.rand(images, num_boxes, generator=seeded(6))
    for image, count in enumerate(counts):
        padding = torch.randperm(num_boxes, generator=seeded(image))[count:]
        scores[image, padding] = -math.inf
        boxes[image, padding] = torch.tensor([0.0, 0.0, 90.0, 90.0], dtype=dtype)
    classes = torch.randint(4, (images, num_boxes), generator=seeded(7))
    return boxes, scores, classes


def check_fixed(ops, boxes, scores, classes, iou_threshold, max_output):
    indices, counts = ops.nms_fixed(boxes, scores, classes, iou_threshold, max_output)
    expected_indices, expected_counts = plain_ops.nms_fixed(boxes, scores, classes, iou_threshold, max_output)
    assert indices.dtype == counts.dtype == torch.int64
    assert torch.equal(counts, expected_counts)
    assert torch.equal(indices, expected_indices)
    return counts


@pytest.mark.parametrize("max_output", [0, 1, 5, 64, 100, 300])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.9])
def test_fixed_form_suppresses_image_by_image_and_pads_with_zeros(ops, max_output, iou_threshold):
    counts = check_fixed(ops, *padded_batch(), iou_threshold, max_output)
    assert counts[0] == 0


@pytest.mark.parametrize("num_boxes", [1, 63, 64, 65, 1000])
def test_fixed_form_takes_any_number_of_boxes(ops, num_boxes):
    check_fixed(ops, *padded_batch((num_boxes, num_boxes // 2), num_boxes), 0.5, num_boxes // 2 + 1)


@functools.cache
def thousands_of_boxes_in_a_batch(max_output):
    """Arguments, and the indices and counts."""
    boxes, scores, classes = padded_batch((4300, 90, 0), 4300)
    arguments = boxes * 5, scores, classes, 0.5, max_output
    return arguments, plain_ops.nms_fixed(*arguments)


@pytest.mark.parametrize("max_output", [300, 4300])
def test_fixed_form_takes_thousands_of_boxes(ops, max_output):
    """More than are settled together in one image, fewer in the others."""
    arguments, expected = thousands_of_boxes_in_a_batch(max_output)
    for actual, wanted in zip(ops.nms_fixed(*arguments), expected):
        assert torch.equal(actual, wanted)


def test_fixed_form_of_boxes_that_all_overlap(ops):
    boxes = torch.tensor([0.0, 0, 9, 9]).expand(2, 200, 4)
    classes = torch.zeros(2, 200, dtype=torch.int64)
    classes[1, 150:] = 1
    indices, counts = ops.nms_fixed(boxes, torch.zeros(2, 200), classes, 0.5, 4)
    assert indices.tolist() == [[0, 0, 0, 0], [0, 150, 0, 0]]
    assert counts.tolist() == [1, 2]


def test_fixed_form_of_grid_boxes_at_their_thresholds(ops):
    boxes = torch.stack([grid_boxes(150, seed) for seed in range(2)])
    scores = torch.randint(50, (2, 150), generator=seeded(1)).double()
    classes = torch.randint(2, (2, 150), generator=seeded(2)) * LARGE
    for iou_threshold in (0.0, 1 / 3, 0.5, 1.0):
        check_fixed(ops, boxes, scores, classes, iou_threshold, 60)


def rotated_batch(dtype=torch.float32):
    """Some real boxes in each of three images; padding in between, on top of them."""
    boxes = torch.stack([rotated_boxes(60, seed=20 + image) for image in range(3)]).to(dtype)
    scores = torch.rand(3, 60, generator=seeded(6))
    for image, count in enumerate((60, 25, 0)):
        padding = torch.randperm(60, generator=seeded(image))[count:]
        scores[image, padding] = -math.inf
        boxes[image, padding] = torch.tensor([40.0, 40.0, 90.0, 90.0, 30.0], dtype=dtype)
    return boxes, scores, torch.randint(2, (3, 60), generator=seeded(7))


@pytest.mark.parametrize("max_output", [0, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_form_of_rotated_boxes(ops, max_output, dtype):
    arguments = *rotated_batch(dtype), 0.3, max_output
    counts = check_fixed(ops, *arguments)
    assert counts[2] == 0
    for image in range(2):
        real = (arguments[1][image] > -math.inf).nonzero().squeeze(1)
        kept = ops.nms_rotated(*(x[image, real] for x in arguments[:3]), 0.3)[:max_output]
        assert torch.equal(ops.nms_fixed(*arguments)[0][image, : counts[image]], real[kept])


def test_fixed_form_of_rotated_boxes_in_half_precision(ops):
    boxes, scores, classes = rotated_batch()
    expected = ops.nms_fixed(boxes.half().float(), scores, classes, 0.3, 40)
    for actual, wanted in zip(ops.nms_fixed(boxes.half(), scores, classes, 0.3, 40), expected):
        assert torch.equal(actual, wanted)


def test_fixed_form_takes_nan_scores_for_padding(ops):
    boxes, scores, classes = padded_batch()
    scores[scores == -math.inf] = math.nan
    scores[2, :5] = math.inf
    check_fixed(ops, boxes, scores, classes, 0.4, 50)


@pytest.mark.parametrize("dtype", REAL_TYPES)
def test_fixed_form_of_every_type(ops, dtype):
    boxes, scores, classes = padded_batch(dtype=dtype)
    scores = scores.to(dtype)
    exact = boxes if dtype == torch.float64 else boxes.float()
    indices, counts = ops.nms_fixed(boxes, scores, classes, 0.4, 40)
    expected_indices, expected_counts = plain_ops.nms_fixed(exact, scores, classes, 0.4, 40)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(counts, expected_counts)


def test_fixed_form_of_input_that_is_not_contiguous(ops):
    boxes, scores, classes = padded_batch()
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (boxes, scores, classes)]
    for actual, expected in zip(ops.nms_fixed(*apart, 0.4, 40), ops.nms_fixed(boxes, scores, classes, 0.4, 40)):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("images", "num_boxes"), [(0, 5), (3, 0), (0, 0)])
def test_fixed_form_of_nothing(ops, images, num_boxes):
    indices, counts = ops.nms_fixed(
        torch.zeros(images, num_boxes, 4),
        torch.zeros(images, num_boxes),
        torch.zeros(images, num_boxes, dtype=torch.int64),
        0.5,
        7,
    )
    assert torch.equal(indices, torch.zeros(images, 7, dtype=torch.int64))
    assert torch.equal(counts, torch.zeros(images, dtype=torch.int64))


def counted(ops, counter, *arguments):
    before = ops.count[counter]()
    ops.nms_fixed(*arguments)
    return ops.count[counter]() - before


def sparse_batch(num_boxes, num_real, num_classes=3):
    boxes, scores, _ = padded_batch((num_real, num_real), num_boxes)
    return boxes, scores, torch.randint(num_classes, scores.shape, generator=seeded(7)), 0.5, 100


@pytest.mark.parametrize("ops", ["emulated"], indirect=True)
@pytest.mark.parametrize(("num_boxes", "num_real", "num_classes"), [(5, 5, 1), (5000, 4500, 2), (30000, 40, 1203)])
def test_fixed_form_takes_three_launches_whatever_there_is_to_suppress(ops, num_boxes, num_real, num_classes):
    """And a sort by the scores."""
    assert counted(ops, "launches", *sparse_batch(num_boxes, num_real, num_classes)) == 3


@pytest.mark.parametrize("ops", ["emulated"], indirect=True)
def test_padding_is_never_waited_for(ops):
    """One more window of it, or five."""
    few, many = (counted(ops, "barriers", *sparse_batch(num_boxes, 40)) for num_boxes in (5000, 21000))
    assert few == many > 0


@pytest.mark.parametrize("ops", ["emulated"], indirect=True)
def test_candidates_apart_are_settled_in_one_vote(ops):
    """Two or sixty-four: the threads of a warp look at them at the same time."""

    def votes_on(count):
        corners = torch.arange(float(count))[None, :, None] * 10
        boxes = torch.cat([corners, corners, corners + 5, corners + 5], dim=2)
        return counted(ops, "votes", boxes, torch.ones(1, count), torch.zeros(1, count, dtype=torch.int64), 0.5, count)

    assert votes_on(2) == votes_on(64) > 0


@pytest.mark.parametrize("count", [2, 64, 65, 200])
def test_chain_of_boxes_keeps_every_second(ops, count):
    """Each overlaps the next one only: what becomes of it hangs on all before."""
    left = torch.arange(float(count)) * 2
    boxes = torch.stack([left, torch.zeros(count), left + 3, torch.ones(count)], dim=1)
    order = torch.randperm(count, generator=seeded(2))
    scores = torch.arange(float(count), 0, -1)
    kept = ops.nms(boxes[order], scores[order], None, 0.1)
    assert order[kept].tolist() == list(range(0, count, 2))
    indices, counts = ops.nms_fixed(
        boxes[order][None], scores[order][None], torch.zeros(1, count, dtype=torch.int64), 0.1, count
    )
    assert torch.equal(indices[0, : len(kept)], kept)
    assert counts.item() == len(kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_fixed_form_does_not_wait_for_the_gpu():
    arguments = [x.cuda() for x in padded_batch()]
    torch.ops.detlab.nms_fixed(*arguments, 0.5, 50)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.ops.detlab.nms_fixed(*arguments, 0.5, 50)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
