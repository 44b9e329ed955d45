import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detlab.data.datasets import cityscapes
from detlab.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from detlab.structures.boxes import BoxMode

STEM = "bern_000001_000019"


def box_outline(x1, y1, x2, y2):
    """Corners of pixels, the way the annotation tool names them."""
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


OUTLINES = [
    {"label": "road", "polygon": box_outline(0, 0, 59, 39)},
    {"label": "car", "polygon": box_outline(10, 10, 29, 19)},
    {"label": "persongroup", "polygon": box_outline(40, 5, 49, 14)},
    {"label": "car", "polygon": box_outline(20, 10, 24, 19)},
    {"label": "car", "polygon": box_outline(3, 30, 8, 35)},
    {"label": "sign", "polygon": box_outline(2, 29, 9, 36)},
    {"label": "license plate", "polygon": box_outline(40, 5, 49, 14)},
    {"label": "rider", "polygon": box_outline(0, 0, 9, 9), "deleted": 1},
]


@pytest.fixture
def folders(tmp_path):
    images, annotations = tmp_path / "leftImg8bit/val/bern", tmp_path / "gtFine/val/bern"
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    (images / f"{STEM}_leftImg8bit.png").touch()
    (annotations / f"{STEM}_gtFine_polygons.json").write_text(
        json.dumps({"imgHeight": 40, "imgWidth": 60, "objects": OUTLINES})
    )
    ids = np.full((40, 60), 7, dtype=np.uint16)
    ids[10:20, 10:30] = 26001
    ids[5:15, 40:50] = 24
    ids[0, 0] = 26002
    Image.fromarray(ids).save(annotations / f"{STEM}_gtFine_instanceIds.png")
    return str(images.parent), str(annotations.parent)


def test_outlines_lose_what_is_hidden(folders):
    (image,) = load_cityscapes_instances(*folders)
    assert image["height"] == 40 and image["width"] == 60 and image["image_id"] == f"{STEM}_leftImg8bit.png"
    front, group, behind = image["annotations"]
    assert front["category_id"] == behind["category_id"] == 2 and group["category_id"] == 0
    assert [o["iscrowd"] for o in (front, group, behind)] == [0, 1, 0]
    assert front["bbox"] == [20.0, 10.0, 25.0, 20.0] and behind["bbox"] == [10.0, 10.0, 30.0, 20.0]
    assert len(front["segmentation"]) == 1 and len(behind["segmentation"]) == 2


def test_instance_ids_give_masks_or_outlines(folders):
    (image,) = load_cityscapes_instances(*folders, from_json=False, to_polygons=False)
    group, car, speck = image["annotations"]
    assert (group["iscrowd"], group["category_id"]) == (1, 0) and (car["iscrowd"], car["category_id"]) == (0, 2)
    assert car["bbox"] == [10.0, 10.0, 30.0, 20.0] and car["bbox_mode"] == BoxMode.XYXY_ABS
    assert coco_mask.area(car["segmentation"]) == 200 and coco_mask.area(speck["segmentation"]) == 1
    (image,) = load_cityscapes_instances(*folders, from_json=False)
    assert [len(o["segmentation"]) for o in image["annotations"]] == [1, 1]


def test_masks_cannot_come_from_outlines(folders):
    with pytest.raises(ValueError, match="from_json=False"):
        load_cityscapes_instances(*folders, from_json=True, to_polygons=False)


def test_many_images_are_read_by_several_processes(folders, monkeypatch):
    expected = load_cityscapes_instances(*folders)
    monkeypatch.setattr(cityscapes, "FEWEST_FILES_FOR_A_POOL", 1)
    assert load_cityscapes_instances(*folders) == expected


def test_semantic_maps_have_to_be_made_first(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="csCreateTrainIdLabelImgs"):
        load_cityscapes_semantic(*folders)
    (tmp_path / f"gtFine/val/bern/{STEM}_gtFine_labelTrainIds.png").touch()
    (image,) = load_cityscapes_semantic(*folders)
    assert image["height"] == 1024 and image["sem_seg_file_name"].endswith("_gtFine_labelTrainIds.png")
    with pytest.raises(FileNotFoundError, match="no image"):
        load_cityscapes_semantic(str(tmp_path), folders[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "should be an object with 'imgHeight'"),
        ({"imgWidth": 60, "objects": []}, "has no 'imgHeight'"),
        ({"imgHeight": 40, "imgWidth": 60}, "'objects' in .* should be a list of objects, but is None"),
        ({"imgHeight": 40, "imgWidth": 60, "objects": [{"polygon": []}]}, "has no 'label'"),
        ({"imgHeight": 40, "imgWidth": 60, "objects": [{"label": "car", "polygon": [[1, 2]]}]}, "a list of 3 points"),
        ({"imgHeight": 40, "imgWidth": 60, "objects": [{"label": "car", "polygon": [[1], [2], [3]]}]}, "a list of 3"),
    ],
)
def test_outlines_in_another_form_are_refused_by_name(folders, content, message):
    path = os.path.join(folders[1], "bern", f"{STEM}_gtFine_polygons.json")
    with open(path, "w") as stream:
        json.dump(content, stream)
    with pytest.raises(ValueError, match=message) as caught:
        load_cityscapes_instances(*folders)
    assert path in str(caught.value)
