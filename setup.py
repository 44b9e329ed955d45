"""What pyproject.toml cannot say.

The configs travel inside the wheel, where ``detlab.model_zoo`` looks for them. So do the compiled operators, if torch
and a C++ compiler are here (with nvcc, those for CUDA too); if not, only their sources do, and the first use compiles
them. The library serves every Python, so the wheel's tag names a platform but no Python.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def load_ops_build():
    """The file that knows how to compile; by its path, as the package cannot be imported without torch."""
    path = ROOT / "detlab" / "layers" / "_ops_build.py"
    spec = importlib.util.spec_from_file_location("_detlab_ops_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ops_build = load_ops_build()
OBSTACLE = ops_build.obstacle()


class DistributionWithOperators(Distribution):
    """Belongs to a platform exactly if it carries compiled operators."""

    def has_ext_modules(self) -> bool:
        return OBSTACLE is None


class BuildWithExtras(build_py):
    """Adds the configs and the operators; an editable install gets the operators beside their sources."""

    def run(self) -> None:
        super().run()
        package = ROOT / "detlab" if self.editable_mode else Path(self.build_lib, "detlab")
        if not self.editable_mode:
            target = package / "model_zoo" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))
        self.build_operators(package / "layers")

    def build_operators(self, folder: Path) -> None:
        """Never fails: a package without the library still works."""
        if OBSTACLE is not None:
            self.announce(f"operators are not compiled: {OBSTACLE}", level=3)
            return
        self.build_part(folder, "cpu", ops_build.build_cpu)
        if ops_build.find_nvcc() is not None and ops_build.has_torch_cuda():
            self.build_part(folder, "cuda", ops_build.build_cuda)

    def build_part(self, folder: Path, part: str, build) -> None:
        target = folder / ops_build.library_name(part)
        for outdated in set(folder.glob(f"libdetlab_{part}-*.so")) - {target}:
            outdated.unlink()
        if target.is_file():
            return
        try:
            build(target)
        except (ops_build.BuildError, OSError) as error:
            print(f"warning: the {part} operators are not compiled: {error}", file=sys.stderr)


class WheelForAnyPython(bdist_wheel):
    """``py3-none-<platform>`` with the operators, ``py3-none-any`` without."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    cmdclass={"build_py": BuildWithExtras, "bdist_wheel": WheelForAnyPython},
    distclass=DistributionWithOperators,
    package_data={"detlab.layers": ["csrc/*.h", "csrc/*/*"]},
)
