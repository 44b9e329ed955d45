"""Proposals that were computed beforehand, from a file to the images of a dataset."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import numpy as np

from detlab.checkpoint.pickle_reader import UnsafePickleError
from detlab.checkpoint.restricted_pickle import load_arrays
from detlab.data.catalog import DatasetDicts
from detlab.structures.boxes import BoxMode
from detlab.utils.file_io import PathManager

__all__ = ["load_proposals_into_dataset"]

logger = logging.getLogger(__name__)

# Names that other programs write proposals under.
PROPOSAL_KEY_ALIASES = {"indexes": "ids", "scores": "objectness_logits"}
PROPOSAL_LISTS = ("ids", "boxes", "objectness_logits")


def load_proposals_into_dataset(dataset_dicts: DatasetDicts, proposal_file: str) -> DatasetDicts:
    """Adds precomputed proposals to images: ``proposal_boxes``, ``proposal_objectness_logits``, ``proposal_bbox_mode``.

    Args:
        dataset_dicts: in the standard format, with ``image_id``; changed in place.
        proposal_file: a pickle of a dictionary with, for each image, its id (``ids``), an (N, 4) array (``boxes``) and
            an (N,) array (``objectness_logits``); ``bbox_mode``, a number of ``BoxMode``, defaults to ``XYXY_ABS``.

    Returns:
        ``dataset_dicts``; proposals of an image are in the order of decreasing objectness.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a dictionary, asks to run code, or lacks an image.
    """
    proposals = _read_proposals(proposal_file)
    place_of = {str(image_id): place for place, image_id in enumerate(proposals["ids"])}
    missing = [image.get("image_id") for image in dataset_dicts if str(image.get("image_id")) not in place_of]
    if missing:
        raise ValueError(f"{proposal_file} has no proposals for {len(missing)} images, such as image {missing[0]}")
    for image in dataset_dicts:
        place = place_of[str(image["image_id"])]
        boxes, logits = _proposals_at(proposals, place, proposal_file)
        order = np.argsort(-logits, kind="stable")
        image["proposal_boxes"] = boxes[order]
        image["proposal_objectness_logits"] = logits[order]
        image["proposal_bbox_mode"] = proposals["bbox_mode"]
    logger.info(f"Took proposals of {len(dataset_dicts)} images from {proposal_file}")
    return dataset_dicts


def _read_proposals(proposal_file: str) -> dict[str, Any]:
    with PathManager.open(proposal_file, "rb") as stream:
        try:
            content = load_arrays(stream)
        except UnsafePickleError as error:
            raise ValueError(f"{proposal_file} is refused: {error}; it should hold arrays and numbers only") from None
        except pickle.UnpicklingError as error:
            raise ValueError(f"{proposal_file} is damaged or no pickle of proposals: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{proposal_file} should be a dictionary with 'ids' and more, but is a {type(content).__name__}"
        )
    found: dict[Any, Any] = {PROPOSAL_KEY_ALIASES.get(key, key): value for key, value in content.items()}
    absent = set(PROPOSAL_LISTS) - found.keys()
    if absent:
        raise ValueError(
            f"{proposal_file} should be a dictionary with {sorted(absent)}, but has {sorted(map(str, content))}"
        )
    lengths: dict[str, int | None] = {
        key: len(found[key]) if hasattr(found[key], "__len__") else None for key in PROPOSAL_LISTS
    }
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"{proposal_file} should have as many of each, one for an image, but has {lengths}")
    try:
        found["bbox_mode"] = BoxMode(found.get("bbox_mode", BoxMode.XYXY_ABS))
    except ValueError:
        known = {mode.name: mode.value for mode in BoxMode}
        raise ValueError(f"{proposal_file} has bbox_mode {found['bbox_mode']!r}, but there are {known}") from None
    return found


def _proposals_at(proposals: dict[str, Any], place: int, proposal_file: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes and (N,) objectness of an image."""
    boxes, logits = (np.asarray(proposals[key][place]) for key in ("boxes", "objectness_logits"))
    if {boxes.dtype.kind, logits.dtype.kind} - set("fiu"):
        raise ValueError(f"image {proposals['ids'][place]} in {proposal_file} has boxes or logits that are no numbers")
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5) or logits.shape != boxes.shape[:1]:
        raise ValueError(
            f"image {proposals['ids'][place]} in {proposal_file} has boxes of shape {boxes.shape} and "
            f"objectness_logits of shape {logits.shape}, not (N, 4) and (N,)"
        )
    return boxes, logits
