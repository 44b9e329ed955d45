"""One file system for the package: local paths, http(s) addresses, and ``detectron2://`` for the reference's zoo."""

from __future__ import annotations

from typing import Any

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _IopathManager

__all__ = ["PathHandler", "PathManager", "RedirectHandler"]


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
