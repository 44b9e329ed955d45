"""Starting the processes of a run: one for each GPU, or several on the CPU; or joining those of torchrun."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detlab.engine.interruption import Signals, StoppedBySignal, stopping
from detlab.utils import comm
from detlab.utils.devices import device_kind
from detlab.utils.threads import children_wait_asleep

__all__ = ["DEFAULT_TIMEOUT", "launch", "launch_from_args"]

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)

# What torchrun tells each process that it starts, and torch needs. LOCAL_WORLD_SIZE can be found out.
_VARIABLES_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_IF_LEFT_OVER = (
    "as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of the environment say; if nobody starts the others, stop this, "
    "unset them, and start again"
)
_HIGHEST_PORT = 65535
# How many processes may be about to come in where processes meet.
_BACKLOG = 1024

# For the processes of a run: to finish a step and save when they are asked to stop; and to end when one has failed.
_SECONDS_TO_STOP = 120.0
_SECONDS_TO_FAIL = 2.0


class _Place(NamedTuple):
    """Where one process stands in a run."""

    rank: int
    local_rank: int
    world_size: int
    processes_per_machine: int | None  # None: to be found out
    device: str  # "cuda" or "cpu"


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
    device: str | None = None,
) -> Any:
    """Call ``main_func(*args)`` in every process of a run.

    With one process in all it is called right here. Under torchrun (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR`` and ``MASTER_PORT`` in the environment) this process joins the others that torchrun has started, and
    the numbers given here do not count; where some of these variables are missing, a warning names them and the others
    do not count. Otherwise this machine's processes are started; when one fails, the others are stopped and its
    traceback is raised here.

    SIGTERM and Ctrl-C reach the started processes through this one, which waits until they have stopped: see
    :meth:`~detlab.engine.train_loop.TrainerBase.train`. They also stop if this one is killed.

    Args:
        main_func: at the top level of a module, as started processes have to find it.
        num_gpus_per_machine: processes on each machine, each with a GPU of its own (or on the CPU).
        num_machines: machines in the run; ``launch`` has to be called on each.
        machine_rank: the number of this machine, from 0.
        dist_url: where the processes meet: ``tcp://host:port``, with the address of machine 0, or ``file:///path``
            on a disk that all share. None or ``"auto"`` takes a free port, on one machine, and keeps it.
        args: for ``main_func``; have to be picklable.
        timeout: how long a process waits for the others.
        device: ``"cuda"``: one GPU each, talking through NCCL; ``"cpu"``: no GPU, talking through gloo; None takes
            the GPUs if there are any.

    Returns:
        What ``main_func`` gave, if it was called in this process; else None.

    Raises:
        ValueError: the numbers, here or in the environment, do not go together, or there are fewer GPUs than processes.
        torch.multiprocessing.ProcessRaisedException: a process failed.
        StoppedBySignal: a ``SystemExit`` with the status of the signal that stopped the processes.
    """
    kind = _kind_of(device)
    place = _place_from_torchrun(kind, num_gpus_per_machine)
    if place is not None:
        _say_whom_it_waits_for(place, f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", _IF_LEFT_OVER)
        return _run(place, "env://", timeout, main_func, args)
    per_machine = max(num_gpus_per_machine, 1)
    _check_numbers(num_machines, machine_rank)
    if per_machine * num_machines == 1:
        return main_func(*args)
    _check_devices(kind, per_machine)
    first_rank, world_size = machine_rank * per_machine, per_machine * num_machines
    with _meeting_point(dist_url, num_machines) as meeting_point:
        if num_machines > 1:
            place = _Place(first_rank, 0, world_size, per_machine, kind)
            _say_whom_it_waits_for(place, str(meeting_point), "each machine has to be started with this --dist-url")
        _start_and_wait(
            per_machine, (first_rank, world_size, per_machine, kind, meeting_point, timeout, main_func, args)
        )
    return None


def launch_from_args(main_func: Callable[..., Any], args: argparse.Namespace, device: str) -> Any:
    """:func:`launch` for the command line of ``default_argument_parser``; ``main_func`` is called with ``args``."""
    return launch(
        main_func,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        device=device,
    )


def _kind_of(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device_kind(device, "the device (MODEL.DEVICE, in Python configs train.device)")
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"processes can be started for devices 'cuda' and 'cpu', not for {device!r}")
    return kind


def _check_numbers(num_machines: int, machine_rank: int) -> None:
    if num_machines < 1:
        raise ValueError(f"--num-machines must be at least 1, got {num_machines}")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank {machine_rank} is not among the {num_machines} machines, whose ranks are 0 to "
            f"{num_machines - 1}"
        )


def _check_devices(kind: str, num_processes: int) -> None:
    available = torch.cuda.device_count()
    if kind == "cuda" and num_processes > available:
        cure = f"use --num-gpus {available}, or set" if available else "set"
        raise ValueError(
            f"--num-gpus {num_processes} asks for {num_processes} GPUs, but torch finds {available or 'none'} on this "
            f"machine; {cure} MODEL.DEVICE cpu (in Python configs train.device=cpu) to run {num_processes} processes "
            "on the CPU"
        )


@contextlib.contextmanager
def _meeting_point(dist_url: str | None, num_machines: int) -> Iterator[str | socket.socket]:
    """An address, or for ``"auto"`` a socket that listens at a free port, which nobody can take from it."""
    if dist_url not in (None, "", "auto"):
        assert dist_url is not None
        _check_url(dist_url)
        if num_machines > 1 and dist_url.startswith("file://"):
            logger.warning("file:// is not reliable between machines; prefer tcp://host:port")
        yield dist_url
        return
    if num_machines > 1:
        raise ValueError(
            "--dist-url auto works on one machine only; for several, give each the same address of machine 0, "
            "as in --dist-url tcp://192.168.0.1:29500"
        )
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        yield listener


def _check_url(url: str) -> None:
    if not url.startswith("tcp://"):
        return
    try:
        parts = urlsplit(url)
        is_right = bool(parts.hostname) and bool(parts.port)
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(f"--dist-url {url} should be tcp://host:port, with a port from 1 to {_HIGHEST_PORT}")


def _say_whom_it_waits_for(place: _Place, where: str, hint: str) -> None:
    """Before the process waits, perhaps in vain, and before there is a log."""
    if place.world_size == 1:
        return
    message = f"rank {place.rank}: waiting for {place.world_size} processes at {where} ({hint})"
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info(message)
    else:
        print(message, file=sys.stderr, flush=True)


def _place_from_torchrun(kind: str, num_gpus: int) -> _Place | None:
    """What the environment says of this process; None if torchrun has not started it."""
    given = [name for name in _VARIABLES_OF_TORCHRUN if os.environ.get(name)]
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(given):
        return None
    missing = [name for name in _VARIABLES_OF_TORCHRUN if name not in given]
    if missing:
        logger.warning(
            f"{', '.join(given)} of the environment do not count, because {', '.join(missing)} of torchrun's variables "
            f"are not set: this is taken for no part of a greater run, and --num-gpus {num_gpus} for what is wanted. "
            "Unset the first, or set the others too"
        )
        return None
    world_size = _number_in_environment("WORLD_SIZE", 1)
    rank = _number_in_environment("RANK", 0, world_size - 1, "WORLD_SIZE")
    local_size = None
    if os.environ.get("LOCAL_WORLD_SIZE"):
        local_size = _number_in_environment("LOCAL_WORLD_SIZE", 1, world_size, "WORLD_SIZE")
    limit = "LOCAL_WORLD_SIZE" if local_size else "WORLD_SIZE"
    local_rank = _number_in_environment("LOCAL_RANK", 0, (local_size or world_size) - 1, limit)
    _number_in_environment("MASTER_PORT", 1, _HIGHEST_PORT)
    if num_gpus > 1 and num_gpus != (local_size or world_size):
        logger.warning(
            f"--num-gpus {num_gpus} does not count: torchrun has started {local_size or world_size} processes"
        )
    return _Place(rank, local_rank, world_size, local_size, kind)


def _number_in_environment(name: str, lowest: int, highest: int | None = None, limit: str = "") -> int:
    """A variable of the environment.

    Args:
        name: of the variable.
        lowest, highest: that make sense.
        limit: the variable that ``highest`` follows from.
    """
    text = os.environ[name]
    number = int(text) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) else None
    if number is not None and lowest <= number and (highest is None or number <= highest):
        return number
    span = f"a number from {lowest} to {highest}" if highest is not None else f"a number from {lowest} on"
    reason = f" (as {limit} is {os.environ[limit]})" if limit else ""
    raise ValueError(
        f"the environment's {name} should be {span}{reason}, it is {text!r}: start the run with torchrun, which sets "
        f"it, or if it is left over from another program, unset {', '.join(_VARIABLES_OF_TORCHRUN)}"
    )


# ------------------------------------------------------------------------------------------------ started processes


def _start_and_wait(num_processes: int, args: tuple[Any, ...]) -> None:
    """Start processes that run :func:`_child`, pass signals on to them, and wait until all have ended."""
    children = _Children()
    try:
        with Signals(children.pass_on):
            children.start(num_processes, args)
            while not children.join():
                pass
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
        if getattr(error, "exit_code", None) == 128 + signal.SIGTERM:
            # It came to this process and was passed on, or to one of them, and they have agreed.
            children.signal_number = children.signal_number or signal.SIGTERM
        elif children.signal_number:
            logger.warning(f"when it was stopped: {str(error).strip().splitlines()[-1]}")
        else:
            raise
    finally:
        children.end()
    if children.signal_number:
        raise stopping(children.signal_number)


class _Children:
    """The processes that this one has started.

    Attributes:
        signal_number: of the signal that has been passed on, or 0.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._context: mp.ProcessContext | None = None

    def start(self, num_processes: int, args: tuple[Any, ...]) -> None:
        # They inherit that Ctrl-C, which a terminal sends to them too, is left to this process.
        handler = signal.getsignal(signal.SIGINT)
        is_main_thread = threading.current_thread() is threading.main_thread()
        if is_main_thread:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with children_wait_asleep():
                self._context = mp.start_processes(_child, args, nprocs=num_processes, join=False, start_method="spawn")
        finally:
            if is_main_thread:
                signal.signal(signal.SIGINT, handler)
        if self.signal_number:
            self._terminate()

    def pass_on(self, signal_number: int, is_repeated: bool) -> None:
        """What the signals call."""
        if is_repeated:
            raise stopping(signal_number)
        self.signal_number = signal_number
        self._terminate()

    def join(self) -> bool:
        """Wait a moment; whether all have ended, well. When one has failed, the others are ended."""
        assert self._context is not None
        return self._context.join(
            timeout=0.5, grace_period=_SECONDS_TO_STOP if self.signal_number else _SECONDS_TO_FAIL
        )

    def end(self) -> None:
        """Leave none behind."""
        self._terminate()
        for process in self._processes:
            process.join(_SECONDS_TO_FAIL)
            if process.is_alive():
                process.kill()
                process.join()
        # Through them torch is told of failures; it leaves them.
        for error_file in getattr(self._context, "error_files", ()):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(error_file)

    @property
    def _processes(self) -> list[Any]:
        return self._context.processes if self._context is not None else []

    def _terminate(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.terminate()


def _child(
    local_rank: int,
    first_rank: int,
    world_size: int,
    per_machine: int,
    kind: str,
    meeting_point: str | socket.socket,
    timeout: timedelta,
    main_func: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    """The start of a process; torch gives it its number on this machine."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if kind == "cpu":
        _share_cores(per_machine)
    place = _Place(first_rank + local_rank, local_rank, world_size, per_machine, kind)
    try:
        _run(place, meeting_point, timeout, main_func, args)
    except Exception:
        if not _is_orphan():
            raise
        # Torch would leave a file with the traceback, for a parent that reads it no more.
        logger.exception("this process stops, as the one that started it has gone:")
        sys.exit(1)


def _is_orphan() -> bool:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Not by its number: Windows does not tell when the parent has ended.
    return not parent.is_alive()


def _end_with_parent() -> None:
    """Stop this process as a signal does when its parent has gone without a word, and a while later in any case."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if os.name == "nt":
        # There, os.kill would end the process without its handler.
        signal.raise_signal(signal.SIGTERM)
    else:
        # To the process, so that the main thread need not wake up by itself.
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_STOP)
    os._exit(128 + signal.SIGTERM)


def _share_cores(num_processes: int) -> None:
    """Each process would otherwise use all cores, and they would get in each other's way."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // num_processes, 1))


def _run(
    place: _Place,
    meeting_point: str | socket.socket,
    timeout: timedelta,
    main_func: Callable[..., Any],
    args: Sequence[Any],
) -> Any:
    """Join the other processes, call the function, and leave."""
    if place.device == "cuda":
        _check_devices("cuda", place.local_rank + 1)
        torch.cuda.set_device(place.local_rank)
    _meet(place, meeting_point, timeout)
    comm.create_local_process_group(place.processes_per_machine or _count_on_this_machine())
    comm.synchronize()
    try:
        result = main_func(*args)
    except StoppedBySignal as stopped:
        if stopped.on_all_ranks:
            dist.destroy_process_group()
        raise
    # Not after a failure: taking a group down can wait for ranks that wait for this one.
    dist.destroy_process_group()
    return result


def _meet(place: _Place, meeting_point: str | socket.socket, timeout: timedelta) -> None:
    """Wait for the other processes, at an address or where a socket listens."""
    url: str | None = None
    store: dist.Store | None = None
    if isinstance(meeting_point, str):
        url = meeting_point
    else:
        store = _store_at(meeting_point, place, timeout)
    try:
        dist.init_process_group(
            backend="nccl" if place.device == "cuda" else "gloo",
            init_method=url,
            store=store,
            world_size=place.world_size,
            rank=place.rank,
            timeout=timeout,
        )
    except Exception:
        logger.error(f"rank {place.rank} of {place.world_size} could not meet the others at {url or 'their port'}")
        raise


def _store_at(listener: socket.socket, place: _Place, timeout: timedelta) -> dist.Store:
    """What the processes exchange their addresses through; rank 0 holds it, behind a socket that it has inherited."""
    host, port = listener.getsockname()[:2]
    descriptor = None
    if place.rank == 0:
        descriptor = listener.detach()
    else:
        listener.close()
    return dist.TCPStore(
        host, port, place.world_size, place.rank == 0, timeout, wait_for_workers=False, master_listen_fd=descriptor
    )


def _count_on_this_machine() -> int:
    """Processes of the run that are here; all ranks must call it."""
    return comm.all_gather(socket.gethostname()).count(socket.gethostname())
