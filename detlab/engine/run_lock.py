"""One training at a time in an output directory.

Rank 0 holds a lock of the system's on a file in the directory, which ends with the process, however that ends. Where
locks do not reach, as between machines on some network disks, what the file says has to do: who runs there, and by the
time of its last change, which the holder renews every minute, whether that is still so.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import json
import logging
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import portalocker

from detlab.engine.interruption import Signals, unwinding
from detlab.utils import comm
from detlab.utils.file_io import check_replaceable, is_at, is_running, remove_abandoned
from detlab.utils.folder_watch import reopen_files, unwatch, watch

__all__ = ["OutputDirInUseError", "hold_output_dir", "lock_output_dir", "unlock_output_dir", "user_of_output_dir"]

logger = logging.getLogger(__name__)

FILE_NAME = ".running.lock"
SECONDS_BETWEEN_SIGNS = 60.0
# Several signs of life may be late before another machine takes the directory.
SECONDS_OF_SILENCE = 300.0


class OutputDirInUseError(OSError):
    """Another process trains into the same directory."""


class _HeldLock:
    """A locked file that says who holds it, and a thread that renews its time."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file = file
        self._path = path
        self._is_over = threading.Event()
        _write_note(file)
        threading.Thread(target=self._give_signs_of_life, name="output directory in use", daemon=True).start()

    def _give_signs_of_life(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_SIGNS):
            with contextlib.suppress(OSError, ValueError):
                os.utime(self._file.fileno())

    def is_in_place(self) -> bool:
        """Whether the file is still that which others would find; not if the directory was deleted or moved."""
        return is_at(self._file, self._path)

    def release(self) -> None:
        self._is_over.set()
        # While the lock is still held: whoever takes it then sees that the file is not the present one.
        if self.is_in_place():
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._file.close()

    def leave_to_parent(self) -> None:
        """In a forked process: a lock ends when all processes that have the file open have closed it."""
        self._file.close()


# By the real paths of the directories.
_held: dict[str, _HeldLock] = {}
_keeping = threading.Lock()
# SIGTERM must not leave the files of locks behind; a training has its own way to stop.
_cleaning: Signals | None = None


def lock_output_dir(output_dir: str) -> None:
    """Take a directory for training, until :func:`unlock_output_dir` or the end of the process; all ranks must call it.

    What an earlier holder that was killed left in it, half-written, is removed. A directory that this process has
    taken already, under this name or another, and one that is no local path, are left as they are.

    A directory that is deleted or moved while it is held is taken anew before the next file is written to it
    (:func:`~detlab.utils.folder_watch.before_writing`); a warning says what is lost. If another process has it by then,
    the writer gets an :class:`OutputDirInUseError` and writes nothing.

    While a directory is held, SIGTERM raises :class:`~detlab.engine.interruption.StoppedBySignal` in the main thread
    where it would have ended the process with the lock left behind.

    Args:
        output_dir: has to exist on the machine of rank 0; empty for none.

    Raises:
        OutputDirInUseError: on all ranks, if another process trains into it.
        ValueError: on all ranks, if the place of the file that is locked is taken, by a folder for instance.
    """
    problem: Exception | None = None
    if comm.is_main_process() and output_dir and "://" not in output_dir:
        try:
            _lock(os.path.realpath(output_dir))
        except (OutputDirInUseError, ValueError) as error:
            problem = error
    problem = comm.broadcast(problem)
    if problem is not None:
        raise problem


def unlock_output_dir(output_dir: str) -> None:
    """Give a directory back, if this process holds it."""
    folder = os.path.realpath(output_dir)
    if folder in _held:
        with _stops_put_off():
            _forget(folder)
        if not _held:
            _leave_sigterm()


@contextlib.contextmanager
def hold_output_dir(output_dir: str) -> Iterator[None]:
    """:func:`lock_output_dir`, given back at the end of the block."""
    folder = os.path.realpath(output_dir)
    lock_output_dir(output_dir)
    try:
        yield
    finally:
        unlock_output_dir(folder)


def user_of_output_dir(output_dir: str) -> str:
    """Who else trains into a directory: a process, its host, when it started, its command; or nobody, ``""``."""
    folder = os.path.realpath(output_dir)
    path = os.path.join(folder, FILE_NAME)
    if "://" in output_dir or folder in _held or not os.path.exists(path):
        return ""
    try:
        with open(path, "rb") as file:
            return _other_user(file, _try_to_lock(file))
    except OSError:
        return ""


def _lock(folder: str) -> None:
    held = _held.get(folder)
    if held is not None and held.is_in_place():
        return
    _take_sigterm()
    try:
        with _stops_put_off():
            _held[folder] = _take(folder)
            watch(folder, functools.partial(_keep, folder))
            if held is not None:
                held.release()
    finally:
        if not _held:
            _leave_sigterm()


