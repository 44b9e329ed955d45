"""Importing the foundations is cheap and silent."""

import subprocess
import sys

HEAVY = ["matplotlib", "pycocotools", "cv2", "tensorboard", "scipy", "torchvision", "pandas", "fvcore.nn"]
MODULES = [
    "checkpoint.detection_checkpoint",
    "utils.collect_env",
    "utils.colormap",
    "utils.comm",
    "utils.env",
    "utils.events",
    "utils.file_io",
    "utils.image",
    "utils.logger",
    "utils.memory",
    "utils.optional",
    "utils.registry",
    "utils.serialize",
    "utils.user_modules",
]


def test_no_module_pulls_in_a_heavy_package_or_warns():
    imports = "\n".join(f"import detlab.{name}" for name in MODULES)
    code = f"import torch, numpy, sys\n{imports}\nprint([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
