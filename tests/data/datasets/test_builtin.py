import json
import os
import subprocess
import sys

import pytest

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets import builtin
from detlab.data.datasets.cityscapes_panoptic import register_all_cityscapes_panoptic
from detlab.data.datasets.shapes_catalog import register_all_shapes


@pytest.fixture
def registered(empty_catalogs):
    """Registers everything under a folder."""

    def register(root):
        for _ in range(2):
            builtin.register_all_coco(root)
            builtin.register_all_lvis(root)
            builtin.register_all_pascal_voc(root)
            builtin.register_all_cityscapes(root)
            builtin.register_all_ade20k(root)
            register_all_cityscapes_panoptic(root)
            register_all_shapes(root)

    return register


def test_all_names_of_the_reference_are_known(shared_dir, registered):
    registered("nowhere")
    expected = set(json.loads((shared_dir / "compat" / "datasets.json").read_text())["datasets"])
    known = set(DatasetCatalog.list())
    assert expected <= known and all(name.startswith("shapes_") for name in known - expected)
    assert set(MetadataCatalog.list()) == known


def test_importing_registers_the_names_and_opens_no_file(tmp_path, project_root):
    code = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event in ('open', 'os.listdir') else None)\n"
        "from detlab.data import DatasetCatalog, MetadataCatalog\n"
        f"assert not [path for path in seen if {str(tmp_path)!r} in path], seen\n"
        "print(len(DatasetCatalog), MetadataCatalog.get('coco_2017_val').json_file)\n"
    )
    environment = {**os.environ, "DETLAB_DATASETS": str(tmp_path), "PYTHONPATH": str(project_root)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    count, json_file = run.stdout.split()
    assert int(count) >= 52 and json_file == str(tmp_path / "coco/annotations/instances_val2017.json")


@pytest.mark.parametrize(
    ("root", "name", "count", "evaluator"),
    [
        ("datasets", "coco_2017_train", 166, "coco"),
        ("datasets", "coco_2017_val", 188, "coco"),
        ("datasets", "keypoints_coco_2017_train", 80, "coco"),
        ("datasets", "keypoints_coco_2017_val", 79, "coco"),
        ("datasets", "voc_2007_train", 60, "pascal_voc"),
        ("datasets", "voc_2007_trainval", 100, "pascal_voc"),
        ("datasets/panoptic", "coco_2017_train", 100, "coco"),
        ("datasets/panoptic", "coco_2017_val_panoptic", 100, "coco_panoptic_seg"),
        ("datasets/panoptic", "coco_2017_train_panoptic_separated", 100, "coco_panoptic_seg"),
        ("datasets/panoptic", "coco_2017_val_panoptic_stuffonly", 100, "sem_seg"),
    ],
)
def test_real_data_load_by_their_names(shared_dir, registered, root, name, count, evaluator):
    registered(str(shared_dir / root))
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == count and MetadataCatalog.get(name).evaluator_type == evaluator
    for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name"):
        assert all(os.path.isfile(d[key]) for d in dicts if key in d)


def test_keypoint_metadata_are_complete(shared_dir, registered):
    registered(str(shared_dir / "datasets"))
    dicts = DatasetCatalog.get("keypoints_coco_2017_val")
    metadata = MetadataCatalog.get("keypoints_coco_2017_val")
    assert metadata.thing_classes == ["person"] and len(metadata.keypoint_names) == 17
    assert all(len(a["keypoints"]) == 51 for d in dicts for a in d["annotations"])


def test_missing_files_are_explained(registered, tmp_path):
    registered(str(tmp_path))
    for name in DatasetCatalog.list():
        if not name.startswith("shapes"):
            with pytest.raises(FileNotFoundError, match=r"does not exist|no image"):
                DatasetCatalog.get(name)
