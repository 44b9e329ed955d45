"""Convolution whose backward, on a CPU in float32, does no more than it has to.

Two things are left to win where all maps and weights are channels-last:

- *Where only a few cells have a gradient*, as in a proposal network whose loss looks at 256 of 80,000 anchors, the
  gradients are sums over the patches around these cells. Everything else would be products with zero, two thirds of
  what such a head costs in training.
- *The layout of the weight gradient.* Forward, and the gradient of the input, are as fast in channels-last as
  contiguous or faster, small maps, 1x1 and strided convolutions by much. But with oneDNN on a CPU with AVX2 and without
  AVX-512, the gradient of the weight of a 3x3 convolution takes 1.2 to 5 times as long (256 channels at 120 x 160:
  1.8 s of one thread, contiguous 0.36 s with the copies). There it is computed from contiguous copies. With AVX-512
  both are equal, and the copies would not pay.

Both choices are rules on the kind of CPU and on the gradient, not measurements: a run and its resumption on the same
machine must come to the same bits.

Shapes: N images, C channels, H x W cells of the input; C', H', W' of the output; K cells of all images that have a
gradient, T taps of the kernel.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["conv2d"]

Size = tuple[int, ...]

# With the few channels of an image nothing is gained, nor with groups and 1x1 kernels.
_FEWEST_CHANNELS = 16

# The share of cells up to which those with a gradient are gone through one by one, and how many are looked at first, so
# that a map that is full is told with next to no work.
_FEW = 1 / 8
_FIRST_LOOK = 64


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> Tensor:
    """``torch.nn.functional.conv2d``: the same values, and the same gradients to rounding."""
    if _has_much_to_do_backward(x, weight, padding, groups):
        return _Convolution.apply(x, weight, bias, stride, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _has_much_to_do_backward(x: Tensor, weight: Tensor, padding: Size | str, groups: int) -> bool:
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and weight.requires_grad):
        return False
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and groups == 1
        and weight.shape[1] >= _FEWEST_CHANNELS
        and weight.shape[2:].numel() > 1
        and x.numel() > 0
        and x.dim() == 4
        and not isinstance(padding, str)
        and not torch.is_autocast_enabled("cpu")
        and not _has_tangent(x)
        and not _has_tangent(weight)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


def _has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation goes on, which torch's own convolution can do."""
    return forward_ad.unpack_dual(tensor).tangent is not None


class _Geometry(NamedTuple):
    stride: Size
    padding: Size
    dilation: Size

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, wanted: list[bool]) -> list[Any]:
        """Torch's gradients of input, weight and bias; None for what is not wanted."""
        bias_sizes = [weight.shape[0]] if has_bias else None
        return torch.ops.aten.convolution_backward(grad, x, weight, bias_sizes, *self, False, (0, 0), 1, wanted)


class _Convolution(torch.autograd.Function):
    """A convolution without groups of a channels-last map; its gradients have derivatives of their own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size, dilation: Size) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, *geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        ctx.geometry = _Geometry(*geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        cells = _cells_with_gradient(grad)
        if cells is not None:
            gradients = _backward_of_cells(grad, cells, x, weight, ctx.geometry, wanted)
        elif _is_slow_in_channels_last():
            for_input = [wanted[0], False, False]
            for_weight = [False, *wanted[1:]]
            copies = (grad.contiguous(), x.contiguous(), weight.contiguous())
            grad_x = ctx.geometry.backward(grad, x, weight, False, for_input)[0] if wanted[0] else None
            gradients = [grad_x, *ctx.geometry.backward(*copies, ctx.has_bias, for_weight)[1:]]
        else:
            gradients = ctx.geometry.backward(grad, x, weight, ctx.has_bias, wanted)
        return *gradients, None, None, None


@functools.cache
def _is_slow_in_channels_last() -> bool:
    """Whether this CPU computes weight gradients slower in channels-last."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"


# ----------------------------------------------------------------------------------------- few cells with a gradient


