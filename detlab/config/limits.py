"""What a setting may hold: small objects that say whether a value is allowed, and in words which ones are.

``describe()`` ends the sentence "this key must be ...", in an error as in a table of the documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

__all__ = ["Anything", "Each", "Interval", "Limit", "OneOf", "Optional", "PerLevel", "Text"]

# Counters, seeds and sizes of torch and numpy have 64 bits.
LARGEST_WHOLE = 2**63 - 1


class Limit(Protocol):
    """A set of allowed values."""

    def accepts(self, value: Any) -> bool:
        """Whether the value, of any type, is allowed."""

    def describe(self) -> str:
        """The allowed values in words, singular: ``"a number in [0, 1]"``."""


@dataclass(frozen=True)
class Anything:
    """What is judged elsewhere.

    Args:
        words: what it is.
    """

    words: str

    def accepts(self, value: Any) -> bool:
        """True."""
        return True

    def describe(self) -> str:
        """The words."""
        return self.words


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, which belong to it unless they are open.

    Numbers that a computer's do not hold, whole ones beyond 64 bits and others beyond a float, never belong to it.

    Args:
        low: None for no bound.
        high: None for no bound.
        open_low: leaves the bound itself out.
        open_high: likewise.
        whole: only ints.
        infinite: infinity counts as a number; not-a-number never does.
        also: one more number that is allowed, where it has a meaning of its own.
        meaning: of that number, in words.
        noun: what the numbers are, for the words; by default "a number" or "a whole number".
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    infinite: bool = False
    also: int | None = None
    meaning: str = ""
    noun: str = ""

    def accepts(self, value: Any) -> bool:
        """Whether it is a number (True and False are none) within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if self.also is not None and value == self.also:
            return True
        if not (is_held(value, self.whole) or (self.infinite and value == math.inf)):
            return False
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        return above and (self.high is None or (value < self.high if self.open_high else value <= self.high))

    def describe(self) -> str:
        """Such as ``"a whole number from 1 on, or -1 (the input's)"``."""
        return "".join(
            [
                self.noun or ("a whole number" if self.whole else "a number"),
                self._bounds(),
                " (infinity is one)" if self.infinite else "",
                "" if self.also is None else f", or {self.also} ({self.meaning})",
            ]
        )

    def _bounds(self) -> str:
        if self.low is not None and self.high is not None:
            return f" in {'[('[self.open_low]}{self.low}, {self.high}{'])'[self.open_high]}"
        if self.low is not None:
            return f" above {self.low}" if self.open_low else f" from {self.low} on"
        if self.high is not None:
            return f" below {self.high}" if self.open_high else f" up to {self.high}"
        return ""


def is_held(value: float, whole: bool) -> bool:
    """Whether a number is finite, and a whole one of 64 bits, or any a float."""
    if whole:
        return -LARGEST_WHOLE <= value <= LARGEST_WHOLE
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class OneOf:
    """A few values, which are told apart by type as well: 1 is not True."""

    values: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        """Whether it is one of the values."""
        return any(type(value) is type(known) and value == known for known in self.values)

    def describe(self) -> str:
        """Such as ``"'sum' or 'avg'"``."""
        *others, last = [repr(value) for value in self.values]
        return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Text:
    """Text.

    Args:
        pattern: that it matches as a whole; by default any text but the empty one.
        words: what the pattern means.
    """

    pattern: str = r"(?s).+"
    words: str = "a text that is not empty"

    def accepts(self, value: Any) -> bool:
        """Whether it is text that matches."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def describe(self) -> str:
        """The words."""
        return self.words


@dataclass(frozen=True)
class Optional:
    """What another limit allows, and None.

    Args:
        limit: the other one.
        meaning: of None, in words.
    """

    limit: Limit
    meaning: str

    def accepts(self, value: Any) -> bool:
        """Whether it is None, or the other limit allows it."""
        return value is None or self.limit.accepts(value)

    def describe(self) -> str:
        """Such as ``"a number from 0 on, or None (as WEIGHT_DECAY)"``."""
        return f"{self.limit.describe()}, or None ({self.meaning})"


@dataclass(frozen=True)
class Each:
    """A list or tuple, of which another limit allows every entry.

    Args:
        limit: of an entry.
        counts: how many entries there may be; empty for any number.
        at_least: how many there must be.
        rising: no entry is below the one before it.
    """

    limit: Limit
    counts: tuple[int, ...] = ()
    at_least: int = 0
    rising: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether it is a list or tuple of allowed entries."""
        if not _is_list(value) or len(value) < self.at_least or (self.counts and len(value) not in self.counts):
            return False
        if not all(self.limit.accepts(entry) for entry in value):
            return False
        return not self.rising or all(a <= b for a, b in pairwise(value))

    def describe(self) -> str:
        """Such as ``"a list of 4 or 5 entries, each a number above 0"``."""
        size = " or ".join(str(count) for count in self.counts)
        if not size and self.at_least:
            size = f"at least {self.at_least}"
        entries = f"{size} {'entry' if size.endswith('1') else 'entries'}, " if size else "entries, "
        order = " and none below the one before it" if self.rising else ""
        return f"a list of {entries}each {self.limit.describe()}{order}"


@dataclass(frozen=True)
class PerLevel:
    """One list for each feature map, or one for all of them: ``[[32], [64]]``, ``[[32, 64]]`` or ``[32, 64]``.

    Args:
        limit: of a number in a list.
    """

    limit: Limit

    def accepts(self, value: Any) -> bool:
        """Whether it is a list of lists, or one list, of allowed numbers; none of them empty."""
        one = Each(self.limit, at_least=1)
        return one.accepts(value) or Each(one, at_least=1).accepts(value)

    def describe(self) -> str:
        """Such as ``"a list for each feature map, or one for all, of entries that are each a number above 0"``."""
        return f"a list for each feature map, or one for all, of entries that are each {self.limit.describe()}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
