"""Reading pickles of weights without running what a stranger put into them.

A pickle is a program: it may import any function and call it. The unpickler here lets it name numpy's array makers,
``OrderedDict``, sets and bytes, and nothing else. Lists, tuples, dicts, texts and numbers need no name.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np

__all__ = ["ARRAY_GLOBALS", "UnsafePickleError", "load_arrays"]


class UnsafePickleError(pickle.UnpicklingError):
    """A file asks for something that is neither an array nor a plain container."""


def _refuse_objects(dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise UnsafePickleError(f"an array of Python objects (dtype {dtype}) is no array of numbers")


def _make_scalar(dtype: np.dtype, value: bytes | str) -> np.generic:
    _refuse_objects(dtype)
    # Python 2's bytes come out of the file as text.
    data = value.encode("latin-1") if isinstance(value, str) else value
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _make_array_from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    _refuse_objects(dtype)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str) -> bytes:
    """How old pickle protocols write bytes; other codecs than this one could decompress without bounds."""
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"bytes written with the codec {encoding!r}")
    return text.encode("latin-1")


_reconstruct: Any = np.zeros(0).__reduce__()[0]

# What numpy's own pickles name, to what may stand for it. The module is called numpy.core up to numpy 1.
_ARRAY_MAKERS: dict[str, Callable] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _make_scalar,
    "numeric._frombuffer": _make_array_from_buffer,
}
_DTYPE_CLASSES: dict[str, type] = {
    f"numpy.dtypes.{name}": getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"
}
_BUILTINS: dict[str, type] = {
    f"{module}.{kind.__name__}": kind
    for module in ("builtins", "__builtin__")
    for kind in (set, frozenset, bytes, bytearray)
}
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    **_BUILTINS,
    "_codecs.encode": _encode,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.{name}": maker for core in ("core", "_core") for name, maker in _ARRAY_MAKERS.items()},
    **_DTYPE_CLASSES,
}

# The same for torch's own restricted loader: (object, the name that it has in files).
ARRAY_GLOBALS: list[Any] = [(value, name) for name, value in _ALLOWED.items() if name.startswith("numpy.")] + [bytes]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _ALLOWED:
            raise UnsafePickleError(f"it asks for {name}")
        return _ALLOWED[name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside of the file")


def load_arrays(file: IO[bytes]) -> Any:
    """Unpickles arrays, numbers, texts and plain containers; also what Python 2 wrote.

    Args:
        file: opened for reading bytes.

    Raises:
        UnsafePickleError: the file asks for anything else; nothing of it was called.
        Exception: of many kinds, when the file is damaged.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()
