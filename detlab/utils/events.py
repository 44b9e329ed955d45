"""What a training run measures, and the writers that put it on the console, in a file or in TensorBoard.

Code anywhere below a ``with EventStorage(start):`` block logs by name; writers read the storage every few iterations.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import glob
import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from detlab.utils.file_io import AppendedText, PathManager
from detlab.utils.folder_watch import before_writing, follow
from detlab.utils.optional import require

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
    "log_scalar",
    "log_scalars",
]

# By the thread that opened them, the innermost last; a thread without any has no entry.
_open_storages: dict[int, list[EventStorage]] = {}


def _current_storage() -> EventStorage | None:
    """This thread's innermost storage, or that of the only thread that has any.

    The second is for threads of the one that trains: autograd's, which run backward hooks, or ``DataParallel``'s.
    """
    own = _open_storages.get(threading.get_ident())
    if own is None:
        others = list(_open_storages.values())
        own = others[0] if len(others) == 1 else None
    return own[-1] if own else None


def get_event_storage() -> EventStorage:
    """The storage of the innermost ``with EventStorage(...)`` block that is open in this thread.

    A thread without one takes that of the thread which has, if it is the only one: two trainings in two threads do not
    write into each other's.

    Raises:
        RuntimeError: none is open. Library code that may run without one uses :func:`log_scalars`.
    """
    storage = _current_storage()
    if storage is None:
        raise RuntimeError("no event storage is open: call this inside `with EventStorage(start_iter) as storage:`")
    return storage


def has_event_storage() -> bool:
    """Whether a storage is open."""
    return _current_storage() is not None


def log_scalar(name: str, value: float | Tensor) -> None:
    """Puts one scalar into the open storage; does nothing when none is open."""
    storage = _current_storage()
    if storage is not None:
        storage.put_scalar(name, value)


def log_scalars(**values: float | Tensor) -> None:
    """Puts scalars into the open storage; does nothing when none is open."""
    storage = _current_storage()
    if storage is not None:
        for name, value in values.items():
            storage.put_scalar(name, value)


class _PutScalar(NamedTuple):
    """A scalar as it was put: a tensor still lies on its accelerator."""

    name: str
    value: float | Tensor
    iteration: int


# Bounds what a run that nobody reads keeps on the accelerator.
MAX_UNREAD_SCALARS = 10_000


class EventStorage:
    """Scalars, images and histograms of a run, by name and iteration.

    A scalar on an accelerator is not waited for when it is put; it is fetched, together with all the others, when
    somebody reads.

    Args:
        start_iter: the iteration that the run starts from.
    """

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._unread: list[_PutScalar] = []
        self._iter = start_iter
        self._prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_scalar(
        self, name: str, value: float | Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Adds a value to the history of ``name``.

        Args:
            name: for example ``"loss_cls"``; a ``/`` makes groups in TensorBoard.
            value: a number, or a tensor of one element.
            smoothing_hint: whether writers should show a median over their window rather than the last value. It
                must stay the same for a name.
            cur_iter: the iteration that the value belongs to; the current one by default.
        """
        name = self._prefix + name
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"scalar {name!r} was put with smoothing_hint={not smoothing_hint} before; keep to one")
        if isinstance(value, Tensor) and value.device.type != "cpu":
            # A copy, since the caller may go on to write into its tensor.
            value = value.detach().reshape(()).clone()
        else:
            value = value.item() if isinstance(value, Tensor) else float(value)
        self._unread.append(_PutScalar(name, value, self._iter if cur_iter is None else cur_iter))
        if len(self._unread) >= MAX_UNREAD_SCALARS:
            self._read_all()

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float | Tensor
    ) -> None:
        """:meth:`put_scalar` for each keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def _read_all(self) -> None:
        """Moves what was put into the histories, with one wait for each accelerator."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        on_device: dict[torch.device, list[int]] = defaultdict(list)
        for position, scalar in enumerate(unread):
            if isinstance(scalar.value, Tensor):
                on_device[scalar.value.device].append(position)
        values = [scalar.value for scalar in unread]
        for positions in on_device.values():
            fetched = torch.stack([torch.as_tensor(values[i]).float() for i in positions]).tolist()
            for position, value in zip(positions, fetched):
                values[position] = value
        for (name, _, iteration), value in zip(unread, values):
            number = float(value)
            self._history[name].update(number, iteration)
            self._latest[name] = (number, iteration)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keeps an image for the writers.

        Args:
            img_name: its title.
            img_tensor: (3, H, W) tensor or array, uint8 in [0, 255] or float in [0, 1], RGB.
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Keeps the histogram of a tensor's values for the writers.

        Args:
            hist_name: its title.
            hist_tensor: any shape, at least one element.
            bins: equal bins between the least and the greatest value.
        """
        values = hist_tensor.detach().float().flatten()
        lowest, highest = values.min().item(), values.max().item()
        edges = torch.linspace(lowest, highest, steps=bins + 1)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": lowest,
                "max": highest,
                "num": values.numel(),
                "sum": values.sum().item(),
                "sum_squares": values.square().sum().item(),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(values, bins=bins, min=lowest, max=highest).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """The values put as ``name``, each with its iteration.

        Raises:
            KeyError: nothing was put under this name.
        """
        histories = self.histories()
        if name not in histories:
            raise KeyError(f"no scalar {name!r} was put; known: {', '.join(sorted(histories)) or 'none'}")
        return histories[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All histories by name."""
        self._read_all()
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """For each name the last value and its iteration."""
        self._read_all()
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As :meth:`latest`, with the median over the window in place of the last value where its hint allows."""
        return {
            name: (self._smoothed(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self.latest().items()
        }

    def _smoothed(self, name: str, window_size: int) -> float:
        return float(self._history[name].median(self.count_samples(name, window_size)))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many of a scalar's values fall into its last ``window_size`` iterations."""
        values = self.history(name).values()
        first = values[-1][1] - window_size + 1
        count = 0
        while count < len(values) and values[-1 - count][1] >= first:
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """The hint given for each name."""
        return self._smoothing_hints

    def step(self) -> None:
        """Moves on to the next iteration; the trainer calls it at the end of each."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration, counted from 0 over the whole run, resumed parts included."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The same as :attr:`iter`."""
        return self._iter

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Inside, names of scalars get the prefix ``name/``."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def clear_images(self) -> None:
        """Forgets the images; writers do this when they have written them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forgets the histograms; writers do this when they have written them."""
        self._histograms = []

    def __enter__(self) -> EventStorage:
        _open_storages.setdefault(threading.get_ident(), []).append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        own = _open_storages.get(threading.get_ident(), [])
        assert own and own[-1] is self, "event storages must be closed in the reverse order of opening"
        own.pop()
        if not own:
            del _open_storages[threading.get_ident()]


