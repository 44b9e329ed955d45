"""Deformable convolutions on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detlab.layers.batch_norm import FrozenBatchNorm2d
from detlab.layers.deform_conv import DeformConv, ModulatedDeformConv


def offsets_of(x, conv, value=0.0):
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return torch.full((x.shape[0], 2 * taps * conv.deformable_groups, *x.shape[-2:]), value)


def test_no_offsets_give_a_plain_convolution():
    conv = DeformConv(4, 6, 3, padding=1, groups=2, deformable_groups=2)
    x = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(
        conv(x, offsets_of(x, conv)), F.conv2d(x, conv.weight, padding=1, groups=2), atol=1e-5, rtol=1e-5
    )


def test_whole_offsets_shift_the_map():
    conv = DeformConv(3, 2, 1)
    x = torch.randn(1, 3, 6, 6)
    shifted = conv(x, offsets_of(x, conv, 1.0))
    torch.testing.assert_close(shifted[..., :-1, :-1], F.conv2d(x, conv.weight)[..., 1:, 1:], atol=1e-5, rtol=1e-5)


def test_modulation_scales_each_tap():
    conv = ModulatedDeformConv(3, 4, 3, padding=1)
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, 5, 5)
    offset = offsets_of(x, conv)
    half = conv(x, offset, torch.full((2, 9, 5, 5), 0.5))
    expected = F.conv2d(x, conv.weight * 0.5, conv.bias, padding=1)
    torch.testing.assert_close(half, expected, atol=1e-5, rtol=1e-5)


def test_frozen_norm_is_folded_to_the_same_values():
    norm = FrozenBatchNorm2d(4)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(4) + 0.5)
    conv = ModulatedDeformConv(3, 4, 3, padding=1, norm=norm, activation=F.relu_)
    bare = ModulatedDeformConv(3, 4, 3, padding=1)
    bare.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    x = torch.randn(2, 3, 5, 5)
    inputs = (x, torch.randn(2, 18, 5, 5), torch.rand(2, 9, 5, 5))
    torch.testing.assert_close(conv(*inputs), F.relu(norm(bare(*inputs))), atol=1e-5, rtol=1e-5)


def test_no_images_give_no_images_and_zero_gradients():
    conv = ModulatedDeformConv(3, 4, 3, stride=2, padding=1)
    x = torch.zeros(0, 3, 9, 8)
    out = conv(x, torch.zeros(0, 18, 5, 4), torch.zeros(0, 9, 5, 4))
    assert out.shape == (0, 4, 5, 4)
    out.sum().backward()
    assert conv.weight.grad.abs().sum() == 0


def test_gradients_reach_weight_and_offsets():
    conv = DeformConv(2, 3, 3, padding=1).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    # Far from whole numbers, where bilinear sampling has a kink.
    offset = (torch.rand(1, 18, 4, 4, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(conv, (x, offset), atol=1e-4)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="DeformConv has no bias"):
        DeformConv(3, 4, 3, bias=True)
    with pytest.raises(ValueError, match="3 channels cannot be split into 2 groups"):
        DeformConv(3, 4, 3, deformable_groups=2)
