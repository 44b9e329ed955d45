"""PASCAL VOC's average precision, computed from the data set's own xml annotations.

Shapes: D detections of one class by falling score, G objects of that class in one image.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from detlab.data.catalog import MetadataCatalog
from detlab.data.datasets.pascal_voc import read_image_set, read_voc_annotation
from detlab.evaluation._checks import check_detections, refuse_class
from detlab.evaluation.evaluator import DatasetEvaluator
from detlab.utils import comm
from detlab.utils.file_io import read_text
from detlab.utils.logger import create_small_table

logger = logging.getLogger(__name__)

IOU_PERCENTAGES = range(50, 100, 5)
# Annotation files that are kept between evaluations, about 1 KB each; the largest split of VOC has 11540.
MAX_KEPT_RECORDS = 1 << 14

METRICS = ("AP", "AP50", "AP75")


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """VOC's average precision of boxes, at IoU 0.5 and, as COCO does, averaged over 0.5 to 0.95.

    Follows the protocol of the development kit: boxes include their last pixel, objects marked difficult count neither
    way, and for the years up to 2009 (2007 here) precision is averaged at eleven recalls. Scores are not rounded, while
    the kit's result files keep three digits; that can move an AP by a few hundredths.

    Outputs of the model are dicts with ``"instances"`` (``pred_boxes``, ``scores``, ``pred_classes``).

    Args:
        dataset_name: a registered VOC dataset; its metadata have ``dirname``, ``split``, ``year``, ``thing_classes``.

    Raises:
        ValueError: the year is neither 2007 nor 2012.
    """

    def __init__(self, dataset_name: str):
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.year not in (2007, 2012):
            raise ValueError(
                f"dataset {dataset_name!r} is of the year {metadata.year}; VOC evaluation knows 2007, 2012"
            )
        self._dataset_name = dataset_name
        self._class_names = list(metadata.thing_classes)
        self._is_2007 = metadata.year == 2007
        self._annotation_pattern = os.path.join(metadata.dirname, "Annotations", "{}.xml")
        self._image_set_file = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
        self._detections: defaultdict[int, list[Detection]] = defaultdict(list)

    def metric_names(self) -> Mapping[str, Sequence[str]]:
        return {"bbox": METRICS}

    def reset(self) -> None:
        self._detections = defaultdict(list)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Takes in the detections of a batch.

        Raises:
            ValueError: a box or score that is not finite, or a class that the dataset does not have; the message names
                the image and the value.
        """
        for dataset_dict, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            check_detections(instances, dataset_dict["image_id"])
            last = len(self._class_names) - 1
            for index in set(instances.pred_classes.tolist()):
                if not 0 <= index <= last:
                    refuse_class(index, last, dataset_dict["image_id"], self._dataset_name)
            # The kit counts pixels from 1, and its boxes include their last pixel.
            corners = instances.pred_boxes.tensor.numpy().astype(float) + [1, 1, 0, 0]
            for box, score, index in zip(corners, instances.scores.tolist(), instances.pred_classes.tolist()):
                self._detections[index].append(Detection(str(dataset_dict["image_id"]), score, box))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Percentages ``AP``, ``AP50``, ``AP75`` and ``AP-<class>`` of the task ``bbox``; None but on the main process.

        Raises:
            ValueError: a detection in an image that is not of this split.
        """
        gathered = comm.gather(dict(self._detections), dst=0)
        if not comm.is_main_process():
            return None
        image_ids = read_image_set(self._image_set_file)
        records = {image_id: parse_rec(self._annotation_pattern.format(image_id)) for image_id in image_ids}
        precisions = np.full((len(self._class_names), len(IOU_PERCENTAGES)), np.nan)
        for index, name in enumerate(self._class_names):
            targets = _targets_of_class(records, name)
            if all(target.difficult.all() for target in targets.values()):
                continue
            detections = _once_per_image([part.get(index, []) for part in gathered])
            for column, percentage in enumerate(IOU_PERCENTAGES):
                curve = match_class(detections, targets, percentage / 100)
                precisions[index, column] = 100 * voc_ap(curve.recall, curve.precision, self._is_2007)
        at = dict(zip(IOU_PERCENTAGES, _mean_over_classes(precisions)))
        metrics = OrderedDict(zip(METRICS, (float(np.mean(list(at.values()))), at[50], at[75])))
        logger.info(f"Evaluation results for {self._dataset_name}:\n" + create_small_table(metrics))
        metrics.update((f"AP-{name}", float(row.mean())) for name, row in zip(self._class_names, precisions))
        return OrderedDict(bbox=metrics)


def _mean_over_classes(precisions: np.ndarray) -> list[float]:
    known = precisions[~np.isnan(precisions).any(axis=1)]
    return known.mean(axis=0).tolist() if len(known) else [float("nan")] * precisions.shape[1]


class Detection(NamedTuple):
    """One box of one class."""

    image_id: str
    score: float
    box: np.ndarray  # (4,) x1, y1, x2, y2 in pixels counted from 1, the last one included


class Targets(NamedTuple):
    """Objects of one class in one image."""

    boxes: np.ndarray  # (G, 4)
    difficult: np.ndarray  # (G,) bool


class Curve(NamedTuple):
    """Along the detections of a class, by falling score."""

    recall: np.ndarray  # (D,)
    precision: np.ndarray  # (D,)


def _once_per_image(parts: Sequence[list[Detection]]) -> list[Detection]:
    """Joined over processes; an image that two of them saw counts as the first saw it."""
    owner: dict[str, int] = {}
    return [d for rank, part in enumerate(parts) for d in part if owner.setdefault(d.image_id, rank) == rank]


def parse_rec(filename: str) -> list[dict[str, Any]]:
    """The objects of a VOC annotation file.

    Returns:
        Dicts with ``name``, ``pose``, ``truncated``, ``difficult``, and ``bbox`` [x1, y1, x2, y2] in whole pixels
        counted from 1. The lists are kept and shared: do not change them. A file that has changed since is read anew.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no VOC annotation; the message names the file.
    """
    return _parse_rec(filename, _state_of(filename))


def _state_of(filename: str) -> tuple[int, ...] | None:
    """What changes when a local file is written anew; None if that cannot be told."""
    try:
        found = os.stat(filename)
    except (OSError, ValueError):
        # An address, or a file that is not there, of which the reader speaks.
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(MAX_KEPT_RECORDS)
def _parse_rec(filename: str, state: tuple[int, ...] | None) -> list[dict[str, Any]]:
    return [
        {
            "name": obj.name,
            "pose": obj.pose,
            "truncated": obj.truncated,
            "difficult": obj.difficult,
            "bbox": [int(value) for value in obj.corners],
        }
        for obj in read_voc_annotation(filename).objects
    ]


def _targets_of_class(records: Mapping[str, list[dict[str, Any]]], name: str) -> dict[str, Targets]:
    targets = {}
    for image_id, record in records.items():
        objects = [entry for entry in record if entry["name"] == name]
        targets[image_id] = Targets(
            np.array([entry["bbox"] for entry in objects], dtype=float).reshape(-1, 4),
            np.array([entry["difficult"] for entry in objects], dtype=bool),
        )
    return targets


def match_class(detections: Sequence[Detection], targets: Mapping[str, Targets], iou_threshold: float) -> Curve:
    """Each detection looks at the object it overlaps most; the first to find an object has it.

    Args:
        detections: of one class, in any order.
        targets: of that class, for every image of the split.
        iou_threshold: an overlap must be larger than this.

    Returns:
        Recall and precision; recall is NaN if there is no object that counts.

    Raises:
        ValueError: a detection in an image without an entry in ``targets``.
    """
    num_objects = sum(int((~target.difficult).sum()) for target in targets.values())
    taken = {image_id: np.zeros(len(target.boxes), dtype=bool) for image_id, target in targets.items()}
    hits, misses = np.zeros(len(detections)), np.zeros(len(detections))
    order = np.argsort([-detection.score for detection in detections], kind="stable")
    for position, index in enumerate(order):
        detection = detections[index]
        if detection.image_id not in targets:
            raise ValueError(f"a detection in image {detection.image_id!r}, which is not among those to be evaluated")
        target = targets[detection.image_id]
        overlaps = _inclusive_iou(detection.box, target.boxes)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or overlaps[best] <= iou_threshold or taken[detection.image_id][best]:
            misses[position] = 1
        elif not target.difficult[best]:
            hits[position] = 1
            taken[detection.image_id][best] = True
    hits, misses = np.cumsum(hits), np.cumsum(misses)
    recall = hits / num_objects if num_objects else np.full(len(hits), np.nan)
    return Curve(recall, hits / np.maximum(hits + misses, np.finfo(np.float64).eps))


def _inclusive_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(4,) and (G, 4) boxes that include their last pixel -> (G,)."""
    overlap = np.maximum(np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2]) + 1, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=1)
    return overlap / ((box[2:] - box[:2] + 1).prod() + areas - overlap)


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision of a curve: the area under its falling envelope, or VOC 2007's mean at eleven recalls.

    Args:
        rec, prec: (D,), recall rising.
        use_07_metric: take the recalls 0, 0.1 ... 1.

    Returns:
        0 for a curve without points; NaN where recall is.
    """
    if np.isnan(rec).any():
        return float("nan")
    if use_07_metric:
        at_recall = [prec[rec >= threshold].max(initial=0.0) for threshold in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean(at_recall))
    envelope = np.maximum.accumulate(prec[::-1])[::-1]
    return float(np.sum(np.diff(rec, prepend=0.0) * envelope))


def voc_eval(
    detpath: str,
    annopath: str,
    imagesetfile: str,
    classname: str,
    ovthresh: float = 0.5,
    use_07_metric: bool = False,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Evaluate a result file in the form of the development kit.

    Args:
        detpath: the file with the detections of a class is ``detpath.format(classname)``; each line has an image id, a
            score and x1, y1, x2, y2.
        annopath: the annotations of an image are in ``annopath.format(image_id)``.
        imagesetfile: the ids of the images, one on a line.
        classname: the class.
        ovthresh: the IoU to exceed.
        use_07_metric: see ``voc_ap``.

    Returns:
        Recall (D,), precision (D,), average precision.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: one is not in its form; the message names it.
    """
    image_ids = read_image_set(imagesetfile)
    records = {image_id: parse_rec(annopath.format(image_id)) for image_id in image_ids}
    detections = _read_detections(detpath.format(classname))
    curve = match_class(detections, _targets_of_class(records, classname), ovthresh)
    return curve.recall, curve.precision, voc_ap(curve.recall, curve.precision, use_07_metric)


def _read_detections(path: str) -> list[Detection]:
    detections = []
    for number, line in enumerate(read_text(path, "file of detections").splitlines(), start=1):
        if not line.strip():
            continue
        image_id, *values = line.split()
        try:
            score, *box = map(float, values)
        except ValueError:
            box = []
        if len(box) != 4 or not np.isfinite([score, *box]).all():
            raise ValueError(
                f"line {number} of {path} is {line[:80]!r}; a detection is an image id, a score and x1, y1, x2, y2, "
                "all finite"
            )
        detections.append(Detection(image_id, score, np.array(box)))
    return detections
