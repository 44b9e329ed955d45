"""Folders that a run writes to for days, and that may be deleted, or taken by another run, meanwhile.

Who has taken a folder watches it. What writes to it, a few times in a hundred iterations, asks before each time, and
what it keeps open there is opened anew when the folder had to be taken again.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Protocol

__all__ = ["OpenFile", "before_writing", "follow", "reopen_files", "unwatch", "watch"]


class OpenFile(Protocol):
    """What is kept open for writing.

    Attributes:
        path: absolute.
    """

    path: str

    def reopen_if_gone(self) -> bool:
        """Open the file anew if another one, or none, is at its path now; whether that was so."""
        ...


_checks: dict[str, Callable[[], None]] = {}
_followed: weakref.WeakSet[OpenFile] = weakref.WeakSet()


def watch(folder: str, check: Callable[[], None]) -> None:
    """Have a function called before something is written to a folder or those in it, in place of an earlier one.

    Args:
        folder: a real path.
        check: raises an exception if nothing may be written any more.
    """
    _checks[folder] = check


def unwatch(folder: str) -> None:
    """Let go of a folder, if it is watched."""
    _checks.pop(folder, None)


def before_writing(path: str) -> None:
    """To be called before something is written to a folder or file.

    Raises:
        Exception: what the one who watches the folder raises.
    """
    if not _checks or not path or "://" in path:
        return
    real = os.path.realpath(path)
    for folder, check in list(_checks.items()):
        if _is_in(real, folder):
            check()


def follow(file: OpenFile) -> None:
    """Have a file opened anew when its folder had to be; it is forgotten when nobody else knows it."""
    _followed.add(file)


def reopen_files(folder: str) -> list[str]:
    """Open anew what is gone of the files in a folder.

    Args:
        folder: a real path, which exists.

    Returns:
        The names of the files that were gone.
    """
    files = [file for file in list(_followed) if _is_in(os.path.realpath(file.path), folder)]
    return sorted({os.path.basename(file.path) for file in files if file.reopen_if_gone()})


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
