import math

import pytest
import torch

from detlab.modeling.suppression import clip_boxes_to_images, keep_best_boxes, sizes_tensor
from detlab.structures.boxes import Boxes, pairwise_iou


def make_candidates(count=60, num_images=2):
    torch.manual_seed(0)
    low = torch.rand(num_images, count, 2) * 70 - 10
    boxes = torch.cat((low, low + torch.rand(num_images, count, 2) * 40), dim=-1)
    return boxes, torch.randn(num_images, count), torch.randint(0, 3, (num_images, count))


SIZES = torch.tensor([[50.0, 70.0], [64.0, 48.0]])


def slow(boxes, scores, groups, size, nms_thresh, max_boxes, min_box_size):
    """One image, one box at a time."""
    kept = []
    for row in scores.argsort(descending=True).tolist():
        box = boxes[row].clone()
        if not (box.isfinite().all() and scores[row].isfinite()):
            continue
        box[0::2].clamp_(0, size[1])
        box[1::2].clamp_(0, size[0])
        if not ((box[2:] - box[:2]) > min_box_size).all():
            continue
        rivals = [other for other in kept if groups[other[1]] == groups[row]]
        if all(pairwise_iou(Boxes(box[None]), Boxes(other[0][None])).item() <= nms_thresh for other in rivals):
            kept.append((box, row))
    return kept[:max_boxes]


@pytest.mark.parametrize("min_box_size", [-math.inf, 0.0, 6.0])
@pytest.mark.parametrize("max_boxes", [10, 100])
def test_the_boxes_kept_equal_those_of_a_loop(max_boxes, min_box_size):
    boxes, scores, groups = make_candidates()
    boxes[0, 3, 1], boxes[0, 7, 2], scores[1, 0], scores[1, 1] = math.nan, math.inf, -math.inf, math.nan
    boxes[1, 5] = boxes[1, 5, [0, 1, 0, 1]]
    kept = keep_best_boxes(boxes, scores, groups, SIZES, 0.4, max_boxes, min_box_size)
    assert kept.boxes.shape == (2, max_boxes, 4)
    for n in range(2):
        expected = slow(boxes[n], scores[n], groups[n], SIZES[n].tolist(), 0.4, max_boxes, min_box_size)
        count = len(expected)
        assert kept.valid[n].tolist() == [True] * count + [False] * (max_boxes - count) and count > 5
        assert kept.rows[n, :count].tolist() == [row for _, row in expected]
        assert torch.allclose(kept.boxes[n, :count], torch.stack([box for box, _ in expected]))
        assert torch.equal(kept.scores[n, :count], scores[n][kept.rows[n, :count]])


def test_places_that_are_not_taken_hold_zeros():
    boxes, scores, groups = make_candidates(5)
    kept = keep_best_boxes(boxes, scores, groups, SIZES, 0.5, 20)
    assert (kept.boxes[~kept.valid] == 0).all() and (kept.scores[~kept.valid] == 0).all()
    assert kept.rows.min() >= 0 and kept.rows.max() < 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_candidates_that_are_none_change_nothing_whatever_their_boxes_hold(value):
    boxes, scores, groups = make_candidates()
    scores[:, ::3] = -math.inf
    expected = keep_best_boxes(boxes, scores, groups, SIZES, 0.4, 30)
    boxes[:, ::3] = value
    got = keep_best_boxes(boxes, scores, groups, SIZES, 0.4, 30)
    assert torch.equal(got.boxes, expected.boxes) and torch.equal(got.valid, expected.valid)
    assert torch.equal(got.rows[got.valid], expected.rows[expected.valid])


@pytest.mark.parametrize("shape", [(2, 0), (0, 4)])
def test_no_candidates_and_no_images_give_padding_alone(shape):
    boxes, groups = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.int64)
    kept = keep_best_boxes(boxes, torch.zeros(shape), groups, SIZES[: shape[0]], 0.5, 6)
    assert kept.boxes.shape == (shape[0], 6, 4) and not kept.valid.any()


def test_half_precision_scores_are_suppressed_as_their_single_precision_values():
    boxes, scores, groups = make_candidates()
    got = keep_best_boxes(boxes, scores.half(), groups, SIZES, 0.4, 30)
    expected = keep_best_boxes(boxes, scores.half().float(), groups, SIZES, 0.4, 30)
    assert torch.equal(got.boxes, expected.boxes) and torch.equal(got.scores, expected.scores)


def test_boxes_are_clipped_to_the_size_of_their_own_image():
    boxes = torch.tensor([-5.0, -6, 500, 600]).expand(2, 3, 2, 4)
    clipped = clip_boxes_to_images(boxes, SIZES)
    assert clipped.shape == boxes.shape
    assert (clipped[0] == torch.tensor([0.0, 0, 70, 50])).all()
    assert (clipped[1] == torch.tensor([0.0, 0, 48, 64])).all()


def test_sizes_are_numbers_in_full_precision_on_the_device_of_the_boxes():
    like = torch.zeros(1, dtype=torch.float16)
    assert sizes_tensor([(4099, 3), (5, 6)], like).tolist() == [[4099, 3], [5, 6]]
    assert sizes_tensor([], like).shape == (0, 2) and sizes_tensor(SIZES, like) is SIZES
    assert sizes_tensor([(1, 2)], torch.zeros(1, device="meta")).device.type == "meta"
