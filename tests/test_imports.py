"""Importing the library is light and silent."""

import subprocess
import sys

from tests.test_architecture import MODULES

IMPORT_ALL = """
import importlib, sys, warnings
import torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for name in sys.argv[1:]:
        importlib.import_module(name)
for w in seen:
    print(f"{w.filename}:{w.lineno} {w.category.__name__}: {w.message}")
"""
OPTIONAL = (
    "matplotlib",
    "cv2",
    "tensorboard",
    "scipy",
    "shapely",
    "onnx",
    "onnxscript",
    "timm",
    "hotcoco",
    "safetensors",
)


def run_python(code: str, *args: str) -> str:
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_importing_everything_gives_no_warning():
    assert run_python(IMPORT_ALL, *MODULES) == ""


def test_importing_the_package_imports_nothing_heavy():
    loaded = run_python("import sys; before = set(sys.modules); import detlab; print(*(set(sys.modules) - before))")
    assert set(loaded.split()) == {"detlab"}


def test_importing_everything_needs_no_optional_package():
    code = f"""
import importlib, sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
    assert run_python(code, *MODULES) == ""


# What Windows does not have, as far as a run without distribution could come across it.
OF_POSIX = ("statvfs", "fork", "getuid", "geteuid", "register_at_fork", "killpg", "setsid", "getpgid", "uname")


def test_everything_is_imported_and_data_are_read_without_what_only_posix_has():
    code = f"""
import importlib, os, signal, sys
import torch, torch.utils.data, numpy, iopath, fvcore.common, portalocker, cloudpickle, omegaconf, yacs
for name in {OF_POSIX!r}:
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
from detlab.data.build import build_detection_test_loader, build_detection_train_loader
entries = [dict(n=n, width=4, height=3) for n in range(4)]
assert len(next(iter(build_detection_train_loader(entries, mapper=None, total_batch_size=2, seed=0)))) == 2
assert len(list(build_detection_test_loader(entries, mapper=None))) == 4
"""
    assert run_python(code, *MODULES) == ""
