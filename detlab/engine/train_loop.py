"""The training loop: hooks around steps, and the steps of single-optimizer training.

An iteration is one optimizer step, counted from 0. A rank is one process of a distributed run.
"""

from __future__ import annotations

import hashlib
import logging
import math
import numbers
import random
import signal
import struct
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from detlab.checkpoint.optimizer_state import check_optimizer_state
from detlab.data.loader import endless_batches
from detlab.engine import interruption
from detlab.utils import comm
from detlab.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase", "seed_step"]

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
            # Not a cycle: whoever drops the trainer frees its model and its data workers at once.
            hook.trainer = weakref.proxy(self)
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


def seed_step(step_seed: int, iteration: int) -> None:
    """Seed the generators of ``random``, numpy and torch (here and on the GPU in use) for one iteration of this rank.

    Args:
        step_seed: of the whole run; the same on all ranks.
        iteration: the one that begins.
    """
    key = struct.pack("<qqq", step_seed, iteration, comm.get_rank())
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would do, but takes half a millisecond on machines without a GPU.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class _StepLosses(NamedTuple):
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


class SimpleTrainer(TrainerBase):
    """Steps of the usual kind: a batch, the model's losses, their sum's gradient, one optimizer.

    Everything random in the forward and backward pass follows from a seed that is saved, the iteration and the rank:
    before the model runs, the global generators of ``random``, numpy and torch are seeded from them. Together with a
    data loader that can begin anywhere, a resumed run repeats the steps of one that was never stopped.

    A loss that is not finite stops training on every rank with a ``FloatingPointError``, before the optimizer uses it
    (with ``gather_metric_period`` above 1 or ``async_write_metrics``: when the losses are next looked at).

    Args:
        model: called with a batch; gives a dict of scalar losses, or one loss. It is put into training mode.
        data_loader: an iterable of batches. A finite one is started again at its end. It is told where to begin: see
            :func:`~detlab.data.loader.endless_batches`; its ``state_dict`` and ``load_state_dict``, if it has them,
            become part of the trainer's state.
        optimizer: a torch optimizer.
        gather_metric_period: look at the losses every so many iterations, which costs a wait for the device and, in a
            distributed run, an exchange between ranks; the losses of the iterations between are kept and then written.
        zero_grad_before_forward: clear gradients before the forward pass rather than before the backward pass.
        async_write_metrics: look at the losses of a step only after the next one was given to the device, so that a
            GPU never waits for the host.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        if gather_metric_period < 1:
            raise ValueError(f"gather_metric_period must be at least 1, got {gather_metric_period}")
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._batches: Iterator[Any] | None = None
        self._step_seed: int | None = None
        self._unwritten: list[_StepLosses] = []

    # ------------------------------------------------------------------------------------------------- one step

    def run_step(self) -> None:
        """Load, forward, backward, look at the losses, update.

        Raises:
            FloatingPointError: a loss is not finite.
            RuntimeError: the model is in evaluation mode.
        """
        batch, data_time = self._load_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses = self._forward(batch)
        self._note_losses(losses, data_time, batch)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(_sum_of(losses))
        self.after_backward()
        self._write_metrics_if_due()
        self._update()

    def _load_batch(self) -> tuple[Any, float]:
        """The next batch, and the seconds it was waited for; prepares for the forward pass."""
        if not self.model.training:
            raise RuntimeError(
                f"the model is in evaluation mode in iteration {self.iter}: something called model.eval() "
                "and did not call model.train() afterwards (detlab.evaluation.inference_context does both)"
            )
        asked_at = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - asked_at
        if self._step_seed is None:
            self._step_seed = comm.shared_random_seed()
        seed_step(self._step_seed, self.iter)
        return batch, waited

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        """The losses by name."""
        losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _backward(self, loss: Tensor) -> None:
        """Compute the gradients of the sum of the losses."""
        loss.backward()

    def _update(self) -> None:
        """Change the weights by the gradients."""
        self.optimizer.step()

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        """The batches from the present iteration on, opened when the first is asked for."""
        if self._batches is None:
            self._batches = endless_batches(self.data_loader, self.iter)
        return self._batches

    def _begin_elsewhere(self, start_iter: int) -> None:
        self._batches = None
        # Of a step that failed.
        self._unwritten = []

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Replace the data loader; the old one is released before the builder is called."""
        self._batches = None
        del self.data_loader
        self.data_loader = data_loader_builder()

    # -------------------------------------------------------------------------------------------------- metrics

    def _note_losses(self, losses: Mapping[str, Tensor], data_time: float, batch: Any) -> None:
        """Remember the losses of this step, and send them to the host without waiting."""
        if not losses:
            raise ValueError(f"the model gave no losses in iteration {self.iter}; it should give a dict of them")
        values, arrived = _send_to_host(_stack_scalars(losses))
        rates = [group["lr"] for group in self.optimizer.param_groups]
        record = _StepLosses(self.iter, list(losses), values, arrived, data_time, rates, _names_of_images(batch))
        self._unwritten.append(record)

    def _write_metrics_if_due(self) -> None:
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.flush_metrics(keep=1 if self.async_write_metrics else 0)

    def flush_metrics(self, keep: int = 0) -> None:
        """Check and write the losses of all steps noted so far but the last ``keep``; all ranks must call it.

        Raises:
            FloatingPointError: on every rank, if a loss of any rank is not finite.
        """
        count = len(self._unwritten) - keep
        records, self._unwritten = self._unwritten[:count], self._unwritten[count:]
        if not records:
            return
        of_ranks = _exchange([_arrived_metrics(record) for record in records])
        for step, record in enumerate(records):
            metrics = [steps[step] for steps in of_ranks]
            if not all(m.is_finite for m in metrics):
                raise FloatingPointError(_describe_failure(metrics, record))
            _put_metrics(metrics)

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """:meth:`write_metrics` of this iteration, or of ``iter``, if ``gather_metric_period`` says that it is time.

        For a ``run_step`` of one's own, which users of the reference write around it.
        """
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
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

    def after_train(self) -> None:
        """Write what is left; not after a failure, when the other ranks may be somewhere else."""
        try:
            if self.iter >= self.max_iter:
                self.flush_metrics()
        finally:
            super().after_train()

    # ---------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The base's, with the optimizer, the seed of the steps, and the data loader's state if it has one.

        Raises:
            FloatingPointError: a loss that was not looked at yet is not finite. What is saved would be spoilt.
        """
        for record in self._unwritten:
            metrics = _arrived_metrics(record)
            if not metrics.is_finite:
                raise FloatingPointError("\n".join(_describe_losses([metrics])))
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        if self._step_seed is not None:
            state["step_seed"] = self._step_seed
        if hasattr(self.data_loader, "state_dict"):
            state["data_loader"] = self.data_loader.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; the next batch is that of the iteration in which ``train`` starts.

        Raises:
            ValueError: the optimizer's state does not fit the parameters of this model; nothing was taken.
        """
        check_optimizer_state(self.optimizer, state_dict["optimizer"], "the checkpoint", model=self.model)
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self._step_seed = state_dict.get("step_seed", self._step_seed)
        if "data_loader" in state_dict and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state_dict["data_loader"])
        self._batches = None


