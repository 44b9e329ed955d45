"""A training step asks no tensor for a value, and does no more for many images than for few.

A GPU would make the host wait for each such value. The check needs none: it counts operators on the CPU, and runs the
models on tensors that only pretend to be on a GPU.
"""

import re
import subprocess
import sys

import pytest

CONFIGS = [
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/rpn_R_50_FPN_1x.yaml",
]


def count_operators(shared_dir, config, num_images):
    """The number of operators of a step: once for each form of ground truth that the config knows."""
    check = [sys.executable, str(shared_dir / "checks" / "host_waits.py"), "--images", str(num_images), config]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "0 waits"
    counts = [int(count) for count in re.findall(r"0 waits in (\d+) operators", result.stdout)]
    assert result.stdout.count("on fake CUDA tensors: passes") == len(counts) > 0
    return counts


@pytest.mark.parametrize("config", CONFIGS)
def test_a_training_step_never_waits_and_eight_images_take_little_more_operators_than_two(config, shared_dir):
    of_two, of_eight = (count_operators(shared_dir, config, num_images) for num_images in (2, 8))
    assert all(many <= 1.3 * few for few, many in zip(of_two, of_eight))
