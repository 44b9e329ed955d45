"""Run-length codes equal those of the official encoder."""

import numpy as np
import pytest
from pycocotools import mask as mask_tools

from detlab.evaluation._mask_rle import encode_masks


def official(masks):
    codes = mask_tools.encode(np.asfortranarray(masks.astype(np.uint8).transpose(1, 2, 0)))
    return [{"size": code["size"], "counts": code["counts"].decode()} for code in codes]


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_random_masks_of_all_shapes_are_equal(density):
    rng = np.random.default_rng(int(100 * density))
    for height, width in [(1, 1), (1, 7), (7, 1), (2, 3), (5, 8), (33, 20)] * 5:
        masks = rng.random((4, height, width)) < density
        assert encode_masks(masks) == official(masks)


def test_masks_at_every_border_are_equal():
    masks = np.zeros((5, 6, 9), dtype=bool)
    masks[0, :2], masks[1, -2:], masks[2, :, :3], masks[3, :, -3:], masks[4, 2:4, 3:5] = True, True, True, True, True
    assert encode_masks(masks) == official(masks)


def test_views_that_are_not_contiguous_are_equal():
    masks = np.random.default_rng(0).random((12, 9, 3)) < 0.4
    assert encode_masks(masks.transpose(2, 0, 1)) == official(masks.transpose(2, 0, 1))


def test_no_masks_give_no_codes():
    assert encode_masks(np.zeros((0, 4, 5), dtype=bool)) == []
