"""The one door through which optional packages enter: it says what to install when one is missing."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

__all__ = ["available", "require"]


def require(module_name: str, extra: str | None = None, purpose: str = "") -> ModuleType:
    """Imports an optional package.

    Args:
        module_name: dotted name, as in an import statement.
        extra: the extra of this project that brings the package; None when none does.
        purpose: what it is needed for, to complete "... is needed for <purpose>".

    Raises:
        ImportError: it is not installed, or its own import fails; the message says what to install.
    """
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        package = module_name.partition(".")[0]
        command = f'pip install "detlab[{extra}]"' if extra else f"pip install {package}"
        reason = f" for {purpose}" if purpose else ""
        raise ImportError(f"{package} is needed{reason}: {command} ({error})", name=package) from error


@functools.cache
def available(module_name: str) -> bool:
    """Whether a package is installed; nothing but the parents of a dotted name is imported."""
    try:
        return importlib.util.find_spec(module_name) is not None
    except (ImportError, ValueError):
        return False
