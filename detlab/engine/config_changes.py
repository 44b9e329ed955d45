"""A run that goes on with another config than it began with: what differs, and which of the two counts.

The config in use counts wherever it can, the rates and schedule of the optimizer included, whose state in a checkpoint
holds the old ones. What a state cannot be carried over to is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import yaml
from tabulate import tabulate

from detlab.config.config import CfgNode
from detlab.solver.lr_scheduler import LRMultiplier

__all__ = [
    "Change",
    "apply_solver_changes",
    "changed_settings",
    "changes_results",
    "group_settings",
    "log_changes",
    "naming_changes",
    "refuse_changes",
    "set_rates",
]

logger = logging.getLogger(__name__)

MISSING = "(no such key)"
LONGEST_VALUE = 60

# The settings of an optimizer's parameter groups that each key decides on.
KEYS_OF_GROUPS: dict[str, tuple[str, ...]] = {
    "SOLVER.BASE_LR": ("initial_lr",),
    "SOLVER.BIAS_LR_FACTOR": ("initial_lr",),
    "SOLVER.MOMENTUM": ("momentum",),
    "SOLVER.NESTEROV": ("nesterov",),
    "SOLVER.WEIGHT_DECAY": ("weight_decay",),
    "SOLVER.WEIGHT_DECAY_BIAS": ("weight_decay",),
    "SOLVER.WEIGHT_DECAY_NORM": ("weight_decay",),
}
# Some parameters get a group of their own where these differ from the others'.
KEYS_THAT_MAKE_GROUPS = frozenset(
    f"SOLVER.{key}" for key in ("BIAS_LR_FACTOR", "WEIGHT_DECAY", "WEIGHT_DECAY_BIAS", "WEIGHT_DECAY_NORM")
)
KEYS_OF_SCHEDULE = frozenset(
    f"SOLVER.{key}"
    for key in (
        "BASE_LR",
        "BASE_LR_END",
        "BIAS_LR_FACTOR",
        "GAMMA",
        "LR_SCHEDULER_NAME",
        "MAX_ITER",
        "NUM_DECAYS",
        "RESCALE_INTERVAL",
        "STEPS",
        "WARMUP_FACTOR",
        "WARMUP_ITERS",
        "WARMUP_METHOD",
    )
)

# What does not bear on an evaluation.
KEYS_OF_TRAINING = ("SOLVER.", "DATALOADER.")
KEYS_WITHOUT_RESULTS = frozenset(
    ("CUDNN_BENCHMARK", "DATASETS.TRAIN", "MODEL.WEIGHTS", "OUTPUT_DIR", "SEED", "TEST.EVAL_PERIOD")
    + ("TEST.EXPECTED_RESULTS", "VIS_PERIOD")
)


class Change(NamedTuple):
    """A setting that differs."""

    key: str
    saved: Any  # in the checkpoint's config
    now: Any


def changed_settings(saved_config: str, cfg: CfgNode) -> list[Change]:
    """The settings of ``cfg`` that differ from those of a config's text, in the order of their names."""
    saved = dict(_leaves(yaml.safe_load(saved_config)))
    # Through text as well, which makes lists of tuples.
    now = dict(_leaves(yaml.safe_load(cfg.dump())))
    pairs = [Change(key, saved.get(key, MISSING), now.get(key, MISSING)) for key in sorted(saved.keys() | now.keys())]
    return [pair for pair in pairs if pair.saved != pair.now]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes_results(changes: Sequence[Change]) -> bool:
    """Whether an evaluation of the same weights may give other results than before."""
    return any(
        not change.key.startswith(KEYS_OF_TRAINING) and change.key not in KEYS_WITHOUT_RESULTS for change in changes
    )


def refuse_changes(changes: Sequence[Change]) -> None:
    """Refuses a change after which the optimizer's state means nothing.

    Raises:
        ValueError: the optimizer is another one.
    """
    for key, saved, now in changes:
        if key == "SOLVER.OPTIMIZER":
            raise ValueError(f"{key} is {now!r}, but the state is one of {saved!r}")


