"""COCO evaluation on arrays: the matching of all images and classes in step, one rank of detections at a time.

pycocotools matches each (image, class, area range, threshold) in a Python loop over detections and objects. Those loops
do not depend on each other; what is sequential is only that a detection of rank r sees what ranks before it took. So
here step r matches the r-th detection of every (image, class) at once. Results are equal to the last bit.

Shapes: B cells ((image, class) pairs) of a batch, D detections and G objects of a cell, A area ranges, T IoU
thresholds, R recall thresholds, K classes, M limits of detections per image.
"""

from __future__ import annotations

import copy
import datetime
from collections import defaultdict
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval

Key = tuple[Any, Any]
"""(image id, category id), the latter -1 when classes are not told apart."""

# Cells whose padded (A, T, G) states are stepped together; bounds the memory of one step to a few tens of MB.
STATE_ELEMENTS = 1 << 22


class _Cell(NamedTuple):
    """Detections and objects of one class in one image."""

    image: int  # position in the list of images
    category: int  # position in the list of classes
    detections: list[dict]  # by falling score, at most the largest limit
    objects: list[dict]


class _Matches(NamedTuple):
    """What became of every detection, and how many objects there were to find."""

    category: np.ndarray  # (D,) position of the class
    rank: np.ndarray  # (D,) position within the image and class, by falling score
    score: np.ndarray  # (D,)
    matched: np.ndarray  # (A, T, D) bool
    ignored: np.ndarray  # (A, T, D) bool: counts neither for nor against
    num_objects: np.ndarray  # (K, A) objects that are not ignored
    occupied: np.ndarray  # (K,) bool: the class has detections or objects


