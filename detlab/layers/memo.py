"""Values made of a module's tensors, kept until the tensors change."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Memo"]


class _Watched(NamedTuple):
    """A tensor as it was: where it lies, how often it was written to, and some of its numbers."""

    source: weakref.ref[Tensor]
    address: int
    version: int
    # Arrays over the tensor's memory, to be read only as long as it lies there, and what they held.
    numbers: tuple[tuple[np.ndarray, bytes], ...]

    def is_as_it_was(self, source: Tensor) -> bool:
        if self.source() is not source or self.address != source.data_ptr() or self.version != source._version:
            return False
        return all(view.tobytes() == content for view, content in self.numbers)


class _Kept(NamedTuple):
    sources: tuple[_Watched, ...]
    context: Hashable
    values: tuple[Tensor, ...]

    def is_of(self, sources: tuple[Tensor, ...]) -> bool:
        """Whether it was made of these, as they are now."""
        if len(sources) != len(self.sources):
            return False
        return all(watched.is_as_it_was(source) for watched, source in zip(self.sources, sources))


class Memo:
    """Tensors computed from others that rarely change, such as the buffers of a module, and anew when they have.

    A change is another tensor in the place of a source, another storage, or a write in place, by the version that
    autograd counts. A write through ``.data`` or numpy, as in averages of weights, is not counted. So on a CPU the
    numbers are looked at as well: all of a small tensor, of a large one the first of each row and of each column, which
    tells a write to all of it, to a filter or to a channel. On other devices, where looking is waiting, nothing is kept
    of a large one.

    Nothing is kept of sources that take part in a gradient, and nothing where a stale value could stay behind: while a
    graph is compiled or captured, of sources without a version (made in inference mode), of tensors of other kinds
    (fake, distributed). Copies and pickles of a memo are empty.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def get(
        self, sources: tuple[Tensor, ...], make: Callable[[], tuple[Tensor, ...]], context: Hashable = None
    ) -> tuple[Tensor, ...]:
        """``make()``, or what it gave when it was called last.

        Args:
            sources: all tensors that ``make`` reads.
            make: its values may depend on the sources and on ``context`` alone.
            context: what the values depend on beside the sources.
        """
        if torch.compiler.is_compiling():
            return make()
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            self._kept = None
            return make()
        kept = self._kept
        if kept is not None and kept.context == context and kept.is_of(sources):
            return kept.values
        return self._make(sources, make, context)

    def _make(
        self, sources: tuple[Tensor, ...], make: Callable[[], tuple[Tensor, ...]], context: Hashable
    ) -> tuple[Tensor, ...]:
        self._kept = None
        # Values made in inference mode could not take part in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            values = make()
        if all(map(_can_be_watched, sources)) and all(type(value) is Tensor for value in values):
            self._kept = _Kept(tuple(map(_watch, sources)), context, values)
        return values

    def forget(self) -> None:
        """Compute the values anew at the next call."""
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Memo:
        return Memo()

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


# What is looked at as a whole, and kept on any device: the tensors of a norm.
_FEW_NUMBERS = 1 << 13


def _can_be_watched(source: Tensor) -> bool:
    if type(source) not in (Tensor, nn.Parameter) or source.is_inference():
        return False
    if source.device.type == "cpu":
        return source.dtype in (torch.float32, torch.float64)
    return source.numel() <= _FEW_NUMBERS and not (source.is_cuda and torch.cuda.is_current_stream_capturing())


def _watch(source: Tensor) -> _Watched:
    numbers = tuple((view, view.tobytes()) for view in _some_numbers(source))
    return _Watched(weakref.ref(source), source.data_ptr(), source._version, numbers)


def _some_numbers(source: Tensor) -> list[np.ndarray]:
    """All numbers of a small tensor, of a large one the first of each row and column; none where looking is waiting."""
    if source.device.type != "cpu" or source.numel() == 0:
        return []
    values: Any = _in_memory(source)
    if values.size <= _FEW_NUMBERS:
        return [values]
    # Of (C', C, h, w) the first tap between each pair with the first channel of either kind.
    taps = values[(slice(None), slice(None)) + (0,) * (values.ndim - 2)]
    return [taps[:, 0], taps[0]]


def _in_memory(source: Tensor) -> np.ndarray:
    """The numbers of a tensor on the CPU, where they are; torch's own way takes two operators a tensor."""
    size = source.element_size()
    extent = 1 + sum((length - 1) * step for length, step in zip(source.shape, source.stride()))
    memory: Any = (ctypes.c_char * (extent * size)).from_address(source.data_ptr())
    steps = [step * size for step in source.stride()]
    return np.ndarray(source.shape, np.float32 if size == 4 else np.float64, memory, strides=steps)
