"""What a mistyped name probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
