"""Python's garbage collector out of the way."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["no_garbage_collection"]


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """While millions of small objects that all stay are made, looking for garbage among them doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
