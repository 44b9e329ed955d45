"""The standard format, as functions of users' own give it: what everything that takes datasets relies on."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from itertools import chain
from numbers import Real
from typing import Any

from detlab.data.datasets.entries import Entries, shown

__all__ = ["check_standard_format"]

BOX_LENGTHS = (4, 5)


def check_standard_format(dataset_dicts: Any, dataset_name: str) -> None:
    """Looks over a loaded dataset before it is counted and filtered; values that need the image are not looked at.

    Args:
        dataset_dicts: what the dataset's function returned, a list or another collection.
        dataset_name: for messages.

    Raises:
        ValueError: it is no list of dictionaries; ``annotations`` of an image are not; or an annotation has a
            ``category_id`` that is missing or no whole number, a ``bbox`` without ``bbox_mode`` or of other than 4 or 5
            numbers, or an ``iscrowd`` that is not 0 or 1. The message names the dataset, the image and the value.
    """
    source = f"dataset {dataset_name!r}"
    is_collection = isinstance(dataset_dicts, Collection) and not isinstance(dataset_dicts, (str, Mapping))
    images = Entries(list(dataset_dicts) if is_collection else dataset_dicts, "image", source)
    listed = [own for own in images.column("annotations") if own is not None]
    if set(map(type, listed)) <= {list} and _are_right(list(chain.from_iterable(listed))):
        return
    for image in images.all:
        if image.get("annotations") is not None:
            _check_annotations(image["annotations"], f"image {_name_of(image)} of {source}")


def _name_of(image: dict[str, Any]) -> str:
    return shown(image.get("file_name", image.get("image_id", image)))


def _are_right(objects: list[Any]) -> bool:
    """Whether nothing is odd; a False asks for a closer look."""
    if not set(map(type, objects)) <= {dict}:
        return False
    entries = Entries(objects, "annotation", "")
    boxes = entries.column("bbox")
    if not set(map(type, boxes)) <= {list} or not set(map(len, boxes)) <= set(BOX_LENGTHS):
        return False
    crowds = entries.column("iscrowd")
    return (
        set(map(type, entries.column("category_id"))) <= {int}
        and set(map(type, chain.from_iterable(boxes))) <= {int, float}
        and None not in entries.column("bbox_mode")
        and set(map(type, crowds)) <= {int, type(None)}
        and set(crowds) <= {0, 1, None}
        and (None not in crowds or not any(obj.get("iscrowd", 0) is None for obj in objects))
    )


def _check_annotations(objects: Any, of_image: str) -> None:
    entries = Entries(objects, "annotation", of_image)
    for place, obj in enumerate(entries.all):
        if not _is_index(obj.get("category_id")):
            entries.refuse(place, "category_id", "it is the index of the object's class, a whole number")
        if obj.get("iscrowd", 0) not in (0, 1):
            entries.refuse(place, "iscrowd", "it is 0, or 1 for a region with many objects")
        if obj.get("bbox") is not None:
            _check_box(entries, place, obj)


def _is_index(value: Any) -> bool:
    """Whether it is a whole number of Python's, numpy's or torch's."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _check_box(entries: Entries, place: int, obj: dict[str, Any]) -> None:
    box = obj["bbox"]
    values = box.tolist() if hasattr(box, "tolist") else box
    is_box = isinstance(values, (list, tuple)) and len(values) in BOX_LENGTHS
    if not is_box or not all(isinstance(value, Real) for value in values):
        entries.refuse(place, "bbox", "a box is 4 numbers, or 5 if it is rotated")
    if "bbox_mode" not in obj:
        entries.refuse(place, "bbox_mode", "say what the numbers of 'bbox' mean, such as BoxMode.XYXY_ABS")
