"""From the ``SOLVER`` section of a config to an optimizer and its learning-rate schedule."""

from __future__ import annotations

import copy
import enum
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from detlab.config.config import CfgNode
from detlab.layers.batch_norm import CycleBatchNormList, LayerNorm
from detlab.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler

__all__ = [
    "GradientClipType",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]

logger = logging.getLogger(__name__)

NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    CycleBatchNormList,
    LayerNorm,
)


OPTIMIZERS: dict[str, type[Optimizer]] = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


class GradientClipType(enum.Enum):
    """``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``."""

    VALUE = "value"  # each element
    NORM = "norm"  # the norm of each parameter's gradient
    FULL_MODEL = "full_model"  # the norm of all gradients together


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """The optimizer of ``cfg.SOLVER`` for the parameters of a model that require gradients.

    Raises:
        ValueError: ``SOLVER.OPTIMIZER`` is unknown.
    """
    check_optimizer_settings(cfg)
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    settings: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        settings |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    return maybe_add_gradient_clipping(cfg, OPTIMIZERS[solver.OPTIMIZER])(groups, **settings)


def check_optimizer_settings(cfg: CfgNode) -> None:
    """Refuses what :func:`build_optimizer` would refuse, without a model.

    Raises:
        ValueError: ``SOLVER.OPTIMIZER`` is unknown, or Nesterov's momentum is asked for and there is none.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER={solver.OPTIMIZER!r} is unknown; it is 'SGD' or 'AdamW'")
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        raise ValueError("SOLVER.NESTEROV needs a momentum, but SOLVER.MOMENTUM is 0; set it to 0.9, or NESTEROV False")


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: type[Optimizer]) -> type[Optimizer]:
    """A subclass of an optimizer that clips gradients before each step, if ``SOLVER.CLIP_GRADIENTS`` says so.

    Args:
        cfg: config.
        optimizer: a class; of an optimizer object its class is replaced in place.

    Returns:
        The class (or object) to use in its place.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    if isinstance(optimizer, Optimizer):
        optimizer.__class__ = _with_clipping(type(optimizer), _build_clipper(cfg.SOLVER.CLIP_GRADIENTS))
        return optimizer
    return _with_clipping(optimizer, _build_clipper(cfg.SOLVER.CLIP_GRADIENTS))


Clipper = Callable[[list[nn.Parameter]], Any]


def _build_clipper(settings: CfgNode) -> Clipper:
    kind = GradientClipType(settings.CLIP_TYPE)
    limit, norm_type = settings.CLIP_VALUE, settings.NORM_TYPE
    if kind is GradientClipType.VALUE:
        return lambda params: nn.utils.clip_grad_value_(params, limit)
    if kind is GradientClipType.FULL_MODEL:
        return lambda params: nn.utils.clip_grad_norm_(params, limit, norm_type)

    def clip_each(params: list[nn.Parameter]) -> None:
        for param in params:
            nn.utils.clip_grad_norm_(param, limit, norm_type)

    return clip_each


def _with_clipping(base: type[Optimizer], clip: Clipper) -> type[Optimizer]:
    class WithGradientClipping(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable | None = None) -> Any:
            clip([param for group in self.param_groups for param in group["params"] if param.grad is not None])
            return super().step(closure)

    WithGradientClipping.__name__ = WithGradientClipping.__qualname__ = f"{base.__name__}WithGradientClipping"
    return WithGradientClipping


class _NamedParameter(NamedTuple):
    module: nn.Module  # the one that holds the parameter itself
    module_name: str
    name: str  # within the module
    parameter: nn.Parameter

    @property
    def full_name(self) -> str:
        return f"{self.module_name}.{self.name}" if self.module_name else self.name


def _trainable_parameters(model: nn.Module) -> Iterator[_NamedParameter]:
    """Each parameter that requires a gradient, once, in the order of the modules."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield _NamedParameter(module, module_name, name, parameter)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, with the usual exceptions. What is None is left to the optimizer.

    Args:
        model: its parameters that require gradients are taken.
        base_lr: of all parameters.
        weight_decay: of all parameters.
        weight_decay_norm: of the parameters of normalization layers.
        bias_lr_factor: multiplies ``base_lr`` for parameters called ``bias``; needs ``base_lr``.
        weight_decay_bias: of parameters called ``bias``.
        lr_factor_func: maps a parameter's full name to a factor of ``base_lr``, which it needs; for example to let
            deeper layers learn slower.
        overrides: settings by the last part of a parameter's name, which win over all others:
            ``{"pos_embed": {"weight_decay": 0}}``.

    Returns:
        Groups, as few as possible.

    Raises:
        ValueError: ``base_lr`` is missing, or ``overrides`` and a bias argument both speak about biases.
    """
    exceptions = {name: dict(settings) for name, settings in (overrides or {}).items()}
    bias_settings = _bias_settings(base_lr, bias_lr_factor, weight_decay_bias)
    if bias_settings:
        if "bias" in exceptions:
            raise ValueError(f"overrides has 'bias', and so have the bias arguments ({bias_settings}); use one of them")
        exceptions["bias"] = bias_settings
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr, the rate that it multiplies")
    common = _without_none(lr=base_lr, weight_decay=weight_decay)
    groups = []
    for entry in _trainable_parameters(model):
        settings = dict(common)
        if weight_decay_norm is not None and isinstance(entry.module, NORM_LAYERS):
            settings["weight_decay"] = float(weight_decay_norm)
        if lr_factor_func is not None:
            settings["lr"] *= lr_factor_func(entry.full_name)
        settings.update(exceptions.get(entry.name, {}))
        groups.append({"params": [entry.parameter], **settings})
    return reduce_param_groups(groups)