class COCOeval_opt(COCOeval):
    """``pycocotools.cocoeval.COCOeval``, several times as fast, with equal ``eval``, ``stats`` and ``ious``.

    Two things differ: ``evalImgs`` stays empty, and nothing is printed before ``summarize``. A subclass may replace
    ``computeIoU`` and ``computeOks``; they are called for the pairs of image and class that have both detections and
    objects.
    """

    def evaluate(self) -> None:
        """Matches detections with objects; the result is kept for ``accumulate``."""
        params = self.params
        if params.useSegm is not None:
            params.iouType = "segm" if params.useSegm == 1 else "bbox"
        params.imgIds = list(np.unique(params.imgIds))
        if params.useCats:
            params.catIds = list(np.unique(params.catIds))
        params.maxDets = sorted(params.maxDets)
        self._prepare()
        cells = list(self._cells())
        self.ious = defaultdict(list, self._overlaps(cells))
        self._matches = self._match(cells)
        self._paramsEval = copy.deepcopy(params)

    def _prepare(self) -> None:
        """Sorts annotations into ``_gts`` and ``_dts`` by image and class, and marks the objects to ignore."""
        params = self.params
        self._gts = self._by_image_and_class(self.cocoGt)
        self._dts = self._by_image_and_class(self.cocoDt)
        for objects in self._gts.values():
            for annotation in objects:
                annotation["ignore"] = annotation.get("iscrowd", 0)
                if params.iouType == "keypoints":
                    annotation["ignore"] = annotation["num_keypoints"] == 0 or annotation["ignore"]
        self.eval: dict[str, Any] = {}

    def _by_image_and_class(self, coco) -> defaultdict[Key, list[dict]]:
        params = self.params
        categories = set(params.catIds) if params.useCats else None
        groups: defaultdict[Key, list[dict]] = defaultdict(list)
        for image_id in params.imgIds:
            for annotation in coco.imgToAnns.get(image_id, ()):
                if categories is not None and annotation["category_id"] not in categories:
                    continue
                if params.iouType == "segm":
                    annotation["segmentation"] = coco.annToRLE(annotation)
                groups[image_id, annotation["category_id"]].append(annotation)
        return groups

    def _cells(self) -> Iterator[_Cell]:
        """The cells that are not empty, class by class and within a class image by image."""
        params = self.params
        images = {image_id: position for position, image_id in enumerate(params.imgIds)}
        if params.useCats:
            categories = {category_id: position for position, category_id in enumerate(params.catIds)}
            keys = sorted((categories[c], images[i], (i, c)) for i, c in set(self._gts) | set(self._dts))
        else:
            keys = [(0, position, (image_id, -1)) for image_id, position in images.items()]
        for category, image, key in keys:
            objects, detections = self._of_key(self._gts, key), self._of_key(self._dts, key)
            best = sorted(detections, key=itemgetter("score"), reverse=True)[: params.maxDets[-1]]
            if objects or best:
                yield _Cell(image, category, best, objects)

    def _of_key(self, groups: defaultdict[Key, list[dict]], key: Key) -> list[dict]:
        if self.params.useCats:
            return groups.get(key, [])
        return [annotation for c in self.params.catIds for annotation in groups.get((key[0], c), ())]

    def _overlaps(self, cells: list[_Cell]) -> dict[Key, np.ndarray]:
        params = self.params
        overlap = self.computeOks if params.iouType == "keypoints" else self.computeIoU
        keys = [self._key(cell) for cell in cells if cell.detections and cell.objects]
        return {key: overlap(*key) for key in keys}

    def _key(self, cell: _Cell) -> Key:
        params = self.params
        return params.imgIds[cell.image], params.catIds[cell.category] if params.useCats else -1

    def _match(self, cells: list[_Cell]) -> _Matches:
        params = self.params
        area_ranges = np.array(params.areaRng, dtype=float)  # (A, 2)
        thresholds = np.minimum(params.iouThrs, 1 - 1e-10)
        counts = np.array([len(cell.detections) for cell in cells], dtype=int)
        starts = np.concatenate([[0], np.cumsum(counts)])
        shape = (len(area_ranges), len(thresholds), int(starts[-1]))
        matched, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        num_categories = len(params.catIds) if params.useCats else 1
        num_objects = np.zeros((num_categories, len(area_ranges)), dtype=int)
        occupied = np.zeros(num_categories, dtype=bool)
        problems = []
        for cell, start in zip(cells, starts):
            occupied[cell.category] = True
            if not cell.objects:
                continue
            skipped = _skipped_objects(cell.objects, area_ranges)
            num_objects[cell.category] += (~skipped).sum(axis=1)
            if cell.detections:
                problem = _Problem.of(cell, self.ious[self._key(cell)], skipped, start, thresholds.min())
                if len(problem.detections):
                    problems.append(problem)
        for batch in _batches(problems, len(area_ranges) * len(thresholds)):
            _solve(batch, thresholds, matched, ignored)
        detections = [d for cell in cells for d in cell.detections]
        area = np.array([d["area"] for d in detections], dtype=float)
        outside = (area < area_ranges[:, :1]) | (area > area_ranges[:, 1:])  # (A, D)
        ignored |= ~matched & outside[:, None]
        return _Matches(
            category=np.repeat([cell.category for cell in cells], counts).astype(int),
            rank=np.arange(starts[-1]) - np.repeat(starts[:-1], counts),
            score=np.array([d["score"] for d in detections], dtype=float),
            matched=matched,
            ignored=ignored,
            num_objects=num_objects,
            occupied=occupied,
        )

    def accumulate(self) -> None:
        """Precision and recall curves in ``eval``, from the matches of ``evaluate``.

        Raises:
            RuntimeError: ``evaluate`` has not been called.
        """
        if not hasattr(self, "_matches"):
            raise RuntimeError("there is nothing to accumulate; call evaluate() first")
        params, matches = self.params, self._matches
        num_categories, num_areas = matches.num_objects.shape
        sizes = (len(params.iouThrs), len(params.recThrs), num_categories, num_areas, len(params.maxDets))
        precision, scores = -np.ones(sizes), -np.ones(sizes)
        recall = -np.ones((sizes[0], *sizes[2:]))
        bounds = np.searchsorted(matches.category, np.arange(num_categories + 1))
        for category in np.flatnonzero(matches.occupied):
            present = np.flatnonzero(matches.num_objects[category])
            members = np.arange(bounds[category], bounds[category + 1])
            for limit_index, limit in enumerate(params.maxDets):
                chosen = members[matches.rank[members] < limit]
                chosen = chosen[np.argsort(-matches.score[chosen], kind="mergesort")]
                for area in present:
                    curves = _curves(
                        matches.matched[area][:, chosen],
                        matches.ignored[area][:, chosen],
                        matches.score[chosen],
                        matches.num_objects[category, area],
                        np.asarray(params.recThrs),
                    )
                    at = (slice(None), slice(None), category, area, limit_index)
                    precision[at], scores[at] = curves.precision, curves.scores
                    recall[:, category, area, limit_index] = curves.recall
        self.eval = {
            "params": params,
            "counts": list(sizes),
            "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "precision": precision,
            "recall": recall,
            "scores": scores,
        }


def _skipped_objects(objects: list[dict], area_ranges: np.ndarray) -> np.ndarray:
    """(A, G) bool: the object is a crowd, or its area is out of range."""
    area = np.array([o["area"] for o in objects], dtype=float)
    crowd = np.array([bool(o["ignore"]) for o in objects])
    return crowd | (area < area_ranges[:, :1]) | (area > area_ranges[:, 1:])


class _Problem(NamedTuple):
    """One cell to match, reduced to the detections that reach the lowest threshold with some object."""

    overlaps: np.ndarray  # (D, G)
    detections: np.ndarray  # (D,) positions among all detections
    skipped: np.ndarray  # (A, G) bool: to be matched only when nothing else is left
    shareable: np.ndarray  # (G,) bool: crowds, which many detections may match
    nameless: np.ndarray  # (G,) bool: objects with id 0, whose matches the protocol does not see

    @staticmethod
    def of(cell: _Cell, overlaps: np.ndarray, skipped: np.ndarray, start: int, lowest: float) -> _Problem:
        overlaps = np.asarray(overlaps)
        candidates = np.flatnonzero((overlaps >= lowest).any(axis=1))
        return _Problem(
            overlaps[candidates],
            start + candidates,
            skipped,
            np.array([bool(int(o.get("iscrowd", 0))) for o in cell.objects]),
            np.array([o["id"] == 0 for o in cell.objects]),
        )


