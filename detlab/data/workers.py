"""The processes that read samples: how they are started, and what is left of them when they or their parent die."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from detlab.utils.file_io import is_running
from detlab.utils.serialize import PicklableWrapper

__all__ = ["raise_open_file_limit", "worker_options"]

# Each tensor that a worker hands over holds a file open until it is freed.
OPEN_FILES = 65536
# What DataLoader refuses where there are no workers.
OPTIONS_OF_WORKERS = ("multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout", "worker_init_fn")


def worker_options(num_workers: int, **options: Any) -> dict[str, Any]:
    """Arguments of ``torch.utils.data.DataLoader`` for this many worker processes.

    Args:
        num_workers: 0 for none: what concerns workers only is left out of ``options`` then, so that a loader can be
            tried without them by changing this number alone.
        options: take the place of what would be chosen here, such as ``multiprocessing_context="spawn"``.

    Raises:
        ValueError: ``num_workers`` is negative, or the path of the folder for temporary files is too long for
            sockets, and there is no other folder to put them.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers (DATALOADER.NUM_WORKERS) is {num_workers}; it counts processes: 0, 1, 2, ...")
    # With a generator of its own the loader does not draw from the global one, on which training depends.
    chosen: dict[str, Any] = {"num_workers": num_workers, "generator": torch.Generator().manual_seed(0)}
    if num_workers == 0:
        return {**chosen, **{key: value for key, value in options.items() if key not in OPTIONS_OF_WORKERS}}
    raise_open_file_limit()
    if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods():
        # Starts in milliseconds, shares the dataset's memory, and takes mappers that cannot be pickled. Processes
        # that were spawned themselves, as by ``launch``, would spawn their workers as well if nothing was said.
        chosen["multiprocessing_context"] = "fork"
    begin = _BeginWorker(options.pop("worker_init_fn", None), _folder_of_sockets(os.getpid()))
    return {**chosen, **options, "worker_init_fn": begin}


def raise_open_file_limit() -> None:
    """Lets this process and its workers have as many files open as the system allows, up to 65,536."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# ------------------------------------------------------------------------------------------------- folders of sockets
#
# A process that hands a tensor to another listens at a socket, for which multiprocessing makes a folder ``pymp-*``.
# Each worker would make one of its own and leave it, as workers are ended by a signal. One that is made beforehand by
# the process that starts them is used by all. It is removed when that process ends; if that is killed, by the workers,
# which notice; and if all are killed at once, by the next process that starts workers.
#
# Systems take short paths only for sockets, of 104 bytes (macOS) or 108 (Linux) with the zero at the end. Where TMPDIR
# is longer, as in many queues of clusters, the folder is made in one of the usual places.

OWNER_FILE = "detlab-owner"
LONGEST_FOLDER = 104 - len("/pymp-12345678/listener-12345678\0")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@functools.lru_cache(maxsize=1)
def _folder_of_sockets(own_pid: int) -> str | None:
    """Makes the folder for this process and the workers that it starts; None if it is not this process's to remove.

    Args:
        own_pid: of this process: a forked one must not take its parent's answer.
    """
    if os.name == "nt" or "tempdir" in getattr(multiprocessing.current_process(), "_config", {"tempdir": None}):
        # Pipes have no files there; or it was made before, or by the parent.
        return None
    place = _place_of_sockets()
    try:
        _remove_abandoned_folders(place)
        folder = _make_folder_in(place)
        Path(folder, OWNER_FILE).write_text(f"{own_pid} {socket.gethostname()}", encoding="utf-8")
    except OSError:
        # Nowhere to write, or no room: whether workers need it is for them to find out.
        return None
    return folder


def _place_of_sockets() -> str:
    """The folder for temporary files, or another one if its path is too long.

    Raises:
        ValueError: there is no other.
    """
    usual = tempfile.gettempdir()
    for place in (usual, *SHORT_FOLDERS):
        if len(os.fsencode(place)) <= LONGEST_FOLDER and (place == usual or os.access(place, os.W_OK | os.X_OK)):
            return place
    raise ValueError(
        f"the path of the folder for temporary files, {usual}, has {len(os.fsencode(usual))} bytes: too many for the "
        f"sockets of data workers, which need {LONGEST_FOLDER} or fewer, and none of {', '.join(SHORT_FOLDERS)} can be "
        "written to; set TMPDIR to a folder with a shorter path, or DATALOADER.NUM_WORKERS to 0"
    )


def _make_folder_in(place: str) -> str:
    """Has multiprocessing make its folder, which it also removes."""
    before = tempfile.tempdir
    tempfile.tempdir = place
    try:
        return multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def _remove_abandoned_folders(place: str) -> None:
    """Removes the folders of processes of this package on this machine that were killed together with their workers."""
    for owner in Path(place).glob(f"pymp-*/{OWNER_FILE}"):
        with contextlib.suppress(OSError, ValueError):
            pid, host = owner.read_text(encoding="utf-8").split(" ", 1)
            if host == socket.gethostname() and not is_running(int(pid)):
                shutil.rmtree(owner.parent, ignore_errors=True)


class _BeginWorker:
    """What a worker does first: the user's ``worker_init_fn``, if there is one, and preparations for its end."""

    def __init__(self, init_fn: Callable[[int], Any] | None, folder: str | None):
        self.init_fn = None if init_fn is None else PicklableWrapper(init_fn)
        self.folder = folder

    def __call__(self, worker_id: int) -> None:
        if self.folder is not None:
            # Of the lowest priority: after the queues, which still hand over what they hold.
            multiprocessing.util.Finalize(
                None, _remove_if_orphaned, args=(self.folder, os.getppid()), exitpriority=-100
            )
        if self.init_fn is not None:
            self.init_fn(worker_id)


def _remove_if_orphaned(folder: str, parent_at_first: int) -> None:
    if os.getppid() != parent_at_first:
        shutil.rmtree(folder, ignore_errors=True)
