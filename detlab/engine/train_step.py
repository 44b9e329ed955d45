"""One step of training: a batch, the model's losses, their sum's gradient, an update of the weights.

No loop, no hooks, no counting: whoever runs a step tells it the iteration, counted from 0, and what to call between
gradients and update.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from detlab.checkpoint.optimizer_state import check_optimizer_state
from detlab.data.loader import endless_batches
from detlab.engine.step_losses import StepLosses
from detlab.utils import comm
from detlab.utils.events import get_event_storage
from detlab.utils.finite import names_not_finite

__all__ = ["FullPrecision", "MixedPrecision", "TrainStep", "seed_step"]

# Where losses are looked at late, all of them are so often: writers write every 20 iterations, and whole rows.
_ITERATIONS_BETWEEN_WHOLE_LOOKS = 20


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


class FullPrecision:
    """The arithmetic of a step in the numbers that the weights have."""

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        """The block in which the model runs."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a scalar."""
        loss.backward()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the weights by the gradients."""
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``, which may come from a run in mixed precision."""


class MixedPrecision(FullPrecision):
    """The forward pass in half precision where torch deems it safe, on the GPU or the CPU; weights stay as they are.

    Between :meth:`backward` and :meth:`update` of a float16 run the gradients are multiplied by
    ``grad_scaler.get_scale()``.

    Args:
        model: that runs in it.
        precision: ``torch.float16`` or ``torch.bfloat16``.
        grad_scaler: by default one is made for float16, whose gradients would vanish unscaled; bfloat16 needs none.
        log_grad_scaler: write the scale as a metric; this waits for the device.

    Raises:
        ValueError: another precision, or a model wrapped for several devices in one process.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: torch.dtype = torch.float16,
        grad_scaler: torch.amp.GradScaler | None = None,
        log_grad_scaler: bool = False,
    ) -> None:
        if precision not in (torch.float16, torch.bfloat16):
            raise ValueError(f"precision must be torch.float16 or torch.bfloat16, got {precision}")
        if isinstance(model, DataParallel) or len(getattr(model, "device_ids", None) or ()) > 1:
            raise ValueError("mixed precision needs one device for each process: start more processes, see launch()")
        self._device_type = _device_type(model)
        self.precision = precision
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)
        self.log_grad_scaler = log_grad_scaler

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        return torch.amp.autocast(self._device_type, dtype=self.precision)

    def backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.grad_scaler.step(optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """``grad_scaler``."""
        return {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; it may come from a run without mixed precision or of the other precision."""
        if state_dict.get("grad_scaler") and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


