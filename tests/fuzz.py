"""A seeded fuzzer of the readers of files: ``python -m tests.fuzz checkpoint --seconds 600``.

Each case is a file made of a good one by a few changes. It is read in a process of its own (``tests/limits.py``) and
must end well, or in an exception that the reader documents: no crash, no hang, and no memory beyond ten times the
file's size and 64 MiB. Cases that do not are kept, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.limits import MEBIBYTE, Outcome, run_limited


class Target(NamedTuple):
    """A reader, and good files for it."""

    read: Callable[[str], object]  # called with a path
    seeds: Callable[[Path], Sequence[Path]]  # writes good files into a folder
    refusals: tuple[str, ...]  # names of the exceptions that it documents
    mutate: Callable[[bytes, random.Random], bytes] | None = None  # beside the changes of bytes made here
    uses_file_name: bool = True  # a refusal must name the file


# By the name on the command line: the module whose TARGET it is. Imported when asked for.
TARGETS = {
    "checkpoint": "tests.checkpoint.fuzz_target",
    "yaml": "tests.config.fuzz_target",
    "coco": "tests.data.datasets.fuzz_target",
}

INTERESTING = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"9" * 30,
    b"1e400",
    b"-1",
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few of: flipped bits, replaced, removed, doubled and swapped pieces, an end cut off."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not content:
            break
        start = rng.randrange(len(content))
        end = min(start + rng.choice((1, 1, 2, 4, 8, 64, 512)), len(content))
        change = rng.randrange(7)
        if change == 0:
            content[start] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[start] = rng.randrange(256)
        elif change == 2:
            piece = rng.choice(INTERESTING)
            content[start : start + len(piece)] = piece
        elif change == 3:
            del content[start:end]
        elif change == 4:
            content[start:start] = content[start:end] * rng.choice((1, 1, 3, 100))
        elif change == 5:
            other = rng.randrange(len(content))
            content[start:end] = content[other : other + end - start]
        else:
            del content[start:]
    return bytes(content)


def allowance(size: int) -> int:
    """Bytes that reading a file of this size may take."""
    return 10 * size + 64 * MEBIBYTE


def complaint(target: Target, outcome: Outcome, path: Path) -> str:
    """What is wrong with an outcome; empty if nothing is."""
    if not outcome.error:
        return ""
    if outcome.died:
        return outcome.error
    kind = outcome.error.partition(":")[0]
    if kind not in target.refusals:
        return f"not a documented refusal: {outcome.error}"
    if target.uses_file_name and path.name not in outcome.error:
        return f"does not name the file: {outcome.error}"
    return ""


def run_case(target: Target, data: bytes, path: Path, seconds: float = 20) -> tuple[Outcome, str]:
    """Writes a case and reads it."""
    path.write_bytes(data)
    outcome = run_limited(target.read, str(path), seconds=seconds, more_bytes=allowance(len(data)))
    return outcome, complaint(target, outcome, path)


def fuzz(
    target: Target, folder: Path, seed: int, seconds: float = float("inf"), cases: float = float("inf")
) -> tuple[Counter[str], list[str]]:
    """Runs cases until the time or their number is reached.

    Returns:
        How often each kind of outcome came, and the complaints.
    """
    rng = random.Random(seed)
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    goods = [(path.suffix, path.read_bytes()) for path in target.seeds(folder / "seeds")]
    outcomes: Counter[str] = Counter()
    complaints: list[str] = []
    for suffix, data in goods:
        outcome, _ = run_case(target, data, folder / f"good{suffix}")
        if outcome.error:
            raise AssertionError(f"a good file ({suffix}) is refused: {outcome.error}")
    stop_at = time.monotonic() + seconds
    while time.monotonic() < stop_at and outcomes.total() < cases:
        suffix, data = rng.choice(goods)
        change = mutate_bytes if target.mutate is None or rng.random() < 0.5 else target.mutate
        path = folder / f"case{suffix}"
        outcome, wrong = run_case(target, change(data, rng), path)
        outcomes[outcome.error.partition(":")[0] or "read"] += 1
        if wrong:
            kept = folder / f"complaint-{len(complaints)}{suffix}"
            path.rename(kept)
            complaints.append(f"{kept}: {wrong}")
    return outcomes, complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where cases are kept; a temporary one by default")
    args = parser.parse_args()
    # Warnings of thousands of odd files are of no use to anybody.
    logging.disable()
    target = importlib.import_module(TARGETS[args.target]).TARGET
    folder = args.folder or Path(tempfile.mkdtemp(prefix="detlab-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, complaints = fuzz(target, folder, args.seed, seconds=args.seconds)
    print(f"{args.target}, seed {args.seed}: {outcomes.total()} cases: {dict(outcomes.most_common())}")
    print("\n".join(complaints) or "no complaint")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
