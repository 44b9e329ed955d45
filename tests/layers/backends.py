"""The operators as every part of detlab that has kernels for them offers them, so that one test serves all.

``cpu`` is the compiled library, ``plain`` the fallback in plain PyTorch, ``cuda`` the compiled library on a GPU, and
``emulated`` the CUDA sources compiled as C++, where fibers stand for threads: slow, but it needs no GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from detlab.layers import _ops, _ops_build, _ops_library, _ops_plain

EMULATION = Path(__file__).resolve().parent / "csrc"
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-pthread", "-ffp-contract=off", "-DDETLAB_EMULATE_CUDA"]


class Backend:
    """Calls operators by their name in ``_ops.SCHEMAS``; takes and returns tensors on the CPU."""

    def __init__(self, name: str, device: str, operators: object) -> None:
        self.name = name
        self.device = device
        self._operators = operators

    def __getattr__(self, operator: str) -> Callable:
        function = getattr(self._operators, operator)

        def call(*args):
            result = function(*tree_map_only(Tensor, self.place, args))
            return tree_map_only(Tensor, Tensor.cpu, result)

        return call

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the backend's device, laid out in memory as it is."""
        if self.device == "cpu":
            return tensor
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return memory.to(self.device).as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def cpu_backend() -> Backend:
    if _ops.backend() != "compiled":
        _missing(f"the compiled operators are not in use: {_ops.report()}")
    return Backend("cpu", "cpu", torch.ops.detlab)


def plain_backend() -> Backend:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the plain operators call torchvision's, and torchvision cannot be imported: {error}")
    return Backend("plain", "cpu", _ops_plain)


def cuda_backend() -> Backend:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if "cuda" not in _ops_library.load().devices:
        _missing(f"there is a GPU, but the operators do not use it: {_ops.report()}")
    return Backend("cuda", "cuda", torch.ops.detlab)


def emulated_backend() -> Backend:
    obstacle = _ops_build.obstacle()
    if obstacle is not None:
        pytest.skip(f"the CUDA sources cannot be compiled as C++: {obstacle}")
    library = _emulated_library()
    # Kept alive with the backend: the schemas end with this object.
    schemas = torch.library.Library("detlab_emulated", "DEF")
    for name, schema in _ops.SCHEMAS.items():
        schemas.define(name + schema)
    torch.ops.load_library(str(library))
    backend = Backend("emulated", "cpu", torch.ops.detlab_emulated)
    backend.schemas = schemas
    counters = ctypes.CDLL(str(library))
    backend.count = {
        name: getattr(counters, f"detlab_emulated_{name}") for name in ("launches", "blocks", "barriers", "votes")
    }
    for counter in backend.count.values():
        counter.restype = ctypes.c_int64
    return backend


BACKENDS = {"cpu": cpu_backend, "plain": plain_backend, "emulated": emulated_backend, "cuda": cuda_backend}


def _missing(message: str) -> None:
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message)
    pytest.skip(message)


def _emulated_library() -> Path:
    """Compiled once for a state of the sources, whichever process needs it first."""
    compiler, torch_dir = _ops_build.find_compiler(), _ops_build.find_torch()
    includes = [f"-I{folder}" for folder in (torch_dir / "include", _ops_build.CSRC, EMULATION)]
    compile_one = [compiler, *FLAGS, *_ops_build.DEFINES, *includes, "-c"]
    kernels = [path for path in sorted(_ops_build.CSRC.glob("cuda/*.cu")) if path.stem != "register"]
    link = [compiler, "-shared", f"-L{torch_dir / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"]
    digest = hashlib.sha256(f"{_ops_build.source_hash('cuda')} {compile_one} {torch.__version__}".encode())
    for path in sorted(EMULATION.iterdir()):
        digest.update(path.read_bytes())
    target = _ops_library._cache_folder() / f"emulated-{digest.hexdigest()[:12]}" / "libdetlab_emulated.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with _ops_library._locked(target.with_suffix(".lock")):
        if not target.is_file():
            _ops_build._build(compile_one, [*kernels, EMULATION / "register_emulated.cpp"], link, target)
    return target
