"""Atrous spatial pyramid pooling (Chen et al., DeepLabV3, 2017): one map seen at several dilations at once.

Shapes: N images, C channels, H x W cells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.layers.batch_norm import get_norm
from detlab.layers.blocks import DepthwiseSeparableConv2d
from detlab.layers.wrappers import Conv2d

__all__ = ["ASPP"]

Norm = str | Callable[[int], nn.Module] | None
Activation = Callable[[Tensor], Tensor] | None


class ASPP(nn.Module):
    """A 1x1 convolution, three dilated 3x3 ones and a pooled branch side by side, then projected to one map.

    Args:
        in_channels: C of the input.
        out_channels: C of each branch and of the output.
        dilations: of the three 3x3 convolutions.
        norm: of the branches and the projection, as for ``get_norm``; the pooled branch has none, for it may see
            a single cell.
        activation: after each convolution; every branch gets its own copy.
        pool_kernel_size: (height, width) of the pooled branch's window, which must divide the input's size; None
            pools the whole map.
        dropout: probability of dropping an output value in training; 0 adds no layer.
        use_depthwise_separable_conv: factorise the dilated convolutions (DeepLabV3+).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: Norm,
        activation: Activation,
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ) -> None:
        super().__init__()
        if len(dilations) != 3:
            raise ValueError(f"ASPP has three dilated branches; got dilations {list(dilations)}")
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout
        dilated = _separable_branch if use_depthwise_separable_conv else _dilated_branch
        self.convs = nn.ModuleList(
            [
                _pointwise(in_channels, out_channels, norm, activation),
                *(dilated(in_channels, out_channels, rate, norm, activation) for rate in dilations),
                _pooled_branch(in_channels, out_channels, activation, pool_kernel_size),
            ]
        )
        self.project = _pointwise(len(self.convs) * out_channels, out_channels, norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        size = x.shape[-2:]
        self._check_pool_window(size)
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        out = self.project(torch.cat(branches, dim=1))
        return F.dropout(out, self.dropout, self.training) if self.dropout > 0 else out

    def _check_pool_window(self, size: Sequence[int]) -> None:
        window = self.pool_kernel_size
        if window is not None and any(side % step for side, step in zip(size, window)):
            raise ValueError(f"pool_kernel_size {window} must divide the feature map's size {tuple(size)}")


def _pointwise(in_channels: int, out_channels: int, norm: Norm, activation: Activation) -> Conv2d:
    return _xavier(
        Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=not norm,
            norm=get_norm(norm, out_channels),
            activation=copy.deepcopy(activation),
        )
    )


def _dilated_branch(in_channels: int, out_channels: int, rate: int, norm: Norm, activation: Activation) -> nn.Module:
    return _xavier(
        Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=rate,
            dilation=rate,
            bias=not norm,
            norm=get_norm(norm, out_channels),
            activation=copy.deepcopy(activation),
        )
    )


def _separable_branch(in_channels: int, out_channels: int, rate: int, norm: Norm, activation: Activation) -> nn.Module:
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=rate,
        dilation=rate,
        norm1=norm,
        activation1=copy.deepcopy(activation),
        norm2=norm,
        activation2=copy.deepcopy(activation),
    )


def _pooled_branch(
    in_channels: int, out_channels: int, activation: Activation, window: tuple[int, int] | None
) -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(1) if window is None else nn.AvgPool2d(kernel_size=window, stride=1)
    return nn.Sequential(pool, _pointwise(in_channels, out_channels, "", activation))


def _xavier(conv: Conv2d) -> Conv2d:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
