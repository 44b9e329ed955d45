"""Whether the state of a run, as a file holds it, is one that a run can be in.

Torch's schedulers take over whatever attributes a file names, and counters whatever they are set to.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

__all__ = ["check_iteration", "check_scheduler_state", "check_trainer_state", "is_number", "shown"]

MAX_ITERATION = 2**62
RATES = ("base_lrs", "_last_lr")
COUNTERS = ("last_epoch", "_step_count")


def check_iteration(value: Any, key: str) -> None:
    """Refuses what is no number of the last iteration that is done.

    Args:
        value: as a file holds it.
        key: of the value, for the message.

    Raises:
        ValueError: it is no int from -1 (before the first) on.
    """
    if type(value) is not int or not -1 <= value < MAX_ITERATION:
        raise ValueError(f"{key} is {shown(value)}; it must be a whole number from -1 on")


def check_trainer_state(state: Any) -> None:
    """Refuses the state of a trainer that counts iterations as none can be counted.

    Args:
        state: as a trainer's ``state_dict`` gives it; that of an inner trainer is in its ``_trainer``.

    Raises:
        ValueError: an ``iteration`` in it is no count; names the key, and its value.
    """
    place = ""
    while isinstance(state, Mapping):
        if "iteration" in state:
            check_iteration(state["iteration"], f"{place}iteration")
        place, state = f"{place}_trainer.", state.get("_trainer")


def check_scheduler_state(scheduler: LRScheduler, state: Any) -> None:
    """Refuses a state that would overwrite anything of a scheduler but its state, or holds no numbers where it must.

    Args:
        scheduler: that shall take the state.
        state: as its ``state_dict`` gives it.

    Raises:
        ValueError: names the key, and its value.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__} in place of a scheduler's state")
    own = scheduler.state_dict()
    for key, value in state.items():
        if not isinstance(key, str) or (key not in own and hasattr(scheduler, key)):
            raise ValueError(f"the scheduler's {shown(key)} is no part of its state, but set to {shown(value)}")
        if key in COUNTERS:
            check_iteration(value, f"the scheduler's {key}")
        elif key in RATES:
            _check_rates(key, value, len(scheduler.optimizer.param_groups))
        elif key in own and not _is_alike(value, own[key]):
            raise ValueError(f"the scheduler's {key} is {shown(value)}; here it is {shown(own[key])}")


def _check_rates(key: str, value: Any, num_groups: int) -> None:
    is_list = isinstance(value, list) and len(value) == num_groups
    if not is_list or not all(is_number(rate) and 0 <= rate < math.inf for rate in value):
        raise ValueError(
            f"the scheduler's {key} is {shown(value)}; it must be a list of {num_groups} finite numbers from 0 on"
        )


def _is_alike(value: Any, here: Any) -> bool:
    """Whether both are numbers, or neither is and they have the same type, as far as types of containers count."""
    if is_number(here):
        return is_number(value) and not math.isnan(value)
    if isinstance(here, Mapping):
        return isinstance(value, Mapping)
    if isinstance(here, (list, tuple)):
        return isinstance(value, (list, tuple))
    return here is None or value is None or type(value) is type(here)


def is_number(value: Any) -> bool:
    """Whether it is a real number of Python or numpy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """The value, if it is short to write, else its type."""
    is_atom = value is None or isinstance(value, (bool, int, float, str))
    try:
        return repr(value)[:80] if is_atom or _is_short_list(value) else f"a {type(value).__name__}"
    except ValueError:  # Python writes no number of thousands of digits
        return f"a number of {value.bit_length()} bits"


def _is_short_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= 8 and all(is_number(part) for part in value)
