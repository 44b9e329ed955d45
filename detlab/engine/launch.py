"""Starting the processes of a run: one for each GPU, or several on the CPU; or joining those of torchrun."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detlab.utils import comm
from detlab.utils.devices import device_kind

__all__ = ["DEFAULT_TIMEOUT", "launch", "launch_from_args"]

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)


class _Place(NamedTuple):
    """Where one process stands in a run."""

    rank: int
    local_rank: int
    world_size: int
    processes_per_machine: int
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

    With one process in all it is called right here. Under torchrun (``RANK`` and ``WORLD_SIZE`` in the environment)
    this process joins the others that torchrun has started, and the numbers given here do not count. Otherwise this
    machine's processes are started; when one fails, the others are stopped and its traceback is raised here.

    Args:
        main_func: at the top level of a module, as started processes have to find it.
        num_gpus_per_machine: processes on each machine, each with a GPU of its own (or on the CPU).
        num_machines: machines in the run; ``launch`` has to be called on each.
        machine_rank: the number of this machine, from 0.
        dist_url: where the processes meet: ``tcp://host:port``, with the address of machine 0, or ``file:///path``
            on a disk that all share. None or ``"auto"`` takes a free port, on one machine.
        args: for ``main_func``; have to be picklable.
        timeout: how long a process waits for the others.
        device: ``"cuda"``: one GPU each, talking through NCCL; ``"cpu"``: no GPU, talking through gloo; None takes
            the GPUs if there are any.

    Returns:
        What ``main_func`` gave, if it was called in this process; else None.

    Raises:
        ValueError: the numbers do not go together, or there are fewer GPUs than processes.
        torch.multiprocessing.ProcessRaisedException: a process failed.
    """
    kind = _kind_of(device)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        place = _place_from_torchrun(kind)
        return _run(place, "env://", timeout, main_func, args)
    per_machine = max(num_gpus_per_machine, 1)
    _check_numbers(num_machines, machine_rank)
    if per_machine * num_machines == 1:
        return main_func(*args)
    _check_devices(kind, per_machine)
    url = _meeting_point(dist_url, num_machines)
    mp.spawn(
        _child,
        args=(machine_rank * per_machine, per_machine * num_machines, per_machine, kind, url, timeout, main_func, args),
        nprocs=per_machine,
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


def _meeting_point(dist_url: str | None, num_machines: int) -> str:
    if dist_url in (None, "", "auto"):
        if num_machines > 1:
            raise ValueError(
                "--dist-url auto works on one machine only; for several, give each the same address of machine 0, "
                "as in --dist-url tcp://192.168.0.1:29500"
            )
        return f"tcp://127.0.0.1:{_free_port()}"
    assert dist_url is not None
    if num_machines > 1 and dist_url.startswith("file://"):
        logger.warning("file:// is not reliable between machines; prefer tcp://host:port")
    return dist_url


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _place_from_torchrun(kind: str) -> _Place:
    world_size = int(os.environ["WORLD_SIZE"])
    rank = int(os.environ["RANK"])
    return _Place(
        rank=rank,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        world_size=world_size,
        processes_per_machine=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        device=kind,
    )


def _child(
    local_rank: int,
    first_rank: int,
    world_size: int,
    per_machine: int,
    kind: str,
    url: str,
    timeout: timedelta,
    main_func: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    """The start of a process; ``mp.spawn`` gives it its number on this machine."""
    if kind == "cpu":
        _share_cores(per_machine)
    place = _Place(first_rank + local_rank, local_rank, world_size, per_machine, kind)
    _run(place, url, timeout, main_func, args)


def _share_cores(num_processes: int) -> None:
    """Each process would otherwise use all cores, and they would get in each other's way."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // num_processes, 1))


def _run(place: _Place, url: str, timeout: timedelta, main_func: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Join the other processes, call the function, and leave."""
    if place.device == "cuda":
        _check_devices("cuda", place.local_rank + 1)
        torch.cuda.set_device(place.local_rank)
    try:
        dist.init_process_group(
            backend="nccl" if place.device == "cuda" else "gloo",
            init_method=url,
            world_size=place.world_size,
            rank=place.rank,
            timeout=timeout,
        )
    except Exception:
        logger.error(f"rank {place.rank} of {place.world_size} could not meet the others at {url}")
        raise
    comm.create_local_process_group(place.processes_per_machine)
    comm.synchronize()
    result = main_func(*args)
    # Not after a failure: taking a group down can wait for ranks that wait for this one.
    dist.destroy_process_group()
    return result
