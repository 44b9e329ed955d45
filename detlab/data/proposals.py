"""Proposals that were computed beforehand, from a file to the images of a dataset."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from detlab.checkpoint.pickle_reader import UnsafePickleError
from detlab.checkpoint.restricted_pickle import load_arrays
from detlab.config.values import shown
from detlab.data.catalog import DatasetDicts
from detlab.structures.boxes import BoxMode
from detlab.utils.file_io import open_bytes

__all__ = ["load_proposals_into_dataset"]

logger = logging.getLogger(__name__)

# Names that other programs write proposals under.
PROPOSAL_KEY_ALIASES = {"indexes": "ids", "scores": "objectness_logits"}
PROPOSAL_LISTS = ("ids", "boxes", "objectness_logits")
MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)
# What the proposals of all images may take: lists of small whole numbers are smaller in a file than in arrays.
FREE_BYTES, BYTES_PER_BYTE = 32 * 2**20, 8


def load_proposals_into_dataset(dataset_dicts: DatasetDicts, proposal_file: str) -> DatasetDicts:
    """Adds precomputed proposals to images: ``proposal_boxes``, ``proposal_objectness_logits``, ``proposal_bbox_mode``.

    Args:
        dataset_dicts: in the standard format, with ``image_id``; changed in place.
        proposal_file: a pickle of a dictionary with, for each image, its id (``ids``), an (N, 4) array (``boxes``) and
            an (N,) array (``objectness_logits``), or lists of numbers in their places; ``bbox_mode``, a number of
            ``BoxMode`` in pixels, defaults to ``XYXY_ABS``. Rotated boxes (``XYWHA_ABS``) are (N, 5).

    Returns:
        ``dataset_dicts``; proposals of an image are in the order of decreasing objectness.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a dictionary, asks to run code, lacks an image or has one twice, or has boxes that
            are not finite or logits that are not a number.
    """
    proposals, size = _read_proposals(proposal_file)
    place_of = _places(proposals["ids"], proposal_file)
    missing = [image.get("image_id") for image in dataset_dicts if str(image.get("image_id")) not in place_of]
    if missing:
        raise ValueError(f"{proposal_file} has no proposals for {len(missing)} images, such as image {missing[0]}")
    allowance = FREE_BYTES + BYTES_PER_BYTE * size
    for image in dataset_dicts:
        boxes, logits = _proposals_at(proposals, place_of[str(image["image_id"])], proposal_file)
        allowance -= boxes.nbytes + logits.nbytes
        if allowance < 0:
            raise ValueError(f"{proposal_file} gives the same proposals to many images, far more than its {size} bytes")
        order = np.argsort(-logits, kind="stable")
        image["proposal_boxes"] = boxes[order]
        image["proposal_objectness_logits"] = logits[order]
        image["proposal_bbox_mode"] = proposals["bbox_mode"]
    logger.info(f"Took proposals of {len(dataset_dicts)} images from {proposal_file}")
    return dataset_dicts


def _read_proposals(proposal_file: str) -> tuple[dict[str, Any], int]:
    """The content, with a ``bbox_mode``, and the size of the file in bytes."""
    try:
        with open_bytes(proposal_file, "proposals file") as stream:
            content = load_arrays(stream)
            size = stream.tell()
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
            f"{proposal_file} should be a dictionary with {sorted(absent)}, but has {shown(sorted(map(str, content)))}"
        )
    for key in PROPOSAL_LISTS:
        found[key] = _one_for_each_image(found[key], key, proposal_file)
    lengths = {key: len(found[key]) for key in PROPOSAL_LISTS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{proposal_file} should have as many of each, one for an image, but has {lengths}")
    found["bbox_mode"] = _box_mode(found.get("bbox_mode", BoxMode.XYXY_ABS), proposal_file)
    return found, size


def _one_for_each_image(values: Any, key: str, proposal_file: str) -> list[Any]:
    if isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim > 0):
        return list(values)
    kind = "a single number" if isinstance(values, np.ndarray | np.generic) else f"a {type(values).__name__}"
    raise ValueError(f"{proposal_file} should have a list of {key}, one for an image, but has {kind}")


def _box_mode(mode: Any, proposal_file: str) -> BoxMode:
    if isinstance(mode, (int, np.integer)) and not isinstance(mode, bool) and mode in MODES:
        return BoxMode(int(mode))
    known = {mode.name: mode.value for mode in MODES}
    raise ValueError(f"{proposal_file} has bbox_mode {shown(mode)}, but there are {known}")


def _places(ids: list[Any], proposal_file: str) -> dict[str, int]:
    """Where in the lists each image stands."""
    odd = [value for value in ids if not isinstance(value, (int, str, np.integer))]
    if odd:
        raise ValueError(f"{proposal_file} has an id that is a {type(odd[0]).__name__}; ids are numbers or texts")
    names = [str(value) for value in ids]
    place_of = {name: place for place, name in enumerate(names)}
    if len(place_of) < len(names):
        doubled = Counter(names).most_common(1)[0][0]
        raise ValueError(
            f"{proposal_file} has the id {shown(doubled)} more than once; give each image its proposals once"
        )
    return place_of


def _proposals_at(proposals: dict[str, Any], place: int, proposal_file: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) or, if rotated, (N, 5) boxes, and (N,) objectness of an image, as floating numbers."""
    name = f"image {shown(proposals['ids'][place])} in {proposal_file}"
    boxes = _as_floats(proposals["boxes"][place], f"{name} has boxes")
    logits = _as_floats(proposals["objectness_logits"][place], f"{name} has objectness_logits")
    columns = 5 if proposals["bbox_mode"] == BoxMode.XYWHA_ABS else 4
    if boxes.ndim != 2 or boxes.shape[1] != columns or logits.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name} has boxes of shape {boxes.shape} and objectness_logits of shape {logits.shape}, not "
            f"(N, {columns}), as {proposals['bbox_mode'].name} is, and (N,)"
        )
    if not np.isfinite(boxes).all() or np.isnan(logits).any():
        raise ValueError(f"{name} has boxes that are not finite, or objectness_logits that are not a number")
    return boxes, logits


def _as_floats(values: Any, what: str) -> np.ndarray:
    """An array, or a list of numbers, or of lists of numbers."""
    if isinstance(values, (list, tuple)):
        values = _from_lists(values, what)
    # Unsigned numbers turn into others where they are negated or subtracted.
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fi":
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise ValueError(f"{what} that are {kind}, and so no numbers; they should be an array of floats")
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _from_lists(values: Sequence[Any], what: str) -> np.ndarray:
    # Looked at before numpy does, which goes through lists in lists however often they repeat.
    rows = [list(row) if isinstance(row, np.ndarray) and row.ndim == 1 else row for row in values]
    parts = [part for row in rows for part in (row if isinstance(row, (list, tuple)) else (row,))]
    if not all(isinstance(part, (int, float, np.number)) and not isinstance(part, bool) for part in parts):
        raise ValueError(f"{what} in lists that hold something else than rows of numbers, and so no numbers")
    lengths = {len(row) if isinstance(row, (list, tuple)) else None for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"{what} in a list whose rows have different lengths; each box has as many numbers")
    return np.asarray(rows)
