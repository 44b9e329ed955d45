"""Panoptic datasets in the format of COCO: one json file, and one PNG for each image whose colours are segment ids."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.datasets.annotation_file import read_annotations
from detlab.data.datasets.coco import load_coco_json, load_sem_seg, prepared
from detlab.data.datasets.entries import Entries
from detlab.utils.file_io import PathManager

__all__ = [
    "load_coco_panoptic_json",
    "merge_to_panoptic",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
]

logger = logging.getLogger(__name__)

IGNORED_LABEL = 255
IMAGE_ID = re.compile(r"-?[0-9]{1,18}")
# Panoptic predictions encode class * LABEL_DIVISOR + number of the object within the class.
LABEL_DIVISOR = 1000


def load_coco_panoptic_json(json_file: str, image_dir: str, gt_dir: str, meta: Mapping[str, Any]) -> DatasetDicts:
    """Loads panoptic annotations.

    Args:
        json_file: path of the annotations.
        image_dir: folder of the images, ``*.jpg`` named as the PNG files.
        gt_dir: folder of the PNG files.
        meta: ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``; together they cover all
            categories of the file.

    Returns:
        For each image ``file_name``, ``image_id``, ``pan_seg_file_name`` and ``segments_info``: a list of dictionaries
        with ``id``, ``category_id`` (a class index), ``isthing``, ``iscrowd`` and whatever the file says beside.

    Raises:
        FileNotFoundError: an image or PNG of the first entry is missing.
        ValueError: the file is not in this format, or a segment is of a category that ``meta`` does not know; the
            message names the file.
    """
    entries = read_panoptic_entries(json_file)
    ids = entries.column("image_id")
    entries.refuse_first(
        "image_id", ids, lambda image_id: IMAGE_ID.fullmatch(str(image_id)) is not None, "it is a number below 10**18"
    )
    dicts = [_panoptic_dict(entry, image_dir, gt_dir, meta, json_file) for entry in entries.all]
    if dicts:
        for path in (dicts[0]["file_name"], dicts[0]["pan_seg_file_name"]):
            if not PathManager.isfile(path):
                raise FileNotFoundError(f"{path}, the first that {json_file} names, does not exist")
    logger.info(f"Loaded {len(dicts)} images with panoptic segments from {json_file}")
    return dicts


def read_panoptic_entries(json_file: str) -> Entries:
    """The annotations of a panoptic json file, one for each image, with ``image_id``, ``file_name``, ``segments_info``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in COCO's panoptic format; the message names the file, the entry and the value.
    """
    return checked_panoptic_entries(read_annotations(json_file), json_file)


def checked_panoptic_entries(content: Any, source: str) -> Entries:
    """As :func:`read_panoptic_entries`, of what a file holds.

    Args:
        source: the file, for messages.
    """
    if not isinstance(content, dict) or "annotations" not in content:
        raise ValueError(f"{source} is not in COCO's panoptic format: it should be an object with 'annotations'")
    entries = Entries(content["annotations"], "annotation", source, "annotations")
    entries.check_ids("image_id", "the id of an image")
    entries.check_text("file_name", "the name of a PNG file")
    lists = entries.check_types("segments_info", (list,), "it is a list of segments")
    segments = Entries(list(itertools.chain.from_iterable(lists)), "segment", source)
    segments.check_ids("id", "the id of a segment")
    segments.check_ids("category_id", "the id of a category")
    return entries


def _panoptic_dict(
    entry: dict[str, Any], image_dir: str, gt_dir: str, meta: Mapping[str, Any], json_file: str
) -> dict[str, Any]:
    stem = os.path.splitext(entry["file_name"])[0]
    return {
        "file_name": os.path.join(image_dir, f"{stem}.jpg"),
        "image_id": int(entry["image_id"]),
        "pan_seg_file_name": os.path.join(gt_dir, entry["file_name"]),
        "segments_info": [_segment(info, meta, json_file) for info in entry["segments_info"]],
    }


def _segment(info: dict[str, Any], meta: Mapping[str, Any], json_file: str) -> dict[str, Any]:
    category = info["category_id"]
    things = meta["thing_dataset_id_to_contiguous_id"]
    if category in things:
        return {**info, "category_id": things[category], "isthing": True}
    stuff = meta["stuff_dataset_id_to_contiguous_id"]
    if category not in stuff:
        raise ValueError(f"segment {info['id']} in {json_file} has category_id {category}, which is unknown")
    return {**info, "category_id": stuff[category], "isthing": False}


def merge_to_panoptic(detection_dicts: DatasetDicts, sem_seg_dicts: DatasetDicts) -> DatasetDicts:
    """Joins two lists on ``file_name``: objects from the first, ``sem_seg_file_name`` from the second.

    Returns:
        One dictionary for each of ``detection_dicts``, in their order.

    Raises:
        ValueError: one of the lists is empty, or an image has no semantic map.
    """
    maps = {entry["file_name"]: entry for entry in sem_seg_dicts}
    if not maps or not detection_dicts:
        raise ValueError(f"{len(detection_dicts)} images with objects and {len(maps)} semantic maps cannot be joined")
    alone = [entry["file_name"] for entry in detection_dicts if entry["file_name"] not in maps]
    if alone:
        raise ValueError(f"{len(alone)} images have objects but no semantic map, such as {alone[0]}")
    return [{**entry, **maps[entry["file_name"]]} for entry in detection_dicts]


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Registers a dataset whose annotation of an image is one panoptic map ("standard" form).

    Args:
        name: the new dataset's.
        metadata: classes and their ids, as :func:`load_coco_panoptic_json` needs.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files.
        panoptic_json: path of the annotations.
        instances_json: annotations of the things alone, for the instance evaluator.
        prepare: called each time before the files are read, to make or fetch them.
    """

    def load() -> DatasetDicts:
        return load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata)

    DatasetCatalog.register(name, prepared(prepare, load))
    MetadataCatalog.get(name).set(
        **_locations(image_root, panoptic_root, panoptic_json, instances_json),
        evaluator_type="coco_panoptic_seg",
        **metadata,
    )


