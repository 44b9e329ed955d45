"""Loading the user's own code, by file or by module name, so that what it registers is there in every process.

A file becomes a module below this one, ``detlab.utils.user_modules.<stem>_<hash of its path>``. That name is the same
in every process, cannot collide with an installed package, and can be imported anywhere: data workers that are spawned
unpickle the user's classes through it. They learn the files from an environment variable that they inherit.
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
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["import_user_modules"]

FILES_VARIABLE = "DETLAB_USER_FILES"

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
    return [_import_file(name) if name.endswith(".py") else _import_named(name) for name in names]


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
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"cannot import {path!r}: there is no such file")
    known = _known_files()
    if path not in known:
        os.environ[FILES_VARIABLE] = os.pathsep.join([*known, path])
    folder = os.path.dirname(path)
    if folder not in sys.path:
        # At the end, so that a neighbour called like an installed package does not hide it.
        sys.path.append(folder)
    return importlib.import_module(_module_name(path))


def _known_files() -> list[str]:
    return [path for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if path]


def _module_name(path: str) -> str:
    stem = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0])
    return f"{__name__}.{stem}_{hashlib.sha1(path.encode()).hexdigest()[:8]}"


class _UserFileFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of the files in the environment variable."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(__name__ + "."):
            return None
        for file in _known_files():
            if _module_name(file) == fullname:
                return importlib.util.spec_from_file_location(fullname, file)
        return None


sys.meta_path.append(_UserFileFinder())
