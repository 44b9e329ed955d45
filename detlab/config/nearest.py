"""What a mistyped name probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from detlab.utils.registry import ReadableKeyError


class UnknownKeyError(ReadableKeyError):
    """A setting that does not exist."""


def nearest_names(asked: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` known names, most alike first.

    Upper and lower case count as equal. For dotted names the last part may also decide alone, so that a key asked for
    in the wrong section is found.
    """
    originals = {name.upper(): name for name in known}
    wanted = asked.upper()
    leaf = wanted.rpartition(".")[2]
    alike = difflib.get_close_matches(wanted, originals, n=count, cutoff=0.7)
    same_leaf = [name for name in originals if name.rpartition(".")[2] == leaf and name not in alike]
    return [originals[name] for name in (alike + same_leaf)[:count]]


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """``"; did you mean 'A' or 'B'?"``, or an empty text where nothing is alike."""
    names = [repr(name) for name in nearest_names(asked, known)]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def probable_slip(name: str, known: Iterable[str], whole: bool = False) -> str | None:
    """The known name that somebody who wrote another one probably meant, or None.

    That is one of nearly the same letters (``MAX_ITERS`` for ``MAX_ITER``), or one that has the other's words in it
    (``LR`` for ``BASE_LR``). Names that differ by digits alone (``RES4``, ``RES5``) do so on purpose.

    Args:
        name: what was written.
        known: what could have been meant.
        whole: only names of nearly the same letters.
    """
    others = sorted((other for other in known if other != name), key=len)
    for other in [] if whole else others:
        if f"_{name}_" in f"_{other}_":
            return other
    for other in difflib.get_close_matches(name, others, n=1, cutoff=0.85):
        if re.sub(r"\d", "", other) != re.sub(r"\d", "", name):
            return other
    return None
