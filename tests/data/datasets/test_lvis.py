import json
import os

import pytest

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from detlab.structures.boxes import BoxMode

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
CATEGORIES = [
    {"id": 2, "name": "cat_(animal)", "synonyms": ["cat", "kitty"], "image_count": 1},
    {"id": 1, "name": "ant", "synonyms": ["ant"], "image_count": 3},
]
CONTENT = {
    "images": [
        {
            "id": 9,
            "width": 8,
            "height": 7,
            "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
            "not_exhaustive_category_ids": [2],
            "neg_category_ids": [1],
        },
        {"id": 4, "width": 8, "height": 7, "file_name": "own.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 2, "bbox": [1, 1, 4, 4], "segmentation": [SQUARE], "area": 16.0}
    ],
    "categories": CATEGORIES,
}


@pytest.fixture
def json_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DETLAB_DATASETS", str(tmp_path))
    path = tmp_path / "lvis" / "lvis_v1_tiny.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONTENT))
    return str(path)


def test_images_and_objects_are_loaded(json_file, empty_catalogs):
    own, cocos = load_lvis_json(json_file, "coco", "tiny", extra_annotation_keys=["area"])
    assert own["file_name"] == os.path.join("coco", "own.jpg") and own["annotations"] == []
    assert cocos["file_name"] == os.path.join("coco", "train2017", "000000000009.jpg")
    assert cocos["neg_category_ids"] == [1] and cocos["not_exhaustive_category_ids"] == [2]
    assert cocos["annotations"] == [
        {"category_id": 1, "bbox": [1, 1, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": [SQUARE], "area": 16.0}
    ]
    assert MetadataCatalog.get("tiny").thing_classes == ["ant", "cat"]


def test_class_names_come_from_the_file_when_asked_for(json_file, empty_catalogs):
    for _ in range(2):
        register_lvis_instances("lvis_mine", {}, json_file, "coco")
    metadata = MetadataCatalog.get("lvis_mine")
    assert "thing_classes" not in metadata.__dict__
    assert metadata.thing_classes == ["ant", "cat"]
    assert metadata.class_image_count == [{"id": 1, "image_count": 3}, {"id": 2, "image_count": 1}]
    assert metadata.evaluator_type == "lvis" and len(DatasetCatalog.get("lvis_mine")) == 2


def test_class_names_can_be_asked_for_by_version(json_file, empty_catalogs):
    assert get_lvis_instances_meta("lvis_v1")["thing_classes"] == ["ant", "cat"]
    assert len(get_lvis_instances_meta("lvis_v0.5_val_cocofied")["thing_classes"]) == 80
    with pytest.raises(FileNotFoundError, match=r"lvis_v0\.5\*\.json is empty"):
        get_lvis_instances_meta("lvis_v0.5")
    with pytest.raises(ValueError, match="not a dataset of LVIS"):
        get_lvis_instances_meta("coco_2017_val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": CONTENT["annotations"] * 2}, "ids of annotations"),
        ({"categories": [{**CATEGORIES[0], "id": 3}, CATEGORIES[1]]}, "should be 1 to 2"),
    ],
)
def test_files_that_contradict_themselves_are_refused(json_file, empty_catalogs, change, message):
    with open(json_file, "w") as stream:
        json.dump({**CONTENT, **change}, stream)
    with pytest.raises(ValueError, match=message):
        load_lvis_json(json_file, "coco", "tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 9, "width": 8, "height": 7}]}, "image 9 .* has no 'file_name'; it, or 'coco_url'"),
        ({"images": [{**CONTENT["images"][0], "coco_url": 5}]}, "'coco_url': 5; the address of an image"),
        ({"images": [{**CONTENT["images"][0], "neg_category_ids": 5}]}, "'neg_category_ids': 5; it is a list"),
        ({"images": [{"id": 9, "file_name": "a"}]}, "image 9 .* has no 'height'"),
        ({"categories": [{"id": 1, "synonyms": []}, CATEGORIES[0]]}, "category 1 .* has no 'name'"),
        ({"categories": [{"id": 1, "synonyms": [3]}, CATEGORIES[0]]}, r"'synonyms': \[3\]"),
        ({"categories": [{"id": "a", "name": "b"}]}, "should be 1 to 1"),
        ({"annotations": [{**CONTENT["annotations"][0], "bbox": [1, 2]}]}, r"'bbox': \[1, 2\]"),
    ],
)
def test_what_is_missing_is_told_with_the_file(json_file, empty_catalogs, change, message):
    with open(json_file, "w") as stream:
        json.dump({**CONTENT, **change}, stream)
    with pytest.raises(ValueError, match=message) as caught:
        load_lvis_json(json_file, "coco", "tiny")
    assert json_file in str(caught.value)
