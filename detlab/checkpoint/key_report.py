"""Telling a person which weights did not find their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["IncompatibleKeys", "ShapeMismatch", "describe_mismatches", "describe_names"]


class ShapeMismatch(NamedTuple):
    """A weight that has one shape in the file and another in the model."""

    name: str
    shape_in_file: tuple[int, ...]
    shape_in_model: tuple[int, ...]


class IncompatibleKeys(NamedTuple):
    """Which weights of a file and of a model did not find each other."""

    missing_keys: list[str]  # in the model only
    unexpected_keys: list[str]  # in the file only
    incorrect_shapes: list[ShapeMismatch]


def describe_names(names: Iterable[str]) -> str:
    """One line for each module: ``  backbone.fpn_lateral2.{bias, weight}``."""
    by_module: dict[str, list[str]] = defaultdict(list)
    for name in names:
        module, _, leaf = name.rpartition(".")
        by_module[module].append(leaf)
    return "\n".join(f"  {_join(module, sorted(leaves))}" for module, leaves in sorted(by_module.items()))


def _join(module: str, leaves: list[str]) -> str:
    tail = leaves[0] if len(leaves) == 1 else "{" + ", ".join(leaves) + "}"
    return f"{module}.{tail}" if module else tail


def describe_mismatches(mismatches: Iterable[ShapeMismatch]) -> str:
    """One line for each weight: ``  head.weight: (81, 1024) in the file, (4, 1024) in the model``."""
    return "\n".join(
        f"  {name}: {tuple(in_file)} in the file, {tuple(in_model)} in the model"
        for name, in_file, in_model in sorted(mismatches)
    )
