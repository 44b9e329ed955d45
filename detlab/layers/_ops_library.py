"""Finds the compiled operators, once per process: the library of the wheel, else one compiled here and kept.

``DETLAB_OPS`` chooses: ``auto`` (the default) takes what works, ``compiled`` fails where that is not the library,
``torchvision`` leaves it alone. ``DETLAB_CACHE`` moves the folder of libraries compiled here (``~/.cache/detlab``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from detlab.layers import _ops_build

__all__ = ["LoadedLibrary", "load"]

CHOICES = ("auto", "compiled", "torchvision")
logger = logging.getLogger(__name__)


class LoadedLibrary(NamedTuple):
    """What is in use."""

    devices: frozenset[str]  # device types that the compiled library has kernels for
    explanation: str  # from where, or why not


class Part(NamedTuple):
    """One of the library's files, or why there is none."""

    path: Path | None
    explanation: str


@functools.cache
def load() -> LoadedLibrary:
    """Loads the library at the first call.

    Raises:
        ValueError: if ``DETLAB_OPS`` is not one of its choices.
        RuntimeError: if it is ``compiled`` and the library cannot be had.
    """
    choice = os.environ.get("DETLAB_OPS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"DETLAB_OPS is '{choice}'; it may be {', '.join(CHOICES)}")
    if choice == "torchvision":
        return LoadedLibrary(frozenset(), "torchvision's, because DETLAB_OPS=torchvision")
    cpu = _loaded(_cpu_part())
    if cpu.path is None:
        if choice == "compiled":
            raise RuntimeError(f"DETLAB_OPS=compiled, but the operators cannot be had: {cpu.explanation}")
        logger.warning("detlab uses torchvision's operators, which are slower: %s", cpu.explanation)
        return LoadedLibrary(frozenset(), f"torchvision's: {cpu.explanation}")
    explanation = f"compiled, CPU: {cpu.explanation}"
    if not torch.cuda.is_available():
        return LoadedLibrary(frozenset({"cpu"}), f"{explanation}; CUDA: there is no GPU")
    cuda = _loaded(_cuda_part())
    devices = {"cpu"} if cuda.path is None else {"cpu", "cuda"}
    return LoadedLibrary(frozenset(devices), f"{explanation}; CUDA: {cuda.explanation}")


def _loaded(part: Part) -> Part:
    if part.path is None:
        return part
    try:
        torch.ops.load_library(str(part.path))
    except OSError as error:
        return Part(None, f"{part.path} does not load: {error}")
    return part


def _cpu_part() -> Part:
    return _prebuilt("cpu") or _compiled_here("cpu", _ops_build.build_cpu)


def _cuda_part() -> Part:
    prebuilt = _prebuilt("cuda")
    if prebuilt is not None:
        return prebuilt
    if _ops_build.find_nvcc() is None:
        return Part(None, "torchvision's, as there is neither a prebuilt library nor nvcc; set CUDA_HOME")
    major, minor = torch.cuda.get_device_capability()
    architecture = f"arch=compute_{major}{minor},code=sm_{major}{minor}"
    return _compiled_here("cuda", functools.partial(_ops_build.build_cuda, architectures=[architecture]), architecture)


def _prebuilt(part: str) -> Part | None:
    path = Path(__file__).with_name(_ops_build.library_name(part))
    return Part(path, f"{path}, prebuilt") if path.is_file() else None


def _compiled_here(part: str, build: Callable[[Path], None], variant: str = "") -> Part:
    obstacle = _ops_build.obstacle()
    if obstacle is not None:
        return Part(None, f"no prebuilt library, and none can be compiled: {obstacle}")
    compiler = _ops_build.find_nvcc() if part == "cuda" else _ops_build.find_compiler()
    assert compiler is not None
    version = _ops_build.compiler_version(compiler)
    key = hashlib.sha256(f"{version} {variant} {platform.machine()}".encode()).hexdigest()[:12]
    path = _cache_folder() / key / _ops_build.library_name(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.is_file():
                logger.warning("detlab compiles its %s operators with %s, once, to %s", part, version, path.parent)
                build(path)
    except (OSError, _ops_build.BuildError) as error:
        return Part(None, f"no prebuilt library, and compiling one failed: {error}")
    return Part(path, f"{path}, compiled here by {version}")


def _cache_folder() -> Path:
    folder = os.environ.get("DETLAB_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detlab"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when that process ends, however it ends."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