@contextmanager
def naming_changes(changes: Sequence[Change]) -> Iterator[None]:
    """Puts the settings that may be the reason before the words of a state that does not fit.

    Raises:
        ValueError: the block raised it.
    """
    try:
        yield
    except ValueError as error:
        causes = [change for change in changes if _may_change_parameters(change)]
        if not causes:
            raise
        shown = ", ".join(f"{key} {_shortened(saved)} -> {_shortened(now)}" for key, saved, now in causes)
        raise ValueError(f"since it was saved, {shown}: {error}") from error


def _may_change_parameters(change: Change) -> bool:
    """Whether a setting decides which parameters there are, their shapes or their groups, as far as is known."""
    if change.key in KEYS_THAT_MAKE_GROUPS:
        return True
    is_about_something_else = change.key.startswith((*KEYS_OF_TRAINING, "DATASETS.", "INPUT.", "TEST."))
    return not is_about_something_else and change.key not in KEYS_WITHOUT_RESULTS | {
        "FLOAT32_PRECISION",
        "MODEL.DEVICE",
    }


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimizer's parameter groups hold beside the parameters, as copies."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def apply_solver_changes(
    changes: Sequence[Change],
    built: Sequence[Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
) -> None:
    """Gives an optimizer whose state was loaded the settings that were changed in the config.

    Settings that were not changed stay as they were saved: hooks may have changed them while training ran. The rate of
    the next iteration is that of the new schedule, if the scheduler is one whose rates follow from the iteration.

    Args:
        changes: see :func:`changed_settings`.
        built: :func:`group_settings` of the optimizer before its state was loaded.
        optimizer: with the state loaded.
        scheduler: of its rates, with its state loaded.
    """
    keys = {change.key for change in changes}
    follows = isinstance(scheduler, LRMultiplier)
    names = {name for key in keys for name in KEYS_OF_GROUPS.get(key, ())}
    if not follows:
        names.discard("initial_lr")
    for group, settings in zip(optimizer.param_groups, built):
        group.update((name, settings[name]) for name in names if name in settings)
    if follows and keys & KEYS_OF_SCHEDULE:
        if "initial_lr" in names:
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        set_rates(optimizer, scheduler)


def set_rates(optimizer: torch.optim.Optimizer, scheduler: LRMultiplier) -> None:
    """Gives an optimizer the rates that a schedule has at its iteration."""
    rates = scheduler.get_lr()
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
    scheduler._last_lr = [*rates]


def log_changes(changes: Sequence[Change], scheduler: Any, start_iter: int) -> None:
    """Warns of the settings that differ, each with what counts from ``start_iter`` on, if the state can be taken.

    Says nothing if there are none.
    """
    if not changes:
        return
    rows = [
        (change.key, _shortened(change.saved), _shortened(change.now), _what_counts(change, scheduler, start_iter))
        for change in changes
    ]
    table = tabulate(rows, headers=["setting", "in the checkpoint", "now", "what counts"], tablefmt="pipe")
    logger.warning(f"The run is to go on with another config than the checkpoint's:\n{table}")


def _what_counts(change: Change, scheduler: Any, start_iter: int) -> str:
    key = change.key
    if key == "SEED":
        return "the checkpoint: samples and steps go on from its seed"
    if key == "MODEL.WEIGHTS":
        return "neither: the weights are those of the checkpoint"
    if key == "DATASETS.TRAIN":
        return "now: other samples, drawn with the checkpoint's seed"
    if key == "SOLVER.IMS_PER_BATCH":
        return f"now: samples from number {start_iter * change.now} on; the run has had {start_iter * change.saved}"
    if key in KEYS_OF_SCHEDULE and key != "SOLVER.MAX_ITER" and not isinstance(scheduler, LRMultiplier):
        return f"as the state of {type(scheduler).__name__} has it"
    return "now"


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
