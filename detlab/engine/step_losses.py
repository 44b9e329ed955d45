"""The losses of training steps: on their way to the host, compared between the ranks, checked and written.

A rank is one process of a distributed run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detlab.engine import interruption
from detlab.utils import comm
from detlab.utils.events import get_event_storage

__all__ = ["StepLosses", "write_metrics"]


class _Record(NamedTuple):
    """The losses of one step, perhaps still on their way to the host."""

    iteration: int
    names: list[str]
    values: Tensor  # (number of losses,), float32 on the CPU; not to be read before `arrived`
    arrived: torch.cuda.Event | None
    data_time: float
    learning_rates: list[float]
    images: list[str]


class _StepMetrics(NamedTuple):
    """What the ranks exchange about one step."""

    iteration: int
    losses: dict[str, float]
    data_time: float

    @property
    def total(self) -> float:
        return sum(self.losses.values())

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.total)


class StepLosses:
    """The losses of steps that were not looked at yet.

    Looking at them waits for the device; so :meth:`note` sends them to the host at once, and :meth:`look` comes later:
    after the backward pass, or after later steps, was given to the device.
    """

    def __init__(self) -> None:
        self._records: list[_Record] = []

    def __len__(self) -> int:
        return len(self._records)

    def note(
        self,
        iteration: int,
        losses: Mapping[str, Tensor],
        *,
        data_time: float,
        learning_rates: Sequence[float],
        batch: Any,
    ) -> None:
        """Remember the losses of a step, and send them to the host without waiting.

        Args:
            iteration: the one that they belong to.
            losses: of one element each, by name.
            data_time: seconds spent waiting for data.
            learning_rates: in use, to be told if a loss is not finite.
            batch: whose images are named if a loss is not finite.

        Raises:
            ValueError: there is no loss, or one has more than one element.
        """
        if not losses:
            raise ValueError(f"the model gave no losses in iteration {iteration}; it should give a dict of them")
        values, arrived = _send_to_host(_stack_scalars(losses))
        images = _names_of_images(batch)
        self._records.append(_Record(iteration, list(losses), values, arrived, data_time, [*learning_rates], images))

    def look(self, keep: int = 0, write: Callable[..., None] | None = None) -> None:
        """Check and write the losses of all steps noted so far but the last ``keep``; all ranks must call it.

        Args:
            keep: steps at the end that stay noted.
            write: called for each step with ``(losses of this rank, data_time, iter=iteration)``, in place of writing
                the means over the ranks as :func:`write_metrics` does.

        Raises:
            FloatingPointError: on every rank, if a loss of any rank is not finite.
        """
        count = len(self._records) - keep
        if count <= 0:
            return
        records, self._records = self._records[:count], self._records[count:]
        of_ranks = _exchange([_arrived_metrics(record) for record in records])
        for step, record in enumerate(records):
            metrics = [steps[step] for steps in of_ranks]
            if not all(m.is_finite for m in metrics):
                raise FloatingPointError(_describe_failure(metrics, comm.all_gather(record.images), record))
            if write is None:
                _put_metrics(metrics)
            else:
                write(dict(zip(record.names, record.values)), record.data_time, iter=record.iteration)

    def check_own(self) -> None:
        """Wait for all that were noted, without a word to other ranks.

        Raises:
            FloatingPointError: one of this rank is not finite.
        """
        for record in self._records:
            metrics = _arrived_metrics(record)
            if not metrics.is_finite:
                raise FloatingPointError(_describe_failure([metrics], [record.images], record))

    def forget(self) -> None:
        """Drop what was noted, as that of a step which failed."""
        self._records = []


def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
    """Average losses over the ranks and put them into the open event storage; all ranks must call it.

    Args:
        loss_dict: scalar losses by name.
        data_time: seconds spent waiting for data; the largest of all ranks is put.
        cur_iter: the iteration that these belong to.
        prefix: goes before the names of the losses.

    Raises:
        FloatingPointError: on every rank, if a loss of any rank is not finite.
    """
    values = _stack_scalars(loss_dict).tolist()
    of_ranks = [steps[0] for steps in _exchange([_StepMetrics(cur_iter, dict(zip(loss_dict, values)), data_time)])]
    if not all(m.is_finite for m in of_ranks):
        raise FloatingPointError("\n".join(_describe_losses(of_ranks)))
    _put_metrics(of_ranks, prefix)


def _stack_scalars(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses as one (number of losses,) float32 tensor without gradient.

    Raises:
        ValueError: a loss has more than one element.
    """
    values = []
    for name, loss in losses.items():
        value = torch.as_tensor(loss).detach()
        if value.numel() != 1:
            raise ValueError(f"loss {name!r} has shape {tuple(value.shape)}; each loss must be one number")
        values.append(value.float().reshape(()))
    devices = {value.device for value in values}
    return torch.stack(values if len(devices) == 1 else [value.cpu() for value in values])


