"""What a training will need beyond single settings, looked at before the model is built.

A model with its weights takes a minute to build and read; a slip in the name of a sampler should not take as long.
"""

from __future__ import annotations

from typing import Any

from detlab.config.config import CfgNode
from detlab.data.build import check_train_loader_settings
from detlab.solver.build import check_lr_scheduler_settings, check_optimizer_settings

__all__ = ["check_train_side"]

CHECKS = {
    "build_train_loader": check_train_loader_settings,
    "build_optimizer": check_optimizer_settings,
    "build_lr_scheduler": check_lr_scheduler_settings,
}


def check_train_side(cfg: CfgNode, trainer_class: Any, default_class: Any) -> None:
    """Refuses names and schedules that the parts of a training would refuse later.

    Args:
        cfg: of the run.
        trainer_class: the trainer's. What it builds by a method of its own is left to that.
        default_class: whose methods build by the config: ``DefaultTrainer``.

    Raises:
        KeyError: a data set is not registered.
        ValueError: none is named; a sampler, an optimizer or a schedule is unknown, or the schedule cannot be.
    """
    for method, check in CHECKS.items():
        own = getattr(getattr(trainer_class, method), "__func__", None)
        if own is getattr(default_class, method).__func__:
            check(cfg)
