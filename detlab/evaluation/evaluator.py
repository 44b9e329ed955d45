"""Running a model over a dataset and handing what it says to evaluators."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from detlab.utils import comm

logger = logging.getLogger(__name__)

# The first batches pay for memory pools, kernel selection and starting workers: they would spoil the rates.
WARMUP_BATCHES = 5
SECONDS_BETWEEN_PROGRESS_LINES = 5.0
CALLBACK_NAMES = ("on_start", "before_inference", "after_inference", "on_end")


class DatasetEvaluator:
    """What is fed every batch of a dataset with the model's outputs, and says in the end how good they were.

    The order of calls is ``reset()``, then ``process(inputs, outputs)`` for each batch, then ``evaluate()``. In a
    distributed run every rank sees its own part of the batches, and ``evaluate`` is where an evaluator gathers them.
    """

    def reset(self) -> None:
        """Forget everything seen so far."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in one batch.

        Args:
            inputs: what the model was called with: a list of dataset dicts, one for each image.
            outputs: what the model returned: a list of the same length, for the built-in models one dict
                (``"instances"``, ``"proposals"``, ``"sem_seg"``, ``"panoptic_seg"``) for each image.
        """

    def evaluate(self) -> Mapping[str, Any] | None:
        """Metrics of everything taken in: task name (``"bbox"``) -> metric name (``"AP"``) -> number.

        Only the main process has to return something. Other return values are allowed when the caller is not the
        default trainer; it understands this form.
        """

    def metric_names(self) -> Mapping[str, Sequence[str]] | None:
        """Before anything is evaluated: the tasks that ``evaluate`` may report, each with the names of its metrics.

        Metrics of single classes, which have a ``-`` in their name, are left out. None: it is not known. What a class
        says here does not count for those derived from it, which may report other things.
        """
        return None


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators behind the interface of one; their results are joined.

    Args:
        evaluators: each is fed every batch, in this order.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator]):
        super().__init__()
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Mapping[str, Any]:
        """Results of all evaluators in one dict.

        Raises:
            ValueError: two evaluators report the same task, so that one result would hide the other.
        """
        joined: OrderedDict[str, Any] = OrderedDict()
        reported_by: dict[str, str] = {}
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if results is None or not comm.is_main_process():
                continue
            name = type(evaluator).__name__
            for key, value in results.items():
                if key in joined:
                    raise ValueError(
                        f"both {reported_by[key]} and {name} report results under {key!r}; give one of them other "
                        f"tasks, or evaluate them in two runs"
                    )
                joined[key], reported_by[key] = value, name
        return joined

    def metric_names(self) -> Mapping[str, Sequence[str]] | None:
        names: dict[str, Sequence[str]] = {}
        for evaluator in self._evaluators:
            own = known_metric_names(evaluator)
            if own is None:
                return None
            names.update(own)
        return names


def known_metric_names(
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
) -> Mapping[str, Sequence[str]] | None:
    """:meth:`DatasetEvaluator.metric_names` of one evaluator, or of what :func:`inference_on_dataset` makes of several.

    None, if the class of one of them does not say it itself.
    """
    if evaluator is None or isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator or [])
    return evaluator.metric_names() if "metric_names" in vars(type(evaluator)) else None


class _Clock:
    """Seconds spent in each stage of the evaluation loop, not counting its first batches."""

    def __init__(self, num_batches: int | None):
        """Start; ``num_batches`` is None for a stream of unknown length."""
        self.num_batches = num_batches
        self.started = self.last_line = time.perf_counter()
        self._warmup = min(WARMUP_BATCHES, num_batches - 1) if num_batches else 0
        self._restart(0)

    def _restart(self, done: int) -> None:
        self.done = self._not_counted = done
        self.data = self.inference = self.evaluation = 0.0
        self._counting_since = time.perf_counter()

    def batch_done(self, data: float, inference: float, evaluation: float) -> None:
        """Count one batch, given the seconds of its three stages."""
        self.done += 1
        if self.done <= self._warmup:
            self._restart(self.done)
            return
        self.data += data
        self.inference += inference
        self.evaluation += evaluation

    @property
    def batches_counted(self) -> int:
        return max(self.done - self._not_counted, 1)

    @property
    def seconds_per_batch(self) -> float:
        return (time.perf_counter() - self._counting_since) / self.batches_counted

    def line_is_due(self) -> bool:
        """Whether it is time to say how far the loop has come; asking when it is due counts as saying it."""
        now = time.perf_counter()
        due = self.done > self._not_counted and (
            now - self.last_line >= SECONDS_BETWEEN_PROGRESS_LINES or self.last_line == self.started
        )
        if due:
            self.last_line = now
        return due

    def line(self) -> str:
        count, rate = self.batches_counted, self.seconds_per_batch
        position, eta = f"{self.done}", ""
        if self.num_batches is not None:
            remaining = timedelta(seconds=int(rate * max(self.num_batches - self.done, 0)))
            position, eta = f"{self.done}/{self.num_batches}", f" ETA={remaining}"
        return (
            f"Inference done {position}. Dataloading: {self.data / count:.4f} s/iter. "
            f"Inference: {self.inference / count:.4f} s/iter. Eval: {self.evaluation / count:.4f} s/iter. "
            f"Total: {rate:.4f} s/iter.{eta}"
        )

    def closing_lines(self, num_devices: int) -> list[str]:
        wall = timedelta(seconds=int(time.perf_counter() - self.started))
        devices = f"on {num_devices} devices"
        pure = timedelta(seconds=int(self.inference))
        return [
            f"Total inference time: {wall} ({self.seconds_per_batch:.6f} s / iter per device, {devices})",
            f"Total inference pure compute time: {pure} "
            f"({self.inference / self.batches_counted:.6f} s / iter per device, {devices})",
        ]


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Any:
    """Run ``model`` over every batch of ``data_loader``, feed ``evaluator``, and log progress and rates.

    Args:
        model: called with a batch. An ``nn.Module`` runs in evaluation mode and gets its modes back afterwards.
        data_loader: iterable of batches; without a ``len`` there is progress but no estimated time.
        evaluator: one evaluator, several, or None to measure the speed only.
        callbacks: functions without arguments under the names ``on_start``, ``before_inference``,
            ``after_inference`` and ``on_end``.

    Returns:
        What ``evaluator.evaluate()`` returned; an empty dict in place of None.

    Raises:
        ValueError: a callback under another name.
    """
    callbacks = dict(callbacks or {})
    if unknown := sorted(set(callbacks) - set(CALLBACK_NAMES)):
        raise ValueError(f"unknown callbacks {unknown}; known ones are {list(CALLBACK_NAMES)}")
    if evaluator is None or isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator or [])
    num_devices = comm.get_world_size()
    num_batches = _length_or_none(data_loader)
    logger.info(f"Start inference on {'a stream of' if num_batches is None else num_batches} batches")
    evaluator.reset()
    with inference_context(model), torch.no_grad():
        clock = _run_batches(model, data_loader, evaluator, callbacks, num_batches)
    for line in clock.closing_lines(num_devices):
        logger.info(line)
    results = evaluator.evaluate()
    return {} if results is None else results


def _run_batches(
    model: Callable[[Any], Any],
    data_loader,
    evaluator: DatasetEvaluator,
    callbacks: Mapping[str, Callable[[], None]],
    num_batches: int | None,
) -> _Clock:
    def call(name: str) -> None:
        if name in callbacks:
            callbacks[name]()

    call("on_start")
    clock = _Clock(num_batches)
    asked_at = time.perf_counter()
    for inputs in data_loader:
        data_at = time.perf_counter()
        call("before_inference")
        outputs = model(inputs)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        inferred_at = time.perf_counter()
        call("after_inference")
        evaluator.process(inputs, outputs)
        processed_at = time.perf_counter()
        clock.batch_done(data_at - asked_at, inferred_at - data_at, processed_at - inferred_at)
        if clock.line_is_due():
            logger.info(clock.line())
        asked_at = time.perf_counter()
    call("on_end")
    return clock


def _length_or_none(loader) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


@contextmanager
def inference_context(model: Any) -> Iterator[None]:
    """Put ``model`` into evaluation mode; on leaving, every submodule is back in the mode it had.

    The modes are kept module by module: parts that were frozen in evaluation mode inside a training model stay so.
    Something that is not an ``nn.Module`` is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
