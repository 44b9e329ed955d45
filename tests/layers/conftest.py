"""Fixtures of the operators' tests."""

import functools

import pytest
import torch

from tests.layers.backends import BACKENDS, Backend


@functools.cache
def backend_named(name: str) -> Backend:
    return BACKENDS[name]()


@pytest.fixture(params=BACKENDS)
def ops(request) -> Backend:
    """The operators of one backend after the other."""
    return backend_named(request.param)


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    """Where the public functions run."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return request.param
