"""Handing functions to other processes that plain pickle refuses: lambdas, and what is defined inside a function."""

from __future__ import annotations

import builtins
import functools
import importlib
import marshal
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wraps an object, most often a function, so that it can be pickled. Calls and attributes go to the object.

    What pickle takes by itself is left to it. Functions that it refuses travel as their code, with the values they
    close over and the global names they use; both processes must run the same Python. ``functools.partial`` and bound
    methods of such functions work too.
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
        return _unwrap, (_pack(self._obj),)


def _unwrap(packed: Any) -> PicklableWrapper:
    return PicklableWrapper(_unpack(packed, {}))


class _ModuleRef(NamedTuple):
    name: str


class _PartialParts(NamedTuple):
    func: Any
    args: Any
    keywords: Any


class _MethodParts(NamedTuple):
    func: Any
    owner: Any


class _FunctionParts(NamedTuple):
    """A function taken apart. Values inside are packed in turn; ``number`` tells functions that refer to each other."""

    number: int
    code: bytes
    name: str
    qualname: str
    module: str
    defaults: tuple | None
    keyword_defaults: dict[str, Any] | None
    closure: list[Any]
    attributes: dict[str, Any]
    globals: dict[str, Any]


class _FunctionRef(NamedTuple):
    """A function that is being taken apart further up."""

    number: int


class _EmptyCell(NamedTuple):
    """A variable of the enclosing function that has no value yet."""


def _pack(obj: Any, seen: dict[int, int] | None = None) -> Any:
    """Something that pickle takes, from which :func:`_unpack` makes ``obj`` again."""
    seen = {} if seen is None else seen
    if isinstance(obj, types.ModuleType):
        return _ModuleRef(obj.__name__)
    if isinstance(obj, functools.partial):
        return _PartialParts(_pack(obj.func, seen), _pack(obj.args, seen), _pack(obj.keywords, seen))
    if isinstance(obj, types.MethodType):
        return _MethodParts(_pack(obj.__func__, seen), _pack(obj.__self__, seen))
    if isinstance(obj, types.FunctionType):
        return obj if _can_pickle(obj) else _pack_function(obj, seen)
    if type(obj) in (list, tuple):
        return type(obj)(_pack(item, seen) for item in obj)
    if type(obj) is dict:
        return {key: _pack(value, seen) for key, value in obj.items()}
    return obj


def _can_pickle(obj: Any) -> bool:
    # What __main__ holds is found again by name only in processes that re-run the same script.
    if obj.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        return False
    try:
        pickle.dumps(obj)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _pack_function(func: types.FunctionType, seen: dict[int, int]) -> _FunctionParts | _FunctionRef:
    if id(func) in seen:
        return _FunctionRef(seen[id(func)])
    number = seen[id(func)] = len(seen)
    used = [name for name in _names_used(func.__code__) if name in func.__globals__]
    return _FunctionParts(
        number=number,
        code=marshal.dumps(func.__code__),
        name=func.__name__,
        qualname=func.__qualname__,
        module=func.__module__,
        defaults=_pack(func.__defaults__, seen),
        keyword_defaults=_pack(func.__kwdefaults__, seen),
        closure=[_pack_cell(cell, seen) for cell in func.__closure__ or ()],
        attributes=_pack(func.__dict__, seen),
        globals={name: _pack(func.__globals__[name], seen) for name in used},
    )


def _names_used(code: types.CodeType) -> Iterator[str]:
    """Global (and attribute) names in a function's code and in the functions defined inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_used(constant)


def _pack_cell(cell: types.CellType, seen: dict[int, int]) -> Any:
    try:
        return _pack(cell.cell_contents, seen)
    except ValueError:
        return _EmptyCell()


def _unpack(packed: Any, made: dict[int, Callable]) -> Any:
    if isinstance(packed, _ModuleRef):
        return importlib.import_module(packed.name)
    if isinstance(packed, _PartialParts):
        args, keywords = _unpack(packed.args, made), _unpack(packed.keywords, made)
        return functools.partial(_unpack(packed.func, made), *args, **keywords)
    if isinstance(packed, _MethodParts):
        return types.MethodType(_unpack(packed.func, made), _unpack(packed.owner, made))
    if isinstance(packed, _FunctionRef):
        return made[packed.number]
    if isinstance(packed, _FunctionParts):
        return _unpack_function(packed, made)
    if type(packed) in (list, tuple):
        return type(packed)(_unpack(item, made) for item in packed)
    if type(packed) is dict:
        return {key: _unpack(value, made) for key, value in packed.items()}
    return packed


def _unpack_function(parts: _FunctionParts, made: dict[int, Callable]) -> types.FunctionType:
    own_globals: dict[str, Any] = {"__builtins__": builtins, "__name__": parts.module}
    cells = tuple(types.CellType() for _ in parts.closure)
    func = types.FunctionType(marshal.loads(parts.code), own_globals, parts.name, closure=cells or None)
    # Known before its parts are made: they may refer back to it.
    made[parts.number] = func
    for cell, value in zip(cells, parts.closure):
        if not isinstance(value, _EmptyCell):
            cell.cell_contents = _unpack(value, made)
    own_globals.update(_unpack(parts.globals, made))
    func.__qualname__ = parts.qualname
    func.__module__ = parts.module
    func.__defaults__ = _unpack(parts.defaults, made)
    func.__kwdefaults__ = _unpack(parts.keyword_defaults, made)
    func.__dict__.update(_unpack(parts.attributes, made))
    return func
