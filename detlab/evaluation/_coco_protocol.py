"""The COCO protocol: ground truth and detections in, precision and recall curves and their summary out.

Three implementations give equal curves: hotcoco (compiled), this package's ``COCOeval_opt``, and pycocotools.

Shapes: T IoU thresholds, R recall thresholds, K classes, A area ranges, M limits of detections per image.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval

from detlab.data.datasets.coco_format import CocoContent
from detlab.evaluation.fast_eval_api import COCOeval_opt
from detlab.utils.garbage import no_garbage_collection
from detlab.utils.mask_codes import LONG_OUTLINE, with_bounded_outlines
from detlab.utils.optional import available, require

logger = logging.getLogger(__name__)

DETECTION_MAX_DETS = (1, 10, 100)
KEYPOINT_MAX_DETS = (20,)

NEEDED_KEYS = {
    "bbox": ("bbox", "area"),
    "segm": ("segmentation", "area"),
    "keypoints": ("keypoints", "bbox", "area"),
}
"""By task, of an annotation."""
ANNOTATION_KEYS = (
    "id",
    "image_id",
    "category_id",
    "iscrowd",
    "bbox",
    "area",
    "segmentation",
    "keypoints",
    "num_keypoints",
)


class Curves(NamedTuple):
    """Accumulated results of one task."""

    precision: np.ndarray  # (T, R, K, A, M); -1 where a class has no objects
    recall: np.ndarray  # (T, K, A, M); likewise
    iou_thresholds: np.ndarray  # (T,)
    area_labels: list[str]  # A
    max_dets: list[int]  # M
    category_ids: list[int]  # K


class SummaryLine(NamedTuple):
    """What one number of the summary averages over."""

    of_precision: bool  # average precision, else average recall
    iou: float | None  # one threshold; None: all
    area: str
    max_dets: int


def detection_lines(max_dets: Sequence[int]) -> list[SummaryLine]:
    """The twelve numbers of box and mask evaluation; the last of three limits bounds all but two of them."""
    first, second, last = max_dets
    sizes = ("small", "medium", "large")
    return [
        SummaryLine(True, None, "all", last),
        SummaryLine(True, 0.5, "all", last),
        SummaryLine(True, 0.75, "all", last),
        *(SummaryLine(True, None, size, last) for size in sizes),
        *(SummaryLine(False, None, "all", limit) for limit in (first, second, last)),
        *(SummaryLine(False, None, size, last) for size in sizes),
    ]


def keypoint_lines(max_dets: Sequence[int]) -> list[SummaryLine]:
    """The ten numbers of keypoint evaluation."""
    limit = max_dets[-1]
    parts = [(None, "all"), (0.5, "all"), (0.75, "all"), (None, "medium"), (None, "large")]
    return [SummaryLine(of_precision, iou, area, limit) for of_precision in (True, False) for iou, area in parts]


def mean_of_line(curves: Curves, line: SummaryLine) -> float:
    """Mean over what exists; -1 when there is no object to find."""
    values = curves.precision if line.of_precision else curves.recall
    if line.iou is not None:
        values = values[np.where(line.iou == curves.iou_thresholds)[0]]
    values = values[..., [curves.area_labels.index(line.area)], [curves.max_dets.index(line.max_dets)]]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def line_text(curves: Curves, line: SummaryLine, value: float) -> str:
    """One line of the summary in the form that readers of COCO results know."""
    name = "Average Precision  (AP)" if line.of_precision else "Average Recall     (AR)"
    low, high = curves.iou_thresholds[0], curves.iou_thresholds[-1]
    iou = f"{low:0.2f}:{high:0.2f}" if line.iou is None else f"{line.iou:0.2f}"
    return f" {name} @[ IoU={iou:<9} | area={line.area:>6s} | maxDets={line.max_dets:>3d} ] = {value:0.3f}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def ground_truth_of(content: CocoContent) -> dict[str, Any]:
    """What the implementations take, completed by what exporters leave out and the official code cannot do without.

    Missing ``iscrowd`` means 0, a missing ``area`` is that of the box, and ``num_keypoints`` counts the labelled ones;
    where some objects have keypoints, the others have none that are labelled. Outlines so long that drawing them takes
    gigabytes become run lengths.
    Annotation ids that are missing, repeated, or 0 (which the protocol takes for "not matched"), are given anew:
    nothing but identity depends on them.

    Args:
        content: read for evaluation. Its dictionaries are not changed; the lists in them are shared.

    Returns:
        A COCO dataset; without ``annotations`` where they are not public.
    """
    with no_garbage_collection():
        dataset: dict[str, Any] = {
            "info": {},
            "images": _with_keys(content.images, ("id", "height", "width")),
            "categories": _with_keys(content.categories, ("id", "name")),
        }
        if content.annotations is not None:
            dataset["annotations"] = _with_keys(content.annotations, ANNOTATION_KEYS)
            sizes = {image["id"]: (image.get("height"), image.get("width")) for image in dataset["images"]}
            _complete(dataset["annotations"], sizes)
            _number(dataset["annotations"], content.source)
    return dataset


def _complete(annotations: list[dict[str, Any]], sizes: dict[Any, tuple[int | None, int | None]]) -> None:
    num_values = max((len(annotation.get("keypoints", ())) for annotation in annotations), default=0)
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation and "bbox" in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if num_values and not annotation.get("keypoints"):
            annotation["keypoints"], annotation["num_keypoints"] = [0] * num_values, 0
        if num_values and "num_keypoints" not in annotation:
            annotation["num_keypoints"] = sum(visible > 0 for visible in annotation["keypoints"][2::3])
        mask = annotation.get("segmentation")
        if mask is not None and (type(mask) is not list or not _are_short(mask)):
            annotation["segmentation"] = _plain_mask(mask, *sizes[annotation["image_id"]])


def _number(annotations: list[dict[str, Any]], source: str) -> None:
    ids = [annotation.get("id", 0) for annotation in annotations]
    if not _are_natural(ids) or 0 in ids or len(set(ids)) < len(ids):
        logger.warning(f"annotation ids of {source} are not distinct positive integers; numbered anew for evaluation")
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number


def _with_keys(entries: Iterable[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Copies with these keys alone, where there is a value: other code cannot stumble over the rest."""
    return [{key: value for key in keys if (value := entry.get(key)) or value == 0} for entry in entries]


