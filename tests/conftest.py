"""Fixtures that more than one test package uses."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SHARED = PROJECT_ROOT.parent / "shared"


def _need(path: Path) -> Path:
    if path.exists():
        return path
    message = f"{path} is not there; it holds the real data and records these tests compare with"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The directory of real data, records and evaluators' numbers beside the checkout.

    Missing in CI is a failure; elsewhere it skips the test that asks.
    """
    return _need(SHARED)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The root of the checkout."""
    return PROJECT_ROOT
