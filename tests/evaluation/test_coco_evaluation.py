"""COCO's numbers: those of the official code on its own example data, and every edge around them."""

import json
import logging
import math
import os
import pickle
import socket
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from pycocotools import mask as mask_tools

from detlab.config.config import get_cfg
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.coco import load_coco_json
from detlab.evaluation.coco_evaluation import COCOevalMaxDets, COCOEvaluator, instances_to_coco_json
from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from detlab.utils import optional

SIZE = (40, 60)
CATEGORIES = {3: 0, 7: 1}


@pytest.fixture
def dataset():
    """Registers metadata under names that are gone after the test."""
    names = []

    def register(json_file=None, **values):
        name = f"coco_evaluation_test_{len(names)}"
        names.append(name)
        if json_file is not None:
            values["json_file"] = str(json_file)
        MetadataCatalog.get(name).set(**values)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)


@pytest.fixture
def small(tmp_path, dataset):
    """Two images of two classes: one object of each, a crowd in the second image."""
    return dataset(
        write_truth(tmp_path / "truth.json"),
        thing_classes=["left", "right"],
        thing_dataset_id_to_contiguous_id=CATEGORIES,
    )


def truth():
    def annotation(number, image, category, box, iscrowd=0):
        x, y, w, h = box
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        segmentation = [polygon]
        if iscrowd:
            segmentation = mask_tools.frPyObjects([polygon], *SIZE)[0]
            segmentation["counts"] = segmentation["counts"].decode()
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": w * h,
            "iscrowd": iscrowd,
            "segmentation": segmentation,
        }

    return {
        "info": {},
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in (11, 12)],
        "categories": [{"id": 3, "name": "left"}, {"id": 7, "name": "right"}],
        "annotations": [
            annotation(1, 11, 3, [0, 0, 20, 10]),
            annotation(2, 11, 7, [30, 10, 20, 20]),
            annotation(3, 12, 3, [5, 5, 10, 30]),
            annotation(4, 12, 7, [20, 0, 40, 40], iscrowd=1),
        ],
    }


def write_truth(path, content=None):
    path.write_text(json.dumps(truth() if content is None else content))
    return path


def detections(boxes, classes, scores=None, masks=None, size=SIZE):
    scores = torch.linspace(0.9, 0.5, len(boxes)) if scores is None else torch.tensor(scores)
    fields = {"pred_boxes": Boxes(torch.tensor(boxes).reshape(-1, 4).float()), "scores": scores}
    instances = Instances(size, pred_classes=torch.tensor(classes, dtype=torch.int64), **fields)
    if masks is not None:
        instances.pred_masks = masks
    return instances


def boxes_as_masks(boxes):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    return masks


PERFECT = {
    11: ([[0, 0, 20, 10], [30, 10, 50, 30]], [0, 1]),
    12: ([[5, 5, 15, 35]], [0]),
}


def feed(evaluator, by_image=PERFECT, with_masks=False):
    evaluator.reset()
    for image_id, (boxes, classes) in by_image.items():
        instances = detections(boxes, classes, masks=boxes_as_masks(boxes) if with_masks else None)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator


