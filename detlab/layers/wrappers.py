"""Thin additions to torch's layers and functions: convolution with its norm and activation, losses of nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.layers.batch_norm import FrozenBatchNorm2d, fold_frozen_norm
from detlab.layers.cpu_convolution import conv2d
from detlab.layers.memo import Memo

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "MaxPool2d",
    "cat",
    "cross_entropy",
    "empty_input_loss_func_wrapper",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
    "shapes_to_tensor",
]

# torch handles empty inputs in these by itself; the names stay for code that imports them from here.
BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
MaxPool2d = nn.MaxPool2d
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """Convolution, then normalisation, then activation.

    A ``FrozenBatchNorm2d`` is folded into the weights, which saves a pass over the feature map; parameters and
    buffers keep their names and gradients (``weight``, ``norm.weight``, ...). Where the weights are not trained, the
    folded ones are kept until weights or norm change.

    Args:
        norm: a module applied to the output, or None.
        activation: a callable applied last, or None. It may work in place.
        *args, **kwargs: as of ``torch.nn.Conv2d``.
    """

    def __init__(
        self,
        *args,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation
        self._folded = Memo()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        # Exactly this class: a subclass may have a forward of its own, which folding would skip.
        if type(self.norm) is FrozenBatchNorm2d:
            dtype = _autocast_dtype(self.weight)
            weight, bias = fold_frozen_norm(self.weight, self.bias, self.norm, self._folded, dtype)
            y = self._conv_forward(x, weight, bias)
        else:
            y = self._conv_forward(x, self.weight, self.bias)
            y = y if self.norm is None else self.norm(y)
        return y if self.activation is None else self.activation(y)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _apply(self, fn, recurse=True):
        # A model that moves away leaves nothing behind.
        self._folded.forget()
        return super()._apply(fn, recurse)


def _autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """What autocast makes of a convolution's weight, or None if it leaves it as it is."""
    device_type = weight.device.type
    if weight.dtype != torch.float32 or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` that hands a single tensor back without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def shapes_to_tensor(x: Sequence[int], device: torch.device | None = None) -> Tensor:
    """A list of sizes as an int64 tensor."""
    return torch.as_tensor(x, dtype=torch.int64, device=device)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """``src`` on the device of ``dst``, its dtype unchanged."""
    return src.to(device=dst.device)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """One index vector per dimension of ``x``, pointing at its entries that are not zero; waits for the device."""
    return x.nonzero(as_tuple=True)


def empty_input_loss_func_wrapper(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a mean over no targets zero (attached to the graph) where ``loss_func`` would give NaN.

    Args:
        loss_func: called as ``loss_func(input, target, *, reduction="mean", ...)``.
    """

    @functools.wraps(loss_func)
    def loss_or_zero(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs) -> Tensor:
        if reduction == "mean" and target.numel() == 0:
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return loss_or_zero


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)
