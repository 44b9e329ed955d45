"""Reading and writing annotation files: fast json, whole files or none, one process at a time."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from detlab.utils.file_io import PathManager

__all__ = ["locked", "no_garbage_collection", "read_json", "write_json", "written_whole"]


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


def read_json(path: str, what: str = "annotation file") -> Any:
    """The content of a json file.

    Args:
        path: local, or an address that ``PathManager`` opens.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError: there is no such file; the message says where datasets are looked for.
        ValueError: it is not json.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(
            f"the {what} {path} does not exist; built-in datasets are looked for under $DETLAB_DATASETS "
            f"(now {os.environ.get('DETLAB_DATASETS', 'not set: ./datasets')})"
        )
    with PathManager.open(path, "rb") as stream, no_garbage_collection():
        try:
            return json.loads(stream.read())
        except ValueError as error:
            raise ValueError(f"the {what} {path} is not valid json ({error}); is the download complete?") from None


@contextlib.contextmanager
def written_whole(path: str, mode: str = "w") -> Iterator[IO[Any]]:
    """A stream whose content appears under ``path`` all at once when the block ends, and not at all if it fails."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(descriptor, mode) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str, content: Any) -> None:
    """Writes a local json file, whole or not at all; the same content gives the same bytes on every platform."""
    with written_whole(path, "wb") as stream:
        stream.write(json.dumps(content, separators=(",", ":")).encode("ascii"))


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Lets one process at a time, of those on this machine that name the same ``path``, into the block."""
    import portalocker

    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with portalocker.Lock(
        os.path.join(folder, f".{name}.lock"), timeout=3600, check_interval=0.2, fail_when_locked=False
    ):
        yield
