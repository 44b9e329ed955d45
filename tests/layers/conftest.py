"""Fixtures of the operators' tests."""

import functools

import pytest

from tests.layers.backends import BACKENDS, Backend


@functools.cache
def backend_named(name: str) -> Backend:
    return BACKENDS[name]()


@pytest.fixture(params=BACKENDS)
def ops(request) -> Backend:
    """The operators of one backend after the other."""
    return backend_named(request.param)
