"""Saved predictions are read back and drawn where they belong."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.evaluation.coco_evaluation import instances_to_coco_json
from detlab.evaluation.prediction_pictures import (
    contact_sheet,
    pictures_of_results,
    read_results,
    results_to_instances,
    write_montage,
)
from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances

H, W = 60, 80
NAME = "pictures_test"


@pytest.fixture
def results_file(tmp_path):
    """Five grey images with one object each on the left; predictions on the right, on the last image but one weak."""
    images, results = [], []
    for image_id in range(5):
        Image.fromarray(np.full((H, W, 3), 100, dtype=np.uint8)).save(tmp_path / f"{image_id}.png")
        annotation = {"bbox": [4, 10, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        annotation["segmentation"] = [[4, 10, 34, 10, 34, 50, 4, 50]]
        image = {"file_name": str(tmp_path / f"{image_id}.png"), "image_id": image_id, "height": H, "width": W}
        images.append({**image, "annotations": [annotation]})
        found = Instances((H, W), pred_boxes=Boxes(torch.tensor([[44.0, 10, 74, 50]])))
        found.scores, found.pred_classes = torch.tensor([0.2 if image_id == 3 else 0.8]), torch.tensor([9])
        found.pred_masks = torch.zeros(1, H, W, dtype=torch.bool)
        found.pred_masks[:, 10:50, 44:74] = True
        results += instances_to_coco_json(found, image_id)
    DatasetCatalog.register(NAME, lambda: images)
    MetadataCatalog.get(NAME).set(thing_classes=["cat"], thing_dataset_id_to_contiguous_id={9: 0})
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    yield str(path)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def drawn(picture):
    return np.abs(picture.astype(int) - 100).max(axis=2) > 10


def test_truth_is_left_and_predictions_are_right(results_file):
    pictures = dict(pictures_of_results(NAME, results_file))
    assert len(pictures) == 5
    for number, picture in enumerate(pictures.values()):
        left, right = drawn(picture[:, :W]), drawn(picture[:, -W:])
        assert left[35:45, 8:30].all() and not left[:, 40:].any()
        assert right[35:45, 48:70].all() == (number != 3) and not right[:, :40].any()


def test_what_was_written_is_read_back():
    instances = Instances((H, W), pred_boxes=Boxes(torch.tensor([[1.0, 2, 30, 40], [5, 6, 7, 8]])))
    instances.scores, instances.pred_classes = torch.tensor([0.75, 0.25]), torch.tensor([1, 0])
    instances.pred_masks = torch.rand(2, H, W, generator=torch.Generator().manual_seed(0)) > 0.5
    instances.pred_keypoints = torch.tensor([[[3.5, 4.5, 0.5]], [[1.5, 0.5, 0.25]]])
    back = results_to_instances(instances_to_coco_json(instances, 1), (H, W))
    assert torch.equal(back.pred_boxes.tensor, instances.pred_boxes.tensor)
    for field in ("scores", "pred_classes", "pred_masks", "pred_keypoints"):
        assert torch.equal(back.get(field), instances.get(field)), field
    assert len(results_to_instances(instances_to_coco_json(instances, 1), (H, W), score_thresh=0.5)) == 1


def test_a_sheet_has_the_pictures_asked_for(results_file, tmp_path):
    write_montage(NAME, results_file, str(tmp_path / "new" / "sheet.png"), num=3, num_columns=2, width=2 * W)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    pair_width = 2 * (2 * W) + 8
    assert sheet.shape[1] == 2 * pair_width + 16 and sheet.shape[0] > 2 * 2 * H
    assert (sheet[-2 * H :, pair_width + 16 :] == 255).all()
    assert drawn(sheet[-2 * H :, : 2 * W])[80, 20:60].all()


def test_null_in_a_prediction_stands_for_nothing(results_file):
    with open(results_file, encoding="utf-8") as file:
        results = json.load(file)
    for result in results:
        result["keypoints"] = None
    results[0]["bbox"] = None
    results[1]["segmentation"] = None
    results[2].update(bbox=None, segmentation=None)
    with open(results_file, "w", encoding="utf-8") as file:
        json.dump(results, file)
    pictures = [picture for _, picture in pictures_of_results(NAME, results_file)]
    assert len(pictures) == 5
    assert drawn(pictures[0]).any() and drawn(pictures[1]).any()


def test_a_short_row_is_filled_with_white():
    sheet = contact_sheet([np.zeros((10, 20, 3), np.uint8)] * 3, num_columns=2)
    assert (sheet[-10:, :20] == 0).all() and (sheet[-10:, 20:] == 255).all()
    with pytest.raises(ValueError, match="empty"):
        contact_sheet([], 2)


def test_files_that_do_not_fit_are_refused(results_file, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(ValueError, match=r"other.json .*results format"):
        read_results(str(tmp_path / "other.json"))
    (tmp_path / "foreign.json").write_text(json.dumps([{"image_id": 77, "score": 1.0, "category_id": 9}]))
    with pytest.raises(ValueError, match=r"\[77\]"):
        list(pictures_of_results(NAME, str(tmp_path / "foreign.json")))
    with pytest.raises(ValueError, match=r"category ids \[5\]"):
        results_to_instances([{"score": 1.0, "category_id": 5}], (H, W), {9: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": ...}, "prediction number 1 .* has no 'image_id'"),
        ({"category_id": None}, "prediction number 1 of image 7 .* 'category_id': None"),
        ({"score": "high"}, "'score': 'high'; it is a number"),
        ({"score": math.nan}, "'score': nan; it is finite"),
        ({"bbox": [1, 2, 3]}, r"'bbox': \[1, 2, 3\]; a box is"),
        ({"bbox": [1, 2, 3, "4"]}, "a box is"),
        ({"keypoints": [1, 2]}, "keypoints are"),
        ({"segmentation": {"size": [4, 4], "counts": [3]}}, "prediction number 1 of image 7 in .*"),
        ({"segmentation": [[1, 2, 3]]}, "prediction number 1 of image 7 in .*"),
        ({"segmentation": 5}, "prediction number 1 of image 7 in .*"),
    ],
)
def test_a_prediction_that_is_none_is_named(tmp_path, change, message):
    good = {"image_id": 7, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}
    bad = {key: value for key, value in {**good, **change}.items() if value is not ...}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good, bad]))
    with pytest.raises(ValueError, match=message) as caught:
        read_results(str(path))
    assert str(path) in str(caught.value)
    path.write_text(json.dumps([good]))
    assert read_results(str(path)) == {7: [good]}