class EventWriter:
    """Takes events out of the open :class:`EventStorage` and puts them somewhere."""

    def write(self) -> None:
        """Writes what is new since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases files. A later :meth:`write` opens them again, for another run that begins where it wants."""


class _NewScalars:
    """Remembers up to which iteration the values of each scalar were handed out.

    One iteration for all of them would lose what is put after the writer has written: by a hook that runs later, or
    for an iteration that others have passed already.
    """

    def __init__(self) -> None:
        self._seen_until: dict[str, int] = {}

    def take(self, storage: EventStorage, window_size: int) -> dict[str, tuple[float, int]]:
        """The (smoothed) scalars that have a value of a later iteration than the one seen before."""
        latest = storage.latest_with_smoothing_hint(window_size)
        fresh = {name: entry for name, entry in latest.items() if entry[1] > self._seen_until.get(name, -1)}
        self._seen_until.update((name, iteration) for name, (_, iteration) in fresh.items())
        return fresh


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object in a line for each iteration that has any.

    ``{"iteration": 19, "loss_cls": 0.7, "lr": 0.01, ...}``. Several runs may append to one file. What is put after the
    row of its iteration was written gets another row with the same iteration. What a row of an earlier run near the end
    of the file says already is not repeated.

    Args:
        json_file: path of the file.
        window_size: iterations to take the median over, for scalars that allow smoothing.
    """

    def __init__(self, json_file: str, window_size: int = 20):
        self._path = json_file
        self._window_size = window_size
        self._file = self._open()

    def _open(self) -> AppendedText:
        end = _end_of_file(self._path)
        self._rows_before = _rows_of(end)
        self._new_scalars = _NewScalars()
        file = AppendedText(self._path)
        follow(file)
        if end and not end.endswith(b"\n"):
            # An earlier run was killed in the middle of a line.
            file.write("\n")
        return file

    def write(self) -> None:
        if self._file.closed:
            self._file = self._open()
        before_writing(self._file.path)
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in self._new_scalars.take(get_event_storage(), self._window_size).items():
            rows[iteration][name] = value
        for iteration in sorted(rows):
            row = {**rows[iteration], "iteration": iteration}
            if not any(_entries(row) <= earlier for earlier in self._rows_before.get(iteration, ())):
                self._file.write(json.dumps(row, sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


# Hundreds of rows: more than a run that is resumed does again.
_BYTES_LOOKED_AT = 2**18


def _end_of_file(path: str) -> bytes:
    """Its last bytes; none if there is no such file."""
    if not PathManager.isfile(path):
        return b""
    with PathManager.open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - _BYTES_LOOKED_AT, 0))
        return file.read()


def _rows_of(end: bytes) -> dict[int, list[frozenset[tuple[str, str]]]]:
    """The entries of the rows of each iteration; lines that are no rows are left out."""
    rows = defaultdict(list)
    for line in end.splitlines():
        try:
            row = json.loads(line)
            rows[row["iteration"]].append(_entries(row))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return dict(rows)


def _entries(row: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    # As text, in which not-a-number equals itself.
    return frozenset((name, repr(value)) for name, value in row.items())


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard.

    Args:
        log_dir: directory of the event files.
        window_size: iterations to take the median over, for scalars that allow smoothing.
        kwargs: for ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        require("tensorboard", extra="tensorboard", purpose="writing TensorBoard event files")
        from torch.utils.tensorboard import SummaryWriter

        folder = log_dir if "://" in log_dir else os.path.abspath(log_dir)
        self.path = os.path.join(folder, "events.out.tfevents")
        self._open = functools.partial(SummaryWriter, folder, **kwargs)
        self._writer = self._open()
        self._is_closed = False
        self._window_size = window_size
        self._new_scalars = _NewScalars()
        follow(self)

    def reopen_if_gone(self) -> bool:
        """Begin another event file if none of this process's is in the directory any more; whether that was so."""
        if self._is_closed or "://" in self.path or glob.glob(f"{glob.escape(self.path)}.*.{os.getpid()}.*"):
            return False
        with contextlib.suppress(OSError):
            # It may be that its thread has met the missing directory.
            self._writer.close()
        self._writer = self._open()
        return True

    def write(self) -> None:
        # A writer that was closed opens a new file by itself.
        self._is_closed = False
        before_writing(self.path)
        storage = get_event_storage()
        for name, (value, iteration) in self._new_scalars.take(storage, self._window_size).items():
            self._writer.add_scalar(name, value, iteration)
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()
        # A thread writes, by the path: it must not come to that when the directory is another one.
        self._writer.flush()

    def close(self) -> None:
        self._is_closed = True
        self._writer.close()
        self._new_scalars = _NewScalars()


