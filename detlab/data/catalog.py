"""The names of datasets, how each is loaded, and what is known about each without loading it."""

from __future__ import annotations

import difflib
import functools
import types
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from detlab.utils.registry import ReadableKeyError

__all__ = ["DatasetCatalog", "DatasetDicts", "Metadata", "MetadataCatalog"]

DatasetDicts = list[dict[str, Any]]
"""A loaded dataset: one dictionary in the standard format for each image."""

Names = list[str]


class _DatasetCatalog(UserDict):
    """Dataset names and the functions that load them; a mapping of name to function.

    A loading function takes no arguments and returns the same list of dataset dicts each time it is called.
    """

    def register(self, name: str, func: Callable[[], DatasetDicts]) -> None:
        """Makes ``func`` the loader of the dataset ``name``.

        Registering the same thing again changes nothing, so a notebook cell may be run twice. Two loaders are the same
        if their code, their defaults and the values they hold are equal.

        Raises:
            TypeError: ``func`` cannot be called.
            ValueError: the name is empty, or has a different loader already.
        """
        if not callable(func):
            raise TypeError(f"dataset {name!r} needs a function that loads it, got {type(func).__name__}")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a dataset's name is a non-empty string, got {name!r}")
        known = self.data.get(name)
        if known is not None and not same_content(known, func):
            raise ValueError(
                f"dataset {name!r} is already registered with a different loader ({_describe(known)}, now "
                f"{_describe(func)}); choose another name, or call DatasetCatalog.remove({name!r}) first"
            )
        self.data[name] = func

    def __setitem__(self, name: str, func: Callable[[], DatasetDicts]) -> None:
        self.register(name, func)

    def __getitem__(self, name: str) -> Callable[[], DatasetDicts]:
        try:
            return self.data[name]
        except KeyError:
            raise UnknownDatasetError(_explain_absence(name, self.data)) from None

    def get(self, name: str) -> DatasetDicts:  # type: ignore[override]
        """Loads the dataset ``name``: the result of calling its loader.

        Raises:
            KeyError: no dataset has this name; the message gives the nearest.
        """
        return self[name]()

    def list(self) -> Names:
        """All registered names."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forgets the dataset ``name``; its metadata stay.

        Raises:
            KeyError: no dataset has this name.
        """
        del self.data[self._known(name)]

    def _known(self, name: str) -> str:
        self[name]
        return name

    def __repr__(self) -> str:
        return f"DatasetCatalog({', '.join(self.data)})"

    __str__ = __repr__


class UnknownDatasetError(ReadableKeyError):
    """A dataset name that nobody registered."""


def _explain_absence(name: str, known: Iterable[str]) -> str:
    names = list(known)
    alike = difflib.get_close_matches(str(name), names, n=3)
    guess = f" Did you mean {' or '.join(map(repr, alike))}?" if alike else ""
    return (
        f"dataset {name!r} is not registered.{guess} If it is yours: is the module that registers it imported "
        f"(--import FILE_OR_MODULE)? DatasetCatalog.list() gives the {len(names)} names that are known."
    )


