"""COCO's json format, checked when it is read: what comes out can be trained on and evaluated with.

There is one reader, so that training and evaluation see the same objects. A file that contradicts itself is refused
with a sentence; single annotations that mean nothing are left out, counted in a warning with the first examples.

Shapes: N annotations; boxes of D numbers, 4, or 5 where they are rotated.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, compress, repeat
from typing import Any, NamedTuple

import numpy as np

from detlab.data.datasets.annotation_file import read_annotations
from detlab.data.datasets.coco_masks import check_masks
from detlab.data.datasets.entries import NUM_EXAMPLES, Dropped, Entries, are_within, is_number, shown
from detlab.utils.garbage import no_garbage_collection
from detlab.utils.mask_codes import MAX_COORDINATE

__all__ = ["CocoContent", "checked_coco", "class_indices", "distinct_names", "read_coco"]

logger = logging.getLogger(__name__)

# Sizes beyond it do not fit the integers of image libraries.
LARGEST_SIDE = 2**31 - 1
BOX_LENGTHS = (4, 5)
BOX_CURE = "a box is [x, y, width, height] or [cx, cy, width, height, degrees]"


class CocoContent(NamedTuple):
    """What a file in COCO format says, checked."""

    source: str  # the file, for messages
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]] | None  # None where they are not public
    categories: list[dict[str, Any]]

    def require(self, kind: str, key: str, cure: str) -> None:
        """Makes sure that all of ``images``, ``annotations`` or ``categories`` have a key.

        Raises:
            ValueError: one has not.
        """
        entries = getattr(self, kind) or ()
        if any(entry.get(key) is None for entry in entries):
            noun = "category" if kind == "categories" else kind[:-1]
            listed = Entries(entries, noun, self.source)
            listed.refuse(next(place for place, entry in enumerate(entries) if entry.get(key) is None), key, cure)


def read_coco(json_file: str, *, for_evaluation: bool = False) -> CocoContent:
    """A json file as ``checked_coco`` returns it.

    Raises:
        FileNotFoundError: there is no such file; the message says where datasets are looked for.
        ValueError: it is no json, not in COCO format, or contradicts itself.
    """
    return checked_coco(read_annotations(json_file), json_file, for_evaluation=for_evaluation)


def checked_coco(content: Any, source: str, *, for_evaluation: bool = False) -> CocoContent:
    """Checks the content of a file in COCO format.

    Left out, for training and evaluation alike, since the official evaluation would crash over them or make nonsense
    of them: annotations of images that are not listed; boxes with a number that is not finite or a negative size, and
    boxes wholly outside of their image; polygons of fewer than 3 points or with numbers that are not finite, and masks
    that have no other; keypoints that are not finite. Boxes of width or height 0 are left out of training only: in the
    official evaluation they are objects that nothing finds.

    Spelled as the format has it: ids like 3.0 become whole, true and false in ``iscrowd`` 1 and 0; null stands for
    nothing. An ``area`` that is negative or not finite is taken out, as if it were missing. Categories of the same name
    are told apart by their ids, with a warning.

    Args:
        content: as json has it; lists and dictionaries become part of the result and are changed.
        source: the file, for messages.
        for_evaluation: annotations need neither ``id`` nor ``bbox``, and boxes may have the size 0.

    Raises:
        ValueError: it is not in COCO format, or contradicts itself: a value of a wrong type, ids that are missing or
            double, boxes of 4 and of 5 numbers, run lengths that are not of their image's size. The message names the
            source, the entry and the value.
    """
    if not isinstance(content, dict) or "images" not in content:
        raise ValueError(
            f"{source} is not in COCO format: it should be an object with 'images', 'annotations' and 'categories'"
        )
    with no_garbage_collection():
        images = Entries(content["images"], "image", source, "images")
        _check_images(images)
        categories = Entries(content.get("categories", []), "category", source, "categories")
        _check_categories(categories)
        kept = None
        if "annotations" in content:
            annotations = Entries(content["annotations"], "annotation", source, "annotations")
            kept = _checked_annotations(annotations, images, for_evaluation)
    return CocoContent(source, list(images.all), kept, list(categories.all))


def class_indices(content: CocoContent) -> dict[Any, int]:
    """Category id -> class, counted from 0 in the order of the ids.

    Raises:
        ValueError: an annotation's category is not listed.
    """
    ids = sorted(category["id"] for category in content.categories)
    indices = {number: index for index, number in enumerate(ids)}
    check_categories_are_listed(content, indices)
    return indices


def check_categories_are_listed(content: CocoContent, known: Iterable[Any]) -> None:
    """Raises a ValueError if an annotation is of a category that is not among the known ids."""
    annotations = content.annotations or []
    known = set(known)
    if not {annotation["category_id"] for annotation in annotations} <= known:
        place = next(n for n, annotation in enumerate(annotations) if annotation["category_id"] not in known)
        Entries(annotations, "annotation", content.source).refuse(
            place, "category_id", f"it is not among the {len(known)} categories of the file"
        )


# ------------------------------------------------------------------------------------------- images and categories


def _check_images(images: Entries) -> None:
    images.check_unique(images.check_ids("id", "an image's id"))
    images.check_text("file_name", "the name of a file", optional=True)
    for key in ("height", "width"):
        _check_sides(images, key)


def _check_sides(images: Entries, key: str) -> None:
    sides = images.column(key)
    if set(map(type, sides)) <= {int} and (not sides or 1 <= min(sides) <= max(sides) <= LARGEST_SIDE):
        return
    for place, side in enumerate(sides):
        if type(side) is float and side.is_integer():
            images.all[place][key] = sides[place] = int(side)
    images.refuse_first(
        key,
        sides,
        lambda side: side is None or (type(side) is int and 1 <= side <= LARGEST_SIDE),
        "it is a whole number of pixels, 1 or more",
    )
    _remove_none(images, key, sides)


def _check_categories(categories: Entries) -> None:
    categories.check_unique(categories.check_ids("id", "a category's id"))
    categories.check_text("name", "a category's name", optional=True)
    names = {entry["id"]: entry["name"] for entry in categories.all if entry.get("name") is not None}
    told_apart = distinct_names(names)
    changed = [told_apart[number] for number in names if told_apart[number] != names[number]]
    if not changed:
        return
    logger.warning(
        f"{len(changed)} categories in {categories.source} share their names with others; here they are called "
        f"{', '.join(map(shown, changed[:NUM_EXAMPLES]))}{', ...' if len(changed) > NUM_EXAMPLES else ''}"
    )
    for entry in categories.all:
        if entry["id"] in told_apart:
            entry["name"] = told_apart[entry["id"]]


def distinct_names(names: Mapping[Any, str]) -> dict[Any, str]:
    """The names of categories by id, where those that several share have the id added: ``"cell (id 3)"``.

    Results are told by the names, so that of equal ones only the last would be seen.
    """
    counts = Counter(names.values())
    taken = set(counts)
    result = dict(names)
    for number, name in names.items():
        if counts[name] > 1:
            while name in taken:
                name = f"{name} (id {number})"
            taken.add(name)
            result[number] = name
    return result


# -------------------------------------------------------------------------------------------------- annotations


class _Sizes(NamedTuple):
    """Images, as their annotations need them."""

    of_image: np.ndarray  # (images, 2) width, height; NaN where the file does not tell
    place: np.ndarray  # (N,) the image of each annotation, -1: not listed

    @property
    def of_annotation(self) -> np.ndarray:
        """(N, 2); of unlisted images NaN."""
        with_none = np.concatenate([self.of_image, np.full((1, 2), np.nan)])
        return with_none[self.place]


def _checked_annotations(annotations: Entries, images: Entries, for_evaluation: bool) -> list[dict[str, Any]]:
    """The annotations that are left, in the order of the file."""
    if not for_evaluation:
        _check_annotation_ids(annotations)
    sizes = _sizes(annotations, images)
    annotations.check_ids("category_id", "the id of a category")
    _check_crowds(annotations)
    _check_areas(annotations)
    drop = _Drop(annotations)
    drop.where(
        sizes.place < 0,
        "annotations of images that the file does not list",
        lambda place: f"image {shown(annotations.all[place]['image_id'])}",
    )
    _check_boxes(annotations, sizes.of_annotation, drop, for_evaluation)
    _check_keypoints(annotations, drop)
    lengths = check_masks(annotations, sizes.of_annotation, decode_all=for_evaluation)
    drop.places(lengths, "masks without a polygon of 3 points or more", lambda n: f"{lengths[n]} coordinates")
    return drop.rest()


class _Drop:
    """Which annotations stay."""

    def __init__(self, annotations: Entries):
        self._annotations = annotations
        self._stays = np.ones(len(annotations), dtype=bool)
        self._dropped = Dropped()

    def where(self, is_wrong: np.ndarray, reason: str, detail: Callable[[int], str]) -> None:
        """Leaves out what is marked in (N,), unless it is left out already."""
        self.places(np.flatnonzero(is_wrong & self._stays).tolist(), reason, detail)

    def places(self, places: Iterable[int], reason: str, detail: Callable[[int], str]) -> None:
        for place in places:
            if self._stays[place]:
                self._stays[place] = False
                self._dropped.add(reason, partial(self._example, place, detail))

    def _example(self, place: int, detail: Callable[[int], str]) -> str:
        return f"annotation {shown(self._annotations.all[place].get('id'))}: {detail(place)}"

    def rest(self) -> list[dict[str, Any]]:
        """What stays; the rest is counted in a warning."""
        self._dropped.warn(self._annotations.source)
        if self._stays.all():
            return list(self._annotations.all)
        return [annotation for annotation, stays in zip(self._annotations.all, self._stays.tolist()) if stays]


def _check_annotation_ids(annotations: Entries) -> None:
    # The minival files of COCO 2014 that everyone uses hold a few annotations twice.
    if "minival" not in annotations.source:
        annotations.check_unique(annotations.check_ids("id", "an annotation's id"))


def _sizes(annotations: Entries, images: Entries) -> _Sizes:
    place_of = {image["id"]: place for place, image in enumerate(images.all)}
    ids = annotations.check_ids("image_id", "the id of an image")
    if ids and place_of and type(ids[0]) is not type(next(iter(place_of))):
        other = shown(next(iter(place_of)))
        annotations.refuse(0, "image_id", f"ids under 'images' are like {other}; let both be numbers, or both be text")
    place = np.fromiter(map(place_of.get, ids, repeat(-1)), dtype=np.int64, count=len(ids))
    sides = [(image.get("width", np.nan), image.get("height", np.nan)) for image in images.all]
    return _Sizes(np.array(sides, dtype=np.float64).reshape(-1, 2), place)


def _check_crowds(annotations: Entries) -> None:
    values = annotations.column("iscrowd")
    if set(map(type, values)) <= {int, type(None)} and set(values) <= {0, 1, None}:
        _remove_none(annotations, "iscrowd", values)
        return
    for place, value in enumerate(values):
        if type(value) in (bool, float) and value in (0, 1):
            annotations.all[place]["iscrowd"] = values[place] = int(value)
    annotations.refuse_first(
        "iscrowd",
        values,
        lambda value: value is None or (type(value) is int and value in (0, 1)),
        "it is 0, or 1 for a region that holds more objects than can be told apart",
    )
    _remove_none(annotations, "iscrowd", values)


def _remove_none(entries: Entries, key: str, values: list[Any]) -> None:
    """Takes a key out where its value is None, as if it were not there."""
    if None in values:
        for entry in entries.all:
            if entry.get(key, 0) is None:
                del entry[key]


def _check_areas(annotations: Entries) -> None:
    areas = annotations.column("area")
    if set(map(type, areas)) <= {float, int}:
        # The sum of finite numbers may overflow; that asks for a closer look, no more.
        with contextlib.suppress(OverflowError):
            if min(areas, default=0) >= 0 and sum(areas) < math.inf:
                return
    annotations.refuse_first(
        "area", areas, lambda area: area is None or is_number(area), "it is a number of square pixels"
    )
    for place, area in enumerate(areas):
        if area is None or not 0 <= area < math.inf:
            annotations.all[place].pop("area", None)


def _check_boxes(annotations: Entries, sizes: np.ndarray, drop: _Drop, for_evaluation: bool) -> None:
    values = annotations.column("bbox")
    is_there = np.array([not for_evaluation or (box is not None and box != []) for box in values], dtype=bool)
    boxes = _numbers_of_boxes(annotations, values, is_there)
    with np.errstate(invalid="ignore"):
        is_wrong = ~(np.abs(boxes) <= MAX_COORDINATE).all(axis=1) | (boxes[:, 2:4] < 0).any(axis=1)
        if not for_evaluation:
            is_wrong |= (boxes[:, 2:4] == 0).any(axis=1)
        is_outside = _is_outside(boxes, sizes)

    def box_of(place: int) -> str:
        return f"bbox {shown(values[place])}"

    sign = "finite" if for_evaluation else "positive, finite"
    drop.where(is_there & is_wrong, f"boxes without a {sign} width and height", box_of)
    drop.where(is_there & is_outside, "boxes wholly outside of their image", box_of)


def _is_outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether no part of a box is inside its image; of a rotated one, no part of the circle around it."""
    if boxes.shape[1] == 5:
        reach = np.hypot(boxes[:, 2], boxes[:, 3])[:, None] / 2
        low, high = boxes[:, :2] - reach, boxes[:, :2] + reach
    else:
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    # An object of size 0 on the border is inside.
    empty = high == low
    return ((low > sizes) | ((low == sizes) & ~empty) | (high < 0) | ((high == 0) & ~empty)).any(axis=1)