class TestOfficialNumbers:
    """The detections, the ground truth and the numbers that come with the official code."""

    @pytest.fixture(params=["pycocotools", "COCOeval_opt", "hotcoco"])
    def implementation(self, request, monkeypatch):
        if request.param == "hotcoco":
            pytest.importorskip("hotcoco")
        elif request.param == "COCOeval_opt":
            monkeypatch.setattr("detlab.evaluation._coco_protocol.available", lambda name: False)
        return {"use_fast_impl": request.param != "pycocotools"}

    @pytest.mark.parametrize(
        "task, file", [("bbox", "instances_val2014_fakebbox100"), ("segm", "instances_val2014_fakesegm100")]
    )
    def test_boxes_and_masks_have_the_official_numbers(self, shared_dir, dataset, implementation, task, file):
        folder = shared_dir / "eval" / "coco_val2014_100"
        content = json.loads((folder / "instances_val2014_100.json").read_text())
        name = dataset(folder / "instances_val2014_100.json")
        evaluator = COCOEvaluator(name, tasks=(task,), distributed=False, **implementation)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for image_id, found in by_image(folder / f"{file}_results.json").items():
            instances = Instances(sizes[image_id])
            corners = torch.tensor([d.get("bbox", [0.0] * 4) for d in found], dtype=torch.float64)
            corners[:, 2:] += corners[:, :2]
            instances.pred_boxes = Boxes(corners)
            # Doubles, so that what is compared is the evaluation and not the rounding of the boxes.
            instances.pred_boxes.tensor = corners
            instances.scores = torch.tensor([d["score"] for d in found], dtype=torch.float64)
            instances.pred_classes = torch.tensor([d["category_id"] for d in found])
            if task == "segm":
                masks = np.stack([mask_tools.decode(d["segmentation"]) for d in found])
                instances.pred_masks = torch.from_numpy(masks).bool()
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])

        metrics = evaluator.evaluate()[task]

        reference = json.loads((folder / "pycocotools_reference.json").read_text())
        np.testing.assert_allclose(evaluator.summaries[task], reference[task], rtol=0, atol=1e-12)
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        np.testing.assert_allclose([metrics[n] for n in names], 100 * np.array(reference[task][:6]), atol=1e-9)
        for category in content["categories"]:
            expected = reference[f"{task}_per_category_AP"][str(category["id"])]
            actual = metrics[f"AP-{category['name']}"]
            assert math.isnan(actual) if expected is None else actual == pytest.approx(100 * expected, abs=1e-9)

    def test_keypoints_have_the_official_numbers(self, shared_dir, dataset, implementation):
        folder = shared_dir / "eval" / "coco_keypoints_1img"
        name = dataset(folder / "gt.json")
        evaluator = COCOEvaluator(name, tasks=("keypoints",), distributed=False, **implementation)
        for image_id, found in by_image(folder / "dt.json").items():
            keypoints = torch.tensor([d["keypoints"] for d in found], dtype=torch.float64).reshape(len(found), 17, 3)
            keypoints[:, :, :2] += 0.5
            instances = detections([d["bbox"] for d in found], [1] * len(found), [d["score"] for d in found])
            instances.pred_keypoints = keypoints
            instances.scores = torch.tensor([d["score"] for d in found], dtype=torch.float64)
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])

        metrics = evaluator.evaluate()["keypoints"]

        reference = json.loads((folder / "pycocotools_reference.json").read_text())["keypoints"]
        np.testing.assert_allclose(evaluator.summaries["keypoints"], reference, rtol=0, atol=1e-12)
        assert list(metrics) == ["AP", "AP50", "AP75", "APm", "APl"]


def by_image(file):
    groups = defaultdict(list)
    for result in json.loads(file.read_text()):
        groups[result["image_id"]].append(result)
    return groups


