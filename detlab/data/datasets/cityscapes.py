"""Cityscapes: images and annotations in one folder for each city, named ``<city>_<sequence>_<frame>_<kind>``."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from detlab.data.catalog import DatasetDicts
from detlab.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detlab.data.datasets.entries import Entries, are_within
from detlab.structures.boxes import BoxMode
from detlab.utils import comm
from detlab.utils.file_io import PathManager, read_json
from detlab.utils.image import read_image
from detlab.utils.mask_codes import MAX_COORDINATE, encode_bitmap
from detlab.utils.optional import require

__all__ = ["IMAGE_SUFFIX", "image_files", "load_cityscapes_instances", "load_cityscapes_semantic"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIX = "_leftImg8bit.png"
IMAGE_SIZE = {"height": 1024, "width": 2048}
THINGS = [category for category in CITYSCAPES_CATEGORIES if category["isthing"]]
CLASS_OF_NAME = {category["name"]: index for index, category in enumerate(THINGS)}
CLASS_OF_ID = {category["id"]: index for index, category in enumerate(THINGS)}
# The only label that is not drawn into the label images, so it hides nothing.
UNDRAWN_LABEL = "license plate"
# Ids of objects are class * 1000 + number; a class's id alone marks a group that could not be told apart.
OBJECTS_PER_CLASS = 1000
# The official rasterisation paints pixels that an outline touches: half a pixel more on every side.
OUTLINE_GROWTH = 0.5
FEWEST_FILES_FOR_A_POOL = 64


class CityscapesFiles(NamedTuple):
    """An image and the beginning of its annotation files' paths, up to ``_gtFine``."""

    image: str
    annotation_stem: str


