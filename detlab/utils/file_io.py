"""One file system for the package: local paths, http(s) addresses, and ``detectron2://`` for the reference's zoo."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _IopathManager

__all__ = ["PathHandler", "PathManager", "RedirectHandler", "write_atomically"]


class RedirectHandler(PathHandler):
    """Reads a prefix of one's own as another place: ``detectron2://x`` as ``https://host/x``.

    Args:
        prefix: what the paths begin with, with ``://``.
        target: what stands in for the prefix.
    """

    def __init__(self, prefix: str, target: str):
        super().__init__()
        self._prefix = prefix
        self._target = target

    def _get_supported_prefixes(self) -> list[str]:
        return [self._prefix]

    def _resolve(self, path: str) -> str:
        return self._target + path[len(self._prefix) :]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._resolve(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._resolve(path), mode, buffering=buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return PathManager.exists(self._resolve(path), **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return PathManager.isfile(self._resolve(path), **kwargs)


PathManager = _IopathManager()
PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(RedirectHandler("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/"))


@contextlib.contextmanager
def write_atomically(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file that takes the place of ``path`` only when the block ends without an error.

    The content goes to a hidden file in the same directory, is flushed to the disk, and renamed. A process that is
    killed meanwhile leaves the earlier content of ``path``; what it leaves of the hidden file is overwritten by the
    next attempt. Addresses of other storage are written directly: what that guarantees is theirs.

    Args:
        path: where the file shall be; the directory must exist.
        mode: ``"wb"`` or ``"w"``.
    """
    if "://" in path:
        with PathManager.open(path, mode) as file:
            yield file
        return
    folder, name = os.path.split(os.path.abspath(path))
    partial = os.path.join(folder, f".{name}.partial")
    try:
        with open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    _sync_directory(folder)


def _sync_directory(folder: str) -> None:
    """Makes a rename in the directory survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
