"""Programs that stand for compilers, and a folder that stands for torch: what the tests of building run quickly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detlab.layers import _ops_build

# Any library will do where none is loaded.
SOME_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"

# The output is the last argument of every command that _ops_build gives.
COMPILER = """#!/bin/sh
case " $* " in *" --version "*) echo "pretended compiler 1.0"; exit;; esac
echo "$*" >> "{log}"
{action}
for output; do :; done
cp "{library}" "$output"
"""


class Compiler:
    """A C++ compiler or nvcc that writes down its commands, and gives a library whatever the sources are."""

    def __init__(self, path: Path, action: str = "") -> None:
        self.path = path
        self.log = path.with_name(f"{path.name}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(COMPILER.format(log=self.log, action=action, library=SOME_LIBRARY))
        path.chmod(0o755)

    @property
    def commands(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def linked(self) -> list[str]:
        return [command for command in self.commands if "-shared" in command.split()]


def pretend_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "2.11.0", cuda: bool = True) -> Path:
    """Lets ``_ops_build`` take a folder for the installed torch."""
    header = folder / "include/torch/csrc/stable/ops.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (folder / "lib").mkdir()
    if cuda:
        (folder / "lib" / "libtorch_cuda.so").touch()
    (folder / "version.py").write_text(f"__version__ = '{version}'\n")
    monkeypatch.setattr(_ops_build, "find_torch", lambda: folder)
    return folder
