"""Datasets in the format of COCO: instance annotations in one json file, semantic maps as one image each.

A loaded dataset is a list of dictionaries, one for each image, in the standard format: ``file_name``, ``height``,
``width``, ``image_id`` and ``annotations``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from detlab.data.catalog import DatasetCatalog, DatasetDicts, Metadata, MetadataCatalog
from detlab.data.datasets.coco_format import CocoContent, class_indices, read_coco
from detlab.data.datasets.entries import Entries, shown
from detlab.data.datasets.standard_format import check_standard_format
from detlab.structures.boxes import BoxMode
from detlab.utils.file_io import PathManager, json_bytes, locked, write_atomically
from detlab.utils.garbage import no_garbage_collection
from detlab.utils.mask_codes import checked_rle, encode_bitmap, rle_area

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "load_sem_seg",
    "register_coco_instances",
]

logger = logging.getLogger(__name__)

# A keypoint in a file names a pixel; here coordinates are continuous, and the pixel's centre is meant.
PIXEL_CENTER = 0.5
COPIED_KEYS = ("iscrowd", "bbox", "keypoints", "category_id", "segmentation")
BOX_MODES = {4: BoxMode.XYWH_ABS, 5: BoxMode.XYWHA_ABS}
# Where a written file has the digest of what it was made from: its beginning is enough to find it.
LENGTH_OF_HEAD = 4096


# ------------------------------------------------------------------------------------------------------- from json


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> DatasetDicts:
    """Loads instance annotations (boxes, polygons or RLE masks, keypoints) of a COCO json file.

    Boxes with 5 numbers are taken as rotated ones, (cx, cy, width, height, degrees). What is left out and what is
    refused, :func:`~detlab.data.datasets.coco_format.checked_coco` says; it is the same in evaluation, but for boxes of
    width or height 0, which are left out here.

    Args:
        json_file: path of the annotations.
        image_root: the folder that ``file_name`` of the images is relative to.
        dataset_name: if given, ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of this dataset's metadata
            are set from the file, and ``category_id`` in the result counts the categories from 0 in the order of their
            ids. Without it, ``category_id`` stays as in the file.
        extra_annotation_keys: further keys of an annotation to keep, such as ``score`` or ``track_id``.

    Returns:
        Images in the order of their ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not in COCO format or contradicts itself (ids that are double, unknown categories, boxes
            that are no boxes); the message names the file, the image or annotation, and the value.
    """
    content = read_coco(json_file)
    classes = None if dataset_name is None else _describe_categories(content, dataset_name)
    content.require("images", "file_name", "it is the path of the file, relative to the folder of the images")
    with no_garbage_collection():
        objects = standard_annotations(content, classes, extra_annotation_keys or ())
        images = sorted(content.images, key=itemgetter("id"))
        dicts = [image_dict(image, os.path.join(image_root, image["file_name"]), objects) for image in images]
    logger.info(f"Loaded {len(dicts)} images in COCO format from {json_file}")
    return dicts


def _describe_categories(content: CocoContent, dataset_name: str) -> dict[Any, int]:
    """Category id -> class index; puts the classes into the metadata."""
    content.require("categories", "name", "name the class")
    classes = class_indices(content)
    names = {category["id"]: category["name"] for category in content.categories}
    metadata = MetadataCatalog.get(dataset_name)
    metadata.set(thing_classes=[names[number] for number in classes])
    metadata.set(thing_dataset_id_to_contiguous_id=classes)
    ids = list(classes)
    if ids and "coco" not in dataset_name and ids != list(range(1, len(ids) + 1)):
        logger.warning(
            f"Category ids in {content.source} are not 1..{len(ids)} but between {ids[0]} and {ids[-1]}; "
            f"they become classes 0..{len(ids) - 1} in this order"
        )
    return classes


def image_dict(image: dict[str, Any], file_name: str, objects: dict[Any, list[dict]]) -> dict[str, Any]:
    """An image in the standard format, with the objects that :func:`standard_annotations` has for it."""
    return {
        "file_name": file_name,
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": objects.get(image["id"], []),
    }


def standard_annotations(
    content: CocoContent, classes: dict[Any, int] | None, extra_keys: Iterable[str]
) -> dict[Any, list[dict[str, Any]]]:
    """The objects of each image that has any, in the standard format and in the order of the file.

    Args:
        content: of which images have ``height`` and ``width``.
        classes: category id -> class; None keeps the ids.
        extra_keys: what to copy beside the usual.

    Raises:
        ValueError: an annotation has a true ``ignore``; or an image lacks its size.
    """
    for side in ("height", "width"):
        content.require("images", side, "its size in pixels is needed")
    annotations = content.annotations or []
    _refuse_ignored(annotations, content.source)
    keys = tuple(dict.fromkeys((*COPIED_KEYS, *extra_keys)))
    box_mode = BOX_MODES[len(annotations[0]["bbox"])] if annotations else None
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        obj = {key: annotation[key] for key in keys if key in annotation}
        obj["bbox_mode"] = box_mode
        if not obj.get("segmentation", True):
            del obj["segmentation"]
        if obj.get("keypoints", ()) is None:
            del obj["keypoints"]
        elif obj.get("keypoints"):
            obj["keypoints"] = _shifted_keypoints(obj["keypoints"], PIXEL_CENTER)
        if classes is not None:
            obj["category_id"] = classes[annotation["category_id"]]
        by_image[annotation["image_id"]].append(obj)
    return by_image


def _refuse_ignored(annotations: list[dict[str, Any]], source: str) -> None:
    place = next((place for place, annotation in enumerate(annotations) if annotation.get("ignore")), None)
    if place is not None:
        Entries(annotations, "annotation", source).refuse(
            place,
            "ignore",
            "that is not supported: mark regions that must not count with 'iscrowd': 1, or remove the key",
        )


def _shifted_keypoints(keypoints: Sequence[float], shift: float) -> list[float]:
    """(x, y, visibility) triples in one list, moved by ``shift`` pixels in both directions."""
    return [value if place % 3 == 2 else value + shift for place, value in enumerate(keypoints)]


def prepared(prepare: Callable[[], None] | None, load: Callable[[], DatasetDicts]) -> Callable[[], DatasetDicts]:
    """A loader that first calls ``prepare``, if there is one."""

    def load_prepared() -> DatasetDicts:
        if prepare is not None:
            prepare()
        return load()

    return load_prepared


def register_coco_instances(
    name: str,
    metadata: dict[str, Any],
    json_file: str,
    image_root: str,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Registers a dataset in COCO's instance or keypoint format; no file is touched before it is used.

    Args:
        name: the new dataset's.
        metadata: further facts to keep about it, such as ``thing_colors`` or ``keypoint_names``.
        json_file: path of the annotations.
        image_root: the folder of the images.
        prepare: called each time before the files are read, to make or fetch them.
    """
    if not isinstance(name, str):
        raise TypeError(f"a dataset's name is a string, got {name!r}")
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, prepared(prepare, lambda: load_coco_json(json_file, image_root, name)))
    facts = {"json_file": json_file, "image_root": image_root, "evaluator_type": "coco"}
    MetadataCatalog.get(name).set(**{**facts, **metadata})


