"""LVIS: COCO's format, with images given by URL and with lists of the classes that were looked for in each image."""

from __future__ import annotations

import functools
import glob
import logging
import os
from collections.abc import Sequence
from typing import Any

from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.datasets.annotation_file import read_annotations
from detlab.data.datasets.builtin_meta import builtin_metadata
from detlab.data.datasets.coco import AnnotationReader, annotations_by_image
from detlab.utils.garbage import no_garbage_collection

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)

CLASS_KEYS = ("thing_classes", "class_image_count")


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> DatasetDicts:
    """Loads an LVIS annotation file.

    Args:
        json_file: path of the annotations.
        image_root: the folder that holds ``train2017``, ``val2017`` and ``test2017`` of COCO.
        dataset_name: if given, ``thing_classes`` and ``class_image_count`` of this dataset's metadata are set.
        extra_annotation_keys: further keys of an annotation to keep.

    Returns:
        The standard format, images in the order of their ids; ``category_id`` counts from 0. Beside it each image has
        ``not_exhaustive_category_ids`` and ``neg_category_ids``, as ids of the file.

    Raises:
        ValueError: ids are not unique, category ids are not 1, 2, 3, ..., or a box is none.
    """
    content = read_annotations(json_file)
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).set(**_classes_of(content, json_file, dataset_name))
    class_index = {category["id"]: category["id"] - 1 for category in content["categories"]}
    reader = AnnotationReader(json_file, class_index, tuple(extra_annotation_keys or ()))
    images = sorted(content["images"], key=lambda image: image["id"])
    with no_garbage_collection():
        grouped = annotations_by_image(content.get("annotations", ()), images, json_file, reader.dropped)
        dicts = [_image_dict(image, image_root, reader.read_all(grouped[image["id"]])) for image in images]
    reader.dropped.warn(json_file)
    logger.info(f"Loaded {len(dicts)} images in LVIS format from {json_file}")
    return dicts


def _image_dict(image: dict[str, Any], image_root: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "file_name": _image_path(image, image_root),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": image.get("neg_category_ids", []),
        "annotations": annotations,
    }


def _image_path(image: dict[str, Any], image_root: str) -> str:
    """LVIS divides the images of COCO anew; the address tells the folder that COCO has them in."""
    parts = image["coco_url"].split("/")[-2:] if "coco_url" in image else [image["file_name"]]
    return os.path.join(image_root, *parts)


def _classes_of(content: dict[str, Any], json_file: str, dataset_name: str) -> dict[str, Any]:
    """Metadata from the categories of a file."""
    if "cocofied" in dataset_name:
        return builtin_metadata("coco")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if [category["id"] for category in categories] != list(range(1, len(categories) + 1)):
        raise ValueError(f"category ids in {json_file} should be 1 to {len(categories)}, each once")
    facts: dict[str, Any] = {"thing_classes": [(c.get("synonyms") or [c["name"]])[0] for c in categories]}
    if all("image_count" in category for category in categories):
        facts["class_image_count"] = [{"id": c["id"], "image_count": c["image_count"]} for c in categories]
    return facts


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Metadata of an LVIS dataset: ``thing_classes`` and, where the file has it, ``class_image_count``.

    The 1,200 names are not part of this package; they are read from the annotations on disk: those of the dataset if
    it is registered, else any file ``lvis/<dataset_name>*.json`` under ``$DETLAB_DATASETS``. The "cocofied" datasets
    have COCO's classes.

    Args:
        dataset_name: such as ``lvis_v1_val``, or ``lvis_v1`` for whatever split is there.

    Raises:
        FileNotFoundError: there is no such file; the message says where it was looked for.
        ValueError: the name does not begin with ``lvis``.
    """
    if "cocofied" in dataset_name:
        return builtin_metadata("coco")
    if not dataset_name.startswith("lvis"):
        raise ValueError(f"{dataset_name!r} is not a dataset of LVIS; their names begin with 'lvis_v0.5' or 'lvis_v1'")
    json_file = _annotation_file(dataset_name)
    return _classes_of(read_annotations(json_file), json_file, dataset_name)


def _annotation_file(dataset_name: str) -> str:
    registered = MetadataCatalog.get(dataset_name).get("json_file") if dataset_name in MetadataCatalog else None
    if registered:
        return registered
    pattern = os.path.join(os.environ.get("DETLAB_DATASETS", "datasets"), "lvis", f"{dataset_name}*.json")
    found = sorted(glob.glob(pattern), key=os.path.getsize)
    if not found:
        raise FileNotFoundError(
            f"the classes of {dataset_name!r} are read from its annotations, but {pattern} is empty"
        )
    return found[0]


def register_lvis_instances(name: str, metadata: dict[str, Any] | None, json_file: str, image_root: str) -> None:
    """Registers a dataset in LVIS format; no file is touched before it is used.

    Args:
        name: the new dataset's.
        metadata: further facts to keep about it. Class names that are not among them are read from the annotations
            when they are first asked for.
        json_file: path of the annotations.
        image_root: the folder of the images, see :func:`load_lvis_json`.
    """
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    known = MetadataCatalog.get(name)
    known.set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **(metadata or {}))
    known.defer(CLASS_KEYS, functools.partial(get_lvis_instances_meta, name))
