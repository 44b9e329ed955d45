"""The training loop: hooks around steps, and the trainers that run the steps of ``train_step.py`` in it.

An iteration is one optimizer step, counted from 0. A rank is one process of a distributed run.
"""

from __future__ import annotations

import logging
import math
import numbers
import operator
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from detlab.engine import interruption, step_losses
from detlab.engine.train_step import MixedPrecision, TrainStep, seed_step
from detlab.utils import comm
from detlab.utils.events import EventStorage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "StepTrainer", "TrainerBase", "held_by", "seed_step"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something that happens around training steps; override the methods that are needed.

    The trainer calls, for each hook in the order of registration::

        before_train
            before_step, <forward and backward>, after_backward, <optimizer step>, after_step      for each iteration
            before_stop                                                           if a signal ends training early
        after_train

    ``self.trainer`` is set by ``register_hooks``. Inside the methods, ``self.trainer.iter`` is the iteration that is
    going on; in ``after_train`` of a run that went through it equals ``self.trainer.max_iter``.

    A hook ends a run by setting ``self.trainer.max_iter``, see :class:`TrainerBase`.

    Attributes:
        ends_last: call ``after_train`` after those of all hooks that do not say so, wherever this one was registered:
            for what takes in what others leave, as a writer of metrics does.
    """

    trainer: Any = None
    ends_last: bool = False

    def before_train(self) -> None:
        """Called once, before the first iteration."""

    def before_stop(self) -> None:
        """Called if SIGTERM or Ctrl-C ends training, after the last ``after_step``: what has to be saved is saved here.

        Other ranks may be gone, or somewhere else: do not wait for them.
        """

    def after_train(self) -> None:
        """Called once at the end, also when training stopped with an exception.

        Other ranks may be gone by then: wait for them only if ``self.trainer.iter`` has reached ``max_iter``.
        """

    def before_step(self) -> None:
        """Called at the start of each iteration."""

    def after_backward(self) -> None:
        """Called when the gradients are there and not yet used."""

    def after_step(self) -> None:
        """Called at the end of each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; called only if that was not empty."""
        logger.warning(f"{type(self).__name__} saved a state but has no load_state_dict(): it starts afresh")


def _keys_of(hooks: Sequence[HookBase]) -> list[str]:
    """A name for each hook's state: its class, and from the second of a class on a number, as in ``EvalHook#2``."""
    seen: Counter[str] = Counter()
    keys = []
    for hook in hooks:
        name = type(hook).__qualname__
        seen[name] += 1
        keys.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return keys


