"""Learning rates over a run: warm-up, then steps or a cosine.

``where`` is the part of the run that is over, in [0, 1]. Rates are multiples of each parameter group's initial rate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from detlab.checkpoint.run_state import check_scheduler_state

__all__ = ["LRMultiplier", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupParamScheduler"]

WARMUP_METHODS = ("linear", "constant")


def _check_warmup_method(method: str) -> None:
    if method not in WARMUP_METHODS:
        raise ValueError(f"warm-up method {method!r} is unknown; it is one of {', '.join(WARMUP_METHODS)}")


class WarmupParamScheduler(CompositeParamScheduler):
    """A scheduler with a warm-up in front.

    Args:
        scheduler: what follows the warm-up.
        warmup_factor: the first value, as a multiple of the scheduler's first value.
        warmup_length: part of the run, in [0, 1].
        warmup_method: ``"linear"`` grows from the first value to where the scheduler begins; ``"constant"`` stays.
        rescale_interval: squeeze the whole of ``scheduler`` into what the warm-up leaves, rather than skip its
            beginning.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        _check_warmup_method(warmup_method)
        if not 0 <= warmup_length <= 1:
            raise ValueError(f"warmup_length={warmup_length} is a part of the run, in [0, 1]")
        # With nothing left after the warm-up there is no interval to squeeze into.
        rescales = rescale_interval and warmup_length < 1
        first = warmup_factor * scheduler(0.0)
        last = scheduler(0.0 if rescales else warmup_length)
        warmup = LinearParamScheduler(first, last) if warmup_method == "linear" else ConstantParamScheduler(first)
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescales else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies each group's initial learning rate with a scheduler's value.

    Args:
        optimizer: whose rates to set.
        multiplier: maps ``where`` to a factor.
        max_iter: iterations of the whole run. Beyond them the factor stays.
        last_iter: the iteration to go on from, as with torch's schedulers.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be a ParamScheduler of fvcore, not a {type(multiplier).__name__}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; the schedule itself comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back ``state_dict``.

        Raises:
            ValueError: a value in it is none that a run can have, or would overwrite what is no state; nothing was
                taken.
        """
        check_scheduler_state(self, state_dict)
        super().load_state_dict(state_dict)

    def get_lr(self) -> list[float]:
        """The learning rate of each parameter group at the current iteration."""
        factor = self._multiplier(min(self.last_epoch / self._max_iter, 1.0))
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupMultiStepLR(LRScheduler):
    """Falls by a factor at given iterations. Configs build :class:`LRMultiplier`; this is for direct use.

    Args:
        optimizer: whose rates to set.
        milestones: iterations, rising.
        gamma: the factor.
        warmup_factor: of the rate at iteration 0.
        warmup_iters: iterations of the warm-up.
        warmup_method: ``"linear"`` or ``"constant"``.
        last_epoch: the iteration to go on from.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones={list(milestones)} must rise")
        self.milestones = milestones
        self.gamma = gamma
        self._warmup = _IterationWarmup(warmup_factor, warmup_iters, warmup_method)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The learning rate of each parameter group at the current iteration."""
        factor = self._warmup(self.last_epoch) * self.gamma ** bisect_right(self.milestones, self.last_epoch)
        return [float(base_lr * factor) for base_lr in self.base_lrs]


class WarmupCosineLR(LRScheduler):
    """Falls to 0 along half a cosine. Configs build :class:`LRMultiplier`; this is for direct use.

    Args:
        optimizer: whose rates to set.
        max_iters: iterations of the whole run, warm-up included.
        warmup_factor: of the rate at iteration 0.
        warmup_iters: iterations of the warm-up.
        warmup_method: ``"linear"`` or ``"constant"``.
        last_epoch: the iteration to go on from.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.max_iters = max_iters
        self._warmup = _IterationWarmup(warmup_factor, warmup_iters, warmup_method)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The learning rate of each parameter group at the current iteration."""
        where = min(self.last_epoch / self.max_iters, 1.0)
        factor = self._warmup(self.last_epoch) * 0.5 * (1.0 + math.cos(math.pi * where))
        return [float(base_lr * factor) for base_lr in self.base_lrs]


class _IterationWarmup:
    """The factor of the warm-up at an iteration; 1 after it."""

    def __init__(self, first_factor: float, num_iters: int, method: str):
        _check_warmup_method(method)
        self._first_factor = first_factor
        self._num_iters = num_iters
        self._is_linear = method == "linear"

    def __call__(self, iteration: int) -> float:
        if iteration >= self._num_iters:
            return 1.0
        progress = iteration / self._num_iters if self._is_linear else 0.0
        return self._first_factor + (1.0 - self._first_factor) * progress
