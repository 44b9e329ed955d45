"""Taking over settings from files, overrides and other configs: all of them, or none if one is wrong."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fvcore.common.config import BASE_KEY
from yacs.config import CfgNode as _YacsCfgNode

from detlab.config.constraints import problem_with
from detlab.config.nearest import UnknownKeyError, did_you_mean
from detlab.config.values import merged_value

__all__ = ["MergePlan", "check_pairs", "nest", "place_of"]

# Under this name a section of a config keeps its own dotted name, beside its settings.
PLACE = "_place"
# To look for what each of them may have meant takes a moment.
MAX_NAMED = 20


def place_of(section: _YacsCfgNode, key: str) -> str | None:
    """The dotted name of a key of a section; None in a tree of settings that does not come from ``get_cfg``."""
    place = section.__dict__.get(PLACE)
    return f"{place}.{key}" if place else (key if place == "" else None)


class _Assignment(NamedTuple):
    """One checked setting, ready to be made."""

    section: _YacsCfgNode
    key: str
    value: Any


class MergePlan:
    """Settings that are to be taken over, checked before the first one is.

    Args:
        root: the config that shall take them.
        origin: where they come from, for messages: ``" in a.yaml"``.
    """

    def __init__(self, root: _YacsCfgNode, origin: str) -> None:
        self._root = root
        self._origin = origin
        self._assignments: list[_Assignment] = []
        self._unknown: list[str] = []
        self._problems: list[str] = []

    def add(self, source: Mapping[str, Any], target: _YacsCfgNode | None = None, prefix: str = "") -> None:
        """Plans to set in ``target``, whose dotted name is ``prefix``, what ``source`` holds.

        Raises:
            ValueError: a value is of another type than its setting.
        """
        target = self._root if target is None else target
        for key, given in source.items():
            full_key = f"{prefix}{key}"
            if full_key == BASE_KEY:
                raise ValueError(
                    f"{BASE_KEY} names the base of a file; it has no meaning among other settings{self._origin}"
                )
            if key in target:
                self._add_known(target, key, merged_value(given, target[key], full_key, self._origin), full_key)
            elif target.is_new_allowed():
                value = copy.deepcopy(target._decode_cfg_value(given))
                self._assignments.append(_Assignment(target, key, value))
            elif self._root.key_is_renamed(full_key):
                self._root.raise_key_rename_error(full_key)
            elif not self._root.key_is_deprecated(full_key):
                self._unknown.append(_innermost_key(full_key, given))

    def _add_known(self, target: _YacsCfgNode, key: str, value: Any, full_key: str) -> None:
        if isinstance(value, Mapping):
            self.add(value, target[key], f"{full_key}.")
            return
        place = place_of(target, key)
        problem = problem_with(place, value) if place else ""
        if problem:
            self._problems.append(problem)
        self._assignments.append(_Assignment(target, key, value))

    def apply(self) -> None:
        """Makes the settings.

        Raises:
            UnknownKeyError: names the keys that are not there, of many the first; nothing was set.
            ValueError: names every value out of its limits; nothing was set.
        """
        if self._unknown:
            known = list(_dotted_keys(self._root))
            named, rest = self._unknown[:MAX_NAMED], len(self._unknown) - MAX_NAMED
            lines = [f"unknown config key {key[:300]!r}{self._origin}{did_you_mean(key, known)}" for key in named]
            lines += [f"and {rest} more unknown keys"] if rest > 0 else []
            raise UnknownKeyError("\n".join(lines))
        if self._problems:
            raise ValueError("\n".join(f"{problem}{self._origin}" for problem in self._problems))
        for section, key, value in self._assignments:
            section[key] = value


def check_pairs(cfg_list: Sequence[Any]) -> None:
    """Refuses what is no list of keys and values in turn.

    Raises:
        ValueError: a key is none, or the last one has no value.
    """
    if len(cfg_list) % 2:
        raise ValueError(f"the config key {_without_value(cfg_list)!r} has no value; overrides are KEY VALUE pairs")
    for key in cfg_list[0::2]:
        if not isinstance(key, str) or key.startswith("-") or "=" in key:
            raise ValueError(f"expected a key such as SOLVER.BASE_LR, got {key!r}; overrides are KEY VALUE pairs")


def _without_value(cfg_list: Sequence[Any]) -> Any:
    """The key that another key follows; the last one where there is none."""
    for key, value in zip(cfg_list[0::2], cfg_list[1::2]):
        if isinstance(value, str) and re.fullmatch(r"[A-Z]\w*(\.[A-Z]\w*)+", value):
            return key
    return cfg_list[-1]


def nest(dotted_key: str, value: Any) -> dict[str, Any]:
    """``{"A": {"B": value}}`` of ``"A.B"``."""
    first, _, rest = dotted_key.partition(".")
    return {first: nest(rest, value) if rest else value}


def _dotted_keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def _innermost_key(dotted_key: str, given: Any) -> str:
    """The dotted key of the value in a chain of sections that hold one key each, as overrides make them."""
    while isinstance(given, Mapping) and len(given) == 1:
        ((key, given),) = given.items()
        dotted_key = f"{dotted_key}.{key}"
    return dotted_key
