"""Compiles the operators in ``csrc``. Needs nothing but the standard library: ``setup.py`` loads this file by its path.

The library is built against libtorch's stable ABI, so one file serves every Python and every torch from 2.11 on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
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
    "is_whole",
    "library_name",
    "obstacle",
    "source_hash",
]

CSRC = Path(__file__).resolve().parent / "csrc"
SOURCE_SUFFIXES = (".cpp", ".cu", ".cuh", ".h", ".inl")
SYSTEM = "Linux"
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
WHEEL_MIN_CAPABILITY = (8, 0)
BUILD_FOLDER_PREFIX = ".detlab-build-"
FLAGS = {"cpu": CXX_FLAGS, "cuda": [*NVCC_FLAGS, *WHEEL_ARCHITECTURES]}


class BuildError(RuntimeError):
    """The compiler's own words, shortened."""


def source_hash(part: str) -> str:
    """Twelve digits that change with the sources and flags of the part "cpu" or "cuda"."""
    digest = hashlib.sha256(repr((DEFINES, FLAGS[part])).encode())
    sources = (path for path in [*CSRC.glob("*"), *CSRC.glob(f"{part}/*")] if path.suffix in SOURCE_SUFFIXES)
    for path in sorted(sources):
        digest.update(path.relative_to(CSRC).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def library_name(part: str) -> str:
    """File name of the part "cpu" or "cuda" of the library; names the sources it was built from."""
    return f"libdetlab_{part}-{source_hash(part)}.so"


def find_torch() -> Path | None:
    """The folder of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def find_compiler() -> str | None:
    """The C++ compiler: the program in ``$CXX`` if that is set, else the first of the usual names."""
    command = _compile_command()
    # The last program: "ccache g++ -m64" starts another one.
    programs = [found for found in map(shutil.which, command or []) if found]
    return programs[-1] if programs else None


def _compile_command() -> list[str] | None:
    """What starts the C++ compiler, with the flags that ``$CXX`` may hold."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    candidates = [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]
    return next((command for command in candidates if shutil.which(command[0])), None)


def find_nvcc() -> str | None:
    """The CUDA compiler: of ``$CUDA_HOME`` if that is set, else on the path or in the usual folder."""
    home = _cuda_home()
    candidates = [os.path.join(home, "bin", "nvcc")] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for found in map(shutil.which, candidates) if found), None)


def _cuda_home() -> str | None:
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")


def compiler_version(compiler: str) -> str:
    """The compiler's own name and version, on one line."""
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    lines = result.stdout.strip().splitlines()
    return (lines[-1] if compiler.endswith("nvcc") else lines[0]) if lines else compiler


def obstacle(part: str = "cpu") -> str | None:
    """Why the part "cpu" or "cuda" of the library cannot be built here, or None."""
    return _obstacle_for_any() or (_obstacle_for_cuda() if part == "cuda" else None)


def _obstacle_for_any() -> str | None:
    if platform.system() != SYSTEM:
        return f"it is built on {SYSTEM} only, this is {platform.system()}"
    torch_dir = find_torch()
    if torch_dir is None:
        return "torch is not installed"
    if not (torch_dir / "include/torch/csrc/stable/ops.h").is_file():
        return f"{torch_dir} has no C++ headers of the stable ABI"
    if _torch_version(torch_dir) < TORCH_TARGET:
        return f"torch is older than {'.'.join(map(str, TORCH_TARGET))}"
    if find_compiler() is None:
        wanted = os.environ.get("CXX")
        return (
            f"CXX is '{wanted}', which is no program" if wanted else "there is no C++ compiler; install g++ or set CXX"
        )
    return None


def _obstacle_for_cuda() -> str | None:
    torch_dir = find_torch()
    assert torch_dir is not None
    if not (torch_dir / "lib" / "libtorch_cuda.so").is_file():
        return "the installed torch is not one for CUDA"
    if find_nvcc() is None:
        home = _cuda_home()
        return f"CUDA_HOME is '{home}', which has no bin/nvcc" if home else "there is no nvcc; set CUDA_HOME"
    return None


def _torch_version(torch_dir: Path) -> tuple[int, int]:
    match = re.search(r"__version__ = '(\d+)\.(\d+)", (torch_dir / "version.py").read_text(encoding="utf-8"))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def is_whole(library: Path) -> bool:
    """Whether a library is all there. To load one that was cut short kills the process instead of raising an error."""
    try:
        content = library.read_bytes()
        return content[:5] == b"\x7fELF\x02" and len(content) >= _elf_size(content)
    except (OSError, struct.error):
        return False


