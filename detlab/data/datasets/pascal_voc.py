"""PASCAL VOC: one xml file of boxes for each image, and text files that list the images of a split."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.datasets.coco_format import LARGEST_SIDE
from detlab.data.datasets.entries import shown
from detlab.structures.boxes import BoxMode
from detlab.utils.file_io import PathManager, read_text
from detlab.utils.mask_codes import MAX_COORDINATE

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
    return read_image_set(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt"))


def read_image_set(path: str) -> list[str]:
    """The image ids of a split; lists for a single class have a second column, which is left out.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is not text in UTF-8, or has an image more than once.
    """
    image_ids = [line.split()[0] for line in read_text(path, "list of images").splitlines() if line.strip()]
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"the list of images {path} has {len(repeated)} images more than once, such as {shown(repeated[0])}; list "
            "each once"
        )
    return image_ids


class VocObject(NamedTuple):
    """An object as its file has it."""

    name: str
    pose: str | None
    truncated: int
    difficult: int
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2: pixels counted from 1, both corners included


class VocAnnotation(NamedTuple):
    """An annotation file."""

    root: ElementTree.Element
    objects: list[VocObject]

    def side(self, name: str) -> int:
        """``width`` or ``height`` of the image.

        Raises:
            ValueError: it is not there, or no whole number from 1 to 2**31 - 1.
        """
        side = _number(self.root, f"size/{name}")
        if not 1 <= side <= LARGEST_SIDE or side != int(side):
            raise ValueError(f"<size/{name}> is {side:g}; it is a whole number of pixels, 1 or more, below 2**31")
        return int(side)


class _Builder(ElementTree.TreeBuilder):
    """Refuses entities, a few bytes of which can stand for gigabytes; no annotation needs them."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type (<!DOCTYPE ...>), which an annotation needs not; remove it")


def read_voc_annotation(xml_file: str) -> VocAnnotation:
    """An annotation file in VOC format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no xml, has a document type, or an object lacks something, has text in the place of a number,
            a corner that is not finite or beyond 1e9, or a ``difficult`` or ``truncated`` that is neither 0 nor 1; the
            message names the file.
    """
    if not PathManager.isfile(xml_file):
        raise FileNotFoundError(f"the annotation file {xml_file} does not exist")
    with naming(xml_file), PathManager.open(xml_file, "rb") as stream:
        root = ElementTree.parse(stream, ElementTree.XMLParser(target=_Builder())).getroot()
        assert root is not None
        return VocAnnotation(root, [_voc_object(node) for node in root.findall("object")])


@contextlib.contextmanager
def naming(xml_file: str) -> Iterator[None]:
    """Errors in what a file says begin with its path."""
    try:
        yield
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        # LookupError: of an encoding that there is not.
        raise ValueError(f"{xml_file}: {error}") from None


def _voc_object(node: ElementTree.Element) -> VocObject:
    x1, y1, x2, y2 = (_coordinate(node, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax"))
    truncated, difficult = (_flag(node, name) for name in ("truncated", "difficult"))
    return VocObject(_text(node, "name"), node.findtext("pose"), truncated, difficult, (x1, y1, x2, y2))


def _coordinate(node: ElementTree.Element, path: str) -> float:
    number = _number(node, path)
    if abs(number) > MAX_COORDINATE:
        raise ValueError(
            f"<{path}> of <{node.tag}> is {number:g}; coordinates are pixels, not beyond {MAX_COORDINATE:g}"
        )
    return number


def _flag(node: ElementTree.Element, path: str) -> int:
    number = _number(node, path, missing=0)
    if number not in (0, 1):
        raise ValueError(f"<{path}> of <{node.tag}> is {number:g}; it is 0 or 1")
    return int(number)


def _text(node: ElementTree.Element, path: str) -> str:
    found = node.findtext(path)
    if found is None:
        raise ValueError(f"<{node.tag}> has no <{path}>")
    return found.strip()


def _number(node: ElementTree.Element, path: str, missing: float | None = None) -> float:
    """A finite number; ``missing`` where there is none, or an empty one."""
    if missing is not None and not (node.findtext(path) or "").strip():
        return missing
    text = _text(node, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"<{path}> of <{node.tag}> is {text!r}, which is not a number")
    return number


def _image_dict(dirname: str, stem: str, class_index: dict[str, int]) -> dict[str, Any]:
    xml_file = os.path.join(dirname, "Annotations", f"{stem}.xml")
    annotation = read_voc_annotation(xml_file)
    with naming(xml_file):
        return {
            "file_name": os.path.join(dirname, "JPEGImages", f"{stem}.jpg"),
            "image_id": stem,
            "height": annotation.side("height"),
            "width": annotation.side("width"),
            "annotations": [_object(obj, class_index) for obj in annotation.objects],
        }


def _object(obj: VocObject, class_index: dict[str, int]) -> dict[str, Any]:
    if obj.name not in class_index:
        raise ValueError(f"an object is a {obj.name!r}, but the classes are {', '.join(class_index)}")
    x1, y1, x2, y2 = obj.corners
    return {
        "category_id": class_index[obj.name],
        "bbox": [x1 - 1.0, y1 - 1.0, x2, y2],
        "bbox_mode": BoxMode.XYXY_ABS,
        "difficult": obj.difficult,
        "truncated": obj.truncated,
        **({"pose": obj.pose} if obj.pose else {}),
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
