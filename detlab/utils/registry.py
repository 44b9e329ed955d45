"""Names to objects, both ways: registries of parts, and dotted paths of anything importable."""

from __future__ import annotations

import difflib
import importlib
import weakref
from typing import Any

from fvcore.common.registry import Registry as _FvcoreRegistry

__all__ = ["ReadableKeyError", "Registry", "is_registered", "locate", "qualified_name"]


class ReadableKeyError(KeyError):
    """A ``KeyError`` that reads as its message, where the plain one would quote it."""

    def __str__(self) -> str:
        return str(self.args[0])


_registries: weakref.WeakSet[Registry] = weakref.WeakSet()


class Registry(_FvcoreRegistry):
    """Maps the name of a class or function to it, so that a config can ask for the part by name.

    ``@SOME_REGISTRY.register()`` above a definition adds it. Running the same definition again (a notebook cell, a
    reloaded module) replaces the earlier one; a different object under a taken name is refused.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._expected: dict[str, str] = {}
        _registries.add(self)

    def expect(self, **names: str) -> None:
        """Says of names that configs use and nothing is registered under yet what each will be, in words.

        ``get`` then tells that they are missing here, rather than that an import of the user's is.
        """
        self._expected.update(names)

    def register(self, obj: Any = None) -> Any:
        """Adds ``obj`` under its ``__name__`` and returns it; without ``obj``, returns a decorator that does."""
        if obj is None:
            return self.register
        self._do_register(obj.__name__, obj)
        return obj

    def _do_register(self, name: str, obj: Any) -> None:
        known = self._obj_map.get(name)
        if known is not None and _origin(known) != _origin(obj):
            raise ValueError(
                f"{self._name} already has a '{name}', from {_origin(known)}; "
                f"the one from {_origin(obj)} needs another name"
            )
        self._obj_map[name] = obj

    def get(self, name: str) -> Any:
        """The object registered as ``name``.

        Raises:
            KeyError: nothing has this name; the message lists the nearest and all known names.
        """
        if name not in self._obj_map:
            raise ReadableKeyError(self._explain_absence(name))
        return self._obj_map[name]

    def _explain_absence(self, name: str) -> str:
        known = sorted(self._obj_map)
        if name in self._expected:
            return (
                f"'{name}' ({self._expected[name]}) is not part of detlab yet: choose another config, or register an "
                f"implementation of your own under this name (--import FILE_OR_MODULE). {self._name} has: "
                f"{', '.join(known) or 'nothing'}"
            )
        near = difflib.get_close_matches(str(name), known)
        guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        return (
            f"'{name}' is not registered in {self._name}.{guess} Known: {', '.join(known) or 'nothing'}. "
            "If it is yours: is the module that registers it imported (--import FILE_OR_MODULE)?"
        )


def _origin(obj: Any) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"


def is_registered(qualified: str) -> bool:
    """Whether some registry holds an object that this is the :func:`qualified_name` of."""
    return any(_origin(obj) == qualified for registry in list(_registries) for _, obj in registry)


def locate(name: str) -> Any:
    """The object that a dotted path such as ``"torch.optim.SGD"`` or ``"package.module.Class.method"`` leads to.

    Modules on the way are imported.

    Raises:
        ImportError: no such module, or the module has no such member. A module that is there but fails while it is
            being imported raises its own error.
    """
    module, members = _import_longest_prefix(name)
    found = module
    for member in members:
        try:
            found = getattr(found, member)
        except AttributeError:
            raise ImportError(
                f"cannot find {name!r}: {getattr(found, '__name__', found)!r} has no member {member!r}"
            ) from None
    return found


def _import_longest_prefix(name: str) -> tuple[Any, list[str]]:
    """The deepest module on a dotted path, and what of the path is left behind it."""
    if not name or not all(name.split(".")):
        raise ImportError(f"{name!r} is not a dotted path like 'package.module.Class'")
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        module_name = ".".join(parts[:depth])
        try:
            return importlib.import_module(module_name), parts[depth:]
        except ModuleNotFoundError as error:
            # Only the absence of a part of this very path means "look one level up".
            if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
                raise
    raise ImportError(
        f"cannot find {name!r}: there is no module {parts[0]!r}; is it installed, or its folder on PYTHONPATH?"
    )


def qualified_name(obj: Any) -> str:
    """``module.qualname`` of a class or function: a path that :func:`locate` follows back to ``obj``.

    Raises:
        ValueError: no path leads to ``obj``, as with lambdas and what is defined inside a function.
    """
    module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not module or not qualname or "<" in qualname:
        raise ValueError(f"{obj!r} has no importable path; define it at the top level of a module")
    return f"{module}.{qualname}"
