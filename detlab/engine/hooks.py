"""Hooks: what happens around training steps, one thing in each.

``DefaultTrainer.build_hooks`` lists the ones of a usual run in their order. To add one without touching a trainer,
register it in a module that is given to ``--import``::

    @HOOK_REGISTRY.register()
    class LogGradientNorm(HookBase):
        def __init__(self, trainer):
            self.period = 20
"""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler as _TorchScheduler

from detlab.checkpoint.periodic_checkpoint import PeriodicCheckpointer as _SavePeriodically
from detlab.checkpoint.run_state import check_scheduler_state
from detlab.data.loader import endless_batches
from detlab.engine.interruption import StoppedBySignal, ends_at_once
from detlab.engine.train_loop import HookBase
from detlab.evaluation.testing import flatten_results_dict
from detlab.solver.lr_scheduler import LRMultiplier
from detlab.utils import comm
from detlab.utils.events import CommonMetricPrinter, EventStorage, EventWriter
from detlab.utils.file_io import PathManager, read_json, write_json
from detlab.utils.registry import Registry

__all__ = [
    "EVALUATION_HOOK_REGISTRY",
    "HOOK_REGISTRY",
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
    "registered_hooks",
]

logger = logging.getLogger(__name__)

HOOK_REGISTRY = Registry("HOOK")
HOOK_REGISTRY.__doc__ = """Hook classes or functions ``(trainer)`` that give a hook, or None where ``trainer.cfg`` says
that there is nothing to do. ``DefaultTrainer`` adds every one of them, in the order of registration, before the hook
that writes checkpoints, so that their states are saved as of the end of the iteration."""

EVALUATION_HOOK_REGISTRY = Registry("EVALUATION_HOOK")
EVALUATION_HOOK_REGISTRY.__doc__ = """As ``HOOK_REGISTRY``, for hooks that need the results of an evaluation: they run
after it, before the metrics are written."""


def registered_hooks(registry: Registry, trainer: Any) -> list[HookBase | None]:
    """The hooks of a registry, made for ``trainer``.

    Raises:
        TypeError: a registered function gives something else.
    """
    hooks = []
    for name, make_hook in registry:
        hook = make_hook(trainer)
        if hook is not None and not isinstance(hook, HookBase):
            raise TypeError(f"{name} in {registry._name} should give a hook or None, but gave {hook!r}")
        hooks.append(hook)
    return hooks


def _has_finished(trainer: Any) -> bool:
    """In ``after_train``: whether training went through, rather than stopped with an exception."""
    return trainer.iter >= trainer.max_iter


def _is_due(trainer: Any, period: int) -> bool:
    """Whether the iteration that ends now is a multiple of ``period``, counted from 1; a period of 0 never is."""
    return period > 0 and (trainer.iter + 1) % period == 0


