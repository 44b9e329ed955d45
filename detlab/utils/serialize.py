"""Handing objects to other processes that plain pickle refuses, or that these would not find by their names."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections import ChainMap
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wraps an object, most often a function, so that it can be pickled. Calls and attributes go to the object.

    What pickle takes by itself is left to it. Lambdas and what is defined inside a function or in a notebook travel by
    value (by ``cloudpickle``): code, the values that it closes over and the global names that it uses; both processes
    must run the same Python. What a script defines is looked up in the script where the other process has run it, too,
    so that results are of the same classes.
    """

    def __init__(self, obj: Any):
        # Wrapping twice would only add a layer to every call.
        self._obj: Any = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Reached before __init__ when pickle rebuilds the wrapper.
        if name == "_obj" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._obj, name)

    def __reduce__(self) -> tuple:
        by_name = _by_name(self._obj)
        if by_name is None:
            return _restore, (None, _by_value(self._obj))
        if b"__main__" in by_name:
            return _restore, (by_name, _by_value(self._obj))
        return PicklableWrapper, (self._obj,)


class _ByValuePickler(cloudpickle.Pickler):
    """Pickles for a process that is being started: as multiprocessing does, tensors in shared memory stay shared."""

    dispatch_table = ChainMap(cloudpickle.Pickler.dispatch_table, ForkingPickler(io.BytesIO()).dispatch_table)


def _starts_process() -> bool:
    return multiprocessing.context.get_spawning_popen() is not None  # type: ignore[attr-defined]


def _by_name(obj: Any) -> bytes | None:
    """What pickle makes of it, with functions and classes by their names; None if it refuses."""
    try:
        return _dumped(obj, ForkingPickler if _starts_process() else pickle.Pickler)
    except Exception:
        # A refusal may be any exception: PicklingError, TypeError, AttributeError, or what an object's own code raises.
        return None


def _by_value(obj: Any) -> bytes:
    """With those by value that another process may not find."""
    return _dumped(obj, _ByValuePickler if _starts_process() else cloudpickle.Pickler)


def _dumped(obj: Any, pickler: Callable[..., pickle.Pickler]) -> bytes:
    stream = io.BytesIO()
    pickler(stream, pickle.HIGHEST_PROTOCOL).dump(obj)
    return stream.getvalue()


def _restore(by_name: bytes | None, by_value: bytes) -> PicklableWrapper:
    if by_name is not None:
        try:
            return PicklableWrapper(pickle.loads(by_name))
        except (AttributeError, ImportError):
            # This process has not run what is __main__ in the other.
            pass
    return PicklableWrapper(pickle.loads(by_value))