def _numbers_of_boxes(annotations: Entries, values: list[Any], is_there: np.ndarray) -> np.ndarray:
    """(N, D) float64; NaN where there is none."""
    boxes = list(compress(values, is_there.tolist()))
    lengths = set(map(len, boxes)) if set(map(type, boxes)) <= {list} else {0}
    are_right = lengths <= set(BOX_LENGTHS) and len(lengths) <= 1
    if not are_right or not set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        _refuse_first_box(annotations, values, is_there)
    result = np.full((len(values), max(lengths, default=4)), np.nan)
    try:
        result[is_there] = np.fromiter(chain.from_iterable(boxes), dtype=np.float64).reshape(-1, result.shape[1])
    except OverflowError:
        _refuse_first_box(annotations, values, is_there)
    return result


def _refuse_first_box(annotations: Entries, values: list[Any], is_there: np.ndarray) -> None:
    """Raises for the first box that is none, or that has another count of numbers than those before it."""
    expected = 0
    for place in np.flatnonzero(is_there).tolist():
        box = values[place]
        if type(box) is not list or len(box) not in BOX_LENGTHS or not all(map(is_number, box)):
            annotations.refuse(place, "bbox", BOX_CURE)
        expected = expected or len(box)
        if len(box) != expected:
            cure = f"others have {expected} numbers; the boxes of a file are all upright or all rotated"
            annotations.refuse(place, "bbox", cure)


def _check_keypoints(annotations: Entries, drop: _Drop) -> None:
    counts = annotations.column("num_keypoints")
    if not set(map(type, counts)) <= {int, type(None)} or min(filter(None, counts), default=0) < 0:
        annotations.refuse_first(
            "num_keypoints",
            counts,
            lambda count: count is None or (is_number(count) and count >= 0),
            "it is a number of keypoints, 0 or more",
        )
    points = annotations.column("keypoints")
    present = [own for own in points if own is not None]
    are_triples = set(map(type, present)) <= {list} and not any(len(own) % 3 for own in present)
    if are_triples and are_within(present, MAX_COORDINATE):
        return
    annotations.refuse_first(
        "keypoints",
        points,
        lambda own: own is None or (type(own) is list and len(own) % 3 == 0 and all(map(is_number, own))),
        "keypoints are [x, y, visibility, x, y, visibility, ...]",
    )
    endless = [place for place, own in enumerate(points) if own and not are_within(zip(own), MAX_COORDINATE)]
    drop.places(
        endless, "objects with keypoints that are not finite", lambda place: f"keypoints {shown(points[place])}"
    )
