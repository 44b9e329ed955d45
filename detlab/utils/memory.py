"""Surviving a full GPU."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

T = TypeVar("T")


def retry_if_cuda_oom(func: Callable[..., T]) -> Callable[..., T]:
    """Makes a function try again when the GPU runs out of memory.

    The second attempt comes after the cached blocks were given back, the third with every CUDA tensor among the
    arguments (also inside lists, tuples and dicts) moved to the CPU.

    Args:
        func: must be safe to call again, and take its device from its arguments.

    Returns:
        A function with the arguments of ``func``. Its result lies on the CPU when the third attempt was needed.
    """

    @functools.wraps(func)
    def retrying(*args: Any, **kwargs: Any) -> T:
        for make_room in (None, torch.cuda.empty_cache):
            if make_room is not None:
                make_room()
            try:
                return func(*args, **kwargs)
            except torch.OutOfMemoryError:
                # Handled below, outside: the pending exception would keep the failed call's tensors alive.
                pass
        name = getattr(func, "__qualname__", repr(func))
        logging.getLogger(__name__).warning("the GPU has no memory left for %s; it runs on the CPU", name)
        return func(*_to_cpu(args), **_to_cpu(kwargs))

    return retrying


def _to_cpu(value: Any) -> Any:
    """The same containers with CUDA tensors, and objects of the package that know their device, on the CPU."""
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_to_cpu, value))
    on_gpu = getattr(getattr(value, "device", None), "type", None) == "cuda"
    return value.to(device="cpu") if on_gpu and hasattr(value, "to") else value