class TrainerBase:
    """A loop of steps with hooks around them; a subclass says in ``run_step`` what a step is.

    Attributes:
        iter: the iteration that is going on.
        start_iter: the iteration that this run begins or began with.
        storage: takes metrics while training runs.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self._max_iter: int = 0
        self._earliest_end: int = 0
        self._last_done: int = -1
        self._is_in_step = False
        # Not a cycle: whoever drops the trainer frees its model and its data workers at once.
        self._for_hooks: Any = weakref.proxy(self)
        self.iter: int = 0
        self.start_iter: int = 0
        self.storage: EventStorage

    @property
    def max_iter(self) -> int:
        """Training ends before this iteration; a hook may change it while training runs.

        The step that is going on is always brought to its end: a lower value is taken as that of the next iteration.
        What belongs to the end of a run (final checkpoint, evaluation) then follows as usual. The schedule of the
        learning rate stays as it was built. In a distributed run all ranks must set the same value in the same
        iteration: the ranks that went on would wait for those that ended until the time-out.
        """
        return self._max_iter

    @max_iter.setter
    def max_iter(self, value: int) -> None:
        self._max_iter = max(_checked_count(value, "max_iter"), self._earliest_end)

    @property
    def hooks(self) -> tuple[HookBase, ...]:
        """The registered hooks, in the order in which they run."""
        return tuple(self._hooks)

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks; they run in this order, after those registered before. Entries that are None are left out.

        Raises:
            TypeError: an entry is no hook.
        """
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"{hook!r} is no hook: derive its class from HookBase (or is it a class, not called?)")
            hook.trainer = self._for_hooks
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter`` to ``max_iter - 1``, where hooks may change :attr:`max_iter`.

        All ranks must call it.

        An exception ends the loop; it is logged with its iteration, the hooks' ``after_train`` still runs, and it is
        raised again.

        It may be called again: weights and hooks go on as they are, with the data of the iterations.

        In the main thread, SIGTERM and Ctrl-C end it after a whole step, the same one on all ranks: the hooks'
        ``before_stop`` saves, ``after_train`` runs. A second signal ends it at once. Signals that the program handles
        itself are left to it.

        Raises:
            TypeError: one of the two is no number.
            StoppedBySignal: a ``SystemExit`` with status 143 after SIGTERM, and with 130 after Ctrl-C, when it is a
                ``KeyboardInterrupt`` as well.
        """
        _checked_count(start_iter, "start_iter")
        if self._is_in_step or self._last_done not in (-1, start_iter - 1):
            self._begin_elsewhere(start_iter)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = self._earliest_end = start_iter
        self._last_done = start_iter - 1
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage, interruption.watching_for_stop() as stop:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self._end_step(stop)
                    self.iter += 1
            except Exception:
                logger.exception(f"Training stopped in iteration {self.iter}:")
                raise
            finally:
                self.after_train()
                self._earliest_end = 0

    def _begin_elsewhere(self, start_iter: int) -> None:
        """Called before a run that does not go on where the last one of this trainer ended, or failed in a step."""

    def _end_step(self, stop: interruption.StopRequest) -> None:
        """What follows a step, and the end of training if a signal asks for it."""
        stop.count_step()
        try:
            self.after_step()
            stop.check()
        except interruption.StoppedBySignal as stopped:
            if stop.is_repeated:
                raise
            if stopped.on_all_ranks:
                self.flush_metrics()
            self.before_stop()
            name = signal.Signals(stopped.signal_number).name
            logger.warning(f"{name} stopped training after iteration {self.iter}; --resume goes on from the next one")
            if stopped.on_all_ranks:
                # Whoever ends first is taken for a failure by torchrun, which stops the others: rank 0 has to save.
                comm.synchronize()
            raise

    def flush_metrics(self) -> None:
        """Write what a subclass has kept back of the metrics; all ranks must call it."""

    def before_train(self) -> None:
        """Call the hooks' ``before_train``."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call the hooks' ``after_train``: all of them, even if one fails; the first failure is raised in the end."""
        self.storage.iter = self.iter
        failure: BaseException | None = None
        for hook in sorted(self._hooks, key=lambda hook: hook.ends_last):
            try:
                hook.after_train()
            except interruption.StoppedBySignal as stopped:
                failure = failure or stopped
            except Exception as error:
                logger.exception(f"{type(hook).__name__}.after_train failed:")
                failure = failure or error
        if failure is not None:
            raise failure

    def before_step(self) -> None:
        """Call the hooks' ``before_step``."""
        self.storage.iter = self.iter
        self._earliest_end, self._last_done, self._is_in_step = self.iter + 1, self.iter - 1, True
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call the hooks' ``after_backward``."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call the hooks' ``after_step``."""
        self._last_done, self._is_in_step = self.iter, False
        for hook in self._hooks:
            hook.after_step()

    def before_stop(self) -> None:
        """Call the hooks' ``before_stop``."""
        for hook in self._hooks:
            hook.before_stop()

    def run_step(self) -> None:
        """One iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """``iteration``, the last one that is done (-1 if none is), and the states of the hooks."""
        states = {key: hook.state_dict() for key, hook in zip(_keys_of(self._hooks), self._hooks)}
        return {"iteration": self._last_done, "hooks": {key: state for key, state in states.items() if state}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``. Hooks that it does not know start afresh; states without a hook are named."""
        self.iter = self._last_done = state_dict["iteration"]
        hooks = dict(zip(_keys_of(self._hooks), self._hooks))
        for key, state in state_dict.get("hooks", {}).items():
            if key in hooks:
                hooks[key].load_state_dict(state)
            else:
                logger.warning(f"the checkpoint has a state of the hook {key!r}, which this trainer does not have")


def _checked_count(value: Any, name: str) -> Any:
    """A number of iterations; infinitely many are for a run that a hook ends."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise TypeError(f"{name} must be a number of iterations, got {value!r}")
    return value


# ------------------------------------------------------------------------------------------------- loops over a step


def held_by(path: str, meaning: str) -> Any:
    """An attribute of a class that another object holds, to be read and set.

    Args:
        path: from the instance to what is held: ``"_one_step.model"``.
        meaning: for the documentation.
    """
    owner, _, name = path.rpartition(".")
    owner_of = operator.attrgetter(owner)
    return property(operator.attrgetter(path), lambda self, value: setattr(owner_of(self), name, value), doc=meaning)


class StepTrainer(TrainerBase):
    """The loop over a :class:`~detlab.engine.train_step.TrainStep`, which a subclass puts into ``_one_step``."""

    _one_step: Any
    # Of a subclass that writes metrics its own way.
    _write_instead: Callable[..., None] | None = None

    model: nn.Module = held_by("_one_step.model", "The model that is trained, wrapped in a distributed run.")
    data_loader: Iterable[Any] = held_by("_one_step.data_loader", "Where the batches come from.")
    optimizer: torch.optim.Optimizer = held_by("_one_step.optimizer", "What changes the weights.")

    def run_step(self) -> None:
        """Load, forward, backward, look at the losses, update; see ``TrainStep.run``."""
        self._one_step.run(self.iter, self.max_iter, self.after_backward, self._write_instead)

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        """The batches from the present iteration on, opened when the first is asked for."""
        return self._one_step.batches(self.iter)

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Replace the data loader; the old one is released before the builder is called."""
        self._one_step.reset_data_loader(data_loader_builder)

    def _begin_elsewhere(self, start_iter: int) -> None:
        self._one_step.begin_elsewhere(start_iter)

    def flush_metrics(self) -> None:
        """Check and write the losses of all steps so far; all ranks must call it.

        Raises:
            FloatingPointError: on every rank, if a loss of any rank is not finite.
        """
        self._one_step.look_at_losses(write=self._write_instead)

    def after_train(self) -> None:
        """Write what is left, then call the hooks; not after a failure, when the other ranks may be elsewhere."""
        try:
            if self.iter >= self.max_iter:
                self.flush_metrics()
        finally:
            super().after_train()

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """:meth:`write_metrics` of this iteration, or of ``iter``, if ``gather_metric_period`` says that it is time.

        For a ``run_step`` of one's own, which users of the reference write around it.
        """
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self._one_step.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """See :func:`detlab.engine.step_losses.write_metrics`."""
        step_losses.write_metrics(loss_dict, data_time, cur_iter, prefix)


