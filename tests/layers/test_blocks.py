"""Blocks of convolutional networks, and what they say about their shape."""

import torch
import torch.nn.functional as F
from torch import nn

from detlab.layers.batch_norm import FrozenBatchNorm2d
from detlab.layers.blocks import CNNBlockBase, DepthwiseSeparableConv2d
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import Conv2d


class Block(CNNBlockBase):
    def __init__(self):
        super().__init__(3, 4, stride=1)
        self.conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4))

    def forward(self, x):
        return self.conv(x)


def test_freezing_a_block_stops_its_gradients_and_statistics():
    block = Block()
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert type(block.conv.norm) is FrozenBatchNorm2d
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 1)


def test_separable_convolution_equals_its_two_steps():
    conv = DepthwiseSeparableConv2d(
        3, 5, kernel_size=3, padding=2, dilation=2, norm1="BN", activation1=F.relu, activation2=torch.sigmoid
    ).eval()
    assert conv.depthwise.bias is None
    assert conv.pointwise.bias is not None
    x = torch.randn(2, 3, 6, 6)
    each = F.conv2d(x, conv.depthwise.weight, padding=2, dilation=2, groups=3)
    mixed = F.conv2d(F.relu(conv.depthwise.norm(each)), conv.pointwise.weight, conv.pointwise.bias)
    torch.testing.assert_close(conv(x), torch.sigmoid(mixed))


def test_shape_spec_leaves_unknown_sizes_open():
    assert ShapeSpec(channels=3, stride=4) == ShapeSpec(3, None, None, 4)
    assert ShapeSpec().channels is None