def image_files(image_dir: str) -> Iterator[tuple[str, str]]:
    """(city, path) of every image below ``image_dir``, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    cities = sorted(PathManager.ls(image_dir)) if PathManager.isdir(image_dir) else []
    found = False
    for city in cities:
        for name in sorted(PathManager.ls(os.path.join(image_dir, city))):
            if name.endswith(IMAGE_SUFFIX):
                found = True
                yield city, os.path.join(image_dir, city, name)
    if not found:
        raise FileNotFoundError(f"no image <city>/*{IMAGE_SUFFIX} in {image_dir}")


def _paired_files(image_dir: str, gt_dir: str) -> list[CityscapesFiles]:
    pairs = []
    for city, path in image_files(image_dir):
        stem = os.path.basename(path)[: -len(IMAGE_SUFFIX)]
        pairs.append(CityscapesFiles(path, os.path.join(gt_dir, city, f"{stem}_gtFine")))
    return pairs


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> DatasetDicts:
    """Loads images with their maps of train ids.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: such as ``cityscapes/gtFine/train``.

    Returns:
        ``file_name``, ``sem_seg_file_name``, ``height`` and ``width`` of each image.

    Raises:
        FileNotFoundError: there are no images, or the maps were not made yet.
    """
    dicts = [
        {"file_name": files.image, "sem_seg_file_name": f"{files.annotation_stem}_labelTrainIds.png", **IMAGE_SIZE}
        for files in _paired_files(image_dir, gt_dir)
    ]
    first = dicts[0]["sem_seg_file_name"]
    if not PathManager.isfile(first):
        raise FileNotFoundError(
            f"{first} does not exist; make these maps with cityscapesscripts: "
            "CITYSCAPES_DATASET=<folder> csCreateTrainIdLabelImgs"
        )
    logger.info(f"Loaded {len(dicts)} images with semantic maps from {image_dir}")
    return dicts


def load_cityscapes_instances(
    image_dir: str, gt_dir: str, from_json: bool = True, to_polygons: bool = True
) -> DatasetDicts:
    """Loads images with the objects of the 8 thing classes.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: such as ``cityscapes/gtFine/train``.
        from_json: take the outlines of the polygon files, minus what hides them (needs ``shapely``); otherwise the
            images of instance ids.
        to_polygons: masks as polygons; otherwise run-length encoded, which needs ``from_json=False``.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: ``to_polygons=False`` with ``from_json=True``.
    """
    if from_json and not to_polygons:
        raise ValueError("outlines from json files are polygons; give from_json=False for masks without to_polygons")
    read = _read_outlines if from_json else functools.partial(_read_instance_ids, to_polygons=to_polygons)
    files = _paired_files(image_dir, gt_dir)
    dicts = _map_in_processes(read, files) if len(files) >= FEWEST_FILES_FOR_A_POOL else list(map(read, files))
    logger.info(f"Loaded {len(dicts)} images with objects from {image_dir}")
    return dicts


def _map_in_processes(read: Callable[[CityscapesFiles], dict], files: Iterable[CityscapesFiles]) -> DatasetDicts:
    processes = max((os.cpu_count() or 1) // comm.get_local_size(), 1)
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(read, files, chunksize=16))


def _with_objects(files: CityscapesFiles, height: int, width: int, objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    image_id = os.path.basename(files.image)
    found = list(objects)
    return {"file_name": files.image, "image_id": image_id, "height": height, "width": width, "annotations": found}


def _read_outlines(files: CityscapesFiles) -> dict[str, Any]:
    """Objects of a polygon file, where later ones hide earlier ones."""
    json_file = f"{files.annotation_stem}_polygons.json"
    content = read_json(json_file, "annotation file")
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} should be an object with 'imgHeight', 'imgWidth' and 'objects'")
    size = Entries([content], "file", json_file)
    for side in ("imgHeight", "imgWidth"):
        size.check_types(side, (int,), "it is a number of pixels")
    objects = Entries(content.get("objects"), "object", json_file, "objects").all
    outlines = Entries([outline for outline in objects if not outline.get("deleted")], "object", json_file)
    outlines.check_text("label", "the name of a class")
    polygons = outlines.column("polygon")
    outlines.refuse_first("polygon", polygons, _is_outline, "it is a list of 3 points [x, y] or more")
    return _with_objects(files, content["imgHeight"], content["imgWidth"], _visible_objects(outlines.all))


def _is_outline(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 3 or not all(isinstance(point, list) for point in polygon):
        return False
    return set(map(len, polygon)) == {2} and are_within(polygon, MAX_COORDINATE)


def _visible_objects(outlines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """From the front to the back: what is left of each outline once all in front of it are cut away."""
    geometry = require("shapely.geometry", purpose="the polygons of Cityscapes")
    in_front = geometry.Polygon()
    for outline in reversed(outlines):
        if outline["label"] == UNDRAWN_LABEL:
            continue
        area = geometry.Polygon(np.asarray(outline["polygon"], dtype=float) + 0.5)
        area = area.buffer(OUTLINE_GROWTH, quad_segs=4)
        # A buffer is valid even where the outline crosses itself.
        visible = area.difference(in_front)
        in_front = in_front.union(area)
        category = CLASS_OF_NAME.get(outline["label"].removesuffix("group"))
        if category is not None and not visible.is_empty:
            yield _object_of_shape(visible, category, iscrowd=int(outline["label"].endswith("group")))


def _object_of_shape(shape: Any, category: int, iscrowd: int) -> dict[str, Any]:
    parts = [part for part in getattr(shape, "geoms", [shape]) if part.geom_type == "Polygon"]
    return {
        "bbox": list(shape.bounds),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": iscrowd,
        # The last point of a ring repeats the first.
        "segmentation": [np.asarray(part.exterior.coords)[:-1].ravel().tolist() for part in parts],
    }


def _read_instance_ids(files: CityscapesFiles, to_polygons: bool) -> dict[str, Any]:
    """Objects of an image whose values are instance ids."""
    ids = np.asarray(read_image(f"{files.annotation_stem}_instanceIds.png")).squeeze()
    found = (_object_of_id(ids, int(number), to_polygons) for number in np.unique(ids))
    height, width = ids.shape[:2]
    return _with_objects(files, height, width, (obj for obj in found if obj is not None))


def _object_of_id(ids: np.ndarray, number: int, to_polygons: bool) -> dict[str, Any] | None:
    is_group = number < OBJECTS_PER_CLASS
    category = CLASS_OF_ID.get(number if is_group else number // OBJECTS_PER_CLASS)
    if category is None:
        return None
    mask = np.asfortranarray(ids == number, dtype=np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    segmentation = _polygons_of_mask(mask) if to_polygons else encode_bitmap(mask)
    if not segmentation:
        return None
    return {
        "bbox": [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": int(is_group),
        "segmentation": segmentation,
    }


def _polygons_of_mask(mask: np.ndarray) -> list[list[float]]:
    """Outer outlines through pixel centres; specks of less than 3 points have none."""
    cv2 = require("cv2", "opencv", "outlines of masks")
    outlines = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
    return [(outline.reshape(-1) + 0.5).tolist() for outline in outlines if len(outline) >= 3]