class Metadata(types.SimpleNamespace):
    """What is known about a dataset without loading it, as attributes: class names, colours, paths, evaluator type.

    An attribute keeps its first value; setting it to an equal value is allowed, to another one is refused, so that
    two parts of a program cannot disagree about a dataset unnoticed.
    """

    # A slot is no part of the namespace's own dictionary, which holds the metadata and nothing else.
    __slots__ = ("_deferred",)

    name: str = "N/A"

    def __init__(self, **values: Any):
        object.__setattr__(self, "_deferred", {})
        super().__init__(**values)

    def __getattr__(self, key: str) -> Any:
        # Reached only when ordinary lookup found nothing.
        if key in self._deferred:
            self._resolve(key)
            if key in self.__dict__:
                return self.__dict__[key]
        available = ", ".join(sorted({*self.__dict__, *self._deferred})) or "nothing"
        raise AttributeError(f"the metadata of dataset {self.name!r} have no {key!r}; they have: {available}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and not same_content(self.__dict__[key], value):
            raise ValueError(
                f"{key!r} of dataset {self.name!r} is {_shorten(self.__dict__[key])} and cannot become "
                f"{_shorten(value)}; metadata are set once. To start over call MetadataCatalog.remove({self.name!r})"
            )
        self._deferred.pop(key, None)
        super().__setattr__(key, value)

    def set(self, **kwargs: Any) -> Metadata:
        """Sets several attributes; returns itself.

        Raises:
            ValueError: one of them has a different value already.
        """
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute ``key``, or ``default`` if it was never set."""
        try:
            return getattr(self, key)
        except AttributeError:
            return default

    def defer(self, keys: Sequence[str], load: Callable[[], Mapping[str, Any]]) -> Metadata:
        """Names attributes whose values are found out when one of them is first asked for; returns itself.

        Args:
            keys: the attributes; one that has a value already keeps it.
            load: gives values for ``keys``. It is called once at most.
        """
        self._deferred.update({key: load for key in keys if key not in self.__dict__})
        return self

    def as_dict(self) -> dict[str, Any]:
        """All attributes in a new dictionary, deferred ones included."""
        for key in list(self._deferred):
            self._resolve(key)
        return dict(self.__dict__)

    def _resolve(self, key: str) -> None:
        load = self._deferred.get(key)
        if load is None:
            return
        found = load()
        for pending in [k for k, loader in self._deferred.items() if loader is load]:
            del self._deferred[pending]
            if pending in found:
                self.__dict__[pending] = found[pending]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_metadata, (self.as_dict(),)


def _restore_metadata(values: dict[str, Any]) -> Metadata:
    return Metadata(**values)


class _MetadataCatalog(UserDict):
    """Dataset names and their :class:`Metadata`. Asking for a name makes it, so that it can be described."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of the dataset ``name``; always the same object.

        Raises:
            ValueError: the name is empty.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"a dataset's name is a non-empty string, got {name!r}")
        if name not in self.data:
            self.data[name] = Metadata(name=name)
        return self.data[name]

    def list(self) -> Names:
        """All names that have metadata."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forgets the metadata of the dataset ``name``.

        Raises:
            KeyError: there are none.
        """
        if name not in self.data:
            raise UnknownDatasetError(_explain_absence(name, self.data))
        del self.data[name]

    def __repr__(self) -> str:
        return f"MetadataCatalog({', '.join(self.data)})"

    __str__ = __repr__


# ------------------------------------------------------------------------------------------- are two things the same?


def same_content(one: Any, other: Any) -> bool:
    """Whether two values mean the same: equal data, or functions of equal code holding equal values."""
    return _same(one, other, set())


def _same(one: Any, other: Any, compared: set[tuple[int, int]]) -> bool:
    """``compared`` holds pairs under comparison further up: functions may refer to themselves."""
    if one is other or (id(one), id(other)) in compared:
        return True
    if type(one) is not type(other):
        return False
    compared = compared | {(id(one), id(other))}
    views = _CONTENT_OF.get(type(one))
    if views is not None:
        return _same(views(one), views(other), compared)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k], compared) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b, compared) for a, b in zip(one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    try:
        return bool(one == other)
    except Exception:
        # Comparing foreign objects can raise anything; what cannot be compared is not known to be equal.
        return False


def _content_of_function(func: types.FunctionType) -> tuple[Any, ...]:
    held = [cell.cell_contents for cell in func.__closure__ or ()]
    used = {name: func.__globals__[name] for name in func.__code__.co_names if name in func.__globals__}
    return (func.__name__, func.__code__, func.__defaults__, func.__kwdefaults__, held, used)


def _content_of_code(code: types.CodeType) -> tuple[Any, ...]:
    # Positions in the file are left out: a cell or file that is edited elsewhere still defines the same function.
    return (code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_freevars, code.co_flags)


_CONTENT_OF: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    types.FunctionType: _content_of_function,
    types.CodeType: _content_of_code,
    types.MethodType: lambda method: (method.__func__, method.__self__),
    functools.partial: lambda partial: (partial.func, partial.args, partial.keywords),
}


def _describe(func: Callable) -> str:
    if isinstance(func, functools.partial):
        given = [repr(a) for a in func.args] + [f"{k}={v!r}" for k, v in func.keywords.items()]
        return _shorten(f"{_describe(func.func)}({', '.join(given)})", quote=False)
    return f"{getattr(func, '__module__', '?')}.{getattr(func, '__qualname__', type(func).__qualname__)}"


def _shorten(value: Any, quote: bool = True, length: int = 200) -> str:
    text = repr(value) if quote else str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
