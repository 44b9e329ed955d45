"""The limits themselves hold."""

import os
import signal
import time

from tests.limits import MEBIBYTE, run_limited


def test_a_call_that_returns_has_no_error():
    outcome = run_limited(len, [])
    assert outcome.error == "" and not outcome.is_refusal and not outcome.died


def test_an_exception_is_told():
    outcome = run_limited(int, "x")
    assert outcome.error.startswith("ValueError: invalid literal") and outcome.is_refusal


def test_memory_in_use_is_measured_and_bounded():
    outcome = run_limited(_fill, 100 * MEBIBYTE)
    assert not outcome.error and 90 * MEBIBYTE < outcome.peak_bytes < 200 * MEBIBYTE
    assert run_limited(bytearray, 6 * 10**9).error.startswith("MemoryError")


def _fill(size: int) -> bytes:
    return b"x" * size


def test_a_crash_is_told():
    outcome = run_limited(_crash)
    assert outcome.error == f"signal {signal.SIGSEGV.value}" and outcome.died and not outcome.is_refusal


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_call_that_does_not_end_is_ended():
    outcome = run_limited(time.sleep, 60, seconds=0.5)
    assert outcome.error == "timeout" and outcome.died
