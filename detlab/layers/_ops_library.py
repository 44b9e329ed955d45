"""Finds the compiled operators at their first use: the library of the wheel, else one compiled here and kept.

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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from detlab.layers import _ops_build

__all__ = ["LoadedLibrary", "load", "serves"]

CHOICES = ("auto", "compiled", "torchvision")
DEVICE_NAMES = {"cpu": "CPU", "cuda": "CUDA"}
logger = logging.getLogger(__name__)


class LoadedLibrary(NamedTuple):
    """What is in use."""

    devices: frozenset[str]  # device types that the compiled library has kernels for
    explanation: str  # from where, or why not


class Part(NamedTuple):
    """The library's file for one device type, or why there is none."""

    path: Path | None
    explanation: str


def load() -> LoadedLibrary:
    """Loads the library for all devices of this machine.

    Raises:
        ValueError: if ``DETLAB_OPS`` is not one of its choices.
        RuntimeError: if it is ``compiled`` and the library cannot be had.
    """
    parts = {device: _part(device) for device in ("cpu", "cuda") if device == "cpu" or torch.cuda.is_available()}
    served = frozenset(device for device, part in parts.items() if part.path is not None)
    sentences = [f"{DEVICE_NAMES[device]}: {part.explanation}" for device, part in parts.items()]
    return LoadedLibrary(served, "; ".join(sentences if "cuda" in parts else [*sentences, "CUDA: there is no GPU"]))


def serves(device: str) -> bool:
    """Whether the compiled library has kernels for a device type, which loads it for that one at the first call.

    Raises:
        ValueError: if ``DETLAB_OPS`` is not one of its choices.
        RuntimeError: if it is ``compiled`` and the library cannot be had.
    """
    return device in DEVICE_NAMES and _part(device).path is not None


@functools.cache
def _part(device: str) -> Part:
    choice = os.environ.get("DETLAB_OPS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"DETLAB_OPS is '{choice}'; it may be {', '.join(CHOICES)}")
    if choice == "torchvision":
        return Part(None, "torchvision's, because DETLAB_OPS=torchvision")
    part = _found_part(device)
    if part.path is not None:
        return Part(part.path, f"compiled, {part.explanation}")
    if choice == "compiled":
        raise RuntimeError(
            f"DETLAB_OPS=compiled, but the operators for {DEVICE_NAMES[device]} cannot be had: {part.explanation}"
        )
    logger.warning(
        "detlab uses torchvision's operators for %s, which are slower: %s", DEVICE_NAMES[device], part.explanation
    )
    return Part(None, f"torchvision's: {part.explanation}")


def _found_part(device: str) -> Part:
    prebuilt = Path(__file__).with_name(_ops_build.library_name(device))
    problem = _problem_of_prebuilt(device, prebuilt)
    if problem is None:
        return Part(prebuilt, f"{prebuilt}, prebuilt")
    try:
        path = _kept_library(device) or _compiled_library(device)
    except _ops_build.BuildError as error:
        return Part(None, f"{problem}, and none can be compiled: {error}")
    obstacle = _loading_problem(path)
    if obstacle is not None:
        return Part(None, f"{problem}, and {obstacle}")
    return Part(path, f"{path}, compiled here, as {problem}")


def _problem_of_prebuilt(device: str, path: Path) -> str | None:
    if not path.is_file():
        return "there is no prebuilt library of these sources"
    if device == "cuda":
        weakest = min(_capabilities())
        if weakest < _ops_build.WHEEL_MIN_CAPABILITY:
            return f"{path} has no code for a GPU of capability {'.'.join(map(str, weakest))}"
    return _loading_problem(path)


def _loading_problem(path: Path) -> str | None:
    """Loads a library; what went wrong, or None."""
    if not _ops_build.is_whole(path):
        return f"{path} is damaged or cannot be read"
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path} does not load: {error.__cause__ or error}"
    return None


def _capabilities() -> set[tuple[int, int]]:
    return {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}


def _kept_library(device: str) -> Path | None:
    """What was compiled before; it serves without the compiler, too."""
    if platform.system() != _ops_build.SYSTEM:
        return None
    paths = (_path_in(folder, device) for folder in _cache_folders() if _is_trusted(folder))
    return next((path for path in paths if _ops_build.is_whole(path)), None)


def _compiled_library(device: str) -> Path:
    """Compiles the library to the first of the cache folders that can be used.

    Raises:
        BuildError: why there is none.
    """
    obstacle = _ops_build.obstacle(device)
    if obstacle is not None:
        raise _ops_build.BuildError(obstacle)
    problems = []
    for folder in _cache_folders():
        try:
            return _compile_once(device, folder)
        except OSError as error:
            problems.append(str(error))
    raise _ops_build.BuildError("; ".join(problems))


def _compile_once(device: str, folder: Path) -> Path:
    """Of all processes that come here one compiles, the others wait for it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_trusted(folder):
        raise PermissionError(f"{folder} is not this user's alone")
    path = _path_in(folder, device)
    path.parent.mkdir(exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        if not _ops_build.is_whole(path):
            compiler = _ops_build.find_nvcc() if device == "cuda" else _ops_build.find_compiler()
            assert compiler is not None
            version = _ops_build.compiler_version(compiler)
            name = DEVICE_NAMES[device]
            logger.warning("detlab compiles its %s operators with %s, once, to %s", name, version, path.parent)
            _build_for_this_machine(device, path)
    return path


def _path_in(folder: Path, device: str) -> Path:
    """Machines of different kinds may share a folder."""
    kind = f"{platform.machine()} {platform.libc_ver()} {_architectures() if device == 'cuda' else ''}"
    return folder / hashlib.sha256(kind.encode()).hexdigest()[:12] / _ops_build.library_name(device)


def _build_for_this_machine(device: str, path: Path) -> None:
    if device == "cuda":
        _ops_build.build_cuda(path, _architectures())
    else:
        _ops_build.build_cpu(path)


def _architectures() -> list[str]:
    numbers = [f"{major}{minor}" for major, minor in sorted(_capabilities())]
    return [f"arch=compute_{number},code=sm_{number}" for number in numbers]


def _cache_folders() -> list[Path]:
    """The folder the user names; else the one at home and, for where that cannot be used, a temporary one."""
    return [_cache_folder()] if os.environ.get("DETLAB_CACHE") else [_cache_folder(), _temporary_folder()]


def _cache_folder() -> Path:
    named = os.environ.get("DETLAB_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Without a home the path stays as it was written, and would name a folder of the working directory.
    return Path(home, "detlab") if os.path.isabs(home) else _temporary_folder()


def _temporary_folder() -> Path:
    # Not tempfile.gettempdir(), which raises where nothing can be written to: that is found out on use.
    return Path(os.environ.get("TMPDIR") or "/tmp", f"detlab-{os.getuid()}")


def _is_trusted(folder: Path) -> bool:
    """Where all users may make folders, another's could hold a library whose code this process would run."""
    if folder != _temporary_folder() or not folder.exists():
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when that process ends, however it ends."""
    import fcntl

    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
