"""Datasets in the format of COCO: instance annotations in one json file, semantic maps as one image each.

A loaded dataset is a list of dictionaries, one for each image, in the standard format: ``file_name``, ``height``,
``width``, ``image_id`` and ``annotations``.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from detlab.data.catalog import DatasetCatalog, DatasetDicts, Metadata, MetadataCatalog
from detlab.data.datasets.annotation_file import read_annotations
from detlab.structures.boxes import BoxMode
from detlab.utils.file_io import PathManager, locked, write_json
from detlab.utils.garbage import no_garbage_collection

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
COPIED_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")
BOX_MODES = {4: BoxMode.XYWH_ABS, 5: BoxMode.XYWHA_ABS}
NUM_EXAMPLES = 3


# ------------------------------------------------------------------------------------------------------- from json


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> DatasetDicts:
    """Loads instance annotations (boxes, polygons or RLE masks, keypoints) of a COCO json file.

    Boxes with 5 numbers are taken as rotated ones, (cx, cy, width, height, degrees). Boxes without area or with
    numbers that are not finite, masks whose polygons all have fewer than 3 points, and annotations of images that are
    not listed are left out; each kind is counted in a warning with the first examples.

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
        ValueError: the file contradicts itself (ids that are double, unknown categories, boxes that are no boxes).
    """
    content = read_annotations(json_file)
    if not isinstance(content, dict) or "images" not in content:
        raise ValueError(f"{json_file} is not in COCO format: it should hold 'images', 'annotations' and 'categories'")
    class_index = _describe_categories(content.get("categories", ()), dataset_name, json_file)
    reader = AnnotationReader(json_file, class_index, tuple(extra_annotation_keys or ()))
    images = sorted(content["images"], key=lambda image: image["id"])
    with no_garbage_collection():
        grouped = annotations_by_image(content.get("annotations", ()), images, json_file, reader.dropped)
        dicts = [image_dict(image, image_root, reader.read_all(grouped[image["id"]])) for image in images]
    reader.dropped.warn(json_file)
    logger.info(f"Loaded {len(dicts)} images in COCO format from {json_file}")
    return dicts


def _describe_categories(categories: Sequence[dict], dataset_name: str | None, json_file: str) -> dict[int, int] | None:
    """Category id -> class index; puts the classes into the metadata. None if ids are to be kept."""
    if dataset_name is None:
        return None
    ordered = sorted(categories, key=lambda category: category["id"])
    ids = [category["id"] for category in ordered]
    _refuse_doubles(ids, "categories", json_file)
    class_index = {number: index for index, number in enumerate(ids)}
    metadata = MetadataCatalog.get(dataset_name)
    metadata.set(thing_classes=[category["name"] for category in ordered])
    metadata.set(thing_dataset_id_to_contiguous_id=class_index)
    if ids and "coco" not in dataset_name and ids != list(range(1, len(ids) + 1)):
        logger.warning(
            f"Category ids in {json_file} are not 1..{len(ids)} but between {ids[0]} and {ids[-1]}; "
            f"they become classes 0..{len(ids) - 1} in this order"
        )
    return class_index


def _refuse_doubles(ids: Iterable[Any], of_what: str, json_file: str) -> None:
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} ids of {of_what} in {json_file} occur more than once (such as "
            f"{', '.join(map(str, repeated[:NUM_EXAMPLES]))}); every id must be unique"
        )


def annotations_by_image(
    annotations: Sequence[dict], images: Sequence[dict], json_file: str, dropped: Dropped
) -> dict[int, list[dict]]:
    """Groups annotations by ``image_id`` in the order of the file.

    Raises:
        ValueError: an id occurs twice or is missing.
    """
    _refuse_doubles((image["id"] for image in images), "images", json_file)
    # The minival files of COCO 2014 that everyone uses hold a few annotations twice.
    if "minival" not in json_file:
        missing = next((n for n, annotation in enumerate(annotations) if "id" not in annotation), None)
        if missing is not None:
            raise ValueError(f"annotation number {missing} in {json_file} has no 'id'; every annotation needs one")
        _refuse_doubles((annotation["id"] for annotation in annotations), "annotations", json_file)
    grouped: dict[int, list[dict]] = defaultdict(list)
    for annotation in annotations:
        grouped[annotation["image_id"]].append(annotation)
    for unlisted in grouped.keys() - {image["id"] for image in images}:
        for annotation in grouped.pop(unlisted):
            dropped.add("annotations of images that the file does not list", annotation, f"image {unlisted}")
    return grouped


def image_dict(image: dict, image_root: str, annotations: list[dict]) -> dict[str, Any]:
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": annotations,
    }


class Dropped:
    """Counts what is left out of a dataset, by reason, with the first examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, annotation: dict, detail: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= NUM_EXAMPLES:
            self.examples[reason].append(f"annotation {annotation.get('id')}: {detail}")

    def warn(self, json_file: str) -> None:
        for reason, count in self.counts.items():
            logger.warning(f"Left out {count} {reason} in {json_file} ({'; '.join(self.examples[reason])})")