class CallbackHook(HookBase):
    """Calls functions, each with the trainer.

    Args:
        before_train, after_train, before_step, after_backward, after_step: None for nothing.
    """

    def __init__(
        self,
        *,
        before_train: Callable[[Any], None] | None = None,
        after_train: Callable[[Any], None] | None = None,
        before_step: Callable[[Any], None] | None = None,
        after_step: Callable[[Any], None] | None = None,
        after_backward: Callable[[Any], None] | None = None,
    ) -> None:
        self._functions = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_backward": after_backward,
            "after_step": after_step,
        }

    def _call(self, moment: str) -> None:
        function = self._functions[moment]
        if function is not None:
            function(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")

    def before_step(self) -> None:
        self._call("before_step")

    def after_backward(self) -> None:
        self._call("after_backward")

    def after_step(self) -> None:
        self._call("after_step")


class IterationTimer(HookBase):
    """Puts the seconds of each step as the scalar ``time``, and says at the end how fast training was.

    It belongs first in the list of hooks: then ``time`` is the step alone, and the rest counts as time of hooks.

    Args:
        warmup_iter: first iterations, slower than the others, that are not counted.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._begun_at = self._counted_from = self._step_begun_at = time.perf_counter()
        self._num_steps = 0
        self._seconds_in_steps = 0.0

    def before_train(self) -> None:
        self._begun_at = self._counted_from = time.perf_counter()
        self._num_steps, self._seconds_in_steps = 0, 0.0

    def before_step(self) -> None:
        self._step_begun_at = time.perf_counter()

    def after_step(self) -> None:
        seconds = time.perf_counter() - self._step_begun_at
        self._num_steps += 1
        if self._num_steps > self._warmup_iter:
            self._seconds_in_steps += seconds
            self.trainer.storage.put_scalar("time", seconds)
        else:
            self._counted_from = time.perf_counter()

    def after_train(self) -> None:
        now = time.perf_counter()
        counted = self._num_steps - self._warmup_iter
        if counted > 0:
            logger.info(
                f"Overall training speed: {counted} iterations in {_clock(self._seconds_in_steps)} "
                f"({self._seconds_in_steps / counted:.4f} s / it)"
            )
        in_hooks = max(now - self._counted_from - self._seconds_in_steps, 0.0)
        logger.info(f"Total training time: {_clock(now - self._begun_at)} ({_clock(in_hooks)} on hooks)")


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Lets writers write, every ``period`` iterations and at the end.

    Wherever it is registered, what other hooks put is written: in the next row, and when training ends, before the
    writers are closed.

    Args:
        writers: closed when training ends. A ``CommonMetricPrinter`` that estimates the time left follows the trainer's
            ``max_iter``.
        period: in iterations.
    """

    ends_last = True

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"{writer!r} is no EventWriter")
        self._writers = list(writers)
        self._period = period

    def after_step(self) -> None:
        if _is_due(self.trainer, self._period) or self.trainer.iter == self.trainer.max_iter - 1:
            self._write()

    def after_train(self) -> None:
        # Other hooks may have put results after the last step.
        self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            if isinstance(writer, CommonMetricPrinter) and writer.max_iter is not None:
                writer.max_iter = self.trainer.max_iter
            writer.write()