def _bias_settings(base_lr: float | None, lr_factor: float | None, weight_decay: float | None) -> dict[str, float]:
    scales = lr_factor is not None and lr_factor != 1.0
    if scales and base_lr is None:
        raise ValueError(f"bias_lr_factor={lr_factor} needs base_lr, the rate that it multiplies")
    return _without_none(lr=base_lr * lr_factor if scales else None, weight_decay=weight_decay)  # type: ignore[operator]


def _without_none(**settings: float | None) -> dict[str, float]:
    # Torch takes whole numbers up to 64 bits only.
    return {name: float(value) for name, value in settings.items() if value is not None}


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins the groups whose settings are equal.

    A few large groups are updated much faster than one for each parameter.

    Args:
        params: groups: ``"params"`` and settings.

    Returns:
        New groups, in the order in which their settings first appear.
    """
    joined: dict[tuple, dict[str, Any]] = {}
    for group in params:
        settings = {name: value for name, value in group.items() if name != "params"}
        key = tuple(sorted(settings.items()))
        joined.setdefault(key, {"params": [], **copy.copy(settings)})["params"].extend(_as_list(group["params"]))
    return list(joined.values())


def _as_list(params: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule of ``cfg.SOLVER``; its ``step()`` is called after each iteration.

    Raises:
        ValueError: ``SOLVER.LR_SCHEDULER_NAME`` is unknown, or ``SOLVER.MAX_ITER`` leaves no iteration.
    """
    solver = cfg.SOLVER
    multiplier = _multiplier(solver)
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        logger.warning(
            "SOLVER.WARMUP_ITERS=%d is not over within SOLVER.MAX_ITER=%d: the learning rate never reaches "
            "SOLVER.BASE_LR=%g; for a short run lower WARMUP_ITERS",
            *(solver.WARMUP_ITERS, solver.MAX_ITER, solver.BASE_LR),
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and any(step >= solver.MAX_ITER for step in solver.STEPS):
        logger.warning("SOLVER.STEPS=%s: what lies beyond SOLVER.MAX_ITER=%d is ignored", solver.STEPS, solver.MAX_ITER)
    return LRMultiplier(optimizer, multiplier, max_iter=solver.MAX_ITER)


def check_lr_scheduler_settings(cfg: CfgNode) -> None:
    """Refuses what :func:`build_lr_scheduler` would refuse, without an optimizer.

    Raises:
        ValueError: as there.
    """
    _multiplier(cfg.SOLVER)


def _multiplier(solver: CfgNode) -> WarmupParamScheduler:
    if solver.MAX_ITER < 1:
        raise ValueError(f"a learning-rate schedule needs iterations, but SOLVER.MAX_ITER is {solver.MAX_ITER}")
    name = solver.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME={name!r} is unknown; it is one of {', '.join(_SCHEDULES)}")
    return WarmupParamScheduler(
        _SCHEDULES[name](solver),
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_length=min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        warmup_method=solver.WARMUP_METHOD,
        rescale_interval=solver.RESCALE_INTERVAL,
    )


def _multi_step(solver: CfgNode) -> ParamScheduler:
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    return _falling(solver.GAMMA, steps, solver.MAX_ITER)


def _step_with_fixed_gamma(solver: CfgNode) -> ParamScheduler:
    num_levels = solver.NUM_DECAYS + 1
    steps = [math.ceil(level * solver.MAX_ITER / num_levels) for level in range(1, num_levels)]
    return _falling(solver.GAMMA, steps, solver.MAX_ITER)


def _falling(gamma: float, steps: list[int], max_iter: int) -> ParamScheduler:
    if any(step <= previous for previous, step in zip([0, *steps], steps)):
        raise ValueError(
            f"the learning rate cannot fall at iterations {steps} (SOLVER.STEPS): they must rise from 1 on"
        )
    try:
        values = [gamma**level for level in range(len(steps) + 1)]
    except OverflowError:
        raise ValueError(
            f"SOLVER.GAMMA={gamma:g} multiplied {len(steps)} times is no number any more; it is a factor such as 0.1"
        ) from None
    return MultiStepParamScheduler(values, milestones=steps, num_updates=max_iter)


def _cosine(solver: CfgNode) -> ParamScheduler:
    if not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise ValueError(f"SOLVER.BASE_LR_END={solver.BASE_LR_END} must lie between 0 and BASE_LR={solver.BASE_LR}")
    # A rate of 0 stays where it is.
    return CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 1.0)


_SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _step_with_fixed_gamma,
}