def _send_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values on the CPU; if they come from a GPU, they are there when the event has happened.

    The event stands behind the forward pass only: whoever waits for it leaves the backward pass running.
    """
    if values.device.type != "cuda":
        return values.cpu(), None
    on_host = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived


def _arrived_metrics(record: _Record) -> _StepMetrics:
    """Wait for the losses of a step."""
    if record.arrived is not None:
        record.arrived.synchronize()
    return _StepMetrics(record.iteration, dict(zip(record.names, record.values.tolist())), record.data_time)


# Losses of a step that fit into the table which the ranks exchange.
_MAX_TABLE_LOSSES = 30


def _exchange(own: list[_StepMetrics]) -> list[list[_StepMetrics]]:
    """What each rank has noted of the same steps, in order of rank; all ranks must call it.

    One exchange of numbers, if all ranks have losses of the same names, as they nearly always do. It also tells the
    ranks of signals that ask for an end, which must not come in different steps.
    """
    if comm.get_world_size() == 1:
        return [own]
    tables = comm.all_gather_tensor(torch.tensor([_table_row(step) for step in own], dtype=torch.float64))
    interruption.share_signals(tables[:, :, 1].flatten().tolist())
    checksums = tables[:, :, 0]
    if (checksums < 0).any() or (checksums != checksums[0]).any():
        return comm.all_gather(own)
    return [[_from_table_row(step, row) for step, row in zip(own, table.tolist())] for table in tables]


def _table_row(step: _StepMetrics) -> list[float]:
    """A checksum of the names (-1 if too many losses), a signal that has come or 0, the data time, and the losses."""
    values = list(step.losses.values())[:_MAX_TABLE_LOSSES]
    checksum = -1 if len(step.losses) > _MAX_TABLE_LOSSES else zlib.crc32("\n".join(step.losses).encode())
    return [checksum, interruption.own_signal(), step.data_time, *values, *[0.0] * (_MAX_TABLE_LOSSES - len(values))]


def _from_table_row(own: _StepMetrics, row: list[float]) -> _StepMetrics:
    """Another rank's metrics, whose losses have the names of ours."""
    return _StepMetrics(own.iteration, dict(zip(own.losses, row[3:])), row[2])


def _put_metrics(of_ranks: Sequence[_StepMetrics], prefix: str = "") -> None:
    """Put the mean losses of one step and the longest wait for data into the storage; rank 0 only."""
    if not comm.is_main_process():
        return
    iteration = of_ranks[0].iteration
    names = of_ranks[0].losses
    means = {name: sum(m.losses.get(name, 0.0) for m in of_ranks) / len(of_ranks) for name in names}
    storage = get_event_storage()
    storage.put_scalar("data_time", max(m.data_time for m in of_ranks), cur_iter=iteration)
    storage.put_scalar(f"{prefix}total_loss", sum(m.total for m in of_ranks) / len(of_ranks), cur_iter=iteration)
    for name, mean in means.items():
        if name != "total_loss":
            storage.put_scalar(prefix + name, mean, cur_iter=iteration)


def _names_of_images(batch: Any) -> list[str]:
    """What identifies the images of a batch of dicts: file names, or else ids; empty for other batches."""
    if not isinstance(batch, Sequence):
        return []
    items = [item for item in batch if isinstance(item, Mapping)]
    return [str(item.get("file_name", item.get("image_id", "?"))) for item in items]


def _describe_losses(of_ranks: Sequence[_StepMetrics]) -> list[str]:
    """A headline and a line for each rank."""
    lines = [f"a loss is not finite in iteration {of_ranks[0].iteration}; training stops"]
    for rank, metrics in enumerate(of_ranks):
        where = f"rank {rank}: " if len(of_ranks) > 1 else ""
        lines.append(where + "losses: " + ", ".join(f"{name} = {value}" for name, value in metrics.losses.items()))
    return lines


def _describe_failure(
    of_ranks: Sequence[_StepMetrics], images_of_ranks: Sequence[Sequence[str]], record: _Record
) -> str:
    """The whole story of a loss that is not finite."""
    lines = _describe_losses(of_ranks)
    rates = sorted({float(rate) for rate in record.learning_rates})
    lines.append("learning rate: " + ", ".join(f"{rate:.6g}" for rate in rates))
    for rank, images in enumerate(images_of_ranks):
        if not of_ranks[rank].is_finite:
            where = f" of rank {rank}" if len(of_ranks) > 1 else ""
            lines.append(f"images of the batch{where}: " + (", ".join(images) or "unknown (the batch names none)"))
    lines.append(
        "the usual cures: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, SOLVER.CLIP_GRADIENTS.ENABLED True, "
        "or a look at the annotations of these images"
    )
    return "\n".join(lines)