def _cells_with_gradient(grad: Tensor) -> Tensor | None:
    """Indices of the cells of (N, C', H', W') with a gradient, in (N, H', W') order; None if they are not few.

    Numpy finds them: the values are in reach of the host, and no operator is run that would wait for them elsewhere.
    """
    # A derivative of the gradient has terms of cells that have none.
    rows = None if torch.is_grad_enabled() else _rows_in_memory(grad)
    if rows is None:
        return None
    most = int(len(rows) * _FEW)
    first_look = rows[:: max(len(rows) // _FIRST_LOOK, 1)].any(axis=1)
    if most == 0 or first_look.mean() > _FEW:
        return None
    cells = np.flatnonzero(_rows(grad).ne(0).any(dim=1).numpy())
    return torch.from_numpy(cells) if len(cells) <= most else None


def _rows_in_memory(maps: Tensor) -> np.ndarray | None:
    """:func:`_rows` as an array; None for maps that are not channels-last, or stand for others (fake, or by vmap)."""
    if type(maps) is not Tensor:
        return None
    try:
        values = maps.permute(0, 2, 3, 1).numpy()
    except RuntimeError:
        return None
    return values.reshape(-1, values.shape[3]) if values.flags.c_contiguous else None


def _rows(maps: Tensor) -> Tensor:
    """The cells of channels-last maps, (N * H * W, C), without a copy."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _backward_of_cells(
    grad: Tensor, cells: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: list[bool]
) -> list[Tensor | None]:
    """As :meth:`_Geometry.backward`, from the patches around some cells alone."""
    grad_rows = _rows(grad)[cells]  # (K, C')
    sources, is_inside = _cells_under_taps(cells, grad.shape, x.shape, weight.shape, geometry)  # (K, T) each
    channels = x.shape[1]
    grad_x = grad_weight = None
    if wanted[0]:
        by_tap = grad_rows @ weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (K, T * C)
        # What the padding gets goes to a row of its own, behind those of the map.
        rows = x.new_zeros(len(_rows(x)) + 1, channels)
        targets = torch.where(is_inside, sources, len(rows) - 1)
        rows.index_add_(0, targets.flatten(), by_tap.view(-1, channels))
        grad_x = rows[:-1].view(x.shape[0], *x.shape[2:], channels).permute(0, 3, 1, 2)
    if wanted[1]:
        patches = _rows(x)[sources].masked_fill_(~is_inside[:, :, None], 0.0)  # (K, T, C)
        taps = grad_rows.t() @ patches.flatten(1)  # (C', T * C)
        grad_weight = taps.view(len(weight), *weight.shape[2:], channels).permute(0, 3, 1, 2)
    return [grad_x, grad_weight, grad_rows.sum(dim=0) if wanted[2] else None]


def _cells_under_taps(
    cells: Tensor, output_shape: torch.Size, input_shape: torch.Size, kernel_shape: torch.Size, geometry: _Geometry
) -> tuple[Tensor, Tensor]:
    """Which cell of the input each tap of the kernel meets, and whether it is one; 0 where it is not. (K, T) each."""
    height, width = output_shape[2:]
    image = (cells // (height * width))[:, None, None]
    y = _positions(cells // width % height, kernel_shape[2], geometry, axis=0)[:, :, None]
    x = _positions(cells % width, kernel_shape[3], geometry, axis=1)[:, None, :]
    input_height, input_width = input_shape[2:]
    is_inside = ((y >= 0) & (y < input_height) & (x >= 0) & (x < input_width)).flatten(1)
    sources = ((image * input_height + y) * input_width + x).flatten(1)
    return torch.where(is_inside, sources, 0), is_inside


def _positions(outputs: Tensor, num_taps: int, geometry: _Geometry, axis: int) -> Tensor:
    """(K,) positions in the output to the (K, taps) positions in the input that they are made of."""
    first = outputs[:, None] * geometry.stride[axis] - geometry.padding[axis]
    return first + torch.arange(num_taps) * geometry.dilation[axis]