class SimpleTrainer(StepTrainer):
    """The loop over steps of the usual kind: a batch, the model's losses, their sum's gradient, one optimizer.

    A loss that is not finite stops training on every rank with a ``FloatingPointError``, before the optimizer uses it
    (with ``gather_metric_period`` above 1 or ``async_write_metrics``: when the losses are next looked at, and no
    checkpoint is saved before).

    A subclass may have a ``run_step`` of its own, or a ``_write_metrics`` or ``write_metrics``, which are then called
    for each step with the losses of this rank.

    Args:
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics: see
            :class:`~detlab.engine.train_step.TrainStep`, which also says how a resumed run repeats the steps of one
            that was never stopped.
    """

    gather_metric_period: int = held_by("_one_step.gather_metric_period", "Losses are looked at so often.")
    zero_grad_before_forward: bool = held_by(
        "_one_step.zero_grad_before_forward", "Rather than before the backward pass."
    )
    async_write_metrics: bool = held_by("_one_step.async_write_metrics", "Whether losses are looked at a step later.")

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool | None = None,
    ) -> None:
        super().__init__()
        self._one_step = TrainStep(
            model,
            data_loader,
            optimizer,
            gather_metric_period=gather_metric_period,
            zero_grad_before_forward=zero_grad_before_forward,
            async_write_metrics=async_write_metrics,
        )

    @cached_property
    def _one_step(self) -> Any:  # type: ignore[override]
        """Of a subclass that skips this constructor and sets model, data loader and optimizer itself."""
        return TrainStep(nn.Identity(), (), None)  # type: ignore[arg-type]

    @property
    def _write_instead(self) -> Callable[..., None] | None:  # type: ignore[override]
        names = ("_write_metrics", "write_metrics")
        is_overridden = any(getattr(type(self), name) is not getattr(StepTrainer, name) for name in names)
        return self._call_write_metrics if is_overridden else None

    def _call_write_metrics(self, losses: Mapping[str, Tensor], data_time: float, iter: int) -> None:
        """With the iteration only where it is another one: an override may not take it."""
        if iter == self.iter:
            self._write_metrics(losses, data_time)
        else:
            self._write_metrics(losses, data_time, iter=iter)

    def state_dict(self) -> dict[str, Any]:
        """The base's, with that of the step.

        Raises:
            FloatingPointError: a loss that was not looked at yet is not finite. What is saved would be spoilt.
        """
        return {**super().state_dict(), **self._one_step.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; the next batch is that of the iteration in which ``train`` starts.

        Raises:
            ValueError: the optimizer's state does not fit the parameters of this model; nothing was taken.
        """
        self._one_step.load_state_dict(state_dict)
        super().load_state_dict(state_dict)


class AMPTrainer(SimpleTrainer):
    """Like :class:`SimpleTrainer`, with the forward pass in mixed precision, on the GPU or the CPU.

    In ``after_backward`` of a float16 run the gradients are still multiplied by ``grad_scaler.get_scale()``.

    Args:
        grad_scaler, precision, log_grad_scaler: see :class:`~detlab.engine.train_step.MixedPrecision`.
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics: see
            :class:`SimpleTrainer`.

    Raises:
        ValueError: another precision, or a model wrapped for several devices in one process.
    """

    grad_scaler: torch.amp.GradScaler = held_by("_one_step.arithmetic.grad_scaler", "Keeps float16 gradients from 0.")
    precision: torch.dtype = held_by("_one_step.arithmetic.precision", "Of the forward pass.")
    log_grad_scaler: bool = held_by("_one_step.arithmetic.log_grad_scaler", "Whether the scale is written as a metric.")

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool | None = None,
    ) -> None:
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self._one_step.arithmetic = MixedPrecision(model, precision, grad_scaler, log_grad_scaler)
