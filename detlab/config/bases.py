"""Yaml files on top of the files that their ``_BASE_`` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any

from fvcore.common.config import BASE_KEY

from detlab.config.values import shown
from detlab.config.yaml_files import read_yaml

__all__ = ["load_with_bases"]

# A file that is the base of several others counts each time.
MAX_FILES = 100


def load_with_bases(open_file: Callable[[str], IO[str] | IO[bytes]], filename: str) -> dict[str, Any]:
    """The settings of a file and its bases, as fresh dictionaries; see ``CfgNode.load_yaml_with_base``."""
    return _Reading(open_file).load(filename, ())


class _Reading:
    """One reading of a file with all its bases.

    Args:
        open_file: opens a file by its name.
    """

    def __init__(self, open_file: Callable[[str], IO[str] | IO[bytes]]) -> None:
        self._open_file = open_file
        self._num_files = 0

    def load(self, filename: str, children: tuple[str, ...]) -> dict[str, Any]:
        """``children`` are the files that led here, each the base of the one before it."""
        self._num_files += 1
        if filename in children:
            raise ValueError(f"{BASE_KEY} goes in a circle: {' -> '.join([*children, filename])}")
        if self._num_files > MAX_FILES:
            raise ValueError(f"{children[0]} has more than {MAX_FILES} files below it, by {BASE_KEY}")
        settings = self._read(filename, children)
        bases = settings.pop(BASE_KEY, [])
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            _overlay(self.load(_base_path(base, filename), (*children, filename)), merged, filename)
        _overlay(settings, merged, filename)
        return merged

    def _read(self, filename: str, children: tuple[str, ...]) -> dict[str, Any]:
        try:
            settings = read_yaml(filename, self._open_file)
        except FileNotFoundError:
            whose = f", the {BASE_KEY} of {children[-1]}," if children else ""
            raise FileNotFoundError(f"the config file {filename}{whose} does not exist") from None
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            raise ValueError(f"{filename} should hold sections of settings, but is a {type(settings).__name__}")
        return settings


def _base_path(base: Any, filename: str) -> str:
    if not isinstance(base, str) or "\0" in base:
        raise ValueError(f"{BASE_KEY} in {filename} should be a path or a list of paths, got {shown(base)}")
    base = os.path.expanduser(base)
    if os.path.isabs(base) or "://" in base:
        return base
    folder = os.path.dirname(filename)
    if "://" in folder:
        return f"{folder}/{base}"
    return os.path.normpath(os.path.join(folder, base))


def _overlay(upper: dict[Any, Any], lower: dict[str, Any], filename: str, prefix: str = "") -> None:
    """Puts ``upper`` on top of ``lower``, in place; sections are joined, anything else is replaced.

    Sections are copied: one that a file refers to twice must not change in both places when one is changed.
    """
    for key, value in upper.items():
        if not isinstance(key, str):
            raise ValueError(f"{filename} has the key {prefix}{shown(key)}, which is no text; write it in quotes")
        if not isinstance(value, dict):
            lower[key] = value
            continue
        if not isinstance(lower.setdefault(key, {}), dict):
            raise ValueError(f"{prefix}{key} is a section in {filename}, but the value {shown(lower[key])} in its base")
        _overlay(value, lower[key], filename, f"{prefix}{key}.")
