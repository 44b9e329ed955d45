"""LVIS: COCO's format, with images given by URL and with lists of the classes that were looked for in each image."""

from __future__ import annotations

import functools
import glob
import logging
import os
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.datasets.annotation_file import read_annotations
from detlab.data.datasets.builtin_meta import builtin_metadata
from detlab.data.datasets.coco import image_dict, standard_annotations
from detlab.data.datasets.coco_format import CocoContent, class_indices, read_coco
from detlab.data.datasets.entries import Entries
from detlab.data.datasets.root_folder import datasets_root
from detlab.utils.garbage import no_garbage_collection

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)

CATEGORY_LISTS = ("not_exhaustive_category_ids", "neg_category_ids")
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
        FileNotFoundError: there is no such file.
        ValueError: the file is not in COCO format or contradicts itself, or category ids are not 1, 2, 3, ...; see
            :func:`~detlab.data.datasets.coco_format.checked_coco`, also for what is left out.
    """
    content = read_coco(json_file)
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).set(**_classes_of(content.categories, json_file, dataset_name))
    categories = Entries(content.categories, "category", json_file)
    categories.check_types("id", (int,), "categories of LVIS are numbered from 1")
    classes = {number: number - 1 for number in class_indices(content)}
    _check_images(content)
    with no_garbage_collection():
        objects = standard_annotations(content, classes, extra_annotation_keys or ())
        images = sorted(content.images, key=itemgetter("id"))
        dicts = [_image_dict(image, image_root, objects) for image in images]
    logger.info(f"Loaded {len(dicts)} images in LVIS format from {json_file}")
    return dicts


def _check_images(content: CocoContent) -> None:
    images = Entries(content.images, "image", content.source)
    images.check_text("coco_url", "the address of an image", optional=True)
    for key in CATEGORY_LISTS:
        images.check_types(key, (list,), "it is a list of category ids", optional=True)
    for place, image in enumerate(images.all):
        if image.get("coco_url") is None and image.get("file_name") is None:
            images.refuse(place, "file_name", "it, or 'coco_url', tells the path of the image")


def _image_dict(image: dict[str, Any], image_root: str, objects: dict[Any, list[dict]]) -> dict[str, Any]:
    lists = {key: image.get(key) or [] for key in CATEGORY_LISTS}
    return {**image_dict(image, _image_path(image, image_root), objects), **lists}


def _image_path(image: dict[str, Any], image_root: str) -> str:
    """LVIS divides the images of COCO anew; the address tells the folder that COCO has them in."""
    url = image.get("coco_url")
    return os.path.join(image_root, *([image["file_name"]] if url is None else url.split("/")[-2:]))


def _classes_of(categories: Any, json_file: str, dataset_name: str) -> dict[str, Any]:
    """Metadata from the categories of a file."""
    if "cocofied" in dataset_name:
        return builtin_metadata("coco")
    entries = Entries(categories, "category", json_file, "categories")
    ids = entries.check_ids("id", "a category's id")
    if sorted(ids) != list(range(1, len(ids) + 1)):
        raise ValueError(f"category ids in {json_file} should be 1 to {len(ids)}, each once")
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    counts = entries.column("image_count")
    facts: dict[str, Any] = {"thing_classes": [_class_name(entries, place) for place in by_id]}
    if all(type(count) is int for count in counts):
        facts["class_image_count"] = [{"id": ids[place], "image_count": counts[place]} for place in by_id]
    return facts


def _class_name(entries: Entries, place: int) -> str:
    """The first of the synonyms, where there are any."""
    category = entries.all[place]
    synonyms = category.get("synonyms") or [category.get("name")]
    if not isinstance(synonyms, list) or not isinstance(synonyms[0], str):
        key = "synonyms" if category.get("synonyms") else "name"
        entries.refuse(place, key, "it is the name of the class, or a list of names")
    return synonyms[0]


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
    content = read_annotations(json_file)
    if not isinstance(content, dict) or "categories" not in content:
        raise ValueError(f"{json_file} is not in LVIS format: it should be an object with 'categories'")
    return _classes_of(content["categories"], json_file, dataset_name)


def _annotation_file(dataset_name: str) -> str:
    registered = MetadataCatalog.get(dataset_name).get("json_file") if dataset_name in MetadataCatalog else None
    if registered:
        return registered
    pattern = os.path.join(datasets_root(), "lvis", f"{dataset_name}*.json")
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
