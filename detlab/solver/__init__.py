"""Optimizers and learning-rate schedules."""

from detlab.solver.build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detlab.solver.lr_scheduler import LRMultiplier, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler

__all__ = [
    "LRMultiplier",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupParamScheduler",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
]
