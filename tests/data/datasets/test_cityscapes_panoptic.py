import json
import os

import pytest

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.cityscapes_panoptic import get_cityscapes_panoptic_files, register_all_cityscapes_panoptic

STEM = "bern_000001_000019"
CONTENT = {
    "annotations": [
        {
            "image_id": STEM,
            "file_name": f"{STEM}_gtFine_panoptic.png",
            "segments_info": [{"id": 26001, "category_id": 26, "iscrowd": 0}, {"id": 7, "category_id": 7}],
        }
    ]
}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cityscapes"
    for path in (
        f"leftImg8bit/train/bern/{STEM}_leftImg8bit.png",
        f"gtFine/cityscapes_panoptic_train/{STEM}_gtFine_panoptic.png",
    ):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
    (folder / "gtFine/cityscapes_panoptic_train.json").write_text(json.dumps(CONTENT))
    return tmp_path


def test_a_registered_split_is_loaded(root, empty_catalogs):
    for _ in range(2):
        register_all_cityscapes_panoptic(str(root))
    (image,) = DatasetCatalog.get("cityscapes_fine_panoptic_train")
    assert (
        image["image_id"] == STEM and os.path.isfile(image["file_name"]) and os.path.isfile(image["pan_seg_file_name"])
    )
    assert image["sem_seg_file_name"] == str(root / f"cityscapes/gtFine/train/bern/{STEM}_gtFine_labelTrainIds.png")
    assert [segment["category_id"] for segment in image["segments_info"]] == [13, 0]
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_train")
    assert metadata.evaluator_type == "cityscapes_panoptic_seg" and metadata.label_divisor == 1000


def test_missing_images_and_maps_are_named(root):
    images, maps = root / "cityscapes/leftImg8bit/train", root / "cityscapes/gtFine/cityscapes_panoptic_train"
    other = {"annotations": [{**CONTENT["annotations"][0], "image_id": "bonn_000001_000019"}]}
    with pytest.raises(FileNotFoundError, match="such as bonn"):
        get_cityscapes_panoptic_files(str(images), str(maps), other)
    with pytest.raises(FileNotFoundError, match="csCreatePanopticImgs"):
        get_cityscapes_panoptic_files(str(images), str(images), CONTENT)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"id": 1, "category_id": 99}, "segment 1 of .* category_id 99"),
        ({"id": 1}, "segment 1 .* has no 'category_id'"),
    ],
)
def test_segments_of_no_class_are_named(root, empty_catalogs, segment, message):
    path = root / "cityscapes/gtFine/cityscapes_panoptic_train.json"
    path.write_text(json.dumps({"annotations": [{**CONTENT["annotations"][0], "segments_info": [segment]}]}))
    register_all_cityscapes_panoptic(str(root))
    with pytest.raises(ValueError, match=message) as caught:
        DatasetCatalog.get("cityscapes_fine_panoptic_train")
    assert str(path) in str(caught.value)
