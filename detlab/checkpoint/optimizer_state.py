"""Whether the state of an optimizer, as a file holds it, is one of the parameters that the optimizer has, and sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from detlab.checkpoint.finite import find_non_finite
from detlab.checkpoint.run_state import is_number, shown

__all__ = ["check_optimizer_state"]

# What torch's optimizers keep for each element of a parameter; other entries have shapes of their own.
ELEMENTWISE_ENTRIES = {
    "acc_delta",
    "ax",
    "exp_avg",
    "exp_avg_sq",
    "exp_inf",
    "grad_avg",
    "max_exp_avg_sq",
    "momentum_buffer",
    "prev",
    "square_avg",
    "step_size",
    "sum",
}
# Settings of groups that no optimizer takes below 0.
NEVER_NEGATIVE = {"initial_lr", "lr", "momentum", "weight_decay"}


def check_optimizer_state(
    optimizer: Optimizer, state: Mapping[str, Any], path_or_name: str, *, model: nn.Module | None = None
) -> None:
    """Refuses a state that torch would take and that would fail, or do harm, in the first step.

    ``Optimizer.load_state_dict`` compares how many parameters there are, and no shapes; and it goes through whatever
    an entry holds.

    Args:
        optimizer: that shall take the state.
        state: as its ``state_dict`` gives it.
        path_or_name: where the state comes from, for the message.
        model: whose parameters they are, to call them by name; without it, an optimizer that was given names tells
            them, and another one tells their places.

    Raises:
        ValueError: the groups are others; an entry has another shape than its parameter, is not finite, or is no
            tensor, number, text or flat container of these; or a setting of a group is none that it may have.
    """
    if not _is_optimizer_state(state):
        raise ValueError(f"{path_or_name} holds no state of an optimizer ('state' and 'param_groups')")
    groups, entries = state["param_groups"], state["state"]
    in_file = [len(group["params"]) for group in groups]
    here = [len(group["params"]) for group in optimizer.param_groups]
    if in_file != here:
        raise ValueError(
            f"the optimizer's groups have {_some(in_file)} parameters in {path_or_name}, {_some(here)} here"
        )
    for index, (group, group_here) in enumerate(zip(groups, optimizer.param_groups)):
        problem = _problem_of_group(group, group_here)
        if problem:
            raise ValueError(f"in the optimizer's state of {path_or_name}, param_groups.{index}.{problem}")
    names = _names(optimizer, model)
    ids = [identity for group in groups for identity in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of_parameters = [entries.get(identity, {}) for identity in ids]
    wrong = [
        f"{entry} of {name} has shape {shape}, the parameter has {tuple(parameter.shape)}"
        for name, state_of, parameter in zip(names, of_parameters, parameters)
        for entry, shape in _shapes(state_of)
        if shape != tuple(parameter.shape)
    ]
    wrong += [
        problem for name, state_of in zip(names, of_parameters) for problem in _problems_of_entries(name, state_of)
    ]
    if wrong:
        rest = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"in the optimizer's state of {path_or_name}, {'; '.join(wrong[:3])}{rest}")


def _problem_of_group(group: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What is wrong with the settings of a group; the text goes on from the name of the group."""
    odd = next((identity for identity in group["params"] if type(identity) not in (int, str)), None)
    if odd is not None:
        return f"params holds a {type(odd).__name__}; it lists the numbers of parameters"
    for key in group.keys() - {"params"}:
        value = group[key]
        if not _is_flat(value):
            return f"{key} is a {type(value).__name__} that holds others; it must be a number, text or flat list"
        if _is_number(here.get(key)) and not _is_number(value):
            return f"{key} is {_shown(value)}; it must be a number"
        is_low = key in NEVER_NEGATIVE and _is_number(value) and not 0 <= _as_float(value) < math.inf
        if is_low or any(_is_nan(part) for part in _parts(value)):
            return f"{key} is {_shown(value)}; it must be a {'finite number from 0 on' if is_low else 'number'}"
    return ""


def _problems_of_entries(name: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with what is kept for a parameter."""
    for entry, value in entries.items():
        if not _is_flat(value):
            yield f"{entry} of {name} is a {type(value).__name__} that holds others, not a tensor, number or flat list"
            continue
        tensors = {entry: value} if entry in ELEMENTWISE_ENTRIES and isinstance(value, Tensor) else {}
        if find_non_finite(tensors) or any(_is_nan(part) for part in _parts(value)):
            yield f"{entry} of {name} is not finite (infinite, or not a number)"


def _parts(value: Any) -> list[Any]:
    """The items of a container; of anything else itself."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _is_flat(value: Any) -> bool:
    """Whether it is no container, or one of no others. Torch goes through nested ones, however often they repeat."""
    return not any(isinstance(part, (Mapping, list, tuple, set, frozenset)) for part in _parts(value))


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return is_number(value)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats
        return math.inf


def _is_nan(value: Any) -> bool:
    return _is_number(value) and math.isnan(_as_float(value))


def _shown(value: Any) -> str:
    return shown(value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)


def _is_optimizer_state(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and isinstance(state.get("state"), Mapping)
        and all(isinstance(entries, Mapping) for entries in state["state"].values())
        and isinstance(state.get("param_groups"), list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in state["param_groups"])
    )


def _names(optimizer: Optimizer, model: nn.Module | None) -> list[str]:
    """One for each parameter, in the order of the groups."""
    known = {} if model is None else {parameter: name for name, parameter in model.named_parameters()}
    names: list[str] = []
    for group in optimizer.param_groups:
        own_names = group.get("param_names") or [f"parameter {len(names) + i}" for i in range(len(group["params"]))]
        names += [known.get(parameter, name) for parameter, name in zip(group["params"], own_names)]
    return names


def _shapes(entries: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Entry and shape, of those that should have the shape of the parameter."""
    for entry, value in entries.items():
        if entry in ELEMENTWISE_ENTRIES and isinstance(value, Tensor):
            yield entry, tuple(value.shape)


def _some(counts: list[int]) -> str:
    return ", ".join(map(str, counts[:5])) + (f", ... ({len(counts)} groups)" if len(counts) > 5 else "")