class TrainStep:
    """What a training does again and again, with what it needs for it.

    Everything random in the forward and backward pass follows from a seed that is saved, the iteration and the rank:
    before the model runs, the global generators of ``random``, numpy and torch are seeded from them. Together with a
    data loader that can begin anywhere, a resumed run repeats the steps of one that was never stopped.

    Args:
        model: called with a batch; gives a dict of scalar losses, or one loss. It is put into training mode.
        data_loader: an iterable of batches. A finite one is started again at its end. It is told where to begin: see
            :func:`~detlab.data.loader.endless_batches`; its ``state_dict`` and ``load_state_dict``, if it has them,
            become part of the state.
        optimizer: a torch optimizer.
        arithmetic: by default :class:`FullPrecision`.
        gather_metric_period: look at the losses every so many iterations, which costs a wait for the device and, in a
            distributed run, an exchange between ranks; the losses of the iterations between are kept and then written.
        zero_grad_before_forward: clear gradients before the forward pass rather than before the backward pass.
        async_write_metrics: look at the losses of a step only after the next one was given to the device, so that a
            GPU never waits for the host; every 20th iteration, and in the last, look at all, so that what is written
            then is whole. None is True for a model on a GPU, and False on the CPU, which has nothing to wait for.

    Attributes:
        losses: those that were not looked at yet.
        seed: that the random numbers of all steps follow from; None before the first.

    Raises:
        ValueError: ``gather_metric_period`` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        arithmetic: FullPrecision | None = None,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool | None = None,
    ) -> None:
        if gather_metric_period < 1:
            raise ValueError(f"gather_metric_period must be at least 1, got {gather_metric_period}")
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.arithmetic = arithmetic or FullPrecision()
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        if async_write_metrics is None:
            async_write_metrics = _device_type(model) == "cuda"
        self.async_write_metrics = async_write_metrics
        self.losses = StepLosses()
        self.seed: int | None = None
        self._batches: Iterator[Any] | None = None

    def run(
        self,
        iteration: int,
        max_iter: float,
        after_backward: Callable[[], None],
        write: Callable[..., None] | None = None,
    ) -> None:
        """Load, forward, backward, look at the losses, update.

        Args:
            iteration: the one that this step is.
            max_iter: the training ends before this iteration, as far as is known.
            after_backward: called when the gradients are there and not yet used.
            write: see :meth:`StepLosses.look`.

        Raises:
            FloatingPointError: a loss is not finite, of this step or of one that was not looked at before.
            RuntimeError: the model is in evaluation mode.
        """
        batch, data_time = self._load(iteration)
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses = self._forward(batch)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.losses.note(iteration, losses, data_time=data_time, learning_rates=rates, batch=batch)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.arithmetic.backward(_sum_of(losses))
        after_backward()
        self._look_if_due(iteration, iteration + 1 >= max_iter, write)
        self.arithmetic.update(self.optimizer)

    def _load(self, iteration: int) -> tuple[Any, float]:
        """The next batch, and the seconds it was waited for; prepares for the forward pass."""
        if not self.model.training:
            raise RuntimeError(
                f"the model is in evaluation mode in iteration {iteration}: something called model.eval() "
                "and did not call model.train() afterwards (detlab.evaluation.inference_context does both)"
            )
        asked_at = time.perf_counter()
        batch = next(self.batches(iteration))
        waited = time.perf_counter() - asked_at
        if self.seed is None:
            self.seed = comm.shared_random_seed()
        seed_step(self.seed, iteration)
        return batch, waited

    def _forward(self, batch: Any) -> Mapping[str, Tensor]:
        """The losses by name."""
        with self.arithmetic.forward():
            losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _look_if_due(self, iteration: int, is_last: bool, write: Callable[..., None] | None) -> None:
        number = iteration + 1
        if is_last or number % self.gather_metric_period == 0:
            whole = is_last or not self.async_write_metrics or number % _ITERATIONS_BETWEEN_WHOLE_LOOKS == 0
            self.look_at_losses(keep=0 if whole else 1, write=write)

    def look_at_losses(self, keep: int = 0, write: Callable[..., None] | None = None) -> None:
        """See :meth:`StepLosses.look`; all ranks must call it."""
        self.losses.look(keep, write)

    # --------------------------------------------------------------------------------------------------------- data

    def batches(self, iteration: int) -> Iterator[Any]:
        """The batches that are left, from ``iteration`` on if none was asked for yet."""
        if self._batches is None:
            self._batches = endless_batches(self.data_loader, iteration)
        return self._batches

    def begin_elsewhere(self, iteration: int) -> None:
        """The next step is not the one that follows the last, or follows one that failed."""
        self._batches = None
        self.losses.forget()

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Replace the data loader; the old one is released before the builder is called."""
        self._batches = None
        del self.data_loader
        self.data_loader = data_loader_builder()

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """``optimizer``, ``step_seed``, what the arithmetic has, and ``data_loader`` if that has a state.

        Raises:
            FloatingPointError: a loss that was not looked at yet is not finite, or of several ranks, which can tell
                by the weights only. What is saved would be spoilt.
        """
        self.losses.check_own()
        if len(self.losses) and comm.get_world_size() > 1 and (names := names_not_finite(self.model)):
            shown = ", ".join(names[:3])
            raise FloatingPointError(f"nothing is saved: a loss of another rank was not finite, and so are now {shown}")
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), **self.arithmetic.state_dict()}
        if self.seed is not None:
            state["step_seed"] = self.seed
        if hasattr(self.data_loader, "state_dict"):
            state["data_loader"] = self.data_loader.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; the next batch is that of the iteration which is run next.

        Raises:
            ValueError: the optimizer's state does not fit the parameters of this model; nothing was taken.
        """
        check_optimizer_state(self.optimizer, state_dict["optimizer"], "the checkpoint", model=self.model)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.arithmetic.load_state_dict(state_dict)
        self.seed = state_dict.get("step_seed", self.seed)
        if "data_loader" in state_dict and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state_dict["data_loader"])
        self._batches = None


def _device_type(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _sum_of(losses: Mapping[str, Tensor]) -> Tensor:
    total, *others = losses.values()
    for loss in others:
        total = total + loss
    return total
