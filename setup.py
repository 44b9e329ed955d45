"""What pyproject.toml cannot say: the configs travel inside the wheel, where ``detlab.model_zoo`` looks for them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies ``configs/`` into the built package; an editable install finds those of the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "detlab", "model_zoo", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