class AnnotationReader:
    """Turns annotations of a json file into those of the standard format.

    Args:
        json_file: for messages.
        class_index: category id -> class; None keeps the ids.
        extra_keys: what to copy beside the usual.
    """

    def __init__(self, json_file: str, class_index: dict[int, int] | None, extra_keys: tuple[str, ...]):
        self.json_file = json_file
        self.class_index = class_index
        self.keys = COPIED_KEYS + tuple(key for key in extra_keys if key not in COPIED_KEYS)
        self.dropped = Dropped()

    def read_all(self, annotations: list[dict]) -> list[dict[str, Any]]:
        objects = (self.read(annotation) for annotation in annotations)
        return [obj for obj in objects if obj is not None]

    def read(self, annotation: dict) -> dict[str, Any] | None:
        """One object, or None if it has to be left out."""
        if annotation.get("ignore"):
            raise ValueError(
                f"{self._where(annotation)} has 'ignore': {annotation['ignore']!r}, which is not supported; "
                "mark regions that must not count with 'iscrowd': 1, or remove the key"
            )
        obj = {key: annotation[key] for key in self.keys if key in annotation}
        if not self._check_box(annotation) or not self._take_mask(annotation, obj):
            return None
        obj["bbox_mode"] = BOX_MODES[len(annotation["bbox"])]
        if obj.get("keypoints"):
            obj["keypoints"] = _shifted_keypoints(obj["keypoints"], PIXEL_CENTER)
        if self.class_index is not None:
            obj["category_id"] = self._class_of(annotation)
        return obj

    def _where(self, annotation: dict) -> str:
        return f"annotation {annotation.get('id')} of image {annotation['image_id']} in {self.json_file}"

    def _check_box(self, annotation: dict) -> bool:
        """Whether the box has a positive, finite area."""
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) not in BOX_MODES:
            raise ValueError(
                f"{self._where(annotation)} has 'bbox': {box!r}; a box is [x, y, width, height] "
                "or [cx, cy, width, height, degrees]"
            )
        if box[2] > 0 and box[3] > 0 and all(map(math.isfinite, box)):
            return True
        self.dropped.add("boxes without a positive, finite width and height", annotation, f"bbox {box}")
        return False

    def _take_mask(self, annotation: dict, obj: dict[str, Any]) -> bool:
        """Puts the mask into ``obj``; False if there is one and none of it is valid."""
        mask = annotation.get("segmentation")
        if not mask:
            return True
        if isinstance(mask, dict):
            obj["segmentation"] = _compressed_rle(mask)
            return True
        polygons = [points for points in mask if len(points) >= 6 and len(points) % 2 == 0]
        if not polygons:
            lengths = [len(points) for points in mask]
            self.dropped.add("masks without a polygon of 3 points or more", annotation, f"{lengths} coordinates")
            return False
        obj["segmentation"] = polygons
        return True

    def _class_of(self, annotation: dict) -> int:
        assert self.class_index is not None
        try:
            return self.class_index[annotation["category_id"]]
        except KeyError:
            raise ValueError(
                f"{self._where(annotation)} has category_id {annotation.get('category_id')!r}, which is not among the "
                f"{len(self.class_index)} categories of the file"
            ) from None