class AMPTrainer(SimpleTrainer):
    """Like :class:`SimpleTrainer`, with the forward pass in mixed precision, on the GPU or the CPU.

    In ``after_backward`` of a float16 run the gradients are still multiplied by ``grad_scaler.get_scale()``.

    Args:
        grad_scaler: by default one is made for float16, whose gradients would vanish unscaled; bfloat16 needs none.
        precision: ``torch.float16`` or ``torch.bfloat16``.
        log_grad_scaler: write the scale as a metric; this waits for the device.
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics: see
            :class:`SimpleTrainer`.

    Raises:
        ValueError: another precision, or a model wrapped for several devices in one process.
    """

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
        async_write_metrics: bool = False,
    ) -> None:
        if precision not in (torch.float16, torch.bfloat16):
            raise ValueError(f"precision must be torch.float16 or torch.bfloat16, got {precision}")
        if isinstance(model, DataParallel) or len(getattr(model, "device_ids", None) or ()) > 1:
            raise ValueError("mixed precision needs one device for each process: start more processes, see launch()")
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler
        self._device_type = next((p.device.type for p in model.parameters()), "cpu")
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        with torch.amp.autocast(self._device_type, dtype=self.precision):
            return super()._forward(batch)

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The base's, with ``grad_scaler``."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; it may come from a run without mixed precision or of the other precision."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler") and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


# ---------------------------------------------------------------------------------------------- losses and metrics


def _sum_of(losses: Mapping[str, Tensor]) -> Tensor:
    total, *others = losses.values()
    for loss in others:
        total = total + loss
    return total


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


def _arrived_metrics(record: _StepLosses) -> _StepMetrics:
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


def _describe_failure(of_ranks: Sequence[_StepMetrics], own: _StepLosses) -> str:
    """The whole story of a loss that is not finite; all ranks must call it, to exchange the names of images."""
    lines = _describe_losses(of_ranks)
    rates = sorted({float(rate) for rate in own.learning_rates})
    lines.append("learning rate: " + ", ".join(f"{rate:.6g}" for rate in rates))
    for rank, images in enumerate(comm.all_gather(own.images)):
        if not of_ranks[rank].is_finite:
            where = f" of rank {rank}" if len(of_ranks) > 1 else ""
            lines.append(f"images of the batch{where}: " + (", ".join(images) or "unknown (the batch names none)"))
    lines.append(
        "the usual cures: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, SOLVER.CLIP_GRADIENTS.ENABLED True, "
        "or a look at the annotations of these images"
    )
    return "\n".join(lines)
