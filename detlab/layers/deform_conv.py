"""Deformable convolutions: each tap of the kernel looks where an offset sends it (Dai et al. 2017, Zhu et al. 2018).

Shapes: N images, C channels, H x W cells, G groups of channels with offsets of their own, K taps of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from detlab.layers.batch_norm import FrozenBatchNorm2d, fold_frozen_norm
from detlab.layers.memo import Memo

__all__ = ["DeformConv", "ModulatedDeformConv"]

Size = int | tuple[int, int]


class _DeformableLayer(nn.Module):
    """Parameters and the computation that both versions share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
        deformable_groups: int,
        bias: bool,
        norm: nn.Module | None,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        for channels, split in ((in_channels, groups), (out_channels, groups), (in_channels, deformable_groups)):
            if channels % split:
                raise ValueError(f"{channels} channels cannot be split into {split} groups of one size")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self._folded = Memo()

    def _apply(self, fn, recurse=True):
        # A model that moves away leaves nothing behind.
        self._folded.forget()
        return super()._apply(fn, recurse)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        # Exactly this class: a subclass may have a forward of its own, which folding would skip.
        if type(self.norm) is FrozenBatchNorm2d:
            folded = fold_frozen_norm(self.weight, self.bias, self.norm, self._folded)
            y = self._sample_and_sum(x, offset, mask, *folded)
        else:
            y = self._sample_and_sum(x, offset, mask, self.weight, self.bias)
            y = y if self.norm is None else self.norm(y)
        return y if self.activation is None else self.activation(y)

    def _sample_and_sum(
        self, x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if x.numel() == 0:
            # The operator refuses empty batches; zero times the inputs keeps them in the graph.
            unused = sum(t.sum() * 0.0 for t in (x, offset, mask, weight, bias) if t is not None)
            return x.new_zeros(x.shape[0], self.out_channels, *self._output_size(x)) + unused
        from torchvision.ops import deform_conv2d

        return deform_conv2d(x, offset, weight, bias, self.stride, self.padding, self.dilation, mask)

    def _output_size(self, x: Tensor) -> list[int]:
        geometry = zip(x.shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation)
        return [(size + 2 * pad - rate * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, rate in geometry]

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deformable_groups={self.deformable_groups}, bias={self.bias is not None}"
        )


class DeformConv(_DeformableLayer):
    """Deformable convolution, version 1: offsets, no weights per tap.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as of ``torch.nn.Conv2d``.
        deformable_groups: G; the input's channels are split into as many groups, each with its own offsets.
        bias: must be False.
        norm: a module applied to the output, or None.
        activation: a callable applied last, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if bias:
            raise ValueError("DeformConv has no bias; use ModulatedDeformConv, or a norm with one")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            bias,
            norm,
            activation,
        )

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Convolves.

        Args:
            x: (N, C, H, W).
            offset: (N, G * K * 2, H', W'), dy dx of each tap in cells.

        Returns:
            (N, C', H', W').
        """
        return self._convolve(x, offset, None)


class ModulatedDeformConv(_DeformableLayer):
    """Deformable convolution, version 2: every tap also has a weight.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as of ``torch.nn.Conv2d``.
        deformable_groups: G; the input's channels are split into as many groups, each with its own offsets.
        bias: whether to learn a bias.
        norm: a module applied to the output, or None.
        activation: a callable applied last, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            bias,
            norm,
            activation,
        )

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolves.

        Args:
            x: (N, C, H, W).
            offset: (N, G * K * 2, H', W'), dy dx of each tap in cells.
            mask: (N, G * K, H', W'), weight of each tap, usually in [0, 1].

        Returns:
            (N, C', H', W').
        """
        return self._convolve(x, offset, mask)
