"""Running what a hostile file may do in a process of its own, and measuring what it took."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

MEBIBYTE = 2**20


class Outcome(NamedTuple):
    """How a call ended."""

    error: str  # "ValueError: ..." of an exception, "signal 11" or "timeout" of a death; empty if it returned
    seconds: float
    peak_bytes: int  # of memory in use, above what the process had before the call

    @property
    def is_refusal(self) -> bool:
        """Whether it ended in an exception, rather than by a signal or not at all."""
        return bool(self.error) and not self.died

    @property
    def died(self) -> bool:
        """Whether the process crashed, ran out of time or out of memory."""
        return self.error.startswith(("signal", "timeout", "MemoryError", "exit"))


def run_limited(call: Callable[..., Any], *args: Any, seconds: float = 20, more_bytes: int = 512 * MEBIBYTE) -> Outcome:
    """Calls ``call(*args)`` in a forked process that may take so much longer and so much more memory.

    Memory is what the process may write to, whether it does or not: an allocation beyond the limit fails there with a
    ``MemoryError`` (or with whatever the library in question makes of it).
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sending, call, args, more_bytes))
    started = time.perf_counter()
    process.start()
    sending.close()
    report = None
    if receiving.poll(seconds):
        with contextlib.suppress(EOFError):
            report = receiving.recv()
    elif process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        return Outcome("timeout", time.perf_counter() - started, 0)
    process.join()
    took = time.perf_counter() - started
    if report is not None:
        return Outcome(report[0], took, report[1])
    code = process.exitcode
    return Outcome(f"signal {-code}" if code < 0 else f"exit {code}", took, 0)


def _run(sending: Any, call: Callable[..., Any], args: tuple, more_bytes: int) -> None:
    faulthandler.disable()
    # Threads of the parent's pools do not exist here; a library that waits for them would wait for ever.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _forget_peak()
    before = _memory("VmRSS")
    limit = _memory("VmData") + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    error = ""
    try:
        call(*args)
    except BaseException as exception:
        error = f"{type(exception).__name__}: {exception}"[:2000]
    sending.send((error, max(_memory("VmHWM") - before, 0)))
    sending.close()
    # Not sys.exit: handlers that the parent registered are not for this process.
    os._exit(0)


def _forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb") as file:
        file.write(b"5")


def _memory(field: str) -> int:
    """A line of ``/proc/self/status``, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
