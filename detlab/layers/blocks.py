"""Building blocks of convolutional networks.

Shapes: N images, C channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from detlab.layers.batch_norm import FrozenBatchNorm2d, get_norm
from detlab.layers.wrappers import Conv2d

__all__ = ["CNNBlockBase", "DepthwiseSeparableConv2d"]

Block = TypeVar("Block", bound="CNNBlockBase")


class CNNBlockBase(nn.Module):
    """What a backbone needs to know about a block: its channels in and out and its stride.

    Args:
        in_channels: C of the (N, C, H, W) input.
        out_channels: C of the output.
        stride: the output is this many times smaller than the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self: Block) -> Block:
        """Stops the training of this block: parameters take no gradient, batch norms keep their statistics.

        Returns:
            the block itself.
        """
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution per channel, then a 1x1 convolution across channels, each with norm and activation.

    (Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017.)

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size, padding, dilation: of the convolution per channel.
        norm1, activation1: after the convolution per channel; as for ``get_norm`` and ``Conv2d``.
        norm2, activation2: after the 1x1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: str | Callable[[int], nn.Module] | None = None,
        activation1: Callable[[Tensor], Tensor] | None = None,
        norm2: str | Callable[[int], nn.Module] | None = None,
        activation2: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=not norm1,
            norm=get_norm(norm1, in_channels),
            activation=activation1,
        )
        self.pointwise = Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=not norm2,
            norm=get_norm(norm2, out_channels),
            activation=activation2,
        )
        for conv in (self.depthwise, self.pointwise):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self.pointwise(self.depthwise(x))
