"""Whether the state of an optimizer, as a file holds it, is one of the parameters that the optimizer has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

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


def check_optimizer_state(
    optimizer: Optimizer, state: Mapping[str, Any], path_or_name: str, *, model: nn.Module | None = None
) -> None:
    """Refuses a state that torch would take and that would fail, or do harm, in the first step.

    ``Optimizer.load_state_dict`` compares how many parameters there are, and no shapes.

    Args:
        optimizer: that shall take the state.
        state: as its ``state_dict`` gives it.
        path_or_name: where the state comes from, for the message.
        model: whose parameters they are, to call them by name; without it, an optimizer that was given names tells
            them, and another one tells their places.

    Raises:
        ValueError: the groups are others, or an entry has another shape than its parameter.
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
    names = _names(optimizer, model)
    ids = [identity for group in groups for identity in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    wrong = [
        f"{entry} of {name} has shape {shape}, the parameter has {tuple(parameter.shape)}"
        for name, identity, parameter in zip(names, ids, parameters)
        for entry, shape in _shapes(entries.get(identity, {}))
        if shape != tuple(parameter.shape)
    ]
    if wrong:
        rest = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"in the optimizer's state of {path_or_name}, {'; '.join(wrong[:3])}{rest}")


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