def _batches(problems: list[_Problem], states_per_object: int) -> Iterator[list[_Problem]]:
    """Groups problems of like size; within a group the ones with the most detections come first."""
    by_width: defaultdict[int, list[_Problem]] = defaultdict(list)
    for problem in problems:
        by_width[(len(problem.shareable) - 1).bit_length()].append(problem)
    for exponent, group in by_width.items():
        group.sort(key=lambda problem: -len(problem.detections))
        size = max(STATE_ELEMENTS // (states_per_object << exponent), 1)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def _solve(batch: list[_Problem], thresholds: np.ndarray, matched: np.ndarray, ignored: np.ndarray) -> None:
    """Greedy matching of a batch of cells; writes into ``matched`` and ``ignored`` (A, T, all detections).

    A detection takes the free object of highest overlap, the later one of two that tie; one to be skipped only when no
    other reaches the threshold.
    """
    width = max(len(problem.shareable) for problem in batch)
    depth = len(batch[0].detections)
    num_areas = matched.shape[0]
    overlaps = np.full((len(batch), depth, width), -1.0)
    skipped = np.zeros((len(batch), num_areas, 1, width), dtype=bool)
    shareable = np.zeros((len(batch), 1, 1, width), dtype=bool)
    nameless = np.zeros_like(shareable)
    for index, problem in enumerate(batch):
        rows, columns = problem.overlaps.shape
        overlaps[index, :rows, :columns] = problem.overlaps
        skipped[index, :, 0, :columns] = problem.skipped
        shareable[index, ..., :columns] = problem.shareable
        nameless[index, ..., :columns] = problem.nameless
    free = np.ones((len(batch), num_areas, len(thresholds), width), dtype=bool)
    lengths = np.array([len(problem.detections) for problem in batch])
    for rank in range(depth):
        active = int((lengths > rank).sum())
        overlap = overlaps[:active, rank, None, None, :]  # (B, 1, 1, G)
        reached = free[:active] & (overlap >= thresholds[:, None])
        preferred = reached & ~skipped[:active]
        eligible = np.where(preferred.any(axis=-1, keepdims=True), preferred, reached)
        ranked = np.where(eligible, overlap, -np.inf)
        best = width - 1 - ranked[..., ::-1].argmax(axis=-1)[..., None]  # (B, A, T, 1)
        found: np.ndarray = np.any(eligible, axis=-1)  # (B, A, T)
        stays_free = np.take_along_axis(shareable[:active] | ~found[..., None], best, axis=-1)
        np.put_along_axis(free[:active], best, np.take_along_axis(free[:active], best, -1) & stays_free, axis=-1)
        where = np.array([problem.detections[rank] for problem in batch[:active]])
        skip = np.take_along_axis(np.broadcast_to(skipped[:active], reached.shape), best, -1)[..., 0]
        unseen = np.take_along_axis(np.broadcast_to(nameless[:active], reached.shape), best, -1)[..., 0]
        matched[:, :, where] = (found & ~unseen).transpose(1, 2, 0)
        ignored[:, :, where] = (found & skip).transpose(1, 2, 0)


class _Curves(NamedTuple):
    """For one class, area range and limit."""

    precision: np.ndarray  # (T, R) at each recall threshold, made to fall
    scores: np.ndarray  # (T, R) score at which the recall is reached
    recall: np.ndarray  # (T,) reached in the end


def _curves(
    matched: np.ndarray, ignored: np.ndarray, scores: np.ndarray, num_objects: int, recall_thresholds: np.ndarray
) -> _Curves:
    """Curves of detections in falling order of score; ``matched``, ``ignored``: (T, D)."""
    num_thresholds, num_detections = matched.shape
    precision_at = np.zeros((num_thresholds, len(recall_thresholds)))
    score_at = np.zeros_like(precision_at)
    if num_detections == 0:
        return _Curves(precision_at, score_at, np.zeros(num_thresholds))
    hits = np.cumsum(matched & ~ignored, axis=1).astype(float)
    misses = np.cumsum(~matched & ~ignored, axis=1).astype(float)
    recall = hits / num_objects
    precision = hits / (misses + hits + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for index in range(num_thresholds):
        reached = np.searchsorted(recall[index], recall_thresholds, side="left")
        reached = reached[reached < num_detections]
        precision_at[index, : len(reached)] = precision[index, reached]
        score_at[index, : len(reached)] = scores[reached]
    return _Curves(precision_at, score_at, recall[:, -1])
