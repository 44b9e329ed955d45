"""Finds the compiled operators, once per process, and says what it found."""

from __future__ import annotations

import functools
from typing import NamedTuple

__all__ = ["LoadedLibrary", "load"]


class LoadedLibrary(NamedTuple):
    """What is in use."""

    devices: frozenset[str]  # device types that the compiled library has kernels for
    explanation: str  # from where, or why not


@functools.cache
def load() -> LoadedLibrary:
    """Loads the library at the first call."""
    return LoadedLibrary(frozenset(), "torchvision's operators: this version has no compiled library")