def _elf_size(content: bytes) -> int:
    """Where the last segment of a 64-bit ELF file ends, or the table of sections behind it."""
    order = "<" if content[5:6] == b"\x01" else ">"
    segments_at, sections_at = struct.unpack_from(f"{order}QQ", content, 32)
    segment_size, num_segments, section_size, num_sections = struct.unpack_from(f"{order}HHHH", content, 54)
    ends = [sections_at + section_size * num_sections]
    for index in range(num_segments):
        _, _, offset, _, _, size = struct.unpack_from(f"{order}IIQQQQ", content, segments_at + index * segment_size)
        ends.append(offset + size)
    return max(ends)


def build_cpu(target: Path) -> None:
    """Compiles the CPU operators to the file ``target``, which appears complete or not at all.

    Raises:
        BuildError: with what the compiler said.
    """
    command, torch_dir = _compile_command(), find_torch()
    assert command is not None and torch_dir is not None, obstacle("cpu")
    compile_one = [*command, *CXX_FLAGS, f"-I{torch_dir / 'include'}", *DEFINES, "-c"]
    link = [*command, "-shared", *_link_flags(torch_dir), "-ltorch_cpu"]
    _build(compile_one, sorted(CSRC.glob("cpu/*.cpp")), link, target)


def build_cuda(target: Path, architectures: Sequence[str] = WHEEL_ARCHITECTURES) -> None:
    """Compiles the CUDA operators to the file ``target``, for ``nvcc -gencode`` architectures.

    Raises:
        BuildError: with what the compiler said.
    """
    nvcc, torch_dir, compiler = find_nvcc(), find_torch(), find_compiler()
    assert nvcc is not None and torch_dir is not None and compiler is not None, obstacle("cuda")
    command = [nvcc, "-ccbin", compiler]
    generate = [flag for name in architectures for flag in ("-gencode", name)]
    include = [f"-I{torch_dir / 'include'}", "-DUSE_CUDA", *DEFINES]
    compile_one = [*command, *NVCC_FLAGS, *generate, *include, "-c"]
    link = [*command, "-shared", *_link_flags(torch_dir), "-ltorch_cpu", "-ltorch_cuda"]
    _build(compile_one, sorted(CSRC.glob("cuda/*.cu")), link, target)


def _link_flags(torch_dir: Path) -> list[str]:
    # A library of torch's is needed whether or not the linker sees a symbol taken from it before the objects.
    return [f"-L{torch_dir / 'lib'}", "-Xlinker", "--no-as-needed"]


def _build(compile_one: list[str], sources: list[Path], link: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(target) as folder:
        objects = [str(folder / f"{source.stem}.o") for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            commands = [[*compile_one, str(source), "-o", o] for source, o in zip(sources, objects)]
            list(pool.map(lambda command: _run(command, folder), commands))
        library = folder / target.name
        _run([*link, *objects, "-o", str(library)], folder)
        # On the same disk, where this is atomic.
        os.replace(library, target)


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder for one build; those that were left beside the target by builds that were killed go."""
    with contextlib.ExitStack() as until_the_end:
        # Else a build that begins at the same time could take the new folder for one that was left.
        with _flocked(target.parent):
            for left in target.parent.glob(f"{BUILD_FOLDER_PREFIX}*"):
                with contextlib.suppress(OSError), _flocked(left, wait=False):
                    shutil.rmtree(left)
            folder = tempfile.mkdtemp(prefix=BUILD_FOLDER_PREFIX, dir=target.parent)
            until_the_end.enter_context(_flocked(Path(folder)))
        until_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Path(folder)


@contextlib.contextmanager
def _flocked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when that process ends, however it ends.

    Raises:
        BlockingIOError: if another process holds it and this one does not ``wait``.
    """
    import fcntl  # Linux only, as building is

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _run(command: list[str], folder: Path) -> None:
    # What a compiler that is killed leaves then goes with the folder.
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if result.returncode != 0:
        lines = (result.stderr + result.stdout).splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines
        words = " | ".join(errors[:5]) or f"exit status {result.returncode} and no message"
        raise BuildError(f"{Path(command[0]).name} failed: {words}")
