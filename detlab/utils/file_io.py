"""One file system for the package: local paths, http(s) addresses, and ``detectron2://`` for the reference's zoo.

Also the one way to read and write: text is UTF-8 on every machine, files are written whole or not at all, and what
cannot be read is named.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from typing import IO, Any, TextIO

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _IopathManager

from detlab.utils.folder_watch import before_writing
from detlab.utils.garbage import no_garbage_collection

__all__ = [
    "AppendedText",
    "PathHandler",
    "PathManager",
    "RedirectHandler",
    "address_of",
    "check_no_special_file",
    "check_replaceable",
    "is_at",
    "is_running",
    "json_bytes",
    "locked",
    "open_bytes",
    "open_text",
    "read_json",
    "read_text",
    "remove_abandoned",
    "write_atomically",
    "write_json",
]


# By prefix.
_REDIRECTS: dict[str, RedirectHandler] = {}


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
        _REDIRECTS[prefix] = self

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


def address_of(path: str) -> str:
    """The address that a path with a prefix like ``detectron2://`` stands for; any other path as it is."""
    prefix = path[: path.find("://") + 3]
    return address_of(_REDIRECTS[prefix]._resolve(path)) if prefix in _REDIRECTS else path


PathManager = _IopathManager()
PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(RedirectHandler("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/"))


# --------------------------------------------------------------------------------------------------------- reading


def open_text(path: str, mode: str = "r", errors: str = "strict") -> TextIO:
    """Opens a text file as UTF-8, whatever the locale says; a byte order mark at its start is no part of the text.

    Args:
        path: local, or an address.
        mode: ``"r"``, ``"w"`` or ``"a"``.
        errors: what to do about what UTF-8 cannot express, as for ``open``.

    Raises:
        ValueError: what shall be read is a folder, pipe or device.
    """
    stream = open_bytes(path) if mode == "r" else PathManager.open(path, f"{mode}b")
    return io.TextIOWrapper(stream, encoding="utf-8-sig" if mode == "r" else "utf-8", errors=errors)


def open_bytes(path: str, what: str = "file") -> IO[bytes]:
    """Opens a file for reading, and nothing else: a pipe would be waited for, and a device may have no end.

    Args:
        path: local, or an address.
        what: what the file is, for messages.

    Raises:
        ValueError: it is a folder, pipe, socket or device.
        FileNotFoundError: there is no such file.
    """
    check_no_special_file(path, what)
    return PathManager.open(path, "rb")


def read_text(path: str, what: str = "file") -> str:
    """The content of a text file.

    Args:
        path: local, or an address.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.
    """
    _check_is_file(path, what)
    try:
        with open_text(path) as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the {what} {path} is not text in UTF-8 (byte {error.start}: {error.reason}); is it the right file? If it "
            "is text in another encoding, save it as UTF-8"
        ) from None


def read_json(path: str, what: str = "file") -> Any:
    """The content of a json file in UTF-8, 16 or 32, with or without a byte order mark.

    Args:
        path: local, or an address.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not json, or nested more deeply than Python can follow.
    """
    _check_is_file(path, what)
    with open_bytes(path, what) as stream, no_garbage_collection():
        try:
            return json.loads(stream.read())
        except RecursionError:
            raise ValueError(f"the {what} {path} nests lists or objects too deeply to be read") from None
        except ValueError as error:
            raise ValueError(f"the {what} {path} is not valid json ({error}); is the download complete?") from None


def check_no_special_file(path: str, what: str = "file") -> None:
    """Refuses a local path that is there but no file; a pipe would be waited for until somebody writes to it.

    Raises:
        ValueError: it is a folder, pipe, socket or device.
    """
    if _is_special(path):
        raise ValueError(f"the {what} {path} is no file but a folder, pipe or device")


def _is_special(path: str) -> bool:
    return "://" not in path and os.path.exists(path) and not os.path.isfile(path)


def _check_is_file(path: str, what: str) -> None:
    # Not every handler of addresses can say whether there is a file; each can fetch it.
    if os.path.isfile(PathManager.get_local_path(path) if "://" in path else path):
        return
    check_no_special_file(path, what)
    raise FileNotFoundError(f"the {what} {path} does not exist")


