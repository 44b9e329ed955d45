"""How the threads of OpenMP wait for each other. Importing this imports no torch, as torch must come after."""

import contextlib
import os
from collections.abc import Iterator

__all__ = ["children_wait_asleep", "wait_asleep"]

_POLICY = "OMP_WAIT_POLICY"
# With one of these the user has said how threads wait: the standard's, GNU's and LLVM's.
_SETTINGS = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> bool:
    """Let OpenMP's threads sleep while they wait, in this process and those that it starts.

    By default they spin at every barrier. Where another process, such as a data worker, has one of the cores, the
    thread that is waited for gets no time while the others spin: a training step takes up to five times as long. What
    the user's environment says counts more. The OpenMP runtime reads it once, when torch loads it: call this before
    torch is imported, at the top of a program. A library has no business with it.

    Returns:
        whether it was this call that set it.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    os.environ[_POLICY] = "PASSIVE"
    return True


@contextlib.contextmanager
def children_wait_asleep() -> Iterator[None]:
    """:func:`wait_asleep` for the processes that are started inside, this one's environment left as it was."""
    is_set = wait_asleep()
    try:
        yield
    finally:
        if is_set:
            os.environ.pop(_POLICY, None)
