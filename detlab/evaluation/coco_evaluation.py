"""COCO evaluation of boxes, masks, keypoints and proposals.

Shapes: N detections in one image of H x W pixels, J keypoints.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval

from detlab.config.config import CfgNode
from detlab.data.catalog import MetadataCatalog
from detlab.data.datasets.coco import convert_to_coco_dict, convert_to_coco_json
from detlab.data.datasets.coco_format import CocoContent, checked_coco, distinct_names, read_coco
from detlab.evaluation._checks import check_detections, refuse_class
from detlab.evaluation._coco_protocol import (
    DETECTION_MAX_DETS,
    KEYPOINT_MAX_DETS,
    Curves,
    Protocol,
    detection_lines,
    ground_truth_of,
    keypoint_lines,
    lack_for,
    line_text,
    mean_of_line,
)
from detlab.evaluation._mask_rle import encode_masks
from detlab.evaluation._proposal_recall import LIMITS, overlaps_of_image, recall_table
from detlab.evaluation.evaluator import DatasetEvaluator
from detlab.structures.boxes import BoxMode
from detlab.structures.instances import Instances
from detlab.utils import comm
from detlab.utils.file_io import PathManager, write_atomically, write_json
from detlab.utils.logger import create_small_table

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm", "keypoints")
RESULTS_FILE = "coco_instances_results.json"

METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}
"""Names of the first numbers of the summary; the recalls that follow them are logged only."""


class COCOEvaluator(DatasetEvaluator):
    """COCO's average precision of boxes, masks and keypoints, and the average recall of proposals.

    Outputs of the model are dicts with ``"instances"`` (``pred_boxes``, ``scores``, ``pred_classes``, and where there
    are any ``pred_masks``, ``pred_keypoints``) or ``"proposals"`` (``proposal_boxes``, ``objectness_logits``).

    ``evaluate`` gives for each task a dict of percentages, NaN where there is nothing to measure: ``AP``, ``AP50`` ...
    and ``AP-<class>`` for every class.

    Args:
        dataset_name: a registered dataset. If its metadata has ``json_file``, that is the ground truth; otherwise the
            dataset is converted to COCO's form, and the file is kept in ``output_dir``.
        tasks: among ``"bbox"``, ``"segm"``, ``"keypoints"``; None: those that the predictions have fields for.
        distributed: gather the predictions of all processes and evaluate on the main one; otherwise each process
            evaluates its own.
        output_dir: where to leave ``coco_instances_results.json`` (COCO's results format),
            ``instances_predictions.pth``, and for proposals ``box_proposals.pkl``. None: nowhere.
        max_dets_per_image: the highest number of detections that count in an image, 100 in COCO; or three limits. Does
            not bear on keypoints.
        use_fast_impl: use hotcoco if it is installed, else a vectorised implementation. The numbers are equal.
        kpt_oks_sigmas: spread of each keypoint, in units of the object's scale, as in
            http://cocodataset.org/#keypoints-eval; empty for those of COCO persons.
        allow_cached_coco: keep the file that an earlier conversion left in ``output_dir``, if it was made of the same
            images, annotations and classes as the dataset has now.

    Raises:
        FileNotFoundError: the dataset's ``json_file`` is not there.
        ValueError: an unknown task, or limits that are not one number or three.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | Sequence[int] | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        if isinstance(tasks, CfgNode):
            logger.warning("COCOEvaluator(name, cfg, ...) is out of date; name tasks, or leave them out")
            kpt_oks_sigmas = kpt_oks_sigmas or tasks.TEST.KEYPOINT_OKS_SIGMAS
            tasks = None
        self._tasks = None if tasks is None else _checked_tasks(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = _three_limits(max_dets_per_image)
        self._use_fast_impl = use_fast_impl
        self._kpt_oks_sigmas = tuple(kpt_oks_sigmas)
        self._allow_cached_coco = allow_cached_coco
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is not None and not PathManager.isfile(json_file):
            raise FileNotFoundError(
                f"{json_file}, the annotations of dataset {dataset_name!r}, is not there; "
                "the built-in datasets are looked for under the environment variable DETLAB_DATASETS"
            )
        self._loaded_ground_truth: dict[str, Any] | None = None
        self._predictions: list[dict[str, Any]] = []
        self.summaries: dict[str, np.ndarray] = {}
        """Of each task last evaluated, COCO's 12 numbers (10 for keypoints) between 0 and 1, or -1."""

    def reset(self) -> None:
        self._predictions = []

    def metric_names(self) -> Mapping[str, Sequence[str]]:
        metrics = {task: METRICS[task] for task in self._tasks or METRICS}
        return {**metrics, "box_proposals": list(recall_table([]))}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Turn the outputs of a batch into COCO results.

        Args:
            inputs: dicts with ``image_id``.
            outputs: one for each input; see the class.

        Raises:
            ValueError: a box, score or keypoint that is not finite, or masks of another size than ``height`` and
                ``width`` of the input, if it has them.
        """
        for dataset_dict, output in zip(inputs, outputs):
            image_id = dataset_dict["image_id"]
            prediction: dict[str, Any] = {"image_id": image_id}
            if "instances" in output:
                instances = output["instances"].to("cpu")
                has_size = dataset_dict.get("height") is not None and dataset_dict.get("width") is not None
                check_detections(
                    instances, image_id, (dataset_dict["height"], dataset_dict["width"]) if has_size else None
                )
                prediction["instances"] = instances_to_coco_json(instances, image_id)
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to("cpu")
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Evaluate what was taken in.

        Args:
            img_ids: the images that count; None for all of the dataset, predictions or none.

        Returns:
            Metrics of each task; empty on all but the main process, without predictions, and for datasets whose
            annotations are not public.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            predictions = [prediction for part in gathered for prediction in part]
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning(f"no predictions for {self._dataset_name!r}: process() saw no output of the model")
            return {}
        predictions = _without_repeated_images(predictions)
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with write_atomically(os.path.join(self._output_dir, "instances_predictions.pth")) as file:
                torch.save(predictions, file)
        results: dict[str, dict[str, float]] = OrderedDict()
        if any("proposals" in prediction for prediction in predictions):
            results.update(self._evaluate_proposals(predictions))
        if any("instances" in prediction for prediction in predictions):
            results.update(self._evaluate_instances(predictions, img_ids))
        return results

    def _ground_truth(self) -> dict[str, Any]:
        """Loaded when it is first needed: processes that only predict never read it."""
        if self._loaded_ground_truth is None:
            json_file = self._metadata.get("json_file")
            content = self._convert_dataset() if json_file is None else read_coco(json_file, for_evaluation=True)
            if not content.categories and content.annotations is not None:
                raise ValueError(f"{content.source} lists no 'categories', without which there is nothing to evaluate")
            self._loaded_ground_truth = ground_truth_of(content)
        return self._loaded_ground_truth

    def _convert_dataset(self) -> CocoContent:
        if not self._output_dir:
            source = f"dataset {self._dataset_name!r}"
            return checked_coco(convert_to_coco_dict(self._dataset_name), source, for_evaluation=True)
        path = os.path.join(self._output_dir, f"{self._dataset_name}_coco_format.json")
        logger.info(f"dataset {self._dataset_name!r} names no json_file; converting it to COCO's form in {path}")
        convert_to_coco_json(self._dataset_name, path, allow_cached=self._allow_cached_coco)
        return read_coco(path, for_evaluation=True)

    def _evaluate_instances(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None
    ) -> dict[str, dict[str, float]]:
        detections = list(self._in_dataset_categories(d for p in predictions for d in p.get("instances", ())))
        if self._output_dir:
            path = os.path.join(self._output_dir, RESULTS_FILE)
            logger.info(f"Saving results to {path}")
            write_json(path, detections)
        ground_truth = self._ground_truth()
        if "annotations" not in ground_truth:
            logger.info(f"the annotations of {self._dataset_name!r} are not public: results saved, nothing evaluated")
            return {}
        self._check_images(detections, ground_truth)
        _check_mask_sizes(detections, ground_truth["images"])
        protocol = Protocol(ground_truth, self._use_fast_impl)
        logger.info(f"Evaluating {len(detections)} detections with {protocol.implementation}")
        results = OrderedDict()
        for task in self._tasks or _possible_tasks(detections, protocol):
            results[task] = self._evaluate_task(task, detections, protocol, img_ids)
        return results

    def _evaluate_task(
        self, task: str, detections: list[dict[str, Any]], protocol: Protocol, img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        max_dets = KEYPOINT_MAX_DETS if task == "keypoints" else self._max_dets
        lines = keypoint_lines(max_dets) if task == "keypoints" else detection_lines(max_dets)
        if not detections:
            logger.warning(f"no detections in any image, so there is no {task} AP; is the score threshold too high?")
            self.summaries[task] = np.full(len(lines), -1.0)
            return dict.fromkeys(METRICS[task], float("nan"))
        found = _results_of_task(task, detections)
        try:
            curves = protocol.run(found, task, max_dets=max_dets, oks_sigmas=self._kpt_oks_sigmas, image_ids=img_ids)
        except ValueError as error:
            raise ValueError(f"{error} (dataset {self._dataset_name!r})") from error
        values = [mean_of_line(curves, line) for line in lines]
        self.summaries[task] = np.array(values)
        text = "\n".join(line_text(curves, line, value) for line, value in zip(lines, values))
        logger.info(f"Evaluation results for {task}:\n{text}")
        return _named_metrics(task, values, dict(zip(self._category_names(curves), _class_precisions(curves))))

    def _category_names(self, curves: Curves) -> list[str]:
        """By category id, for where the annotation file has categories that the model has not."""
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
        categories = self._ground_truth()["categories"]
        names = {category["id"]: str(category.get("name") or category["id"]) for category in categories}
        thing_classes = self._metadata.get("thing_classes")
        if thing_classes:
            names.update(
                (i, thing_classes[to_contiguous.get(i, i)])
                for i in names
                if to_contiguous.get(i, i) < len(thing_classes)
            )
        own = {category_id: names.get(category_id, str(category_id)) for category_id in curves.category_ids}
        return list(distinct_names(own).values())

    def _in_dataset_categories(self, detections: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """From the model's class indices to the category ids of the annotation file."""
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:
            yield from detections
            return
        to_dataset = {index: category_id for category_id, index in to_contiguous.items()}
        for detection in detections:
            index = detection["category_id"]
            if index not in to_dataset:
                refuse_class(index, max(to_dataset), detection["image_id"], self._dataset_name)
            yield {**detection, "category_id": to_dataset[index]}

    def _check_images(self, detections: Iterable[Mapping[str, Any]], ground_truth: Mapping[str, Any]) -> None:
        unknown = {d["image_id"] for d in detections} - {image["id"] for image in ground_truth["images"]}
        if unknown:
            raise ValueError(
                f"predictions for {len(unknown)} images that {self._dataset_name!r} does not have, with image_id "
                f"{sorted(unknown, key=str)[:5]}: was the evaluator made for another dataset than the loader?"
            )

    def _evaluate_proposals(self, predictions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        with_proposals = [prediction for prediction in predictions if "proposals" in prediction]
        if self._output_dir:
            _save_proposals(os.path.join(self._output_dir, "box_proposals.pkl"), with_proposals)
        ground_truth = self._ground_truth()
        if "annotations" not in ground_truth:
            logger.info(f"the annotations of {self._dataset_name!r} are not public: no recall of proposals")
            return {}
        if lack := lack_for("bbox", ground_truth):
            raise ValueError(f"proposals cannot be evaluated: {lack}")
        by_image: dict[Any, list[dict]] = {image["id"]: [] for image in ground_truth["images"]}
        for annotation in ground_truth["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        self._check_images(with_proposals, ground_truth)
        images = [overlaps_of_image(p["proposals"], by_image[p["image_id"]], max(LIMITS)) for p in with_proposals]
        table = recall_table(images)
        logger.info("Proposal metrics:\n" + create_small_table(table))
        return {"box_proposals": table}


def _check_mask_sizes(detections: Iterable[Mapping[str, Any]], images: Iterable[Mapping[str, Any]]) -> None:
    """Masks of another size than their image's would not overlap with any object."""
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in images}
    for detection in detections:
        size = tuple(detection["segmentation"]["size"]) if "segmentation" in detection else None
        expected = sizes[detection["image_id"]]
        if size is not None and None not in expected and size != expected:
            raise ValueError(
                f"a predicted mask in image {detection['image_id']!r} has height and width {size}, but the image "
                f"{expected} by its annotations; paste masks into the whole image (see detector_postprocess)"
            )


def _checked_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"unknown tasks {unknown}; COCO evaluation knows {list(TASKS)}")
    return tasks


def _three_limits(max_dets_per_image: int | Sequence[int] | None) -> tuple[int, ...]:
    if max_dets_per_image is None:
        return DETECTION_MAX_DETS
    if isinstance(max_dets_per_image, int):
        return (*DETECTION_MAX_DETS[:2], max_dets_per_image)
    limits = tuple(max_dets_per_image)
    if len(limits) != 3 or list(limits) != sorted(limits):
        raise ValueError(f"max_dets_per_image is one number or three that rise, as in [1, 10, 300]; got {limits}")
    return limits


def _without_repeated_images(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first prediction of each image: samplers that give all ranks equal shares repeat some images."""
    first: dict[Any, dict[str, Any]] = {}
    for prediction in predictions:
        first.setdefault(prediction["image_id"], prediction)
    if len(first) < len(predictions):
        logger.warning(f"{len(predictions) - len(first)} images were predicted more than once; the first counts")
    return list(first.values())


def _possible_tasks(detections: Iterable[Mapping[str, Any]], protocol: Protocol) -> Iterator[str]:
    """``bbox``, and the tasks that both the detections and the ground truth have fields for."""
    fields = {field for detection in detections for field in detection}
    yield "bbox"
    for task, field in (("segm", "segmentation"), ("keypoints", "keypoints")):
        if field not in fields:
            continue
        if lack := protocol.lack(task):
            logger.warning(f"{task} is predicted, but not evaluated: {lack}")
        else:
            yield task


def _results_of_task(task: str, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies with the fields of one task: the protocol takes areas from the box wherever there is a box."""
    field = {"segm": "segmentation", "keypoints": "keypoints"}.get(task, "bbox")
    if any(field not in detection for detection in detections):
        raise ValueError(f"the {task} task was asked for, but the predictions have no {field!r}; choose other tasks")
    common = ("image_id", "category_id", "score")
    return [{key: detection[key] for key in (*common, field)} for detection in detections]


def _named_metrics(task: str, summary: Sequence[float], per_class: Mapping[str, float]) -> dict[str, float]:
    """Percentages by name, those of single classes last; logs the latter, since COCO's summary has the others."""
    metrics = OrderedDict(
        (name, 100 * value if value >= 0 else float("nan")) for name, value in zip(METRICS[task], summary)
    )
    if not all(np.isfinite(value) for value in metrics.values()):
        logger.info("Some metrics cannot be computed and are NaN: the ground truth has no such objects.")
    if len(per_class) > 1:
        logger.info(f"Per-category {task} AP:\n" + _per_class_table(per_class))
        metrics.update((f"AP-{name}", value) for name, value in per_class.items())
    return metrics


def _class_precisions(curves: Curves) -> Iterator[float]:
    """AP of each class in percent, all sizes, at the largest limit of detections."""
    for index in range(curves.precision.shape[2]):
        values = curves.precision[:, :, index, 0, -1]
        values = values[values > -1]
        yield 100 * float(np.mean(values)) if values.size else float("nan")


def _per_class_table(per_class: Mapping[str, float], num_columns: int = 3) -> str:
    from tabulate import tabulate

    pairs = list(per_class.items())
    num_columns = min(num_columns, len(pairs))
    rows = [[cell for pair in pairs[i : i + num_columns] for cell in pair] for i in range(0, len(pairs), num_columns)]
    return tabulate(rows, headers=["category", "AP"] * num_columns, tablefmt="pipe", floatfmt=".3f")


def _save_proposals(path: str, predictions: list[dict[str, Any]]) -> None:
    """In the form that ``DATASETS.PROPOSAL_FILES_TEST`` reads."""
    import pickle

    content: dict[str, Any] = {
        "boxes": [p["proposals"].proposal_boxes.tensor.numpy() for p in predictions],
        "objectness_logits": [p["proposals"].objectness_logits.numpy() for p in predictions],
        "ids": [p["image_id"] for p in predictions],
        "bbox_mode": int(BoxMode.XYXY_ABS),
    }
    with write_atomically(path) as file:
        pickle.dump(content, file)


def instances_to_coco_json(instances: Instances, img_id: Any) -> list[dict[str, Any]]:
    """Detections of one image in COCO's results format.

    Args:
        instances: on the CPU, with ``pred_boxes``, ``scores``, ``pred_classes``; optionally ``pred_masks`` (bool
            (N, H, W)) and ``pred_keypoints`` ((N, J, 3): x, y, score).
        img_id: the image's id in the dataset.

    Returns:
        N dicts with ``image_id``, ``category_id`` (the model's class index), ``bbox`` (x, y, width, height), ``score``,
        and where there are any ``segmentation`` (compressed run lengths), ``keypoints`` (x, y, score of each).
    """
    if len(instances) == 0:
        return []
    boxes = instances.pred_boxes.tensor.numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    columns: dict[str, list] = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        masks = instances.pred_masks
        columns["segmentation"] = encode_masks(getattr(masks, "tensor", masks).numpy())
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.numpy().copy()
        # COCO's coordinates name pixels, so that the centre of the first is 0; the model's are continuous, there 0.5.
        keypoints[:, :, :2] -= 0.5
        columns["keypoints"] = keypoints.reshape(len(keypoints), -1).tolist()
    return [{"image_id": img_id, **dict(zip(columns, values))} for values in zip(*columns.values())]


class COCOevalMaxDets(COCOeval):
    """``COCOeval`` whose summary goes by ``params.maxDets``; the original's average precision is always at 100."""

    def summarize(self) -> None:
        """Print COCO's summary and keep it in ``stats``.

        Raises:
            RuntimeError: nothing has been accumulated.
        """
        if not self.eval:
            raise RuntimeError("there is nothing to summarize; call accumulate() first")
        params = self.params
        curves = Curves(
            self.eval["precision"],
            self.eval["recall"],
            np.asarray(params.iouThrs),
            list(params.areaRngLbl),
            list(params.maxDets),
            list(params.catIds),
        )
        make_lines = keypoint_lines if params.iouType == "keypoints" else detection_lines
        lines = make_lines(params.maxDets)
        values = [mean_of_line(curves, line) for line in lines]
        for line, value in zip(lines, values):
            print(line_text(curves, line, value))
        self.stats = np.array(values)