# --------------------------------------------------------------------------------------------------------- writing


def check_replaceable(path: str) -> None:
    """Refuses a local path where no file can be put, because something else is there.

    Raises:
        ValueError: it is a folder, pipe, socket or device.
    """
    if _is_special(path):
        raise ValueError(
            f"{path} shall be written as a file, but a folder, pipe or device of this name is there; move it away, or "
            "write to another directory (for a training, OUTPUT_DIR)"
        )


class AppendedText:
    """A text file in UTF-8 that is appended to; what UTF-8 cannot express is written as an escape.

    Args:
        path: local, or an address; its directory has to exist.

    Attributes:
        path: absolute, if it is local.

    Raises:
        ValueError: a folder, pipe or device is there.
    """

    def __init__(self, path: str) -> None:
        self.path = path if "://" in path else os.path.abspath(path)
        self._stream = self._open()

    def _open(self) -> TextIO:
        check_replaceable(self.path)
        return open_text(self.path, "a", errors="backslashreplace")

    @property
    def closed(self) -> bool:
        """Whether writing has ended."""
        return self._stream.closed

    def write(self, text: str) -> None:
        """Adds to the file, at the latest with the next :meth:`flush`."""
        self._stream.write(text)

    def flush(self) -> None:
        """Hands over what was written to the system."""
        self._stream.flush()

    def close(self) -> None:
        """Ends writing; may be called again."""
        self._stream.close()

    def reopen_if_gone(self) -> bool:
        """Opens the file anew if another one, or none, is at its path now; whether that was so."""
        if self._stream.closed or "://" in self.path or is_at(self._stream, self.path):
            return False
        stream, self._stream = self._stream, self._open()
        stream.close()
        return True


def is_at(file: IO[Any], path: str) -> bool:
    """Whether an open file is the one at a path; true where the system does not say."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


@contextlib.contextmanager
def write_atomically(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file that takes the place of ``path`` only when the block ends without an error.

    The content goes to a hidden file of this writer's own in the same directory, is flushed to the disk, and renamed:
    of several writers at a time the last one's file stays, whole. A process that is killed meanwhile leaves the
    earlier content of ``path``; what it leaves of the hidden file is removed by the next writer of the same file on
    the same machine. Addresses of other storage are written directly: what that guarantees is theirs.

    Args:
        path: where the file shall be; its directory is made.
        mode: ``"wb"``, or ``"w"`` for text in UTF-8.

    Raises:
        ValueError: a folder, pipe or device is there.
        OSError: it cannot be written, or the folder is another run's by now.
    """
    before_writing(path)
    check_replaceable(path)
    encoding = None if "b" in mode else "utf-8"
    if "://" in path:
        with open_text(path, mode) if encoding else PathManager.open(path, mode) as file:
            yield file
        return
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    remove_abandoned(folder, name)
    partial = os.path.join(folder, f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, mode.replace("w", "x"), encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    _sync_directory(folder)


def write_json(path: str, content: Any) -> None:
    """Writes a json file, whole or not at all; the same content gives the same bytes on every platform.

    Raises:
        TypeError: something in ``content`` has no form in json; nothing was written.
    """
    data = json_bytes(content)
    with write_atomically(path) as stream:
        stream.write(data)


def json_bytes(content: Any) -> bytes:
    """What :func:`write_json` writes."""
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def remove_abandoned(folder: str, name: str | None = None) -> None:
    """Removes what atomic writers that were killed on this machine have left in a directory.

    Args:
        folder: the directory.
        name: of the file that they were writing; None for all.
    """
    of_file = ".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.{of_file}\.{re.escape(_host())}\.(\d+)\.[0-9a-f]+\.partial")
    for other in os.listdir(folder):
        match = pattern.fullmatch(other)
        if match is not None and not is_running(int(match.group(1))):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, other))


def is_running(pid: int) -> bool:
    """Whether a process with this number runs on this machine; True where the system cannot say."""
    if os.name == "nt":
        # There, os.kill would end it.
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # It belongs to somebody else.
        return True
    return True


def _sync_directory(folder: str) -> None:
    """Makes a rename in the directory survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
