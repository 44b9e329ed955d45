"""The numbers of the reference implementation are reproduced."""

import subprocess
import sys

import pytest

RECORDS = [
    "COCO-Detection__faster_rcnn_R_50_C4_1x",
    "COCO-Detection__faster_rcnn_R_50_DC5_1x",
    "COCO-Detection__faster_rcnn_R_50_FPN_1x",
    "COCO-Detection__fast_rcnn_R_50_FPN_1x",
    "COCO-Detection__rpn_R_50_FPN_1x",
    "COCO-InstanceSegmentation__mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation__mask_rcnn_R_50_FPN_1x.py",
    "COCO-Keypoints__keypoint_rcnn_R_50_FPN_1x",
    "Misc__semantic_R_50_FPN_1x",
]


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_is_reproduced(name, shared_dir):
    record = shared_dir / "compat" / "records" / f"{name}.json"
    check = [sys.executable, str(shared_dir / "compat" / "reference.py"), "check", str(record)]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 records reproduced" in result.stdout
