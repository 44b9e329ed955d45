"""What the processes of a distributed run tell each other.

Every function also works, trivially, in a run of one process. W is the number of processes (the world size), a rank is
a process's number in ``[0, W)``. Functions that "all ranks must call" wait for the others.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather",
    "all_gather_tensor",
    "all_reduce_mean",
    "broadcast",
    "create_local_process_group",
    "gather",
    "get_local_process_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]


class _DerivedGroup:
    """A process group made for the current world; forgotten when that world is torn down."""

    def __init__(self) -> None:
        self._group: Any = None
        self._world: Any = None

    def get(self) -> Any:
        return self._group if self._world is not None and self._world is _world_or_none() else None

    def set(self, group: Any) -> Any:
        self._group, self._world = group, dist.group.WORLD
        return group


_local_group = _DerivedGroup()
_cpu_group = _DerivedGroup()


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()


def _world_or_none() -> Any:
    return dist.group.WORLD if _is_running() else None


def get_world_size() -> int:
    """W; 1 without a distributed run."""
    return dist.get_world_size() if _is_running() else 1


def get_rank() -> int:
    """This process's rank; 0 without a distributed run."""
    return dist.get_rank() if _is_running() else 0


def is_main_process() -> bool:
    """Whether this is rank 0, the one that writes files and talks."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Makes the group of the processes that share a machine; all ranks must call it, once, with the same value.

    Args:
        num_workers_per_machine: processes on each machine; ranks are numbered machine by machine.

    Raises:
        ValueError: W is not a multiple of ``num_workers_per_machine``.
    """
    world_size = get_world_size()
    if num_workers_per_machine < 1 or world_size % num_workers_per_machine:
        raise ValueError(f"{world_size} processes cannot be divided into machines of {num_workers_per_machine}")
    if not _is_running():
        return
    own_machine = get_rank() // num_workers_per_machine
    for machine in range(world_size // num_workers_per_machine):
        first = machine * num_workers_per_machine
        # Each process has to take part in making every group, its own or not.
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == own_machine:
            _local_group.set(group)


def get_local_process_group() -> Any:
    """The group of the processes on this machine (None without a distributed run).

    Raises:
        RuntimeError: :func:`create_local_process_group` was not called for this run.
    """
    group = _local_group.get()
    if group is None and _is_running():
        raise RuntimeError(
            "the processes of this machine have no group yet: start the run with detlab.engine.launch, or call "
            "detlab.utils.comm.create_local_process_group(processes_per_machine) in every process"
        )
    return group


def get_local_rank() -> int:
    """This process's number on its machine; 0 without a distributed run."""
    if _local_group.get() is not None:
        return dist.get_rank(group=_local_group.get())
    return _from_torchrun("LOCAL_RANK", otherwise=get_rank()) if _is_running() else 0


def get_local_size() -> int:
    """Processes on this machine; 1 without a distributed run."""
    if _local_group.get() is not None:
        return dist.get_world_size(group=_local_group.get())
    return _from_torchrun("LOCAL_WORLD_SIZE", otherwise=get_world_size()) if _is_running() else 1


def _from_torchrun(variable: str, otherwise: int) -> int:
    """What torchrun says of this machine; without it, all processes are taken to be on one."""
    return int(os.environ.get(variable, otherwise))


def synchronize() -> None:
    """Waits until all ranks have come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == "nccl":
        # Without the device, NCCL guesses it from the rank, which is wrong on the second machine.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _get_cpu_group() -> Any:
    """A group of all ranks that moves CPU memory, whatever the backend of the run is."""
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    return _cpu_group.get() or _cpu_group.set(dist.new_group(backend="gloo"))


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Every rank's ``data``, on every rank, in order of rank; all ranks must call it.

    Args:
        data: anything that can be pickled; it travels through CPU memory.
        group: the processes that take part; all by default.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _get_cpu_group()
    gathered: list[Any] = [None] * dist.get_world_size(group)
    if len(gathered) == 1:
        return [data]
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Every rank's ``data`` on rank ``dst``, in order of rank, and an empty list elsewhere; all ranks must call it.

    Args:
        data: anything that can be pickled; it travels through CPU memory.
        dst: the rank, counted over all processes, that receives.
        group: the processes that take part; all by default.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _get_cpu_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    gathered: list[Any] | None = [None] * size if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def broadcast(data: Any, src: int = 0) -> Any:
    """Rank ``src``'s ``data``, on all ranks; all ranks must call it.

    Args:
        data: anything that can be pickled; it travels through CPU memory. Only rank ``src``'s matters.
        src: the rank that sends.
    """
    if get_world_size() == 1:
        return data
    holder = [data]
    dist.broadcast_object_list(holder, src=src, group=_get_cpu_group())
    return holder[0]


def shared_random_seed() -> int:
    """A random number in ``[0, 2**31)`` that is the same on all ranks; all ranks must call it.

    It is rank 0's draw from numpy's global generator.
    """
    return broadcast(int(np.random.randint(2**31)))


def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Sums or averages tensors of the same names over the ranks; all ranks must call it.

    Args:
        input_dict: tensors of one shape and device, the same names on every rank.
        average: divide the sums by W.

    Returns:
        The reduced tensors, without gradient. They are meaningful on rank 0 only. With one process, ``input_dict``
        itself.
    """
    world_size = get_world_size()
    if world_size == 1 or not input_dict:
        return input_dict
    # Ranks may have filled their dicts in different orders.
    names = sorted(input_dict)
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0, group=_group_for(values))
        if average and get_rank() == 0:
            values = values / world_size
    return dict(zip(names, values))


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, on all ranks, without gradient; all ranks must call it.

    Args:
        value: of the same shape and dtype on every rank. Integers are averaged as float32.

    Returns:
        A new tensor on the device of ``value``; with one process, ``value`` itself.
    """
    world_size = get_world_size()
    if world_size == 1:
        return value
    total = value.detach().clone() if value.is_floating_point() else value.float()
    with torch.no_grad():
        dist.all_reduce(total, group=_group_for(total))
    return total / world_size


def all_gather_tensor(value: Tensor) -> Tensor:
    """Every rank's tensor, on every rank, in order of rank, without gradient; all ranks must call it.

    Quicker than :func:`all_gather`, which has to find out first how much there is to send.

    Args:
        value: of the same shape and dtype on every rank.

    Returns:
        (W, *shape), on the device of ``value``.
    """
    if get_world_size() == 1:
        return value.detach()[None]
    gathered = [torch.empty_like(value) for _ in range(get_world_size())]
    dist.all_gather(gathered, value.detach().contiguous(), group=_group_for(value))
    return torch.stack(gathered)


def _group_for(tensor: Tensor) -> Any:
    """All ranks, through a backend that can move this tensor."""
    return _get_cpu_group() if tensor.device.type == "cpu" else dist.group.WORLD
