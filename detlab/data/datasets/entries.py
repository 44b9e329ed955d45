"""Lists of dictionaries from outside, looked at one key at a time.

A file of annotations holds hundreds of thousands of small dictionaries, and a loop that looks at all their values takes
longer than reading the file. Here the values of one key are looked at together, by what loops in C; one by one only
where something is odd, to find it and to say what it is.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import starmap
from operator import itemgetter
from typing import Any, NoReturn

import numpy as np

__all__ = ["Dropped", "Entries", "are_within", "is_number", "shown"]

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 3
# Beyond it, numbers do not fit the integers of numpy and of compiled code.
LARGEST_ID = 2**63 - 1

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict = 3, 8, 6
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, cut short where it is long or deep."""
    return _short.repr(value)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float that a float can hold; NaN and infinity are."""
    if type(value) is int:
        try:
            float(value)
        except OverflowError:
            return False
    return type(value) in (int, float)


def are_within(rows: Iterable[Sequence[float]], limit: float) -> bool:
    """Whether all of the lists hold finite numbers only, none beyond a limit in size.

    The length of each list as a vector tells: it is no less than its largest number, NaN and infinity stay what they
    are, and there is none with text or lists in it. A False asks for a closer look, for lengths may be beyond the limit
    where no number is.
    """
    try:
        lengths = np.fromiter(starmap(math.hypot, rows), dtype=np.float64)
    except (TypeError, OverflowError):
        return False
    return bool((lengths <= limit).all())


class Entries:
    """Dictionaries of one kind from one source.

    Args:
        entries: what the source has in the place of a list of dictionaries.
        noun: what one of them is, such as ``"annotation"``.
        source: the file, or whatever they come from, for messages.
        key: under which the source has them.

    Raises:
        ValueError: it is no list of dictionaries.
    """

    def __init__(self, entries: Any, noun: str, source: str, key: str | None = None):
        where = f"{key!r} in {source}" if key else source
        if not isinstance(entries, (list, tuple)):
            raise ValueError(f"{where} should be a list of {_plural(noun)}, but is {shown(entries)}")
        if not set(map(type, entries)) <= {dict}:
            place = next((n for n, entry in enumerate(entries) if not isinstance(entry, dict)), None)
            if place is not None:
                raise ValueError(
                    f"{noun} number {place} of {where} should be an object with keys and values, but is "
                    f"{shown(entries[place])}"
                )
        self.all: Sequence[dict[str, Any]] = entries
        self.noun = noun
        self.source = source

    def __len__(self) -> int:
        return len(self.all)

    def column(self, key: str) -> list[Any]:
        """The values of one key; None where there is none."""
        try:
            # Where all have the key, this takes half as long.
            return list(map(itemgetter(key), self.all))
        except KeyError:
            return [entry.get(key) for entry in self.all]

    def name_of(self, place: int) -> str:
        entry = self.all[place]
        number = entry.get("id")
        name = f"{self.noun} number {place}" if number is None else f"{self.noun} {shown(number)}"
        return name if "image_id" not in entry else f"{name} of image {shown(entry['image_id'])}"

    def refuse(self, place: int, key: str, cure: str) -> NoReturn:
        """Raises the ValueError that says what one entry has under a key, and what it should have."""
        entry = self.all[place]
        has = f"has {key!r}: {shown(entry[key])}" if key in entry else f"has no {key!r}"
        raise ValueError(f"{self.name_of(place)} in {self.source} {has}; {cure}")

    def refuse_first(self, key: str, values: Iterable[Any], is_right: Callable[[Any], bool], cure: str) -> None:
        """Raises for the first value that is not right; returns if all are."""
        for place, value in enumerate(values):
            if not is_right(value):
                self.refuse(place, key, cure)

    def check_types(self, key: str, types: Collection[type], cure: str, optional: bool = False) -> list[Any]:
        """The values of a key, all of these types and no others (a bool is no int).

        Args:
            optional: whether None, or none, will do.

        Raises:
            ValueError: one is of another type.
        """
        values = self.column(key)
        allowed = {*types, type(None)} if optional else set(types)
        if not set(map(type, values)) <= allowed:
            self.refuse_first(key, values, lambda value: type(value) in allowed, cure)
        return values

    def check_ids(self, key: str, meaning: str) -> list[Any]:
        """The ids under a key: all numbers, or all text. Those like 3.0 are made whole, in the entries too.

        Args:
            meaning: what the ids are, for messages.

        Raises:
            ValueError: one is missing, something else, or of the other kind.
        """
        cure = f"{meaning} is a whole number below 2**63, or a text"
        values = self.column(key)
        kinds = set(map(type, values))
        if not kinds <= {int} and not kinds <= {str}:
            for place, value in enumerate(values):
                if type(value) is float and value.is_integer():
                    self.all[place][key] = values[place] = int(value)
            self.refuse_first(key, values, lambda value: type(value) in (int, str), cure)
            kinds = set(map(type, values))
            if len(kinds) > 1:
                other = next(place for place, value in enumerate(values) if type(value) is not type(values[0]))
                self.refuse(other, key, f"others are like {shown(values[0])}; let all be numbers, or all be text")
        if kinds == {int} and not -LARGEST_ID <= min(values) <= max(values) <= LARGEST_ID:
            self.refuse_first(key, values, lambda value: -LARGEST_ID <= value <= LARGEST_ID, cure)
        return values

    def check_unique(self, ids: Iterable[Any]) -> None:
        """Raises a ValueError if one of the ids occurs more than once."""
        repeated = [number for number, count in Counter(ids).items() if count > 1]
        if repeated:
            raise ValueError(
                f"{len(repeated)} ids of {_plural(self.noun)} in {self.source} occur more than once (such as "
                f"{', '.join(map(shown, repeated[:NUM_EXAMPLES]))}); every id must be unique"
            )

    def check_text(self, key: str, meaning: str, optional: bool = False) -> list[Any]:
        """The values of a key, all of them text that is not empty and can be written as UTF-8.

        Raises:
            ValueError: one is not.
        """
        cure = f"{meaning} is a text"
        values = self.check_types(key, (str,), cure, optional)
        present = [value for value in values if value is not None]
        if not all(present) or not _can_be_written("".join(present)):
            self.refuse_first(key, values, lambda value: value is None or bool(value and _can_be_written(value)), cure)
        return values


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def _can_be_written(text: str) -> bool:
    """Whether it has neither NUL, which ends names of files, nor halves of characters, which no encoding knows."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


class Dropped:
    """Counts what is left out of a dataset, by reason, with the first examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, example: Callable[[], str], count: int = 1) -> None:
        """One more of a kind; ``example`` is called for the first few of it."""
        self.counts[reason] += count
        if len(self.examples[reason]) < NUM_EXAMPLES:
            self.examples[reason].append(example())

    def warn(self, source: str) -> None:
        for reason, count in self.counts.items():
            logger.warning(f"Left out {count} {reason} in {source} ({'; '.join(self.examples[reason])})")
