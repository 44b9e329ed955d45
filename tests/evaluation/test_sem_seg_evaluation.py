"""Semantic segmentation counted pixel by pixel."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_tools

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.evaluation.sem_seg_evaluation import SemSegEvaluator, load_image_into_numpy_array, sem_seg_metrics

NAMES = ["sky", "road", "never"]
IGNORE = 255


@pytest.fixture
def stuff(tmp_path):
    MetadataCatalog.get("stuff_test").set(
        stuff_classes=NAMES, ignore_label=IGNORE, stuff_dataset_id_to_contiguous_id={10: 0, 20: 1, 30: 2}
    )
    labels = np.array([[0, 0, 1, 1], [0, IGNORE, 1, 1]], dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    yield {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}
    MetadataCatalog.remove("stuff_test")


def scores(labels):
    return torch.nn.functional.one_hot(torch.tensor(labels), len(NAMES)).permute(2, 0, 1).float()


def test_pixels_are_counted_by_class_and_ignored_ones_are_not(stuff, tmp_path):
    evaluator = SemSegEvaluator("stuff_test", output_dir=str(tmp_path / "out"))
    evaluator.process([stuff], [{"sem_seg": scores([[0, 1, 1, 1], [0, 2, 1, 0]])}])
    metrics = evaluator.evaluate()["sem_seg"]
    # sky: 3 true, 3 predicted, 2 right; road: 4 true, 4 predicted, 3 right.
    assert metrics["IoU-sky"] == pytest.approx(50) and metrics["IoU-road"] == pytest.approx(60)
    assert metrics["mIoU"] == pytest.approx(55) and metrics["fwIoU"] == pytest.approx((3 * 50 + 4 * 60) / 7)
    assert metrics["pACC"] == pytest.approx(500 / 7) and metrics["mACC"] == pytest.approx((200 / 3 + 75) / 2)
    assert math.isnan(metrics["IoU-never"]) and math.isnan(metrics["ACC-never"])
    saved = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [entry["category_id"] for entry in saved] == [10, 20, 30]
    assert mask_tools.decode(saved[0]["segmentation"]).tolist() == [[1, 0, 0, 0], [1, 0, 0, 1]]


def test_reset_forgets(stuff):
    evaluator = SemSegEvaluator("stuff_test", distributed=False)
    evaluator.process([stuff], [{"sem_seg": scores([[2] * 4] * 2)}])
    evaluator.reset()
    evaluator.process([stuff], [{"sem_seg": scores([[0, 0, 1, 1], [0, 0, 1, 1]])}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


def test_bad_labels_are_named(stuff, tmp_path):
    evaluator = SemSegEvaluator("stuff_test")
    with pytest.raises(ValueError, match=r"labels.png is \(2, 4\), the prediction \(1, 4\)"):
        evaluator.process([stuff], [{"sem_seg": scores([[0, 0, 1, 1]])}])
    Image.fromarray(np.array([[3, 7]], dtype=np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels \[3, 7\].*3 classes"):
        evaluator.process([stuff], [{"sem_seg": scores([[0, 0]])}])


@pytest.mark.parametrize(
    "entry", [{"file_name": "image.jpg"}, {"file_name": "other.jpg", "sem_seg_file_name": "a.png"}]
)
def test_an_image_without_a_label_map_is_named(stuff, entry):
    DatasetCatalog.register("stuff_test", lambda: [entry])
    try:
        with pytest.raises(ValueError, match=r"'stuff_test' has no 'sem_seg_file_name' for image 'image\.jpg'"):
            SemSegEvaluator("stuff_test").process([{"file_name": "image.jpg"}], [{"sem_seg": scores([[0, 0]])}])
    finally:
        DatasetCatalog.remove("stuff_test")


def test_scores_that_are_nan_are_refused_with_the_image(stuff):
    predicted = scores([[0, 0, 1, 1], [0, 0, 1, 1]])
    predicted[1, 0, 2] = math.nan
    with pytest.raises(ValueError, match=r"'sem_seg' of image 'image\.jpg' has 1 scores that are NaN"):
        SemSegEvaluator("stuff_test").process([stuff], [{"sem_seg": predicted}])


@pytest.mark.parametrize("shape", [(4, 2, 4), (54, 2, 4), (0, 2, 4), (2, 4)])
def test_other_numbers_of_classes_are_refused_with_the_image(stuff, shape):
    with pytest.raises(ValueError, match=r"'sem_seg' of image 'image\.jpg' has shape \(.*'stuff_test' has 3 classes"):
        SemSegEvaluator("stuff_test").process([stuff], [{"sem_seg": torch.zeros(shape)}])


def test_a_map_of_colours_is_refused_as_in_training(stuff, tmp_path):
    Image.new("RGB", (4, 2), (0, 1, 2)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels\.png' holds colours"):
        SemSegEvaluator("stuff_test").process([stuff], [{"sem_seg": scores([[0] * 4] * 2)}])
    Image.new("RGB", (4, 2), (1, 1, 1)).save(tmp_path / "labels.png")
    evaluator = SemSegEvaluator("stuff_test", distributed=False)
    evaluator.process([stuff], [{"sem_seg": scores([[1] * 4] * 2)}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100


def test_a_data_set_without_stuff_classes_is_refused():
    with pytest.raises(ValueError, match="stuff_classes"):
        SemSegEvaluator("stuff_test_unknown")


def test_without_pixels_there_are_no_numbers():
    metrics = sem_seg_metrics(np.zeros((3, 3), dtype=np.int64), NAMES)
    assert all(math.isnan(value) for value in metrics.values())


def test_label_files_are_read_in_the_type_asked_for(stuff):
    assert load_image_into_numpy_array(stuff["sem_seg_file_name"], dtype=int).dtype == np.int64


def test_names_of_metrics_are_known_beforehand(stuff):
    evaluator = SemSegEvaluator("stuff_test")
    given = {task: [name for name in metrics if "-" not in name] for task, metrics in evaluator.evaluate().items()}
    assert evaluator.metric_names() == given
