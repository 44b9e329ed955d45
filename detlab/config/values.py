"""Bringing a value into the type of a setting, where nothing is lost by it.

What a file or a command line gives (``merged_value``) is taken more strictly than what code assigns
(``assigned_value``): code has types, and code written for the reference sets lists for tuples and numbers for lists.
"""

from __future__ import annotations

import copy
import os
import re
import reprlib
import sys
from ast import literal_eval
from collections.abc import Mapping
from typing import Any

__all__ = ["assigned_value", "literal", "merged_value", "new_value", "shown"]

# Longer texts spell no literal that a setting could hold.
MAX_LITERAL = 100_000


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlist = self.maxtuple = self.maxdict = 20

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no number of thousands of digits
            return f"a number of {x.bit_length()} bits"


shown = _Shown().repr
"""A value as errors show it: of a long one the beginning and the end."""


def merged_value(given: Any, current: Any, full_key: str, origin: str = "") -> Any:
    """A copy of ``given`` in the type of the ``current`` value of a setting; a string is read as a literal.

    Args:
        given: what a file or a command line says.
        current: the setting's value so far.
        full_key: of the setting, for messages.
        origin: of what is given, for messages: ``" in a.yaml"``.

    Raises:
        ValueError: the two types do not go together.
    """
    value = _read_literal(_without_numpy(given), current)
    is_section = isinstance(current, Mapping)
    if is_section == isinstance(value, Mapping):
        if is_section or value is None or current is None or type(value) is type(current):
            return copy.deepcopy(value)
        if isinstance(current, (list, tuple)) and isinstance(value, (list, tuple)):
            return type(current)(copy.deepcopy(value))
        if type(current) is float and type(value) is int:
            return _as_float(value, full_key, origin)
    raise ValueError(_mismatch(full_key, given, value, current, origin))


def assigned_value(given: Any, current: Any, full_key: str) -> Any:
    """``given``, which code assigns to a setting, in the type of the ``current`` value; not copied.

    Beside what ``merged_value`` takes: a number or text for a list of one, a whole float for an int, 0 and 1 for a
    bool, numpy's numbers and arrays, and paths for text. A string stays a string.

    Raises:
        ValueError: the two types do not go together.
    """
    value = _without_numpy(given)
    if isinstance(value, Mapping) or isinstance(current, Mapping):
        if isinstance(value, Mapping) and (current is None or isinstance(current, Mapping)):
            return value
    elif value is None or current is None or type(value) is type(current):
        return value
    elif isinstance(current, (list, tuple)):
        if isinstance(value, (list, tuple)):
            return type(current)(value)
        if isinstance(value, (int, float, str)) and (not current or type(value) is type(current[0])):
            return type(current)([value])
    elif type(current) is float and type(value) is int:
        return _as_float(value, full_key)
    elif (type(current) is int and type(value) is float and value.is_integer()) or (
        type(current) is bool and type(value) is int and value in (0, 1)
    ):
        return type(current)(value)
    raise ValueError(_mismatch(full_key, given, value, current))


def new_value(given: Any, full_key: str) -> Any:
    """``given``, which code assigns to a key that is not there yet.

    Raises:
        ValueError: a config cannot hold it.
    """
    value = _without_numpy(given)
    if value is None or isinstance(value, Mapping) or type(value) in (bool, int, float, str, list, tuple):
        return value
    raise ValueError(
        f"{full_key} cannot hold {shown(given)} of type {type(given).__name__}; a config holds numbers, text, lists, "
        "tuples, sections and None"
    )


def _without_numpy(value: Any) -> Any:
    """The same in Python's own types, where it holds numbers of numpy or a path."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # Only a program that has imported numpy can hold something of it.
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return value
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    if type(value) in (list, tuple) and any(
        type(entry) in (list, tuple) or isinstance(entry, (numpy.generic, numpy.ndarray)) for entry in value
    ):
        entries = [_without_numpy(entry) for entry in value]
        is_same = all(new is old for new, old in zip(entries, value))
        return value if is_same else type(value)(entries)
    return value


def _read_literal(given: Any, current: Any) -> Any:
    """A string read as the Python literal it spells, unless the setting wants a string or it spells none."""
    if not isinstance(given, str) or len(given) > MAX_LITERAL:
        return given
    if isinstance(current, bool) and given.lower() in ("true", "false"):
        return given.lower() == "true"
    value = literal(given)
    return given if isinstance(current, str) and not isinstance(value, (str, type(None))) else value


def _as_float(value: int, full_key: str, origin: str = "") -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{full_key} is a number of {value.bit_length()} bits{origin}; a float ends at {sys.float_info.max:.2g}"
        ) from None


def _mismatch(full_key: str, given: Any, value: Any, current: Any, origin: str = "") -> str:
    return f"{full_key} expects {_expectation(current)}, got {shown(given)}{origin}{_cure(value, current)}"


def _expectation(current: Any) -> str:
    if isinstance(current, Mapping):
        return f"a section with keys such as {', '.join(list(current)[:3])}"
    kind = type(current).__name__
    return f"a value of type {kind} such as {shown(current)}"


def _cure(value: Any, current: Any) -> str:
    if isinstance(current, (list, tuple)) and not isinstance(value, Mapping):
        if isinstance(value, str) and re.search(r"[\[\](),]", value):
            return _cure_of_list(value, current)
        return f"; for a single entry write {shown(type(current)([value]))}"
    if isinstance(current, bool):
        return "; write True or False"
    if isinstance(current, (int, float)) and isinstance(value, str):
        return "; write the number without quotes" if isinstance(literal(value), (int, float)) else ""
    if isinstance(current, int) and isinstance(value, float) and value.is_integer():
        return f"; write {shown(int(value))}"
    if isinstance(current, float) and isinstance(value, tuple) and len(value) == 2:
        return "; the decimal sign is a point"
    return ""


def _cure_of_list(text: str, current: list[Any] | tuple[Any, ...]) -> str:
    """For a text that was to be a list: brackets that do not close, texts without quotes."""
    if re.search(r"[\[(].*[\[(]", text):
        return ", which spells no list; close each bracket, and put texts in quotes"
    entries = [entry.strip().strip("'\"") for entry in text.strip(" []()").split(",")]
    meant = type(current)(literal(entry) for entry in entries if entry)
    return f', which spells no list; write "{shown(meant)}"'


def literal(text: str) -> Any:
    """What a text spells in Python; the text itself if that is nothing."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
