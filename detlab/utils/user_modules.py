"""Loading the user's own code, by file or by module name, so that what it registers is there in every process.

A file becomes a module below this one, ``detlab.utils.user_modules.<stem>_<hash of its path>``. That name is the same
in every process, cannot collide with an installed package, and can be imported anywhere: data workers that are spawned
unpickle the user's classes through it. They learn the files from an environment variable that they inherit.

A file that was imported under another name before, or is so later (``import my_part``), is the same module under both.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["import_user_modules", "is_of_user_module", "loaded_user_file"]

FILES_VARIABLE = "DETLAB_USER_FILES"

# Of what was asked for in this process: the modules' names, and what the files are called.
_imported: set[str] = set()
_stems: set[str] = set()

# Marks this module as one that has modules below it; they are found by _UserFileFinder, in no directory.
__path__: list[str] = []


def import_user_modules(names: Iterable[str]) -> list[ModuleType]:
    """Imports each file or module; what was imported before is not run again.

    The directory of a file is put at the end of ``sys.path``, so that the file can import its neighbours.

    Args:
        names: paths that end in ``.py``, or dotted module names.

    Returns:
        The modules, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: there is no such module.
    """
    modules = []
    for name in names:
        is_file = name.endswith(".py")
        modules.append(_import_file(name) if is_file else _import_named(name))
        _imported.add(modules[-1].__name__)
        if is_file:
            _stems.add(os.path.splitext(os.path.basename(name))[0])
    return modules


def is_of_user_module(name: str, or_called_like_one: bool = False) -> bool:
    """Whether a dotted name begins with a module that ``import_user_modules`` was given in this process.

    Args:
        name: such as ``"my_parts.Head"``.
        or_called_like_one: the name of a file that was given counts too, though something else may have it.
    """
    parts = name.split(".")
    beginnings = {".".join(parts[:depth]) for depth in range(1, len(parts))}
    return not beginnings.isdisjoint(_imported) or (or_called_like_one and parts[0] in _stems)


def _import_named(name: str) -> ModuleType:
    if os.sep in name:
        raise ModuleNotFoundError(f"cannot import {name!r}: give a file that ends in .py, or a dotted module name")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise ModuleNotFoundError(
            f"there is no module {name!r}; give its .py file instead, or put the folder that holds it on PYTHONPATH",
            name=error.name,
        ) from None


def _import_file(path: str) -> ModuleType:
    path = os.path.realpath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"cannot import {path!r}: there is no such file")
    known = _known_files()
    if path not in known:
        os.environ[FILES_VARIABLE] = os.pathsep.join([*known, path])
    folder = os.path.dirname(path)
    if folder not in sys.path:
        # At the end, so that a neighbour called like an installed package does not hide it.
        sys.path.append(folder)
    return _loaded_from(path) or importlib.import_module(_module_name(path))


def loaded_user_file(path: str) -> ModuleType | None:
    """The module that a file is, if ``import_user_modules`` has loaded it in this process."""
    return _loaded_from(path) if os.path.realpath(path) in _known_files() else None


def _loaded_from(path: str) -> ModuleType | None:
    """The module that was made of a file, whatever its name, if there is one; a program's main file counts."""
    path = os.path.realpath(path)
    name = os.path.basename(path)
    for module in list(sys.modules.values()):
        # Not by getattr: modules that load lazily would import themselves.
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and file.endswith(name) and os.path.realpath(file) == path:
            return module
    return None


def _known_files() -> list[str]:
    return [path for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if path]


def _module_name(path: str) -> str:
    stem = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0])
    return f"{__name__}.{stem}_{hashlib.sha1(path.encode()).hexdigest()[:8]}"


class _UserFileFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of the files in the environment variable, by the names given here and by their own.

    It stands before the finder of ordinary modules: where that would find one of these files (``import my_part`` beside
    ``--import my_part.py``), the module that is made of it already is what is imported. So each file runs once in a
    process, and what it registers does not meet itself.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        files = _known_files()
        if fullname.startswith(__name__ + "."):
            file = next((file for file in files if _module_name(file) == fullname), None)
            return None if file is None else importlib.util.spec_from_file_location(fullname, file)
        leaf = fullname.rpartition(".")[2]
        if not any(os.path.basename(file) == f"{leaf}.py" for file in files):
            return None
        found = PathFinder.find_spec(fullname, path, target)
        origin = None if found is None or found.origin is None else os.path.realpath(found.origin)
        return ModuleSpec(fullname, _OtherName(origin), origin=origin) if origin in files else None


class _OtherName(importlib.abc.Loader):
    """Gives the module of a file, for another name of it.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, which runs now if it has not yet."""
        module = _loaded_from(self._path) or importlib.import_module(_module_name(self._path))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing but undo what the import system has noted on the module meanwhile."""
        module.__spec__ = self._spec


sys.meta_path.insert(0, _UserFileFinder())
