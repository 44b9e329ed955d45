"""The drawing tools run as a user runs them, on a data set that comes in through ``--import``."""

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image

DATA_SET = """
from detlab.data.datasets.coco import register_coco_instances
register_coco_instances("drawn_by_tools", {{}}, r"{root}/truth.json", r"{root}")
"""


def make_data_set(root):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in (1, 2, 3)]
    polygon = [10, 10, 50, 10, 50, 40, 10, 40]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
        | {"segmentation": [polygon]}
        for i in (1, 2, 3)
    ]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "truth.json").write_text(json.dumps(truth))
    for image in images:
        Image.fromarray(np.full((60, 80, 3), 100, dtype=np.uint8)).save(root / image["file_name"], quality=100)
    results = [{"image_id": 2, "category_id": 1, "bbox": [20, 10, 40, 30], "score": 0.9}]
    (root / "results.json").write_text(json.dumps(results))
    (root / "data_set.py").write_text(DATA_SET.format(root=root))


def run(project_root, tool, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(project_root / "tools" / tool), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_saved_predictions_are_drawn_one_by_one_and_on_a_sheet(project_root, tmp_path):
    make_data_set(tmp_path)
    arguments = (
        "--import",
        tmp_path / "data_set.py",
        "--dataset",
        "drawn_by_tools",
        "--input",
        tmp_path / "results.json",
    )
    places = ("--montage", tmp_path / "sheet.png", "--output", tmp_path / "each")
    done = run(project_root, "visualize_json_results.py", *arguments, *places)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "each")) == ["1.jpg", "2.jpg", "3.jpg"]
    assert Image.open(tmp_path / "sheet.png").width > 1600
    nowhere = run(project_root, "visualize_json_results.py", *arguments)
    assert nowhere.returncode == 2 and "--montage FILE" in nowhere.stderr


def test_annotations_and_what_the_loader_makes_of_them_are_drawn(project_root, tmp_path):
    make_data_set(tmp_path)
    settings = ("DATASETS.TRAIN", "('drawn_by_tools',)", "MODEL.ROI_HEADS.NUM_CLASSES", "1", "MODEL.MASK_ON", "True")
    small = ("INPUT.MIN_SIZE_TRAIN", "(120,)", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2")
    common = ("--import", tmp_path / "data_set.py", "--num", "2")
    for source in ("annotation", "dataloader"):
        out = ("--source", source, "--output-dir", tmp_path / source)
        done = run(project_root, "visualize_data.py", *common, *out, *settings, *small)
        assert done.returncode == 0, done.stderr
        pictures = [np.asarray(Image.open(tmp_path / source / name)) for name in os.listdir(tmp_path / source)]
        assert [picture.shape for picture in pictures] == [(60, 80, 3) if source == "annotation" else (120, 160, 3)] * 2
        assert all(np.ptp(picture) > 50 for picture in pictures)
