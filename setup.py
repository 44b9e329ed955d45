"""What pyproject.toml cannot say.

The configs travel inside the wheel, where ``detlab.model_zoo`` looks for them. So do the compiled operators, if torch
and a C++ compiler are here (with nvcc and a torch for CUDA, those for CUDA too); if not, only their sources do, and the
first use compiles them. The library serves every Python, so the wheel's tag names a platform but no Python.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

if int(setuptools.__version__.split(".")[0]) < 77:
    # pip checks this in an isolated build only.
    sys.exit(f"detlab is built by setuptools 77 or later, here is {setuptools.__version__}; pip install -U setuptools")

from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent


def load_ops_build():
    """The file that knows how to compile; by its path, as the package cannot be imported without torch."""
    path = ROOT / "detlab" / "layers" / "_ops_build.py"
    spec = importlib.util.spec_from_file_location("_detlab_ops_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ops_build = load_ops_build()


class DistributionWithOperators(Distribution):
    """Belongs to a platform exactly if it carries compiled operators, which is known once they are built."""

    carries_operators = False

    def has_ext_modules(self) -> bool:
        return self.carries_operators


class BuildWithExtras(build_py):
    """Adds the configs and the operators; an editable install gets the operators beside their sources."""

    def run(self) -> None:
        if self.editable_mode:
            self.build_operators(ROOT / "detlab" / "layers")
            super().run()
            return
        package = Path(self.build_lib, "detlab")
        # What an earlier build left would travel along: files that are gone since, libraries of other sources.
        if package.resolve() != ROOT / "detlab":
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        shutil.copytree(
            ROOT / "configs", package / "model_zoo" / "configs", ignore=shutil.ignore_patterns("__pycache__")
        )
        kept = Path(self.get_finalized_command("build").build_temp)
        for library in self.build_operators(kept):
            shutil.copy(library, package / "layers")
            self.distribution.carries_operators = True

    def build_operators(self, folder: Path) -> list[Path]:
        """The libraries that can be built; it never fails, as a package without them still works."""
        return [library for part in ("cpu", "cuda") if (library := self.build_part(folder, part)) is not None]

    def build_part(self, folder: Path, part: str) -> Path | None:
        target = folder / ops_build.library_name(part)
        for outdated in set(folder.glob(f"libdetlab_{part}-*.so")) - {target}:
            outdated.unlink()
        obstacle = ops_build.obstacle(part)
        if obstacle is not None:
            print(f"detlab: the {part} operators are not compiled: {obstacle}", file=sys.stderr)
            return None
        if ops_build.is_whole(target):
            return target
        try:
            {"cpu": ops_build.build_cpu, "cuda": ops_build.build_cuda}[part](target)
        except (ops_build.BuildError, OSError) as error:
            print(f"warning: detlab: the {part} operators are not compiled: {error}", file=sys.stderr)
            return None
        return target


class WheelForAnyPython(bdist_wheel):
    """``py3-none-<platform>`` with the operators, ``py3-none-any`` without."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.carries_operators
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    cmdclass={"build_py": BuildWithExtras, "bdist_wheel": WheelForAnyPython},
    distclass=DistributionWithOperators,
    package_data={"detlab.layers": ["csrc/*.h", "csrc/*/*"]},
)
