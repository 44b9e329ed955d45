"""The vectorised evaluation equals pycocotools to the last bit, ties, crowds and odd parameters included."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detlab.evaluation import fast_eval_api
from detlab.evaluation.fast_eval_api import COCOeval_opt


def run(evaluator_class, truth, found, task, **parameters):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluator = evaluator_class(coco, coco.loadRes(copy.deepcopy(found)), task)
        for name, value in parameters.items():
            setattr(evaluator.params, name, value)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def assert_equal(truth, found, task, **parameters):
    plain = run(COCOeval, truth, found, task, **parameters)
    fast = run(COCOeval_opt, truth, found, task, **parameters)
    assert plain.eval["counts"] == fast.eval["counts"]
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(plain.eval[name], fast.eval[name], err_msg=name)
    for key, overlaps in fast.ious.items():
        np.testing.assert_array_equal(plain.ious[key], overlaps)
    return plain, fast


def random_case(seed):
    """Boxes on a coarse grid and few scores, so that overlaps and scores tie all the time."""
    rng = np.random.default_rng(seed)

    def box():
        return [float(v) for v in (*(8 * rng.integers(0, 5, 2)), *(12 * rng.integers(1, 7, 2)))]

    categories = [1, 2, 5]
    truth = {"images": [{"id": i, "height": 100, "width": 100} for i in range(6)]}
    truth["categories"] = [{"id": c, "name": str(c)} for c in categories]
    annotations, found = [], []
    for image_id in range(6):
        for category in categories:
            for _ in range(rng.integers(0, 5)):
                b = box()
                crowd = int(rng.random() < 0.25)
                common = {"image_id": image_id, "category_id": category, "bbox": b}
                # Ids from 0 in every other case: the protocol takes a match with object 0 for none.
                number = len(annotations) + seed % 2
                annotations.append({**common, "id": number, "area": b[2] * b[3], "iscrowd": crowd})
            for _ in range(rng.integers(0, 12)):
                score = float(rng.integers(0, 5)) / 5
                found.append({"image_id": image_id, "category_id": category, "bbox": box(), "score": score})
    truth["annotations"] = annotations
    return truth, found


@pytest.mark.parametrize("seed", range(8))
def test_random_cases_full_of_ties_are_equal(seed):
    truth, found = random_case(seed)
    assert_equal(truth, found, "bbox")
    assert_equal(truth, found, "bbox", useCats=0)
    assert_equal(truth, found, "bbox", imgIds=[3, 1], catIds=[5, 2])
    assert_equal(
        truth, found, "bbox", maxDets=[5, 1], iouThrs=np.array([0.0, 0.5, 1.0]), areaRng=[[0, 1e5], [700, 2000]]
    )


def test_batches_of_one_cell_are_equal_too(monkeypatch):
    monkeypatch.setattr(fast_eval_api, "STATE_ELEMENTS", 1)
    assert_equal(*random_case(1), "bbox")


@pytest.mark.parametrize("part", ["images", "annotations", "category"])
def test_a_truth_without_some_objects_is_equal(part):
    truth, found = random_case(1)
    if part == "images":
        found = [d for d in found if d["image_id"] < 2]
    elif part == "annotations":
        truth["annotations"] = []
    else:
        truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 2]
    assert_equal(truth, found, "bbox")


def test_the_official_boxes_masks_and_keypoints_are_equal(shared_dir):
    folder = shared_dir / "eval" / "coco_val2014_100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    for task in ("bbox", "segm"):
        found = json.loads((folder / f"instances_val2014_fake{task}100_results.json").read_text())
        plain, fast = assert_equal(truth, found, task)
        with contextlib.redirect_stdout(io.StringIO()):
            plain.summarize()
            fast.summarize()
        np.testing.assert_array_equal(plain.stats, fast.stats)
    folder = shared_dir / "eval" / "coco_keypoints_1img"
    truth, found = (json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "dt"))
    assert_equal(truth, found, "keypoints")


def test_accumulating_nothing_is_refused():
    with pytest.raises(RuntimeError, match="call evaluate"):
        COCOeval_opt(iouType="bbox").accumulate()