def _take(folder: str) -> _HeldLock:
    path = os.path.join(folder, FILE_NAME)
    check_replaceable(path)
    os.makedirs(folder, exist_ok=True)
    file, has_lock = _open_and_try_to_lock(path)
    try:
        user = _other_user(file, has_lock)
        if user:
            raise OutputDirInUseError(
                f"the output directory {folder} is in use by {user}; wait until that has ended, or set OUTPUT_DIR to "
                f"another directory (if you know that it has ended, remove {path})"
            )
        if _read_note(file):
            logger.warning(f"an earlier run in {folder} was killed; this one takes its place")
        remove_abandoned(folder)
        return _HeldLock(file, path)
    except BaseException:
        file.close()
        raise


def _keep(folder: str) -> None:
    """Make sure, before something is written to a directory, that it is still held."""
    held = _held.get(folder)
    if held is None or held.is_in_place():
        return
    with _keeping:
        if held is not _held.get(folder):
            # By another thread, in the meantime.
            return
        try:
            _lock(folder)
        except OutputDirInUseError as error:
            raise OutputDirInUseError(
                f"this run ends and writes nothing more, because its output directory was deleted or moved away and "
                f"has another user now: {error}"
            ) from None
        names = reopen_files(folder)
    # Outside, as the log may be written to by other threads, which may write files as well.
    if names:
        logger.warning(
            f"the output directory {folder} was deleted or moved away while this run was writing to it. It is made "
            f"anew, and this run goes on; what it held is lost here: config.yaml, the checkpoints, and all earlier "
            f"lines of {', '.join(names)}"
        )
    else:
        logger.warning(f"{FILE_NAME} was removed from {folder} during this run, which has taken the directory again")


def _forget(folder: str) -> None:
    unwatch(folder)
    _held.pop(folder).release()


def _take_sigterm() -> None:
    global _cleaning
    if _cleaning is None:
        _cleaning = unwinding()
        _cleaning.__enter__()


def _leave_sigterm() -> None:
    global _cleaning
    if _cleaning is not None:
        cleaning, _cleaning = _cleaning, None
        cleaning.__exit__(None, None, None)


def _stops_put_off() -> contextlib.AbstractContextManager[None]:
    """A block that SIGTERM does not interrupt: between the lock and the note that it is held."""
    return _cleaning.put_off() if _cleaning is not None else contextlib.nullcontext()


def _open_and_try_to_lock(path: str) -> tuple[IO[bytes], bool | None]:
    """The file, made if need be, with the result of :func:`_try_to_lock`."""
    while True:
        file = open(path, "ab+")  # noqa: SIM115 (it stays open as long as the lock is held)
        has_lock = _try_to_lock(file)
        with contextlib.suppress(FileNotFoundError):
            if not has_lock or os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, has_lock
        # Its holder removed it after it was opened here.
        file.close()


def _try_to_lock(file: IO[bytes]) -> bool | None:
    """Whether this process has the lock now; None if there are no locks on this disk."""
    for pause in (0.1, 0.3, None):
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            return True
        except portalocker.AlreadyLocked:
            # By somebody who only looks, perhaps.
            if pause is not None:
                time.sleep(pause)
        except portalocker.LockException:
            return None
    return False


def _other_user(file: IO[bytes], has_lock: bool | None) -> str:
    """Who holds the lock on a file, or seems to hold it where locks do not reach; empty for nobody."""
    note = _read_note(file)
    if has_lock is not False:
        # A lock that was to be had says enough of this machine, and nothing of others.
        is_out_of_reach = note.get("machine") != _machine() or (has_lock is None and _is_another_process(note))
        if not note or not is_out_of_reach or _seconds_since_change(file) > SECONDS_OF_SILENCE:
            return ""
    if not note:
        return "another process"
    return f"process {note.get('pid')} on host {note.get('host')} since {note.get('started')} ({note.get('command')})"


def _write_note(file: IO[bytes]) -> None:
    note = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(sys.argv),
    }
    # In place: the lock is on this very file.
    file.truncate(0)
    file.write(json.dumps(note).encode())
    file.flush()


def _read_note(file: IO[bytes]) -> dict[str, Any]:
    """What the holder wrote; empty if it did not come so far."""
    try:
        file.seek(0)
        note = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _machine() -> str:
    """What tells machines apart, also those of one name."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


def _is_another_process(note: dict[str, Any]) -> bool:
    pid = note.get("pid")
    return isinstance(pid, int) and pid != os.getpid() and is_running(pid)


def _seconds_since_change(file: IO[bytes]) -> float:
    """By the clock of the disk, which may not be this machine's."""
    with tempfile.TemporaryFile(dir=os.path.dirname(file.name)) as probe:
        return os.fstat(probe.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _leave_locks_to_parent() -> None:
    global _cleaning
    _cleaning = None
    for folder, lock in _held.items():
        unwatch(folder)
        lock.leave_to_parent()
    _held.clear()


def _unlock_all() -> None:
    for folder in list(_held):
        _forget(folder)


atexit.register(_unlock_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_parent)
