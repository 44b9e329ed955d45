"""Fixtures of the operators' tests."""

import functools
from collections.abc import Callable

import pytest
import torch

from tests.layers.backends import BACKENDS, Backend

# Hundreds of skipped tests would hide the one that matters; tests that ask for "cuda" by name say that there is no GPU.
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@functools.cache
def backend_named(name: str) -> Backend:
    return BACKENDS[name]()


@pytest.fixture(params=[name for name in BACKENDS if name != "cuda" or "cuda" in DEVICES])
def ops(request) -> Backend:
    """The operators of one backend after the other."""
    return backend_named(request.param)


@pytest.fixture
def backend() -> Callable[[str], Backend]:
    """The operators of a backend by its name, for tests that are about some of them or compare two."""
    return backend_named


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Where the public functions run."""
    return request.param