def _locations(image_root: str, panoptic_root: str, panoptic_json: str, instances_json: str | None) -> dict[str, Any]:
    return {
        "image_root": image_root,
        "panoptic_root": panoptic_root,
        "panoptic_json": panoptic_json,
        "json_file": instances_json,
        "ignore_label": IGNORED_LABEL,
        "label_divisor": LABEL_DIVISOR,
    }


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Registers a panoptic dataset as two annotations of an image: objects, and a semantic map where things are 0.

    Two names come of it: ``<name>_separated``, with both, and ``<name>_stuffonly``, with the map alone.

    Args:
        name: what the two names begin with.
        metadata: things, stuff and their ids.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNG files; evaluation compares with these.
        panoptic_json: path of the panoptic annotations.
        sem_seg_root: folder of the semantic maps.
        instances_json: path of the objects' annotations.
        prepare: called each time before the files are read, to make or fetch them.
    """
    separated, stuff_only = f"{name}_separated", f"{name}_stuffonly"

    def load_maps() -> DatasetDicts:
        return load_sem_seg(sem_seg_root, image_root)

    def load_both() -> DatasetDicts:
        return merge_to_panoptic(load_coco_json(instances_json, image_root, separated), load_maps())

    DatasetCatalog.register(separated, prepared(prepare, load_both))
    MetadataCatalog.get(separated).set(
        **_locations(image_root, panoptic_root, panoptic_json, instances_json),
        sem_seg_root=sem_seg_root,
        evaluator_type="coco_panoptic_seg",
        **metadata,
    )
    DatasetCatalog.register(stuff_only, prepared(prepare, load_maps))
    MetadataCatalog.get(stuff_only).set(
        sem_seg_root=sem_seg_root,
        image_root=image_root,
        evaluator_type="sem_seg",
        ignore_label=IGNORED_LABEL,
        **metadata,
    )