# --------------------------------------------------------------------------------------------------- semantic maps


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> DatasetDicts:
    """Pairs images with semantic maps of the same name in another folder.

    Args:
        gt_root: folder of the maps; a pixel's value is its class, 255 stands for "not labelled".
        image_root: folder of the images.
        gt_ext: how names of maps end.
        image_ext: how names of images end.

    Returns:
        A dictionary with ``file_name`` and ``sem_seg_file_name`` for each pair, in the order of names. Names that one
        folder has alone are counted in a warning.

    Raises:
        FileNotFoundError: a folder is missing, or holds no such file.
    """
    images = _files_by_stem(image_root, image_ext)
    maps = _files_by_stem(gt_root, gt_ext)
    common = sorted(images.keys() & maps.keys())
    if not common:
        raise FileNotFoundError(f"no *.{image_ext} in {image_root} has a *.{gt_ext} of the same name in {gt_root}")
    if len(images) != len(common) or len(maps) != len(common):
        logger.warning(
            f"Left out {len(images) - len(common)} images of {image_root} without a map, and "
            f"{len(maps) - len(common)} maps of {gt_root} without an image"
        )
    logger.info(f"Loaded {len(common)} images with semantic maps from {image_root}")
    return [{"file_name": images[stem], "sem_seg_file_name": maps[stem]} for stem in common]


def _files_by_stem(folder: str, ending: str) -> dict[str, str]:
    """Paths of a folder's files that end so, by their names without the ending."""
    if not PathManager.isdir(folder):
        raise FileNotFoundError(f"the folder {folder} does not exist")
    ending = ending if ending.startswith((".", "_")) else f".{ending}"
    names = [name for name in PathManager.ls(folder) if name.endswith(ending)]
    return {name[: -len(ending)]: os.path.join(folder, name) for name in names}


# --------------------------------------------------------------------------------------------------------- to json


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered dataset as the content of a COCO json file.

    Classes get the ids that the metadata's ``thing_dataset_id_to_contiguous_id`` maps from, or else their indices.
    Boxes are rounded to 3 decimals; rotated ones keep 5 numbers. A missing ``area`` is that of the mask or, without
    one, of the box. Images without an ``image_id`` are numbered, annotations are numbered from 1. ``info`` has a
    ``fingerprint`` of all the rest.

    Raises:
        ValueError: an image has no ``file_name``, ``width`` or ``height``; or an annotation is not in the standard
            format.
    """
    dicts = list(DatasetCatalog.get(dataset_name))
    check_standard_format(dicts, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    original_id = _original_ids(metadata)
    names = metadata.get("thing_classes", [])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(dicts):
        image_id = _plain(image.get("image_id", number))
        images.append({"id": image_id, **_written_image(image, dataset_name)})
        for obj in image.get("annotations", ()):
            written = _written_annotation(obj, original_id)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **written})
    logger.info(f"Converted {dataset_name!r} to COCO format: {len(images)} images, {len(annotations)} annotations")
    content = {
        "licenses": None,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": original_id(index), "name": name} for index, name in enumerate(names)],
    }
    description = f"{dataset_name}, converted to COCO format by detlab"
    return {"info": {"fingerprint": _fingerprint(content), "description": description}, **content}


def _fingerprint(content: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes(content)).hexdigest()


def _plain(number: Any) -> Any:
    """A number of numpy as one of Python's, which json can hold; the rest as it is."""
    return number.item() if isinstance(number, (np.generic, np.ndarray)) else number


