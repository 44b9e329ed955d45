import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.builtin_meta import builtin_metadata
from detlab.data.datasets.coco_panoptic import (
    load_coco_panoptic_json,
    merge_to_panoptic,
    register_coco_panoptic,
    register_coco_panoptic_separated,
)


@pytest.fixture(scope="module")
def files(shared_dir):
    folder = shared_dir / "datasets/panoptic/coco"
    return {
        "image_root": str(folder / "val2017"),
        "panoptic_root": str(folder / "panoptic_val2017"),
        "panoptic_json": str(folder / "annotations/panoptic_val2017.json"),
        "instances_json": str(folder / "annotations/instances_val2017.json"),
    }


def load(files, kind="coco_panoptic_standard"):
    return load_coco_panoptic_json(
        files["panoptic_json"], files["image_root"], files["panoptic_root"], builtin_metadata(kind)
    )


def test_segments_are_those_of_the_png(files):
    for image in load(files)[:5]:
        colors = np.asarray(Image.open(image["pan_seg_file_name"]).convert("RGB")).astype(int)
        ids = colors @ [1, 256, 256**2]
        assert {s["id"] for s in image["segments_info"]} == set(np.unique(ids)) - {0}


def test_categories_become_classes(files):
    metadata = builtin_metadata("coco_panoptic_standard")
    things = set(metadata["thing_dataset_id_to_contiguous_id"].values())
    segments = [segment for image in load(files) for segment in image["segments_info"]]
    assert all((s["category_id"] in things) == s["isthing"] and 0 <= s["category_id"] < 133 for s in segments)
    assert any(s["isthing"] for s in segments) and not all(s["isthing"] for s in segments)


def test_an_unknown_category_is_refused(files):
    metadata = {"thing_dataset_id_to_contiguous_id": {1: 0}, "stuff_dataset_id_to_contiguous_id": {}}
    with pytest.raises(ValueError, match=r"segment \d+ in .* category_id \d+, which is unknown"):
        load_coco_panoptic_json(files["panoptic_json"], files["image_root"], files["panoptic_root"], metadata)


@pytest.mark.parametrize("image_id", ["--5", "-", "5-", "7" * 5000, 10**18, "²"])
def test_an_image_id_that_is_no_number_is_refused_by_name(tmp_path, image_id):
    path = tmp_path / "panoptic.json"
    entry = {"image_id": image_id, "file_name": "a.png", "segments_info": []}
    path.write_text(json.dumps({"annotations": [entry]}))
    with pytest.raises(ValueError, match=r"panoptic\.json has 'image_id': .*; it is a number") as caught:
        load_coco_panoptic_json(str(path), "images", "maps", {})
    assert len(str(caught.value)) < 1000


def test_a_missing_folder_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_coco_panoptic_json(
            files["panoptic_json"], str(tmp_path), files["panoptic_root"], builtin_metadata("coco_panoptic_standard")
        )


def test_both_forms_are_registered(files, empty_catalogs):
    for _ in range(2):
        register_coco_panoptic("mine", builtin_metadata("coco_panoptic_standard"), **files)
        register_coco_panoptic_separated(
            "mine",
            builtin_metadata("coco_panoptic_separated"),
            sem_seg_root=files["panoptic_root"].replace("panoptic_val", "panoptic_stuff_val"),
            **files,
        )
    assert DatasetCatalog.list() == ["mine", "mine_separated", "mine_stuffonly"]
    separated = DatasetCatalog.get("mine_separated")
    assert len(separated) == 100 and sum(len(image["annotations"]) for image in separated) == 712
    assert all(os.path.isfile(image["sem_seg_file_name"]) for image in separated)
    assert len(DatasetCatalog.get("mine_stuffonly")) == 100
    metadata = MetadataCatalog.get("mine_separated")
    assert metadata.label_divisor == 1000 and metadata.ignore_label == 255
    assert metadata.json_file == files["instances_json"]


def test_objects_and_maps_are_joined_by_image():
    objects = [{"file_name": "b", "annotations": [1]}, {"file_name": "a", "annotations": []}]
    maps = [{"file_name": name, "sem_seg_file_name": f"{name}.png"} for name in "abc"]
    joined = merge_to_panoptic(objects, maps)
    assert joined[0] == {"file_name": "b", "annotations": [1], "sem_seg_file_name": "b.png"} and len(joined) == 2
    with pytest.raises(ValueError, match="1 images have objects but no semantic map, such as b"):
        merge_to_panoptic(objects, maps[:1])
    with pytest.raises(ValueError, match="0 semantic maps"):
        merge_to_panoptic(objects, [])


def test_numbers_agree_with_the_file(files):
    content = json.loads(Path(files["panoptic_json"]).read_text())
    assert [image["image_id"] for image in load(files)] == [entry["image_id"] for entry in content["annotations"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not in COCO's panoptic format"),
        ({"images": []}, "not in COCO's panoptic format"),
        ({"annotations": {}}, "should be a list of annotations"),
        ({"annotations": [{"file_name": "a.png", "segments_info": []}]}, "has no 'image_id'"),
        (
            {"annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": []}]},
            "'image_id': 'a'; it is a num",
        ),
        ({"annotations": [{"image_id": 1, "segments_info": []}]}, "has no 'file_name'"),
        ({"annotations": [{"image_id": 1, "file_name": "a.png"}]}, "has no 'segments_info'"),
        (
            {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{}]}]},
            "segment number 0 .* no 'id'",
        ),
        (
            {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": None}]}]},
            "segment 1 .* 'category_id': None",
        ),
    ],
)
def test_a_file_in_another_form_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_coco_panoptic_json(str(path), "images", "maps", builtin_metadata("coco_panoptic_standard"))
    assert str(path) in str(caught.value)
