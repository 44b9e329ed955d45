"""Panoptic segments of Cityscapes, in the form that cityscapesscripts converts them to."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.datasets.annotation_file import read_annotations
from detlab.data.datasets.builtin_meta import builtin_metadata
from detlab.data.datasets.cityscapes import IMAGE_SUFFIX, image_files
from detlab.data.datasets.coco_panoptic import IGNORED_LABEL, LABEL_DIVISOR, checked_panoptic_entries
from detlab.utils.file_io import PathManager

__all__ = ["get_cityscapes_panoptic_files", "load_cityscapes_panoptic", "register_all_cityscapes_panoptic"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


def get_cityscapes_panoptic_files(
    image_dir: str, gt_dir: str, json_info: Mapping[str, Any]
) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Pairs the entries of a panoptic file with images.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: folder of the panoptic PNG files.
        json_info: content of the panoptic json file.

    Returns:
        For each entry (image, PNG file, ``segments_info``).

    Raises:
        FileNotFoundError: an entry has no image, or the first PNG file is missing.
        ValueError: ``json_info`` is not in COCO's panoptic format.
    """
    image_of = {os.path.basename(path)[: -len(IMAGE_SUFFIX)]: path for _, path in image_files(image_dir)}
    entries = checked_panoptic_entries(json_info, gt_dir).all
    alone = [entry["image_id"] for entry in entries if entry["image_id"] not in image_of]
    if alone:
        raise FileNotFoundError(f"{len(alone)} images of the panoptic file are not in {image_dir}, such as {alone[0]}")
    files = [(image_of[e["image_id"]], os.path.join(gt_dir, e["file_name"]), e["segments_info"]) for e in entries]
    if files and not PathManager.isfile(files[0][1]):
        raise FileNotFoundError(f"{files[0][1]} does not exist; make it with cityscapesscripts: csCreatePanopticImgs")
    return files


def load_cityscapes_panoptic(image_dir: str, gt_dir: str, gt_json: str, meta: Mapping[str, Any]) -> DatasetDicts:
    """Loads images with panoptic segments and maps of train ids.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: folder of the panoptic PNG files, such as ``cityscapes/gtFine/cityscapes_panoptic_train``.
        gt_json: the panoptic json file; ``csCreatePanopticImgs`` of cityscapesscripts makes it and the PNG files.
        meta: ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``.

    Returns:
        ``file_name``, ``image_id``, ``sem_seg_file_name``, ``pan_seg_file_name`` and ``segments_info`` of each image;
        ``category_id`` of a segment is its train id.
    """
    classes = {**meta["thing_dataset_id_to_contiguous_id"], **meta["stuff_dataset_id_to_contiguous_id"]}
    content = read_annotations(gt_json)
    checked_panoptic_entries(content, gt_json)
    dicts = []
    for image, png, segments in get_cityscapes_panoptic_files(image_dir, gt_dir, content):
        unknown = next((info for info in segments if info["category_id"] not in classes), None)
        if unknown is not None:
            raise ValueError(
                f"segment {unknown['id']} of {png} in {gt_json} has category_id {unknown['category_id']}, which is not "
                "among the classes"
            )
        stem = image[: -len(IMAGE_SUFFIX)]
        dicts.append(
            {
                "file_name": image,
                "image_id": os.path.basename(stem),
                "sem_seg_file_name": f"{stem.replace('leftImg8bit', 'gtFine')}_gtFine_labelTrainIds.png",
                "pan_seg_file_name": png,
                "segments_info": [{**info, "category_id": classes[info["category_id"]]} for info in segments],
            }
        )
    logger.info(f"Loaded {len(dicts)} images with panoptic segments from {image_dir}")
    return dicts


def register_all_cityscapes_panoptic(root: str) -> None:
    """Registers ``cityscapes_fine_panoptic_train`` and ``..._val``, whose files are in ``root/cityscapes``."""
    for split in SPLITS:
        _register_split(os.path.join(root, "cityscapes"), split)


def _register_split(folder: str, split: str) -> None:
    image_dir = os.path.join(folder, "leftImg8bit", split)
    panoptic_dir = os.path.join(folder, "gtFine", f"cityscapes_panoptic_{split}")
    metadata = builtin_metadata("cityscapes_panoptic")
    name = f"cityscapes_fine_panoptic_{split}"
    DatasetCatalog.register(
        name, lambda: load_cityscapes_panoptic(image_dir, panoptic_dir, f"{panoptic_dir}.json", metadata)
    )
    MetadataCatalog.get(name).set(
        image_root=image_dir,
        panoptic_root=panoptic_dir,
        panoptic_json=f"{panoptic_dir}.json",
        gt_dir=os.path.join(folder, "gtFine", split),
        evaluator_type="cityscapes_panoptic_seg",
        ignore_label=IGNORED_LABEL,
        label_divisor=LABEL_DIVISOR,
        **metadata,
    )