def _written_image(image: dict[str, Any], dataset_name: str) -> dict[str, Any]:
    for key in ("file_name", "width", "height"):
        if image.get(key) is None:
            raise ValueError(
                f"an image of dataset {dataset_name!r} has no {key!r}, which COCO format needs; it has {shown(image)}"
            )
    return {"width": int(image["width"]), "height": int(image["height"]), "file_name": str(image["file_name"])}


def _original_ids(metadata: Metadata) -> Callable[[int], int]:
    """Class index -> the id in the dataset's files."""
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if not mapping:
        return lambda index: index
    reverse = {index: number for number, index in mapping.items()}

    def original_id(index: int) -> int:
        if index not in reverse:
            raise ValueError(
                f"an annotation of dataset {metadata.name!r} has category_id {index}, but its classes are 0 to "
                f"{max(reverse)}"
            )
        return reverse[index]

    return original_id


def _written_annotation(obj: dict[str, Any], original_id: Callable[[int], int]) -> dict[str, Any]:
    if obj.get("bbox") is None:
        raise ValueError(f"an annotation has no 'bbox', which COCO format needs; it has {shown(obj)}")
    box = [float(value) for value in obj["bbox"]]
    mode = BoxMode.XYWHA_ABS if len(box) == 5 else BoxMode.XYWH_ABS
    box = BoxMode.convert(box, obj["bbox_mode"], mode)
    mask = obj.get("segmentation")
    if isinstance(mask, np.ndarray):
        mask = encode_bitmap(mask)
    written = {
        "bbox": [round(value, 3) for value in box],
        "area": _mask_area(mask) if mask else float(box[2] * box[3]),
        "iscrowd": int(obj.get("iscrowd", 0)),
        "category_id": int(original_id(obj["category_id"])),
    }
    if obj.get("keypoints") is not None and len(obj["keypoints"]):
        keypoints = [float(value) for value in obj["keypoints"]]
        written["keypoints"] = _shifted_keypoints(keypoints, -PIXEL_CENTER)
        written["num_keypoints"] = sum(visibility > 0 for visibility in keypoints[2::3])
    if mask:
        written["segmentation"] = _written_mask(mask)
    return written


def _mask_area(mask: Any) -> float:
    """In square pixels; polygons count by the shoelace formula, overlaps among them twice."""
    if isinstance(mask, dict):
        return float(rle_area(mask))
    return float(sum(_polygon_area(polygon) for polygon in mask))


def _polygon_area(points: Sequence[float]) -> float:
    """Of x, y, x, y, ...; the shoelace formula."""
    x, y = list(points[0::2]), list(points[1::2])
    following = zip([*x[1:], x[0]], [*y[1:], y[0]])
    return abs(float(sum(x0 * y1 - x1 * y0 for x0, y0, (x1, y1) in zip(x, y, following)))) / 2


def _written_mask(mask: Any) -> Any:
    if isinstance(mask, dict):
        code = checked_rle(mask)
        counts = code["counts"]
        size = [int(side) for side in code["size"]]
        return {**code, "size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return [[float(value) for value in polygon] for polygon in mask]


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Writes a registered dataset as a COCO json file; concurrent processes write it once.

    Args:
        dataset_name: what to write.
        output_file: a local path. The file appears whole or not at all.
        allow_cached: leave a file that is there already as it is, if it holds, byte for byte, what would be written.
            Any other is replaced, with a warning: one that was made of other images, annotations or classes, that is
            cut off, or that was changed since.
    """
    with locked(output_file):
        content = convert_to_coco_dict(dataset_name)
        data = json_bytes(content)
        if allow_cached and os.path.isfile(output_file):
            difference = _difference_of_file(output_file, data, content["info"]["fingerprint"])
            if difference is None:
                logger.info(f"{output_file} is what {dataset_name!r} would be converted to, and stays as it is")
                return
            logger.warning(f"{output_file} {difference} {dataset_name!r} has now; it is replaced")
        with write_atomically(output_file) as stream:
            stream.write(data)


def _difference_of_file(path: str, data: bytes, fingerprint: str) -> str | None:
    """What is to be said of a file that does not hold ``data``; None if it does."""
    with open(path, "rb") as stream:
        written = stream.read(len(data) + 1)
    if written == data:
        return None
    if fingerprint.encode("ascii") not in written[:LENGTH_OF_HEAD]:
        return "was made of other annotations than"
    return "is cut off, or was changed after it had been made of the annotations that"