class CommonMetricPrinter(EventWriter):
    """Prints one line: time left, iteration, all losses, times, learning rate, GPU memory.

    It knows the names that the trainers use (``time``, ``data_time``, ``lr``, anything with ``loss``). Other metrics
    are for the other writers.

    Args:
        max_iter: iterations of the whole run, to estimate the time left; None to leave the estimate out. It may be
            set anew when a run gets longer or shorter.
        window_size: iterations to take medians and means over.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger = logging.getLogger("detlab.utils.events")
        self.max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self.max_iter:
            # The call after training: this iteration was never run.
            return
        histories = storage.histories()
        parts = [
            f"eta: {self._time_left(storage)}" if self.max_iter is not None else "",
            f"iter: {storage.iter}",
            *self._losses(storage, histories),
            *self._times(storage, histories, "time"),
            *self._times(storage, histories, "data_time"),
            f"lr: {histories['lr'].latest():.5g}" if "lr" in histories else "",
            f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else "",
        ]
        self.logger.info("  ".join(part for part in parts if part))

    def _losses(self, storage: EventStorage, histories: Mapping[str, HistoryBuffer]) -> list[str]:
        names = [name for name in histories if "loss" in name]
        return [f"{name}: {storage._smoothed(name, self._window_size):.4g}" for name in names]

    def _times(self, storage: EventStorage, histories: Mapping[str, HistoryBuffer], name: str) -> list[str]:
        if name not in histories:
            return []
        mean = histories[name].avg(storage.count_samples(name, self._window_size))
        return [f"{name}: {mean:.4f}", f"last_{name}: {histories[name].latest():.4f}"]

    def _time_left(self, storage: EventStorage) -> str:
        seconds_per_iter = self._seconds_per_iter(storage)
        self._last_write = (storage.iter, time.perf_counter())
        if seconds_per_iter is None or self.max_iter is None:
            return "N/A"
        seconds = seconds_per_iter * (self.max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(seconds)))

    def _seconds_per_iter(self, storage: EventStorage) -> float | None:
        """The median of what the trainer measured; for loops that measure nothing, the pace since the last line."""
        if "time" in storage.histories():
            return float(storage.history("time").median(1000))
        if self._last_write is None or storage.iter <= self._last_write[0]:
            return None
        iteration, moment = self._last_write
        return (time.perf_counter() - moment) / (storage.iter - iteration)