class PeriodicCheckpointer(_SavePeriodically, HookBase):
    """Saves a checkpoint every ``period`` iterations, ``<prefix>_final`` after the last one, and one before a stop.

    The arguments are those of ``detlab.checkpoint.PeriodicCheckpointer``; ``max_iter`` is taken from the trainer. The
    checkpointer should have the trainer among its objects, else a run cannot be resumed.
    """

    _final_is_saved = False

    def before_train(self) -> None:
        self._final_is_saved = False

    def after_step(self) -> None:
        self.max_iter = self.trainer.max_iter
        self.step(self.trainer.iter)
        self._final_is_saved = self.trainer.iter + 1 >= self.max_iter

    def after_train(self) -> None:
        # A hook behind this one has ended the run, or a run that was killed has no iteration left but this to do.
        if _has_finished(self.trainer) and not self._final_is_saved and not self._has_file_of_finished_run():
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=self.trainer.iter - 1)

    def _has_file_of_finished_run(self) -> bool:
        path = os.path.join(self.checkpointer.save_dir, f"{self.file_prefix}_final.pth")
        return self.trainer.iter == self.trainer.start_iter and self.path_manager.isfile(path)

    def before_stop(self) -> None:
        self.save_if_missing(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint whenever an evaluation gives a better value of a metric than all before it.

    It belongs behind the :class:`EvalHook` in the list of hooks. The best value is part of the trainer's state: a
    resumed run does not overwrite a better checkpoint with a worse one.

    Args:
        eval_period: that of the ``EvalHook``.
        checkpointer: what saves.
        val_metric: its name among the scalars, as in ``"bbox/AP50"``.
        mode: ``"max"`` if a greater value is better, ``"min"`` if a smaller one is.
        file_prefix: the file is called ``<prefix>.pth``.

    Raises:
        ValueError: another mode.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        self._eval_period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def before_train(self) -> None:
        # There only if the evaluation of the last iteration before a resumed run was made up for.
        if self._metric in self.trainer.storage.latest():
            self._save_if_best()

    def after_step(self) -> None:
        # After the last iteration the evaluation comes in after_train.
        if _is_due(self.trainer, self._eval_period) and self.trainer.iter + 1 < self.trainer.max_iter:
            self._save_if_best()

    def after_train(self) -> None:
        if _has_finished(self.trainer):
            self._save_if_best()

    def _save_if_best(self) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            logger.warning(f"no metric {self._metric!r} was put by an evaluation; {self._file_prefix} is not saved")
            return
        value, iteration = latest
        if not math.isfinite(value) or (self.best_metric is not None and not self._is_better(value, self.best_metric)):
            logger.info(f"{self._metric} = {value:.5f}, not better than {self.best_metric} of step {self.best_iter}")
            return
        before, self.best_metric, self.best_iter = self.best_metric, value, iteration
        # Results of the evaluation after training belong to the last iteration.
        self._checkpointer.save(self._file_prefix, iteration=min(iteration, self.trainer.max_iter - 1))
        logger.info(f"saved the best model so far: {self._metric} = {value:.5f} in step {iteration}, before: {before}")

    def state_dict(self) -> dict[str, Any]:
        if self.best_metric is None:
            return {}
        return {"metric": self._metric, "best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["metric"] != self._metric:
            logger.warning(
                f"the best value saved is of {state_dict['metric']!r}; that of {self._metric!r} is not known"
            )
            return
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class LRScheduler(HookBase):
    """Puts the learning rate as the scalar ``lr``, and takes the scheduler a step on after each iteration.

    Args:
        optimizer: by default the trainer's.
        scheduler: a torch scheduler that counts iterations, or an fvcore ``ParamScheduler``, whose values multiply
            the optimizer's learning rates over the whole run; by default the trainer's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _TorchScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._shown_group = 0

    @property
    def scheduler(self) -> Any:
        """The scheduler that was given, else the trainer's."""
        return self._scheduler if self._scheduler is not None else self.trainer.scheduler

    def before_train(self) -> None:
        if self._optimizer is None:
            self._optimizer = self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._shown_group = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The parameter group whose learning rate stands for all: the one with the most tensors.

        Where every group has a single one, the first with the most common learning rate.
        """
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._shown_group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _TorchScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A ParamScheduler needs none: its value follows from the iteration.
        if isinstance(self.scheduler, _TorchScheduler):
            check_scheduler_state(self.scheduler, state_dict)
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every so many iterations and puts the results as scalars.

    A checkpoint is written before the evaluation of its iteration, so a run that was killed in an evaluation has lost
    it. With a record file, a resumed run notices and does that evaluation first; its scalars belong to the last
    iteration before the start, and hooks registered behind this one see them in their ``before_train``. A run that
    was finished, evaluation included, and is resumed does not evaluate again: the results noted are put once more, for
    the other hooks.

    Args:
        eval_period: in iterations; 0 evaluates at the end only.
        eval_function: without arguments; gives numbers by name, nested to any depth (``{"bbox": {"AP": 38.5}}`` is
            put as ``bbox/AP``), or nothing. It runs on all ranks, and leaves the model in training mode.
        eval_after_train: evaluate when training has ended.
        record_file: json file in which the main process notes the last evaluation that was finished; None: none is
            made up for. One that cannot be read counts as none, with a warning.
        accept_known: called on all ranks with the results noted of the iteration before the start; says whether they
            stand for an evaluation now. None: they do.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any] | None],
        eval_after_train: bool = True,
        record_file: str | None = None,
        accept_known: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self._period = eval_period
        self._function = eval_function
        self._eval_after_train = eval_after_train
        self._record = None if record_file is None else _EvaluationRecord(record_file)
        self._accept_known = accept_known
        self._evaluated_iter = -1
        self._known: Mapping[str, Any] | None = None

    def before_train(self) -> None:
        self._evaluated_iter = -1
        if self._record is None:
            return
        last_done = self.trainer.start_iter - 1
        self._known = known = self._accepted(self._record.take(last_done))
        is_due = self._period > 0 and last_done >= 0 and (last_done + 1) % self._period == 0
        # That of the last iteration comes in after_train anyway.
        if not is_due or last_done + 1 >= self.trainer.max_iter:
            return
        if known is not None:
            self._put(known, last_done)
        else:
            logger.info(
                f"The evaluation after iteration {last_done} was not finished before the run stopped: it is now"
            )
            self._evaluate(last_done)

    def after_step(self) -> None:
        # After the last iteration the evaluation comes in after_train.
        if _is_due(self.trainer, self._period) and self.trainer.iter + 1 < self.trainer.max_iter:
            self._evaluate(self.trainer.iter)

    def after_train(self) -> None:
        # A hook behind this one may have ended the run in an iteration that was evaluated.
        is_evaluated = self._evaluated_iter == self.trainer.iter - 1 >= self.trainer.start_iter
        if not self._eval_after_train or not _has_finished(self.trainer) or is_evaluated:
            return
        if self._known is not None and self.trainer.iter == self.trainer.start_iter:
            logger.info("The run was finished and evaluated before: its results stand. --eval-only evaluates again")
            self._put(self._known, self.trainer.iter)
        else:
            self._evaluate(self.trainer.iter - 1, shown_iter=self.trainer.iter)

    def _accepted(self, known: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        return known if known is None or self._accept_known is None or self._accept_known(known) else None

    def _evaluate(self, iteration: int, shown_iter: int | None = None) -> None:
        try:
            with ends_at_once():
                results = self._function()
        except StoppedBySignal:
            logger.warning(f"the evaluation after {iteration + 1} iterations was stopped; --resume begins with it")
            raise
        numbers = _as_numbers(results) if results else {}
        self._put(numbers, iteration if shown_iter is None else shown_iter)
        self._evaluated_iter = iteration
        if self._record is not None:
            self._record.write(iteration, numbers)
        # Evaluation takes the ranks different times; without this the next step's time would show it.
        comm.synchronize()

    def _put(self, results: Mapping[str, Any], iteration: int) -> None:
        for name, value in flatten_results_dict(results).items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False, cur_iter=iteration)


LAST_EVALUATION = "last_evaluation.json"
"""Name of the record file of a usual run, in its output directory."""


class _EvaluationRecord:
    """A file with the iteration and the results of the last finished evaluation of a run."""

    def __init__(self, path: str) -> None:
        self._path = path

    def take(self, iteration: int) -> dict[str, Any] | None:
        """The results if the record is of this iteration; another one is removed. All ranks must call it.

        What remained of another course of the run would be believed when this one comes to the same iteration.
        """
        results = None
        if comm.is_main_process() and PathManager.isfile(self._path):
            noted = self._read()
            if noted is not None and noted[0] == iteration:
                results = noted[1]
            else:
                PathManager.rm(self._path)
        return comm.broadcast(results)

    def _read(self) -> tuple[int, dict[str, Any]] | None:
        """Iteration and results; None, with a warning, if the file does not hold them."""
        try:
            record = read_json(self._path, "record of the last evaluation")
            if not isinstance(record, Mapping) or not {"iteration", "results"} <= record.keys():
                raise ValueError("it has no iteration and results")
            return record["iteration"], _as_numbers(record["results"])
        except (OSError, ValueError, TypeError, RecursionError) as error:
            logger.warning(f"{self._path} is damaged and is removed; what it noted is evaluated again ({error})")
            return None

    def write(self, iteration: int, results: Mapping[str, Any]) -> None:
        if comm.is_main_process():
            write_json(self._path, {"iteration": iteration, "results": results})


def _as_numbers(results: Any, prefix: str = "") -> dict[str, Any]:
    """Results as plain dicts of floats, nested as they were."""
    if not isinstance(results, Mapping):
        raise TypeError(f"an evaluation should give numbers by name, got {type(results).__name__}: {results!r}")
    return {
        str(name): _as_numbers(value, f"{prefix}{name}/")
        if isinstance(value, Mapping)
        else _as_number(value, prefix + str(name))
        for name, value in results.items()
    }


def _as_number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"an evaluation should give numbers, but {name!r} is {value!r}") from None


class PreciseBN(HookBase):
    """Replaces the running statistics of batch normalisation by true ones: mean and variance over many batches.

    The running statistics are averages over the last steps, with weights that have changed meanwhile. This runs
    batches through the model as it is now, before each evaluation (so it belongs before the ``EvalHook``), and takes
    the statistics of all their pixels, of all ranks, together.

    Args:
        period: in iterations; 0 updates at the end only.
        model: in training mode; nothing is done if it has no batch normalisation that is being trained.
        data_loader: batches for the model, not the trainer's own loader: this one would take batches away from it. A
            finite one is started again at its end.
        num_iter: batches on each rank.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        if not _trained_batch_norms(model):
            logger.info("PreciseBN has nothing to do: the model has no batch normalisation in training mode")

    def after_step(self) -> None:
        is_last = self.trainer.iter + 1 >= self.trainer.max_iter
        if _is_due(self.trainer, self._period) or is_last:
            self.update_stats()

    def update_stats(self) -> None:
        """Run the batches and set the statistics; all ranks must call it."""
        norms = _trained_batch_norms(self._model)
        if not norms:
            return
        logger.info(f"computing the statistics of {len(norms)} batch norms over {self._num_iter} batches")
        can_begin_anywhere = hasattr(self._data_loader, "set_start_iteration")
        batches = endless_batches(self._data_loader, self.trainer.iter if can_begin_anywhere else 0)
        moments = {norm: _Moments(norm) for norm in norms}
        # A storage of its own: what the model logs here is no part of training.
        with EventStorage(), torch.no_grad(), _observing(moments), _running_statistics_fixed(norms):
            for batch in itertools.islice(batches, self._num_iter):
                self._model(batch)
        for norm, norm_moments in moments.items():
            norm_moments.add_other_ranks()
            norm_moments.write_to(norm)

    def state_dict(self) -> dict[str, Any]:
        loader = self._data_loader
        return {"data_loader": loader.state_dict()} if hasattr(loader, "state_dict") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if hasattr(self._data_loader, "load_state_dict"):
            self._data_loader.load_state_dict(state_dict["data_loader"])


def _trained_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


class _Moments:
    """Count, mean and sum of squared deviations of each channel of all that goes into a batch norm.

    Merged batch by batch (Chan, Golub, LeVeque 1979): sums of squares would lose the variance of large means.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        zeros = torch.zeros(norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        self.count = 0
        self.mean = zeros
        self.squared_deviations = zeros.clone()

    def observe(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in one batch, (N, C, ...); a forward pre-hook."""
        values = inputs[0].detach().transpose(0, 1).flatten(1).double()  # (C, values)
        if values.shape[1] > 0:
            mean = values.mean(1)
            self._merge(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def _merge(self, count: int, mean: Tensor, squared_deviations: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        between = shift.square() * (self.count * count / total)
        self.squared_deviations = self.squared_deviations + squared_deviations + between
        self.count = total

    def add_other_ranks(self) -> None:
        """Make these the moments over all ranks, the same on each."""
        if comm.get_world_size() == 1:
            return
        of_ranks = comm.all_gather((self.count, self.mean.cpu(), self.squared_deviations.cpu()))
        device = self.mean.device
        self.count, self.mean, self.squared_deviations = 0, self.mean * 0, self.mean * 0
        for count, mean, squared_deviations in of_ranks:
            if count > 0:
                self._merge(count, mean.to(device), squared_deviations.to(device))

    def write_to(self, norm: _BatchNorm) -> None:
        """Set the running statistics; the variance is the unbiased one, as the norm itself keeps it."""
        if self.count < 2:
            return
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squared_deviations / (self.count - 1))


@contextmanager
def _observing(moments: Mapping[_BatchNorm, _Moments]) -> Iterator[None]:
    handles = [norm.register_forward_pre_hook(norm_moments.observe) for norm, norm_moments in moments.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _running_statistics_fixed(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside, forward passes do not change the running statistics, so a failure leaves them as they were."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


class TorchMemoryStats(HookBase):
    """Logs how much GPU memory torch uses; does nothing without a GPU.

    Args:
        period: in iterations.
        max_runs: how many times.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._runs_left = max_runs

    def after_step(self) -> None:
        is_time = _is_due(self.trainer, self._period) or self.trainer.iter == self.trainer.max_iter - 1
        if not is_time or self._runs_left <= 0 or not torch.cuda.is_available():
            return
        self._runs_left -= 1
        mebibytes = {
            "reserved": torch.cuda.memory_reserved() / 2**20,
            "most reserved": torch.cuda.max_memory_reserved() / 2**20,
            "allocated": torch.cuda.memory_allocated() / 2**20,
            "most allocated": torch.cuda.max_memory_allocated() / 2**20,
        }
        described = ", ".join(f"{name} {amount:.0f} MiB" for name, amount in mebibytes.items())
        logger.info(f"GPU memory in iteration {self.trainer.iter}: {described}")
        logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()


class TorchProfiler(HookBase):
    """Profiles chosen iterations.

    Args:
        enable_predicate: called with the trainer before each step; true to profile it, as in
            ``lambda trainer: 10 <= trainer.iter < 13``.
        output_dir: traces go here; open them in chrome://tracing, Perfetto or TensorBoard.
        activities: of ``torch.profiler``; by default all that the machine has.
        save_tensorboard: write in the layout of TensorBoard's profiler plug-in, in ``<output_dir>/log``; otherwise
            one Chrome trace for each iteration.
    """

    def __init__(
        self,
        enable_predicate: Callable[[Any], bool],
        output_dir: str,
        *,
        activities: Iterable[torch.profiler.ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        self._is_wanted = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: Any = None

    def before_step(self) -> None:
        if self._is_wanted(self.trainer):
            self._profiler = self._make_profiler()
            self._profiler.__enter__()

    def _make_profiler(self) -> Any:
        on_trace_ready = None
        if self._save_tensorboard:
            folder = os.path.join(self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}")
            worker = f"worker{comm.get_rank()}"
            on_trace_ready = torch.profiler.tensorboard_trace_handler(folder, worker_name=worker)
        return torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=on_trace_ready,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
            with_flops=True,
        )

    def after_step(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            PathManager.mkdirs(self._output_dir)
            name = f"profiler-trace-iter{self.trainer.iter}-rank{comm.get_rank()}.json"
            profiler.export_chrome_trace(os.path.join(self._output_dir, name))

    def after_train(self) -> None:
        # A step that failed has not reached after_step.
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self._profiler = None


class AutogradProfiler(TorchProfiler):
    """Profiles chosen iterations with torch's older profiler, and saves a Chrome trace of each.

    Args:
        enable_predicate, output_dir: see :class:`TorchProfiler`.
        use_cuda: time kernels on the GPU, if there is one.
    """

    def __init__(self, enable_predicate: Callable[[Any], bool], output_dir: str, *, use_cuda: bool = True) -> None:
        super().__init__(enable_predicate, output_dir, save_tensorboard=False)
        self._use_cuda = use_cuda

    def _make_profiler(self) -> Any:
        device = "cuda" if self._use_cuda and torch.cuda.is_available() else None
        return torch.autograd.profiler.profile(use_device=device)
