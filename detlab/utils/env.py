"""Set-up of the process: random seeds, and code of the user's that runs before anything else."""

from __future__ import annotations

import functools
import logging
import os
import random
import secrets

import numpy as np
import torch

from detlab.utils.user_modules import import_user_modules

__all__ = ["seed_all_rng", "setup_custom_environment", "setup_environment"]

ENV_MODULE_VARIABLE = "DETLAB_ENV_MODULE"


def seed_all_rng(seed: int | None = None) -> None:
    """Seeds the generators of ``random``, numpy and torch, on every device.

    Args:
        seed: not negative; None takes one from the operating system and logs it.
    """
    if seed is None:
        seed = secrets.randbits(31)
        logging.getLogger(__name__).info("using the random seed %d", seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    random.seed(seed)
    # For the processes that this one starts; its own hashes are fixed since it began.
    os.environ["PYTHONHASHSEED"] = str(seed % 2**32)


@functools.cache
def setup_environment() -> None:
    """Runs the user's set-up module, if ``DETLAB_ENV_MODULE`` names one; the second call does nothing.

    Raises:
        ImportError: the module is missing.
        AttributeError: it has no ``setup_environment``.
    """
    # OpenCV probes for OpenCL in every data worker otherwise, for nothing that is used here.
    os.environ.setdefault("OPENCV_OPENCL_RUNTIME", "disabled")
    custom_module = os.environ.get(ENV_MODULE_VARIABLE)
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Imports a module and calls its ``setup_environment()``.

    Args:
        custom_module: a path that ends in ``.py``, or a dotted module name.

    Raises:
        ImportError: the module is missing.
        AttributeError: it has no ``setup_environment``.
    """
    (module,) = import_user_modules([custom_module])
    setup = getattr(module, "setup_environment", None)
    if not callable(setup):
        raise AttributeError(
            f"{custom_module!r} needs a function setup_environment() to be used as {ENV_MODULE_VARIABLE}"
        )
    setup()
