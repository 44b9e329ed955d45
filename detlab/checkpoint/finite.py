"""Weights that are no numbers, or would be none in the model: one that has some predicts nothing, without a word."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_finite", "check_real", "find_non_finite"]


def find_non_finite(weights: Mapping[str, Tensor], model_state: Mapping[str, Tensor] | None = None) -> list[str]:
    """Names of the weights with elements that are infinite or not a number, in their order.

    Args:
        weights: by name.
        model_state: what the model was made with. A weight is judged as it will be there: 1e300 is infinite in
            float32. Infinities that stand there at the same places are no damage: a mask of an attention has them.
    """
    return [name for name, weight in weights.items() if _is_bad(weight, (model_state or {}).get(name))]


def check_finite(weights: Mapping[str, Tensor], model_state: Mapping[str, Tensor] | None = None) -> None:
    """Refuses weights that :func:`find_non_finite` finds.

    Raises:
        ValueError: naming up to five of them.
    """
    names = find_non_finite(weights, model_state)
    if names:
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"{len(names)} of its {len(weights)} weights are not finite in the model (infinite, too large for its type "
            f"of number, or not a number): {some}. The training that wrote it went astray, or the file is damaged; "
            "take an earlier checkpoint"
        )


def check_real(weights: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Refuses complex weights for real ones, which would lose their imaginary part.

    Raises:
        ValueError: naming one of them.
    """
    for name, weight in weights.items():
        if weight.is_complex() and name in model_state and not model_state[name].is_complex():
            raise ValueError(
                f"the weight {name} is complex ({weight.dtype}) and would lose its imaginary part in the model, which "
                f"has it in {model_state[name].dtype}; save its real part if that is what is meant"
            )


def _is_bad(weight: Tensor, made_with: Tensor | None) -> bool:
    if made_with is not None and _may_overflow(weight.dtype, made_with.dtype):
        weight = weight.to(made_with.dtype)
    if not (weight.is_floating_point() or weight.is_complex()) or _has_finite_sum(weight):
        return False
    values = weight if weight.is_complex() or weight.dtype.itemsize > 1 else weight.float()
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        return False
    if made_with is None or made_with.shape != weight.shape or made_with.dtype != weight.dtype:
        return True
    return not torch.equal(values[bad], made_with.to(values)[bad])


def _may_overflow(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a finite number of the one type may be infinite in the other."""
    if given == wanted or given.is_complex or not wanted.is_floating_point:
        return False
    info = torch.finfo(given) if given.is_floating_point else torch.iinfo(given) if given != torch.bool else None
    return info is not None and info.max > torch.finfo(wanted).max


def _has_finite_sum(weight: Tensor) -> bool:
    """True only if all elements are finite. It is the quicker question; a finite weight's sum may yet be infinite."""
    if weight.is_complex():
        return bool(torch.isfinite(weight.sum()))
    wide = weight if weight.dtype.itemsize > 1 else weight.float()
    return bool(torch.isfinite(wide.sum(dtype=torch.float64 if wide.dtype == torch.float64 else torch.float32)))
