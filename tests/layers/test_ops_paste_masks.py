"""Pasting of masks on every backend.

Shapes: N masks of M x M cells, image H x W.
"""

import math

import pytest
import torch

from tests.layers import plain_ops

BOXES = [
    [2.3, 1.1, 15.2, 9.9],
    [-3.0, 4.0, 6.0, 25.0],
    [10.0, 2.0, 11.5, 3.0],
    [-5.5, -7.25, 40.0, 60.0],
    [16.0, 12.0, 20.0, 18.0],
]


def random_masks(count=5, size=14, dtype=torch.float32):
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(size)).to(dtype)


def check_paste(ops, masks, boxes, height, width, threshold=0.4):
    """Hard and soft; pixels whose value rounding could carry over a threshold may go either way."""
    expected = plain_ops.paste_masks(masks, boxes, height, width)
    rounding = 1e-12 if masks.dtype == torch.float64 else 1e-4
    hard = ops.paste_masks(masks, boxes, height, width, threshold)
    assert hard.dtype == torch.bool
    assert hard.shape == expected.shape
    is_clear = (expected - threshold).abs() > rounding
    assert torch.equal(hard[is_clear], (expected >= threshold)[is_clear])
    soft = ops.paste_masks(masks, boxes, height, width, -1.0)
    assert soft.dtype == torch.uint8
    is_clear = (expected * 255 - (expected * 255).round()).abs() > rounding * 255
    assert torch.equal(soft[is_clear], (expected * 255).to(torch.uint8)[is_clear])
    assert ((soft.double() - expected * 255).abs() <= 1 + rounding * 255).all()
    return hard, soft


@pytest.mark.parametrize("size", [1, 2, 14, 28])
@pytest.mark.parametrize(("height", "width"), [(18, 20), (17, 19), (23, 67), (1, 1), (3, 130)])
def test_every_pixel_mixes_the_four_cells_around_its_center(ops, size, height, width):
    check_paste(ops, random_masks(size=size), torch.tensor(BOXES), height, width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("boxes_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_pair_of_types(ops, dtype, boxes_dtype):
    boxes = torch.tensor(BOXES).to(boxes_dtype)
    exact = boxes if dtype == torch.float64 else boxes.float()
    masks = random_masks(dtype=dtype)
    check_paste(ops, masks, exact, 18, 21)
    assert torch.equal(ops.paste_masks(masks, boxes, 18, 21, 0.4), ops.paste_masks(masks, exact, 18, 21, 0.4))


def test_value_of_exactly_the_threshold_is_set(ops):
    """The box has the mask's size, so that every pixel is a cell."""
    masks = torch.arange(16.0).reshape(1, 4, 4) / 16
    pasted = ops.paste_masks(masks, torch.tensor([[1.0, 2, 5, 6]]), 8, 8, 0.5)
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, 4:6, 1:5] = True
    assert torch.equal(pasted, expected)


def test_soft_values_are_shares_of_255_rounded_down(ops):
    masks = torch.tensor([[[0.0, 0.25], [0.5, 1.0]]])
    pasted = ops.paste_masks(masks, torch.tensor([[0.0, 0, 2, 2]]), 2, 3, -1.0)
    assert pasted.tolist() == [[[0, 63, 0], [127, 255, 0]]]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0])
def test_thresholds_at_and_beyond_the_ends(ops, threshold):
    masks = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    boxes = torch.tensor([[1.0, 1, 3, 3]])
    expected = plain_ops.paste_masks(masks, boxes, 5, 5) >= threshold
    assert torch.equal(ops.paste_masks(masks, boxes, 5, 5, threshold), expected)


ODD_BOXES = {
    "outside": [[-30.0, -20, -10, -5], [40.0, 2, 60, 9], [3.0, 50, 9, 80], [25.0, -9, 30, -2]],
    "without area": [[5.0, 5, 5, 9], [5.0, 5, 9, 5], [7.0, 7, 7, 7], [0.0, 0, 0, 0]],
    "turned inside out": [[9.0, 3, 4, 8], [3.0, 9, 8, 4], [9.0, 9, 1, 1], [20.0, 3, -4, 9]],
    "huge": [[-1e6, -1e6, 1e6, 1e6], [-4e3, 2, 5e3, 9], [2.0, -1e6, 9, 1e6], [-1e6, -1e6, 8, 8]],
    "not a number": [[math.nan, 2, 9, 9], [2.0, math.nan, 9, 9], [2.0, 2, math.nan, 9], [2.0, 2, 9, math.nan]],
    "infinite": [[2.0, 2, math.inf, 9], [-math.inf, 2, 9, 9], [2.0, -math.inf, 9, math.inf], [2.0, 2, 9, math.inf]],
}


@pytest.mark.parametrize("boxes", ODD_BOXES)
def test_boxes_at_odd_places(ops, boxes):
    corners = torch.tensor(ODD_BOXES[boxes])
    hard, soft = check_paste(ops, random_masks(len(corners), dtype=torch.float64), corners.double(), 18, 20)
    if boxes != "huge":
        assert hard.count_nonzero() == soft.count_nonzero() == 0
        assert ops.paste_masks(random_masks(len(corners)), corners, 18, 20, 0.4).count_nonzero() == 0


@pytest.mark.parametrize("boxes", ["without area", "not a number", "infinite"])
def test_threshold_of_zero_sets_the_pixels_of_boxes_that_get_nothing_too(ops, boxes):
    corners = torch.tensor(ODD_BOXES[boxes])
    assert ops.paste_masks(random_masks(len(corners)), corners, 5, 6, 0.0).all()


def test_empty_masks_paste_nothing(ops):
    assert ops.paste_masks(torch.zeros(5, 28, 28), torch.tensor(BOXES), 18, 20, 0.5).count_nonzero() == 0


def test_masks_and_boxes_that_are_not_contiguous(ops):
    masks, boxes = random_masks(), torch.tensor(BOXES)
    apart = masks.transpose(1, 2).contiguous().transpose(1, 2)
    pasted = ops.paste_masks(apart, boxes.t().contiguous().t(), 18, 20, 0.4)
    assert torch.equal(pasted, ops.paste_masks(masks, boxes, 18, 20, 0.4))
    one = masks[:1].expand(5, -1, -1)
    assert torch.equal(ops.paste_masks(one, boxes, 18, 20, 0.4), ops.paste_masks(one.contiguous(), boxes, 18, 20, 0.4))


@pytest.mark.parametrize(("count", "height", "width"), [(0, 4, 5), (5, 0, 7), (5, 7, 0), (0, 0, 0)])
def test_nothing_to_paste_or_nothing_to_paste_on(ops, count, height, width):
    for threshold in (0.5, -1.0):
        pasted = ops.paste_masks(random_masks(count), torch.zeros(count, 4), height, width, threshold)
        assert pasted.shape == (count, height, width)


@pytest.mark.parametrize("ops", ["cpu", "plain", "cuda"], indirect=True)
def test_results_of_several_megabytes(ops):
    check_paste(ops, random_masks(size=28), torch.tensor(BOXES) * 40, 800, 1001)
