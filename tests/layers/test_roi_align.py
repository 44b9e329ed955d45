"""Pooling of regions, upright and rotated, through the layers."""

import pytest
import torch

from detlab.layers.roi_align import ROIAlign
from detlab.layers.roi_align_rotated import ROIAlignRotated


def ramp(height, width):
    """A map whose value at the point (x, y) is 10 y + x."""
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return (10 * rows[:, None] + columns)[None, None]


def test_bins_of_a_linear_map_hold_the_value_at_their_centers():
    rois = torch.tensor([[0.0, 2.0, 4.0, 10.0, 12.0]])
    pooled = ROIAlign((2, 4), spatial_scale=0.5, sampling_ratio=2)(ramp(8, 8), rois)
    xs, ys = torch.tensor([1.5, 2.5, 3.5, 4.5]), torch.tensor([3.0, 5.0])
    torch.testing.assert_close(pooled[0, 0], 10 * ys[:, None] + xs)


def test_not_aligned_means_half_a_cell_off():
    rois = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]])
    x = ramp(8, 8)
    aligned = ROIAlign(2, 1.0, 2, aligned=True)(x, rois)
    off = ROIAlign(2, 1.0, 2, aligned=False)(x, rois)
    torch.testing.assert_close(off - aligned, torch.full_like(off, 5.5))


def test_one_number_is_a_square_and_no_regions_give_none():
    assert ROIAlign(3, 1.0, 0)(torch.randn(2, 4, 5, 5), torch.zeros(0, 5)).shape == (0, 4, 3, 3)


def test_first_column_chooses_the_image():
    x = torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)])
    pooled = ROIAlign(2, 1.0, 0)(x, torch.tensor([[1.0, 1, 1, 4, 4], [0.0, 1, 1, 4, 4]]))
    assert pooled.mean((1, 2, 3)).tolist() == [1.0, 0.0]


def test_regions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"regions are \(R, 5\).*got \(3, 4\)"):
        ROIAlign(2, 1.0, 0)(torch.zeros(1, 1, 4, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"rotated regions are \(R, 6\).*got \(3, 5\)"):
        ROIAlignRotated(2, 1.0, 0)(torch.zeros(1, 1, 4, 4), torch.zeros(3, 5))


def test_unturned_region_pools_as_an_upright_one():
    x = torch.randn(1, 3, 12, 12)
    upright = ROIAlign((3, 2), 0.5, 2)(x, torch.tensor([[0.0, 4.0, 6.0, 16.0, 20.0]]))
    rotated = ROIAlignRotated((3, 2), 0.5, 2)(x, torch.tensor([[0.0, 10.0, 13.0, 12.0, 14.0, 0.0]]))
    torch.testing.assert_close(rotated, upright, atol=1e-5, rtol=1e-5)


def test_quarter_turn_turns_the_pooled_map():
    x = torch.randn(1, 1, 12, 12)
    plain = ROIAlignRotated(4, 1.0, 2)(x, torch.tensor([[0.0, 6.0, 6.0, 8.0, 8.0, 0.0]]))
    turned = ROIAlignRotated(4, 1.0, 2)(x, torch.tensor([[0.0, 6.0, 6.0, 8.0, 8.0, 90.0]]))
    # Seen from a box that turned counter-clockwise, the world turns clockwise.
    torch.testing.assert_close(turned[0, 0], plain[0, 0].rot90(-1), atol=1e-4, rtol=1e-4)
