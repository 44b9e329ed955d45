"""What a bug report needs to know about a machine: ``python -m detlab.utils.collect_env``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from tabulate import tabulate

from detlab.utils.env import ENV_MODULE_VARIABLE
from detlab.utils.registry import locate

__all__ = [
    "collect_env_info",
    "collect_torch_env",
    "detect_compute_compatibility",
    "get_env_module",
    "test_nccl_ops",
]

PACKAGES = ("detlab", "torch", "torchvision", "fvcore", "iopath", "pycocotools", "omegaconf", "numpy", "Pillow")
OPTIONAL_PACKAGES = (
    "tensorboard",
    "matplotlib",
    "scipy",
    "opencv-python-headless",
    "opencv-python",
    "shapely",
    "hotcoco",
    "onnx",
    "onnxruntime",
    "timm",
    "safetensors",
)

# Packages further up report on themselves through functions that return a text. They are found by name when the
# report is made: this file may not import upwards.
REPORTS = {"operators": "detlab.layers._ops.report"}

Row = tuple[str, str]


def collect_env_info() -> str:
    """Versions, devices, compilers, environment variables, the operators in use, and torch's build settings."""
    capability = torch.backends.cpu.get_cpu_capability()
    rows = [
        ("sys.platform", f"{sys.platform} {platform.machine()}"),
        ("Python", sys.version.replace("\n", "")),
        *_package_rows(),
        *_gpu_rows(),
        ("CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads, {capability}"),
        *_compiler_rows(),
        *((name, _report(path)) for name, path in REPORTS.items()),
        *((name, value) for name, value in sorted(os.environ.items()) if name.startswith("DETLAB_")),
        get_env_module(),
    ]
    unique = dict(rows)
    return tabulate(unique.items(), maxcolwidths=[None, 100]) + "\n" + torch.__config__.show()


def _package_rows() -> Iterator[Row]:
    for name in PACKAGES:
        yield name, _version(name) or "not installed"
    yield "numpy in use", f"{np.__version__} @ {os.path.dirname(np.__file__)}"
    yield "torch in use", f"{torch.__version__} @ {os.path.dirname(torch.__file__)}, debug build: {torch.version.debug}"
    for name in OPTIONAL_PACKAGES:
        version = _version(name)
        if version:
            yield name, version


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_rows() -> Iterator[Row]:
    yield "CUDA of torch", str(torch.version.cuda)
    yield "GPU available", "yes" if torch.cuda.is_available() else "no"
    if not torch.cuda.is_available():
        return
    by_model: dict[str, list[str]] = defaultdict(list)
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        by_model[f"{torch.cuda.get_device_name(index)} (sm_{major}{minor}, {memory:.0f} GiB)"].append(str(index))
    for model, indices in by_model.items():
        yield "GPU " + ",".join(indices), model
    yield "driver", _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _compiler_rows() -> Iterator[Row]:
    yield "C++ compiler", _first_line([*(os.environ.get("CXX") or "c++").split(), "--version"])
    cuda_home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    # As for building the operators: the folder that is named decides alone.
    nvcc = os.path.join(cuda_home, "bin", "nvcc") if cuda_home else "nvcc"
    yield "CUDA compiler", _last_line([nvcc, "--version"])
    yield "CUDA_HOME", str(cuda_home)


def _first_line(command: list[str]) -> str:
    return _output(command)[0]


def _last_line(command: list[str]) -> str:
    return _output(command)[-1]


def _output(command: list[str]) -> list[str]:
    """The lines that a program prints; one line that says so when it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except FileNotFoundError:
        return ["not found"]
    except (OSError, subprocess.SubprocessError) as error:
        return [f"failed: {error}"]
    return result.stdout.strip().splitlines() or [""]


def _report(path: str) -> str:
    try:
        return str(locate(path)())
    except Exception as error:
        # A broken part of the installation is what this report is read for: it must come out all the same.
        return f"{path} failed: {type(error).__name__}: {error}"


def get_env_module() -> Row:
    """The name of the variable that names the user's set-up module, and its value."""
    return ENV_MODULE_VARIABLE, os.environ.get(ENV_MODULE_VARIABLE, "<not set>")


def collect_torch_env() -> str:
    """torch's own report. It asks pip and several programs, which takes seconds."""
    from torch.utils.collect_env import get_pretty_env_info

    return get_pretty_env_info()


def detect_compute_compatibility(CUDA_HOME: str, so_file: str) -> str:
    """The GPU architectures that a compiled library holds code for.

    Args:
        CUDA_HOME: directory of the CUDA toolkit; its ``cuobjdump`` is asked.
        so_file: the library.

    Returns:
        For example ``"8.0, 9.0"``; the path of the library with a remark when nothing can be found out.
    """
    tool = os.path.join(CUDA_HOME, "bin", "cuobjdump")
    if not os.path.isfile(tool):
        return f"{so_file}; no cuobjdump in {CUDA_HOME}"
    names = re.findall(r"\bsm_(\d+)(\d)[a-z]?\b", "\n".join(_output([tool, "--list-elf", so_file])))
    versions = sorted({(int(major), int(minor)) for major, minor in names})
    return ", ".join(f"{major}.{minor}" for major, minor in versions) or f"{so_file}; no GPU code"


def test_nccl_ops() -> None:
    """Starts a process on each GPU and lets them add a number up over NCCL; prints what went wrong."""
    num_gpus = torch.cuda.device_count()
    if num_gpus < 2 or not torch.distributed.is_nccl_available():
        return
    print(f"NCCL all-reduce over {num_gpus} GPUs ...")
    try:
        torch.multiprocessing.spawn(_nccl_worker, args=(num_gpus, _free_address()), nprocs=num_gpus)
        print("NCCL works.")
    except Exception as error:
        print(f"NCCL failed: {error}")


def _free_address() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def _nccl_worker(rank: int, num_gpus: int, address: str) -> None:
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", init_method=address, world_size=num_gpus, rank=rank)
    try:
        total = torch.ones((), device="cuda")
        torch.distributed.all_reduce(total)
        if total.item() != num_gpus:
            raise RuntimeError(f"rank {rank} got {total.item()}, not {num_gpus}")
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    print(collect_env_info())
    if "--torch" in sys.argv[1:]:
        print(collect_torch_env())
    test_nccl_ops()
