"""Pasting of masks."""

import numpy as np
import pytest
import torch

from detlab.layers.mask_ops import pad_masks, paste_mask_in_image_old, paste_masks_in_image, scale_boxes


def plain_paste(mask, box, height, width):
    """Bilinear look-up of every pixel's center, one at a time; 0 outside the map."""
    size = mask.shape[0]
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            u = (j + 0.5 - box[0]) / (box[2] - box[0]) * size - 0.5
            v = (i + 0.5 - box[1]) / (box[3] - box[1]) * size - 0.5
            left, top = int(np.floor(u)), int(np.floor(v))
            for y, wy in ((top, 1 - (v - top)), (top + 1, v - top)):
                for x, wx in ((left, 1 - (u - left)), (left + 1, u - left)):
                    if 0 <= x < size and 0 <= y < size:
                        out[i, j] += wy * wx * mask[y, x]
    return out


def test_pasting_equals_a_plain_loop():
    torch.manual_seed(0)
    masks = torch.rand(3, 6, 6)
    boxes = torch.tensor([[2.3, 1.1, 15.2, 9.9], [-3.0, 4.0, 6.0, 25.0], [10.0, 2.0, 11.5, 3.0]])
    expected = np.stack([plain_paste(m.numpy(), b, 18, 20) for m, b in zip(masks, boxes.tolist())])
    clear = np.abs(expected - 0.4) > 1e-4
    hard = paste_masks_in_image(masks, boxes, (18, 20), threshold=0.4)
    assert hard.dtype == torch.bool
    assert (hard.numpy() == (expected >= 0.4))[clear].all()
    soft = paste_masks_in_image(masks, boxes, (18, 20), threshold=-1)
    assert soft.dtype == torch.uint8
    assert np.abs(soft.numpy() - expected * 255).max() < 1.01


def test_no_masks_give_no_bitmaps():
    assert paste_masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 7)).shape == (0, 5, 7)


def test_mismatched_input_is_refused():
    with pytest.raises(ValueError, match="2 masks but 1 boxes"):
        paste_masks_in_image(torch.zeros(2, 4, 4), torch.zeros(1, 4), (5, 7))
    with pytest.raises(ValueError, match=r"got \(2, 4, 5\)"):
        paste_masks_in_image(torch.zeros(2, 4, 5), torch.zeros(2, 4), (5, 7))


class TestOldPaste:
    def test_whole_pixels_of_the_box_are_filled(self):
        pasted = paste_mask_in_image_old(torch.ones(4, 4), torch.tensor([2.0, 1.0, 4.0, 2.0]), 5, 6, 0.5)
        expected = torch.zeros(5, 6, dtype=torch.uint8)
        expected[1:3, 2:5] = 1
        assert torch.equal(pasted, expected)

    def test_what_sticks_out_is_cut(self):
        pasted = paste_mask_in_image_old(torch.ones(4, 4), torch.tensor([-3.0, -2.0, 1.0, 40.0]), 5, 6, -1)
        assert pasted[:, :2].eq(255).all()
        assert pasted[:, 2:].eq(0).all()
        outside = paste_mask_in_image_old(torch.ones(4, 4), torch.tensor([10.0, 0.0, 12.0, 3.0]), 5, 6, 0.5)
        assert outside.sum() == 0


def test_padding_a_mask_and_growing_its_box_keep_its_place():
    masks = torch.rand(2, 4, 4)
    padded, scale = pad_masks(masks, 1)
    assert padded.shape == (2, 6, 6)
    assert torch.equal(padded[:, 1:-1, 1:-1], masks)
    assert padded.sum() == masks.sum()
    boxes = torch.tensor([[2.0, 4.0, 6.0, 12.0]])
    assert scale_boxes(boxes, scale).tolist() == [[1.0, 2.0, 7.0, 14.0]]
    assert boxes.tolist() == [[2.0, 4.0, 6.0, 12.0]]
