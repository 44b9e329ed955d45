"""PASCAL VOC: one xml file of boxes for each image, and text files that list the images of a split."""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.structures.boxes import BoxMode
from detlab.utils.file_io import PathManager, read_text

__all__ = ["CLASS_NAMES", "load_voc_instances", "register_pascal_voc"]

logger = logging.getLogger(__name__)

_CLASSES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa
train tvmonitor
"""
CLASS_NAMES: tuple[str, ...] = tuple(_CLASSES.split())


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> DatasetDicts:
    """Loads the boxes of one split.

    The files count pixels from 1 and include both corners; here a pixel covers the unit square from its index on, so
    the first corner moves by -1. Besides the standard keys, objects carry ``difficult`` and ``truncated`` (0 or 1),
    and ``pose`` where the file has one. Boxes without area are left out, counted in a warning.

    Args:
        dirname: holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of a file in ``ImageSets/Main``, such as ``trainval``.
        class_names: the classes, in the order of their indices.

    Raises:
        FileNotFoundError: the list of the split, or an xml file it names, does not exist.
        ValueError: an xml file is broken, or has an object of another class.
    """
    stems = _images_of_split(dirname, split)
    class_index = {name: index for index, name in enumerate(class_names)}
    dicts = [_image_dict(dirname, stem, class_index) for stem in stems]
    without_area = [image["file_name"] for image in dicts if _remove_boxes_without_area(image)]
    if without_area:
        logger.warning(f"Left out boxes without area in {len(without_area)} images, such as {without_area[0]}")
    logger.info(f"Loaded {len(dicts)} images in VOC format from {dirname} ({split})")
    return dicts


def _images_of_split(dirname: str, split: str) -> list[str]:
    path = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"the list of images {path} does not exist")
    # Lists for a single class have a second column.
    return [line.split()[0] for line in read_text(path, "list of images").splitlines() if line.strip()]


def _image_dict(dirname: str, stem: str, class_index: dict[str, int]) -> dict[str, Any]:
    xml_file = os.path.join(dirname, "Annotations", f"{stem}.xml")
    if not PathManager.isfile(xml_file):
        raise FileNotFoundError(f"the annotation file {xml_file} of image {stem} does not exist")
    with PathManager.open(xml_file, "rb") as stream:
        try:
            root = ElementTree.parse(stream).getroot()
            size = {side: int(_text(root, f"size/{side}")) for side in ("height", "width")}
            annotations = [_object(node, class_index) for node in root.findall("object")]
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"{xml_file}: {error}") from None
    return {
        "file_name": os.path.join(dirname, "JPEGImages", f"{stem}.jpg"),
        "image_id": stem,
        **size,
        "annotations": annotations,
    }


def _text(node: ElementTree.Element, path: str) -> str:
    found = node.findtext(path)
    if found is None:
        raise ValueError(f"<{node.tag}> has no <{path}>")
    return found.strip()


def _object(node: ElementTree.Element, class_index: dict[str, int]) -> dict[str, Any]:
    name = _text(node, "name")
    if name not in class_index:
        raise ValueError(f"an object is a {name!r}, but the classes are {', '.join(class_index)}")
    x1, y1, x2, y2 = (float(_text(node, f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax"))
    flags = {flag: int(node.findtext(flag) or 0) for flag in ("difficult", "truncated")}
    pose = node.findtext("pose")
    return {
        "category_id": class_index[name],
        "bbox": [x1 - 1.0, y1 - 1.0, x2, y2],
        "bbox_mode": BoxMode.XYXY_ABS,
        **flags,
        **({"pose": pose} if pose else {}),
    }


def _remove_boxes_without_area(image: dict[str, Any]) -> bool:
    """Whether any were there."""
    before = image["annotations"]
    image["annotations"] = [o for o in before if o["bbox"][2] > o["bbox"][0] and o["bbox"][3] > o["bbox"][1]]
    return len(image["annotations"]) < len(before)


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Registers one split of a dataset in VOC format.

    Args:
        name: the new dataset's.
        dirname: holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of a file in ``ImageSets/Main``.
        year: 2007 or 2012; it decides how average precision is computed.
        class_names: the classes, in the order of their indices.
    """
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
