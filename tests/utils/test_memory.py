"""A full GPU is answered in three attempts."""

import pytest
import torch

from detlab.utils import memory
from detlab.utils.memory import retry_if_cuda_oom


class OnGpu:
    device = torch.device("cuda")

    def to(self, device):
        return f"on {device}"


def test_a_function_that_fits_is_called_once():
    calls = []
    assert retry_if_cuda_oom(lambda x: calls.append(x) or x + 1)(1) == 2
    assert calls == [1]


def test_the_second_attempt_follows_an_emptied_cache(monkeypatch):
    emptied, attempts = [], []
    monkeypatch.setattr(memory.torch.cuda, "empty_cache", lambda: emptied.append(len(attempts)))

    @retry_if_cuda_oom
    def needs_room():
        attempts.append(1)
        if not emptied:
            raise torch.OutOfMemoryError("full")
        return "done"

    assert needs_room() == "done" and emptied == [1]


def test_the_third_attempt_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(memory.torch.cuda, "empty_cache", lambda: None)

    @retry_if_cuda_oom
    def too_large(a, pair, *, options, number):
        if isinstance(a, OnGpu):
            raise torch.OutOfMemoryError("full")
        return a, pair, options, number

    cpu = torch.zeros(1)
    a, pair, options, number = too_large(OnGpu(), (OnGpu(), cpu), options={"x": [OnGpu()]}, number=3)
    assert (a, pair[0], options, number) == ("on cpu", "on cpu", {"x": ["on cpu"]}, 3)
    assert pair[1] is cpu


def test_other_errors_come_through():
    def broken():
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        retry_if_cuda_oom(broken)()