def _are_short(polygons: list[list[float]]) -> bool:
    """Whether polygons can be drawn in little memory, by a bound that is quickly told.

    An outline, and the way from the origin to it, is no longer than twice the sum of its corners' distances from the
    origin, and that is no more than their root mean square allows.
    """
    return all(2 * math.sqrt(len(polygon)) * math.hypot(*polygon) <= LONG_OUTLINE for polygon in polygons)


def _plain_mask(mask: Any, height: int | None, width: int | None) -> Any:
    """A mask that can be drawn in little memory, as json has it."""
    if isinstance(mask, list):
        if height is None or width is None:
            return mask
        mask = with_bounded_outlines(mask, height, width)
    if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
        return {**mask, "counts": mask["counts"].decode("ascii")}
    return mask


def _are_natural(ids: Iterable[Any]) -> bool:
    """Whether all are integers from 0 to where floats begin to leave some out."""
    return all(type(value) is int and 0 <= value < 2**53 for value in ids)


def _suits_hotcoco(ground_truth: dict[str, Any]) -> bool:
    ids = (entry["id"] for kind in ("images", "categories") for entry in ground_truth[kind])
    return _are_natural(ids) and all(len(one.get("bbox", ())) in (0, 4) for one in ground_truth["annotations"])


class Protocol:
    """Ground truth in the hands of one implementation of the evaluation.

    Args:
        ground_truth: a COCO dataset with annotations, from ``ground_truth_of``.
        use_fast_impl: hotcoco if it is installed and the ids are natural numbers and boxes upright, as it needs, else
            ``COCOeval_opt``; when False, pycocotools itself.
    """

    def __init__(self, ground_truth: dict[str, Any], use_fast_impl: bool = True):
        self._dataset = ground_truth
        self._coco: Any
        self._evaluator: Callable[..., Any]
        if use_fast_impl and available("hotcoco") and _suits_hotcoco(ground_truth):
            hotcoco = require("hotcoco", purpose="fast COCO evaluation")
            self.implementation = "hotcoco"
            self._coco, self._evaluator = hotcoco.COCO(ground_truth), hotcoco.COCOeval
            return
        from pycocotools.coco import COCO

        self._evaluator = COCOeval_opt if use_fast_impl else COCOeval
        self.implementation = self._evaluator.__name__
        self._coco = COCO()
        self._coco.dataset = ground_truth
        with quiet():
            self._coco.createIndex()

    def run(
        self,
        detections: list[dict[str, Any]],
        task: str,
        *,
        max_dets: Sequence[int],
        oks_sigmas: Sequence[float] = (),
        image_ids: Sequence[int] | None = None,
    ) -> Curves:
        """Evaluate one task.

        Args:
            detections: COCO results of this task, at least one. They are kept and completed by the implementation.
            task: ``"bbox"``, ``"segm"`` or ``"keypoints"``.
            max_dets: limits of detections per image, rising.
            oks_sigmas: spread of each keypoint; empty for those of COCO persons.
            image_ids: the images that count; None for all.

        Raises:
            ValueError: the ground truth lacks what the task needs, or there is not one sigma for each keypoint.
        """
        if lack := self.lack(task):
            raise ValueError(f"{lack}. Choose other tasks, as in COCOEvaluator(name, tasks=('bbox',))")
        with quiet():
            evaluator = self._evaluator(self._coco, self._load(detections, task), task)
        params = evaluator.params
        params.maxDets = list(max_dets)
        if image_ids is not None:
            params.imgIds = sorted(set(image_ids))
        if task == "keypoints":
            if len(oks_sigmas):
                params.kpt_oks_sigmas = np.array(oks_sigmas, dtype=float)
            self._check_sigmas(len(detections[0]["keypoints"]) // 3, len(params.kpt_oks_sigmas))
        with quiet():
            evaluator.evaluate()
            evaluator.accumulate()
        curves = evaluator.eval
        return Curves(
            precision=curves["precision"],
            recall=curves["recall"],
            iou_thresholds=np.asarray(params.iouThrs),
            area_labels=list(params.areaRngLbl),
            max_dets=list(max_dets),
            category_ids=list(params.catIds),
        )

    def _load(self, detections: list[dict[str, Any]], task: str) -> Any:
        if self.implementation != "hotcoco" or task != "bbox":
            return self._coco.loadRes(detections)
        # An array crosses into compiled code at once, a list of dicts value by value.
        rows = [(d["image_id"], *d["bbox"], d["score"], d["category_id"]) for d in detections]
        return self._coco.loadRes(np.array(rows, dtype=float))

    def lack(self, task: str) -> str | None:
        """What the ground truth would need for a task, in words; None if it has everything."""
        return lack_for(task, self._dataset)

    def _check_sigmas(self, num_predicted: int, num_sigmas: int) -> None:
        annotations = self._dataset["annotations"]
        num_true = len(annotations[0]["keypoints"]) // 3 if annotations else num_predicted
        if not num_true == num_predicted == num_sigmas:
            raise ValueError(
                f"{num_true} keypoints in the ground truth, {num_predicted} in the predictions, and {num_sigmas} "
                "sigmas: set TEST.KEYPOINT_OKS_SIGMAS (kpt_oks_sigmas of COCOEvaluator) to one sigma for each keypoint"
            )


def lack_for(task: str, ground_truth: dict[str, Any]) -> str | None:
    """What a ground truth would need for a task, in words; None if it has everything."""
    for annotation in ground_truth["annotations"]:
        if absent := [key for key in NEEDED_KEYS[task] if key not in annotation]:
            return (
                f"the {task} task needs {absent[0]!r} in every annotation of the ground truth; {_name(annotation)} "
                "has none"
            )
        if task != "segm" and len(annotation["bbox"]) != 4:
            return f"the {task} task is for upright boxes; {_name(annotation)} has a rotated one, of 5 numbers"
    if task == "segm":
        return _lack_of_sizes(ground_truth)
    return _lack_of_one_skeleton(ground_truth) if task == "keypoints" else None


def _lack_of_sizes(ground_truth: dict[str, Any]) -> str | None:
    unknown = {image["id"] for image in ground_truth["images"] if not {"height", "width"} <= image.keys()}
    images = (annotation["image_id"] for annotation in ground_truth["annotations"])
    image_id = next((image_id for image_id in images if image_id in unknown), None)
    return None if image_id is None else f"the segm task needs 'height' and 'width' of image {image_id}"


def _lack_of_one_skeleton(ground_truth: dict[str, Any]) -> str | None:
    annotations = ground_truth["annotations"]
    for annotation in annotations:
        first, other = len(annotations[0]["keypoints"]), len(annotation["keypoints"])
        if first != other:
            return (
                "the keypoints task needs as many keypoints in every annotation of the ground truth; "
                f"{_name(annotations[0])} has {first // 3}, {_name(annotation)} has {other // 3}"
            )
    return None


def _name(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['id']} of image {annotation['image_id']}"
