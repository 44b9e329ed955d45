"""Compiles the operators in ``csrc``. Needs nothing but the standard library: ``setup.py`` loads this file by its path.

The library is built against libtorch's stable ABI, so one file serves every Python and every torch from 2.11 on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = [
    "BuildError",
    "build_cpu",
    "build_cuda",
    "compiler_version",
    "find_compiler",
    "find_nvcc",
    "find_torch",
    "has_torch_cuda",
    "library_name",
    "obstacle",
    "source_hash",
]

CSRC = Path(__file__).resolve().parent / "csrc"
TORCH_TARGET = (2, 11)
DEFINES = [f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"]
# Contraction is off so that no decision at a threshold depends on the instruction set; the kernels fuse by hand.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-psabi"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
]
# What a wheel carries: two real architectures, and PTX that later ones compile for themselves.
WHEEL_ARCHITECTURES = ("arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90")


class BuildError(RuntimeError):
    """The compiler's own words, shortened."""


def source_hash(part: str) -> str:
    """Twelve digits that change with the sources and flags of the part "cpu" or "cuda"."""
    digest = hashlib.sha256(repr((DEFINES, CXX_FLAGS if part == "cpu" else NVCC_FLAGS)).encode())
    for path in sorted([*CSRC.glob("*.h"), *CSRC.glob(f"{part}/*")]):
        digest.update(path.relative_to(CSRC).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def library_name(part: str) -> str:
    """File name of the part "cpu" or "cuda" of the library; names the sources it was built from."""
    return f"libdetlab_{part}-{source_hash(part)}.so"


def find_torch() -> Path | None:
    """The folder of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def has_torch_cuda() -> bool:
    """Whether the installed torch is one for CUDA."""
    torch_dir = find_torch()
    return torch_dir is not None and (torch_dir / "lib" / "libtorch_cuda.so").is_file()


def find_compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first of the usual names."""
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((shutil.which(shlex.split(name)[0]) for name in candidates if name and _is_program(name)), None)


def _is_program(command: str) -> bool:
    return shutil.which(shlex.split(command)[0]) is not None


def find_nvcc() -> str | None:
    """The CUDA compiler: of ``$CUDA_HOME``, on the path, or in the usual folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [*([f"{home}/bin/nvcc"] if home else []), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for found in map(shutil.which, candidates) if found), None)


def compiler_version(compiler: str) -> str:
    """The compiler's own name and version, on one line."""
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    lines = result.stdout.strip().splitlines()
    return (lines[-1] if compiler.endswith("nvcc") else lines[0]) if lines else compiler


def obstacle() -> str | None:
    """Why the library cannot be built here, or None."""
    if platform.system() != "Linux":
        return f"it is built on Linux only, this is {platform.system()}"
    torch_dir = find_torch()
    if torch_dir is None:
        return "torch is not installed"
    if not (torch_dir / "include/torch/csrc/stable/ops.h").is_file():
        return f"{torch_dir} has no C++ headers of the stable ABI"
    if _torch_version(torch_dir) < TORCH_TARGET:
        return f"torch is older than {'.'.join(map(str, TORCH_TARGET))}"
    if find_compiler() is None:
        return "there is no C++ compiler; install g++ or set CXX"
    return None


def _torch_version(torch_dir: Path) -> tuple[int, int]:
    match = re.search(r"__version__ = '(\d+)\.(\d+)", (torch_dir / "version.py").read_text())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def build_cpu(target: Path) -> None:
    """Compiles the CPU operators to the file ``target``, which appears complete or not at all.

    Raises:
        BuildError: with what the compiler said.
    """
    compiler, torch_dir = find_compiler(), find_torch()
    assert compiler is not None and torch_dir is not None, obstacle()
    include = [f"-I{torch_dir / 'include'}", *DEFINES]
    sources = sorted(CSRC.glob("cpu/*.cpp"))
    compile_one = [compiler, *CXX_FLAGS, *include, "-c"]
    link = [compiler, "-shared", f"-L{torch_dir / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"]
    _build(compile_one, sources, link, target)


def build_cuda(target: Path, architectures: Sequence[str] = WHEEL_ARCHITECTURES) -> None:
    """Compiles the CUDA operators to the file ``target``, for ``nvcc -gencode`` architectures.

    Raises:
        BuildError: with what the compiler said.
    """
    nvcc, torch_dir, compiler = find_nvcc(), find_torch(), find_compiler()
    assert nvcc is not None and torch_dir is not None and compiler is not None
    generate = [flag for name in architectures for flag in ("-gencode", name)]
    include = [f"-I{torch_dir / 'include'}", "-DUSE_CUDA", *DEFINES]
    compile_one = [nvcc, "-ccbin", compiler, *NVCC_FLAGS, *generate, *include, "-c"]
    torch_libraries = ["-Xlinker", "--no-as-needed", "-ltorch_cpu", "-ltorch_cuda"]
    link = [nvcc, "-ccbin", compiler, "-shared", f"-L{torch_dir / 'lib'}", *torch_libraries]
    _build(compile_one, sorted(CSRC.glob("cuda/*.cu")), link, target)


def _build(compile_one: list[str], sources: list[Path], link: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="detlab-build-") as folder:
        objects = [os.path.join(folder, f"{source.stem}.o") for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_run, ([*compile_one, str(s), "-o", o] for s, o in zip(sources, objects))))
        library = os.path.join(folder, "library.so")
        _run([link[0], *objects, *link[1:], "-o", library])
        # Beside the target first: only a rename within one file system is atomic.
        complete = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copyfile(library, complete)
        os.replace(complete, target)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line.lower()] or result.stderr.splitlines()
        raise BuildError(f"{Path(command[0]).name} failed: {' | '.join(errors[:3]) or 'without a message'}")