def _compressed_rle(mask: dict[str, Any]) -> dict[str, Any]:
    """A run-length encoding whose ``counts`` are a text or bytes, from one where they may be numbers."""
    if not isinstance(mask.get("counts"), list):
        return mask
    from pycocotools import mask as coco_mask

    return coco_mask.frPyObjects(mask, *mask["size"])


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
    one, of the box. Images without an ``image_id`` are numbered, annotations are numbered from 1.
    """
    dicts = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    original_id = _original_ids(metadata)
    names = metadata.get("thing_classes", [])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(dicts):
        image_id = image.get("image_id", number)
        file_name = str(image["file_name"])
        images.append({"id": image_id, "width": image["width"], "height": image["height"], "file_name": file_name})
        for obj in image.get("annotations", ()):
            written = _written_annotation(obj, original_id)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **written})
    logger.info(f"Converted {dataset_name!r} to COCO format: {len(images)} images, {len(annotations)} annotations")
    return {
        "info": {"description": f"{dataset_name}, converted to COCO format by detlab"},
        "licenses": None,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": original_id(index), "name": name} for index, name in enumerate(names)],
    }


def _original_ids(metadata: Metadata) -> Callable[[int], int]:
    """Class index -> the id in the dataset's files."""
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if not mapping:
        return lambda index: index
    reverse = {index: number for number, index in mapping.items()}
    return reverse.__getitem__


def _written_annotation(obj: dict[str, Any], original_id: Callable[[int], int]) -> dict[str, Any]:
    box = [float(value) for value in obj["bbox"]]
    mode = BoxMode.XYWHA_ABS if len(box) == 5 else BoxMode.XYWH_ABS
    box = BoxMode.convert(box, obj["bbox_mode"], mode)
    written = {
        "bbox": [round(value, 3) for value in box],
        "area": _mask_area(obj["segmentation"]) if obj.get("segmentation") else float(box[2] * box[3]),
        "iscrowd": int(obj.get("iscrowd", 0)),
        "category_id": int(original_id(obj["category_id"])),
    }
    if obj.get("keypoints"):
        written["keypoints"] = _shifted_keypoints([float(value) for value in obj["keypoints"]], -PIXEL_CENTER)
        written["num_keypoints"] = sum(visibility > 0 for visibility in obj["keypoints"][2::3])
    if obj.get("segmentation"):
        written["segmentation"] = _written_mask(obj["segmentation"])
    return written


def _mask_area(mask: Any) -> float:
    """In square pixels; polygons count by the shoelace formula, overlaps among them twice."""
    if isinstance(mask, dict):
        from pycocotools import mask as coco_mask

        return float(coco_mask.area(_compressed_rle(mask)))
    return float(sum(_polygon_area(polygon) for polygon in mask))


def _polygon_area(points: Sequence[float]) -> float:
    """Of x, y, x, y, ...; the shoelace formula."""
    x, y = list(points[0::2]), list(points[1::2])
    following = zip([*x[1:], x[0]], [*y[1:], y[0]])
    return abs(float(sum(x0 * y1 - x1 * y0 for x0, y0, (x1, y1) in zip(x, y, following)))) / 2


def _written_mask(mask: Any) -> Any:
    if isinstance(mask, dict):
        counts = mask["counts"]
        return {**mask, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return [[float(value) for value in polygon] for polygon in mask]


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Writes a registered dataset as a COCO json file; concurrent processes write it once.

    Args:
        dataset_name: what to write.
        output_file: a local path. The file appears whole or not at all.
        allow_cached: leave a file that is there already as it is.
    """
    with locked(output_file):
        if allow_cached and os.path.exists(output_file):
            logger.warning(f"Using {output_file} as it is; delete it if the dataset {dataset_name!r} has changed since")
            return
        write_json(output_file, convert_to_coco_dict(dataset_name))