class TestEvaluator:
    def test_perfect_predictions_reach_a_hundred_and_crowds_do_not_count(self, small):
        results = feed(COCOEvaluator(small, distributed=False), with_masks=True).evaluate()
        assert list(results) == ["bbox", "segm"]
        for metrics in results.values():
            assert [metrics[name] for name in ("AP", "AP-left", "AP-right")] == pytest.approx([100] * 3)
            assert math.isnan(metrics["APl"])

    def test_detections_in_a_crowd_count_neither_way(self, small):
        in_crowd = {**PERFECT, 12: ([[5, 5, 15, 35], [25, 5, 35, 15], [40, 20, 50, 30]], [0, 1, 1])}
        beside = {**PERFECT, 12: ([[5, 5, 15, 35], [5, 5, 15, 35]], [0, 1])}
        evaluator = COCOEvaluator(small, distributed=False)
        assert feed(evaluator, in_crowd).evaluate()["bbox"]["AP-right"] == pytest.approx(100)
        scored_higher = {12: beside[12], 11: ([[0, 0, 20, 10], [30, 10, 50, 30]], [0, 1])}
        feed(evaluator, scored_higher)
        evaluator._predictions[0]["instances"][1]["score"] = 0.99
        assert evaluator.evaluate()["bbox"]["AP-right"] == pytest.approx(50)

    def test_no_detection_in_any_image_gives_nan_and_a_sentence(self, small, caplog, tmp_path):
        evaluator = COCOEvaluator(small, tasks=("bbox", "segm"), distributed=False, output_dir=str(tmp_path))
        feed(evaluator, {11: ([], []), 12: ([], [])})
        with caplog.at_level(logging.WARNING):
            results = evaluator.evaluate()
        assert [math.isnan(results[task]["AP"]) for task in ("bbox", "segm")] == [True, True]
        assert (evaluator.summaries["bbox"] == -1).all() and len(evaluator.summaries["bbox"]) == 12
        assert "no detections in any image" in caplog.text
        assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []

    def test_a_model_that_was_never_run_gives_an_empty_result_and_a_sentence(self, small, caplog):
        evaluator = COCOEvaluator(small, distributed=False)
        evaluator.reset()
        with caplog.at_level(logging.WARNING):
            assert evaluator.evaluate() == {}
        assert "no predictions" in caplog.text

    def test_the_saved_file_is_in_the_ids_of_the_data_set_and_evaluating_twice_changes_nothing(self, small, tmp_path):
        evaluator = feed(COCOEvaluator(small, distributed=False, output_dir=str(tmp_path / "new")), with_masks=True)
        first = evaluator.evaluate()
        saved = json.loads((tmp_path / "new" / "coco_instances_results.json").read_text())
        assert [d["category_id"] for d in saved] == [3, 7, 3]
        assert set(saved[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
        np.testing.assert_equal(evaluator.evaluate(), first)
        assert sorted(os.listdir(tmp_path / "new")) == ["coco_instances_results.json", "instances_predictions.pth"]

    def test_only_the_images_asked_for_count(self, small):
        evaluator = feed(COCOEvaluator(small, distributed=False), {11: PERFECT[11]})
        assert evaluator.evaluate()["bbox"]["AP-left"] < 60
        assert evaluator.evaluate(img_ids=[11])["bbox"]["AP-left"] == pytest.approx(100)

    def test_an_image_seen_twice_counts_once(self, small, caplog):
        evaluator = feed(COCOEvaluator(small, distributed=False))
        evaluator.process([{"image_id": 11}], [{"instances": detections(*PERFECT[11])}])
        with caplog.at_level(logging.WARNING):
            assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
        assert "1 images were predicted more than once" in caplog.text

    def test_masks_without_masks_in_the_truth_leave_the_boxes_their_result(self, tmp_path, dataset, caplog):
        content = truth()
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        name = dataset(write_truth(tmp_path / "boxes.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        evaluator = feed(COCOEvaluator(name, distributed=False), with_masks=True)
        with caplog.at_level(logging.WARNING):
            assert list(evaluator.evaluate()) == ["bbox"]
        assert "annotation 1 of image 11 has none" in caplog.text
        asked = feed(COCOEvaluator(name, tasks=("segm",), distributed=False), with_masks=True)
        with pytest.raises(ValueError, match=r"needs 'segmentation'.*tasks=\('bbox',\)"):
            asked.evaluate()

    def test_what_exporters_leave_out_is_completed(self, tmp_path, dataset):
        content = truth()
        for annotation in content["annotations"][:3]:
            del annotation["iscrowd"], annotation["area"]
            annotation["id"] = 0
        name = dataset(write_truth(tmp_path / "lean.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        assert feed(COCOEvaluator(name, distributed=False)).evaluate()["bbox"]["AP"] == pytest.approx(100)

    def test_hidden_annotations_save_the_predictions_and_evaluate_nothing(self, tmp_path, dataset):
        content = truth()
        del content["annotations"]
        name = dataset(write_truth(tmp_path / "test-dev.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        assert feed(COCOEvaluator(name, distributed=False, output_dir=str(tmp_path))).evaluate() == {}
        assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 3

    @pytest.mark.parametrize("keep_file", [True, False])
    def test_a_data_set_without_a_json_file_is_converted(self, tmp_path, keep_file):
        name = f"coco_evaluation_test_converted_{keep_file}"
        annotation = {"bbox": [0, 0, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        image = {"file_name": "a.jpg", "image_id": 11, "height": 40, "width": 60, "annotations": [annotation]}
        DatasetCatalog.register(name, lambda: [image])
        MetadataCatalog.get(name).set(thing_classes=["only"])
        try:
            output_dir = str(tmp_path) if keep_file else None
            evaluator = COCOEvaluator(name, distributed=False, output_dir=output_dir)
            feed(evaluator, {11: ([[0, 0, 20, 10]], [0])})
            assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
            assert (tmp_path / f"{name}_coco_format.json").exists() is keep_file
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def test_more_than_a_hundred_detections_count_when_asked(self, small):
        crowded = {11: ([[1, 30, 3, 32]] * 120 + PERFECT[11][0], [1] * 121 + [1]), 12: PERFECT[12]}
        crowded[11] = (crowded[11][0], [1] * 120 + [0, 1])
        few = feed(COCOEvaluator(small, distributed=False), crowded).evaluate()
        many = feed(COCOEvaluator(small, distributed=False, max_dets_per_image=200), crowded).evaluate()
        assert few["bbox"]["AP-right"] == 0 and many["bbox"]["AP-right"] > 0
        plain = COCOEvaluator(small, distributed=False, max_dets_per_image=[1, 10, 200], use_fast_impl=False)
        np.testing.assert_equal(feed(plain, crowded).evaluate(), many)

    def test_keypoints_of_another_skeleton_need_their_sigmas(self, tmp_path, dataset):
        content = truth()
        content["annotations"] = content["annotations"][:3]
        content["annotations"][0]["keypoints"] = [5, 5, 2, 15, 5, 2]
        content["annotations"][1]["keypoints"] = [35, 15, 2, 45, 25, 2]
        name = dataset(write_truth(tmp_path / "points.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)

        def evaluate(sigmas):
            evaluator = COCOEvaluator(name, tasks=("keypoints",), distributed=False, kpt_oks_sigmas=sigmas)
            instances = detections(*PERFECT[11])
            instances.pred_keypoints = torch.tensor(
                [[[5.5, 5.5, 1], [15.5, 5.5, 1]], [[35.5, 15.5, 1], [45.5, 25.5, 1]]]
            )
            evaluator.process([{"image_id": 11}], [{"instances": instances}])
            return evaluator.evaluate()["keypoints"]

        assert evaluate((0.05, 0.05))["AP"] == pytest.approx(100)
        with pytest.raises(ValueError, match=r"2 keypoints.*17 sigmas.*TEST.KEYPOINT_OKS_SIGMAS"):
            evaluate(())

    def test_a_config_in_the_place_of_tasks_is_understood(self, small):
        cfg = get_cfg()
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1] * 4
        evaluator = COCOEvaluator(small, cfg, False)
        assert evaluator._tasks is None and evaluator._kpt_oks_sigmas == (0.1,) * 4


class TestBadInput:
    def test_a_missing_annotation_file_is_named_at_once(self, dataset):
        with pytest.raises(FileNotFoundError, match=r"nowhere.json.*DETLAB_DATASETS"):
            COCOEvaluator(dataset("nowhere.json"))

    @pytest.mark.parametrize("content, problem", [("{", "not valid json"), ("[]", "COCO format")])
    def test_a_broken_annotation_file_is_named(self, tmp_path, dataset, content, problem):
        (tmp_path / "broken.json").write_text(content)
        evaluator = feed(COCOEvaluator(dataset(tmp_path / "broken.json"), distributed=False))
        with pytest.raises(ValueError, match=f"broken.json .*{problem}"):
            evaluator.evaluate()

    def test_unknown_tasks_and_limits_are_refused(self, small):
        with pytest.raises(ValueError, match=r"\['boxes'\].*'bbox'"):
            COCOEvaluator(small, tasks=("boxes",))
        with pytest.raises(ValueError, match=r"\(100, 10, 1\)"):
            COCOEvaluator(small, max_dets_per_image=[100, 10, 1])

    def test_a_class_that_the_data_set_does_not_have_is_named(self, small):
        evaluator = feed(COCOEvaluator(small, distributed=False), {11: ([[0, 0, 1, 1]], [5])})
        with pytest.raises(ValueError, match=r"class 5 in image 11.*0 to 1.*NUM_CLASSES"):
            evaluator.evaluate()

    def test_an_image_that_the_data_set_does_not_have_is_named(self, small):
        evaluator = feed(COCOEvaluator(small, distributed=False), {99: ([[0, 0, 1, 1]], [0])})
        with pytest.raises(ValueError, match=r"\[99\].*another dataset"):
            evaluator.evaluate()

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("field", ["pred_boxes", "scores", "pred_keypoints"])
    def test_what_is_not_finite_is_refused_with_the_image(self, small, field, value):
        instances = detections([[0, 0, 20, 10], [1, 1, 5, 5]], [0, 1])
        instances.pred_keypoints = torch.ones(2, 17, 3)
        values = instances.get(field)
        getattr(values, "tensor", values)[1:] = value
        with pytest.raises(ValueError, match=f"detection 1 in image 11 has {field} .*{value}.* not finite"):
            COCOEvaluator(small).process([{"image_id": 11}], [{"instances": instances}])

    def test_masks_of_another_size_than_the_image_are_refused_with_both_sizes(self, small):
        masks = torch.ones(1, SIZE[0] // 2, SIZE[1], dtype=torch.bool)
        output = {"instances": detections([[0, 0, 20, 10]], [0], masks=masks)}
        evaluator = COCOEvaluator(small, distributed=False)
        sizes = r"\(20, 60\), but the image \(40, 60\)"
        with pytest.raises(ValueError, match=f"pred_masks in image 11 have height and width {sizes}"):
            evaluator.process([{"image_id": 11, "height": SIZE[0], "width": SIZE[1]}], [output])
        evaluator.process([{"image_id": 11}], [output])
        with pytest.raises(ValueError, match=f"a predicted mask in image 11 has height and width {sizes}"):
            evaluator.evaluate()

    def test_a_task_that_the_model_does_not_do_is_refused(self, small):
        with pytest.raises(ValueError, match=r"segm task .* no 'segmentation'"):
            feed(COCOEvaluator(small, tasks=("segm",), distributed=False)).evaluate()


class TestGroundTruth:
    """What is wrong in the annotations, and what the official code makes of it."""

    @pytest.mark.parametrize(
        "wrong",
        [
            {"image_id": 99},
            {"bbox": [0, 0, math.nan, 5]},
            {"bbox": [60, 0, 5, 5]},
            {"segmentation": [[1, 2, 3, 4]]},
            {"segmentation": [[1, 2, 3, 4, math.nan, 6]]},
        ],
    )
    def test_what_training_leaves_out_is_not_evaluated(self, tmp_path, dataset, wrong, caplog):
        content = truth()
        content["annotations"].append({**content["annotations"][0], "id": 9, **wrong})
        path = write_truth(tmp_path / "odd.json", content)
        name = dataset(path, thing_dataset_id_to_contiguous_id=CATEGORIES)
        results = feed(COCOEvaluator(name, distributed=False), with_masks=True).evaluate()
        assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])
        assert "Left out 1 " in caplog.text
        assert sum(len(image["annotations"]) for image in load_coco_json(str(path), "")) == len(truth()["annotations"])

    def test_boxes_of_size_0_are_missed_objects_as_in_the_official_code(self, tmp_path, dataset):
        content = truth()
        content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": [5, 5, 0, 7], "area": 7})
        name = dataset(write_truth(tmp_path / "thin.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        for use_fast_impl in (True, False):
            evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=use_fast_impl)
            assert feed(evaluator).evaluate()["bbox"]["AP-left"] == pytest.approx(100 * 67 / 101)

    @pytest.mark.parametrize("area", [None, math.nan, -5, math.inf])
    def test_an_area_that_is_none_is_that_of_the_box(self, tmp_path, dataset, area):
        content = truth()
        for annotation in content["annotations"]:
            annotation["area"] = area
        name = dataset(write_truth(tmp_path / "area.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        assert feed(COCOEvaluator(name, distributed=False)).evaluate()["bbox"]["APs"] == pytest.approx(100)

    @pytest.mark.parametrize("ids", [(-1, -2), (2**60, 2**60 + 1), ("a", "b")])
    def test_ids_that_the_fast_code_cannot_take_are_evaluated_all_the_same(self, tmp_path, dataset, ids):
        content = truth()
        new = dict(zip((11, 12), ids))
        for image in content["images"]:
            image["id"] = new[image["id"]]
        for annotation in content["annotations"]:
            annotation["image_id"] = new[annotation["image_id"]]
        name = dataset(write_truth(tmp_path / "ids.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        predictions = {new[image_id]: found for image_id, found in PERFECT.items()}
        assert feed(COCOEvaluator(name, distributed=False), predictions).evaluate()["bbox"]["AP"] == pytest.approx(100)

    def test_what_else_is_in_the_file_does_not_reach_the_fast_code(self, tmp_path, dataset):
        content = {**truth(), "info": 5, "licenses": "none", "more": [[[]]]}
        for kind in ("images", "annotations", "categories"):
            for entry in content[kind]:
                entry.update(url=7, keypoints_of_mine={"a": [None]}, attributes=[1, "x"], ignore=0)
        name = dataset(write_truth(tmp_path / "more.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        assert feed(COCOEvaluator(name, distributed=False)).evaluate()["bbox"]["AP"] == pytest.approx(100)

    def test_rotated_boxes_are_refused_with_a_sentence(self, tmp_path, dataset):
        content = truth()
        for annotation in content["annotations"]:
            annotation["bbox"].append(30)
        name = dataset(write_truth(tmp_path / "rotated.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        with pytest.raises(
            ValueError, match=r"upright boxes; annotation 1 of image 11 has a rotated one, of 5 numbers"
        ):
            feed(COCOEvaluator(name, distributed=False)).evaluate()

    @pytest.mark.parametrize("box", [0, "", False, {}])
    def test_what_is_no_box_is_not_taken_for_a_missing_one(self, tmp_path, dataset, box):
        content = truth()
        content["annotations"][0]["bbox"] = box
        name = dataset(write_truth(tmp_path / "none.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        with pytest.raises(ValueError, match=r"annotation 1 of image 11 in .*none\.json has 'bbox': .*; a box is"):
            feed(COCOEvaluator(name, distributed=False)).evaluate()

    def test_proposals_need_upright_boxes(self, tmp_path, dataset):
        content = truth()
        del content["annotations"][0]["bbox"]
        evaluator = COCOEvaluator(dataset(write_truth(tmp_path / "boxless.json", content)), distributed=False)
        proposals = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
        evaluator.reset()
        evaluator.process([{"image_id": 11}], [{"proposals": proposals}])
        with pytest.raises(ValueError, match=r"proposals cannot be evaluated: .*'bbox' .* annotation 1 of image 11"):
            evaluator.evaluate()

    def test_masks_need_the_sizes_of_images(self, tmp_path, dataset, caplog):
        content = truth()
        del content["images"][0]["height"]
        name = dataset(write_truth(tmp_path / "sizeless.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        assert list(feed(COCOEvaluator(name, distributed=False), with_masks=True).evaluate()) == ["bbox"]
        assert "segm task needs 'height' and 'width' of image 11" in caplog.text

    def test_keypoints_of_two_skeletons_are_named(self, tmp_path, dataset):
        content = truth()
        content["annotations"][0]["keypoints"] = [5, 5, 2, 15, 5, 2]
        content["annotations"][1]["keypoints"] = [35, 15, 2]
        name = dataset(write_truth(tmp_path / "two.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        evaluator = COCOEvaluator(name, tasks=("keypoints",), distributed=False, kpt_oks_sigmas=(0.05, 0.05))
        instances = detections(*PERFECT[11])
        instances.pred_keypoints = torch.ones(2, 2, 3)
        evaluator.reset()
        evaluator.process([{"image_id": 11}], [{"instances": instances}])
        with pytest.raises(ValueError, match=r"annotation 1 of image 11 has 2, annotation 2 of image 11 has 1"):
            evaluator.evaluate()

    def test_an_outline_of_gigabytes_is_evaluated_as_the_pixels_it_covers(self, tmp_path, dataset):
        content = truth()
        content["annotations"][0]["segmentation"] = [[0, 0, 20, 0, 20, 10, 0, 10, -9e8, 9e8, -9e8, 10, 0, 10]]
        name = dataset(write_truth(tmp_path / "far.json", content), thing_dataset_id_to_contiguous_id=CATEGORIES)
        results = feed(COCOEvaluator(name, tasks=("segm",), distributed=False), with_masks=True).evaluate()
        assert results["segm"]["AP"] == pytest.approx(100)

    @pytest.mark.parametrize("change", ["annotations", "classes"])
    def test_a_conversion_of_earlier_annotations_is_not_used_again(self, tmp_path, change):
        name = f"coco_evaluation_test_cache_{change}"
        annotation = {"bbox": [0, 0, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        image = {"file_name": "a.jpg", "image_id": 11, "height": 40, "width": 60, "annotations": [annotation]}
        DatasetCatalog.register(name, lambda: [image])
        MetadataCatalog.get(name).set(thing_classes=["one", "two"])

        def evaluate(box):
            evaluator = COCOEvaluator(name, distributed=False, output_dir=str(tmp_path))
            return feed(evaluator, {11: ([box], [0])}).evaluate()["bbox"]

        try:
            assert evaluate([0, 0, 20, 10])["AP-one"] == pytest.approx(100)
            if change == "annotations":
                annotation["bbox"] = [30, 20, 20, 10]
                assert evaluate([30, 20, 50, 30])["AP-one"] == pytest.approx(100)
            else:
                MetadataCatalog.remove(name)
                MetadataCatalog.get(name).set(thing_classes=["uno", "due"])
                assert evaluate([0, 0, 20, 10])["AP-uno"] == pytest.approx(100)
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def test_classes_of_one_name_each_have_their_result(self, tmp_path, dataset):
        content = truth()
        for category in content["categories"]:
            category["name"] = "same"
        path = write_truth(tmp_path / "truth.json", content)
        by_image = {11: ([[0, 0, 20, 10]], [0]), 12: ([[5, 5, 15, 35]], [0])}
        registered = [{}, {"thing_classes": ["same", "same"]}]
        for facts in registered:
            name = dataset(path, thing_dataset_id_to_contiguous_id=CATEGORIES, **facts)
            metrics = feed(COCOEvaluator(name, distributed=False), by_image).evaluate()["bbox"]
            assert metrics["AP-same (id 3)"] == pytest.approx(100)
            assert metrics["AP-same (id 7)"] == 0


class TestProposals:
    def test_recall_counts_the_best_proposals_first(self, small, tmp_path):
        evaluator = COCOEvaluator(small, distributed=False, output_dir=str(tmp_path))
        for image_id, (boxes, _) in PERFECT.items():
            far = [[50, 35, 52, 37]] * 150
            proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(boxes + far).float()))
            proposals.objectness_logits = torch.cat(
                [torch.full((len(boxes),), float(image_id == 11)), torch.full((150,), 0.5)]
            )
            evaluator.process([{"image_id": image_id}], [{"proposals": proposals}])
        table = evaluator.evaluate()["box_proposals"]
        # In the second image the useful proposal comes after 150 others.
        assert table["AR@100"] == pytest.approx(200 / 3) and table["AR@1000"] == pytest.approx(100)
        assert table["ARs@1000"] == pytest.approx(100) and math.isnan(table["ARl@100"])
        with open(tmp_path / "box_proposals.pkl", "rb") as file:
            saved = pickle.load(file)
        assert saved["ids"] == [11, 12] and saved["boxes"][0].shape == (152, 4)
        assert saved["bbox_mode"] == BoxMode.XYXY_ABS


class TestJson:
    def test_fields_are_those_of_cocos_results_format(self):
        instances = detections([[1, 2, 11, 22], [0, 0, 60, 40]], [4, 5])
        instances.pred_masks = boxes_as_masks([[1, 2, 11, 22], [0, 0, 60, 40]])
        instances.pred_keypoints = torch.tensor([[[1.0, 2.0, 0.7]], [[3.5, 4.5, 0.1]]])
        first, second = instances_to_coco_json(instances, "name")
        assert first["image_id"] == "name" and first["category_id"] == 4
        assert first["bbox"] == [1, 2, 10, 20] and first["keypoints"] == pytest.approx([0.5, 1.5, 0.7])
        np.testing.assert_array_equal(mask_tools.decode(second["segmentation"]), np.ones(SIZE))
        assert json.loads(json.dumps([first, second]))[0] == first
        assert instances.pred_keypoints[0, 0, 0] == 1 and instances.pred_boxes.tensor[0, 2] == 11

    def test_no_detections_give_an_empty_list(self):
        assert instances_to_coco_json(detections([], []), 1) == []


def test_the_summary_of_max_dets_goes_by_its_own_limit(small):
    from pycocotools.coco import COCO

    coco = COCO(MetadataCatalog.get(small).json_file)
    boxes = [[1, 30, 2, 2]] * 120 + [[30, 10, 20, 20]]
    found = [{"image_id": 11, "category_id": 7, "bbox": box, "score": 1 - i / 1000} for i, box in enumerate(boxes)]
    evaluator = COCOevalMaxDets(coco, coco.loadRes(found), "bbox")
    evaluator.params.maxDets = [1, 10, 200]
    with pytest.raises(RuntimeError, match="call accumulate"):
        evaluator.summarize()
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] > 0 and len(evaluator.stats) == 12


def _evaluate_a_part(rank, port, json_file, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    MetadataCatalog.get("part").set(
        json_file=json_file, thing_classes=["left", "right"], thing_dataset_id_to_contiguous_id=CATEGORIES
    )
    # Both ranks have image 12, as padding samplers do.
    own = PERFECT if rank == 0 else {12: PERFECT[12]}
    results = feed(COCOEvaluator("part", output_dir=os.path.join(folder, "out")), own, with_masks=True).evaluate()
    with open(os.path.join(folder, f"{rank}.json"), "w") as file:
        json.dump(results, file)
    torch.distributed.destroy_process_group()


def test_two_processes_gather_on_the_first(small, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_evaluate_a_part, (port, MetadataCatalog.get(small).json_file, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert second == {}
    assert [first["bbox"]["AP"], first["segm"]["AP"]] == pytest.approx([100, 100])
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 3


def test_each_number_of_a_task_is_logged_once(small, caplog):
    with caplog.at_level(logging.INFO):
        feed(COCOEvaluator(small, distributed=False)).evaluate()
    summaries = [message for message in caplog.messages if "results for bbox" in message]
    assert len(summaries) == 1 and summaries[0].count("Average Precision") == 6
    assert not [message for message in caplog.messages if "AP50" in message]


def test_the_fast_implementation_is_taken_when_it_is_installed(small, caplog):
    with caplog.at_level(logging.INFO):
        feed(COCOEvaluator(small, distributed=False)).evaluate()
    assert f"with {'hotcoco' if optional.available('hotcoco') else 'COCOeval_opt'}" in caplog.text


def test_names_of_tasks_and_metrics_are_known_beforehand(small):
    names = COCOEvaluator(small).metric_names()
    assert names["keypoints"] == ("AP", "AP50", "AP75", "APm", "APl")
    assert set(names) == {"bbox", "segm", "keypoints", "box_proposals"} and "ARs@1000" in names["box_proposals"]
    assert set(COCOEvaluator(small, tasks=("bbox",)).metric_names()) == {"bbox", "box_proposals"}
