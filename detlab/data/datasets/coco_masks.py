"""The masks of annotations in COCO format: polygons or run lengths, checked without drawing them.

Shapes: N annotations.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np

from detlab.data.datasets.entries import Entries, are_within, is_number
from detlab.utils.mask_codes import MAX_COORDINATE, MAX_CORNERS, check_corners, checked_rle, find_bad_code

__all__ = ["check_masks"]

FEWEST_VALUES = 6  # x and y of three points
# The drawing of polygons counts pixels in 32 bits.
MOST_PIXELS = 2**32
CURE = (
    "a mask is a list of polygons [[x0, y0, x1, y1, ...], ...], or run lengths {'size': [height, width], 'counts': ...}"
)


def check_masks(annotations: Entries, sizes: np.ndarray, decode_all: bool) -> dict[int, list[int]]:
    """Looks at ``segmentation``, takes polygons out of it that enclose nothing, and compresses lists of run lengths.

    Args:
        annotations: N, changed.
        sizes: (N, 2) width and height of their images; NaN where they are unknown.
        decode_all: add up compressed run lengths too, which takes longer than reading their file. Where it is not
            done, their size is compared and their text looked through, and whoever decodes them has to add up.

    Returns:
        Annotations none of whose polygons encloses anything: their place, and how many coordinates each polygon has.

    Raises:
        ValueError: one is no mask; run lengths are not of the image's size or do not fill it; polygons have more
            corners than are drawn; or an image is too large for masks.
    """
    masks = annotations.check_types("segmentation", (list, dict), CURE, optional=True)
    for place in np.flatnonzero(sizes.prod(axis=1) >= MOST_PIXELS).tolist():
        if masks[place]:
            width, height = sizes[place].astype(int).tolist()
            cure = f"its image is {width} by {height} pixels, too many for masks; cut it into tiles"
            annotations.refuse(place, "segmentation", cure)
    _check_run_lengths(annotations, masks, sizes, decode_all)
    _check_corners(annotations, masks)
    if _are_sound(list(chain.from_iterable(mask for mask in masks if type(mask) is list))):
        return {}
    unsound = [n for n, mask in enumerate(masks) if type(mask) is list and not _are_sound(mask)]
    return {n: list(map(len, masks[n])) for n in unsound if not _sifted(annotations, n, masks[n])}


def _check_run_lengths(annotations: Entries, masks: list[Any], sizes: np.ndarray, decode_all: bool) -> None:
    texts: dict[int, str] = {}
    for place, mask in enumerate(masks):
        if type(mask) is not dict or not mask:
            continue
        width, height = sizes[place].tolist()
        size_hw = None if math.isnan(width) or math.isnan(height) else (int(height), int(width))
        if not decode_all and isinstance(mask.get("counts"), str) and mask.get("size") == list(size_hw or ()):
            texts[place] = mask["counts"]
        else:
            annotations.all[place]["segmentation"] = checked_rle(mask, size_hw, _where(annotations, place))
    bad = find_bad_code(list(texts.values()))
    if bad is not None:
        place = list(texts)[bad]
        checked_rle(masks[place], where=_where(annotations, place))


def _where(annotations: Entries, place: int) -> str:
    return f"the mask of {annotations.name_of(place)} in {annotations.source}"


def _check_corners(annotations: Entries, masks: list[Any]) -> None:
    listed = [place for place, mask in enumerate(masks) if type(mask) is list and mask]
    polygons = [polygon for place in listed for polygon in masks[place]]
    lengths = np.fromiter((len(p) if type(p) is list else 0 for p in polygons), dtype=np.int64, count=len(polygons))
    if lengths.sum() <= 2 * MAX_CORNERS:
        return
    starts = np.cumsum([0, *(len(masks[place]) for place in listed[:-1])])
    counts = np.add.reduceat(lengths, starts) // 2
    for n in np.flatnonzero(counts > MAX_CORNERS).tolist():
        check_corners(int(counts[n]), _where(annotations, listed[n]))


def _sifted(annotations: Entries, place: int, mask: list[Any]) -> list[list[float]]:
    """The polygons that enclose something, which alone stay in the annotation."""
    if all(map(is_number, mask)):
        annotations.refuse(place, "segmentation", "one polygon is a list in a list: [[x0, y0, x1, y1, ...]]")
    if not all(type(polygon) is list and all(map(is_number, polygon)) for polygon in mask):
        annotations.refuse(place, "segmentation", CURE)
    kept = [polygon for polygon in mask if _is_sound(polygon)]
    annotations.all[place]["segmentation"] = kept
    return kept


def _are_sound(polygons: list[Any]) -> bool:
    """Whether all are lists of the coordinates of 3 points or more; False also where a closer look is needed."""
    if not set(map(type, polygons)) <= {list}:
        return False
    lengths = set(map(len, polygons))
    is_right_length = min(lengths, default=FEWEST_VALUES) >= FEWEST_VALUES and not any(n % 2 for n in lengths)
    return is_right_length and are_within(polygons, MAX_COORDINATE)


def _is_sound(polygon: list[float]) -> bool:
    return len(polygon) >= FEWEST_VALUES and len(polygon) % 2 == 0 and are_within(zip(polygon), MAX_COORDINATE)
