"""A fuzzer's view of the readers of COCO's json format: from the file to a training sample and to an evaluation."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detlab.data.build import get_detection_dataset_dicts
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.dataset_mapper import DatasetMapper
from detlab.data.datasets.coco import register_coco_instances
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from tests.fuzz import Target

SIZES = {1: (40, 60), 2: (30, 30), 3: (20, 50)}  # height, width
NUM_KEYPOINTS = 17
MANY_LEVELS = 100_000
DEEP = "placeholder of a deep list"


# -------------------------------------------------------------------------------------------------------- good files


def good_content() -> dict[str, Any]:
    """Three images with boxes, polygons, run lengths of both kinds, crowds and keypoints."""
    return {
        "info": {"description": "for a fuzzer", "year": 2020},
        "licenses": [{"id": 1, "name": "none"}],
        "images": [
            {"id": number, "file_name": f"seeds/{number}.png", "height": height, "width": width, "license": 1}
            for number, (height, width) in SIZES.items()
        ],
        "annotations": [
            _annotation(1, 1, 3, [2, 3, 20.5, 10], _polygon(2, 3, 20.5, 10), keypoints=_keypoints()),
            _annotation(2, 1, 7, [30, 10, 20, 20], [*_polygon(30, 10, 20, 9), *_polygon(30, 20, 20, 10)]),
            _annotation(3, 2, 3, [5, 5, 10, 20], _runs(SIZES[2], 5, 5, 10, 20, compressed=False), iscrowd=1),
            _annotation(4, 2, 7, [0, 0, 30, 12], _runs(SIZES[2], 0, 0, 30, 12, compressed=True)),
            _annotation(5, 3, 3, [1, 1, 30, 15], _polygon(1, 1, 30, 15), keypoints=_keypoints()),
        ],
        "categories": [{"id": 3, "name": "person", "supercategory": "a"}, {"id": 7, "name": "bär"}],
    }


def _annotation(number: int, image_id: int, category_id: int, box: list, mask: Any, **more: Any) -> dict[str, Any]:
    facts = {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
    return {**facts, "bbox": box, "area": box[2] * box[3], "segmentation": mask, **more}


def _polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _keypoints() -> list[int]:
    return [value for number in range(NUM_KEYPOINTS) for value in (2 + number, 4, 2)]


def _runs(size: tuple[int, int], x: int, y: int, width: int, height: int, compressed: bool) -> dict[str, Any]:
    bitmap = np.zeros(size, dtype=np.uint8, order="F")
    bitmap[y : y + height, x : x + width] = 1
    if compressed:
        return {"size": list(size), "counts": coco_mask.encode(bitmap)["counts"].decode()}
    changes = np.flatnonzero(np.diff(bitmap.ravel(order="F"))) + 1
    return {"size": list(size), "counts": np.diff([0, *changes, bitmap.size]).tolist()}


def write_seeds(folder: Path) -> Sequence[Path]:
    for number, size in SIZES.items():
        Image.fromarray(np.full((*size, 3), 100, dtype=np.uint8)).save(folder / f"{number}.png")
    path = folder / "good.json"
    path.write_text(json.dumps(good_content()))
    return [path]


# ---------------------------------------------------------------------------------------------------------- mutations

REPLACEMENTS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, 10**30, 1.5, -0.5, 1e300, -1e300, float("nan"), float("inf"), -float("inf")),
    *("", "0", "1", "text", "é" * 90, "\ud800", "a\0b", "/abs", [], {}, [[]], [None], [1, 2, 3, 4], [1, 2, 3, 4, 5]),
    *([1, 2, 3, 4, 5, 6], [[1, 2, 3, 4]], [["a"] * 6], {"a": 1}, {"size": [40, 60], "counts": "0"}, DEEP),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few changes of the structure: keys and entries removed, doubled, and replaced; or of the text as a whole."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        _change(content, rng)
    text = json.dumps(content)
    levels = rng.choice((50, 900, MANY_LEVELS))
    text = text.replace(f'"{DEEP}"', "[" * levels + "]" * levels)
    return _encoded(text, rng)


def _change(content: dict[str, Any], rng: random.Random) -> None:
    by_pattern: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for pattern, parent, key in _nodes(content, ""):
        by_pattern[pattern].append((parent, key))
    if not by_pattern:
        return
    places = by_pattern[rng.choice(sorted(by_pattern))]
    if rng.random() < 0.8:
        places = [rng.choice(places)]
    kind, value = rng.randrange(5), rng.choice(REPLACEMENTS)
    for parent, key in reversed(places):
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 2 and isinstance(parent[key], (int, float)):
            parent[key] = rng.choice((-parent[key], parent[key] * 1000, float(parent[key]), str(parent[key])))
        else:
            parent[key] = copy.deepcopy(value)


def _nodes(value: Any, pattern: str) -> Iterator[tuple[str, Any, Any]]:
    """Everything in lists and dictionaries: its keys with all places in lists alike, what it is in, and where there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        below = f"{pattern}.{key if isinstance(value, dict) else '*'}"
        yield below, value, key
        yield from _nodes(inner, below)


def _encoded(text: str, rng: random.Random) -> bytes:
    kind = rng.randrange(20)
    if kind == 0:
        return b"\xef\xbb\xbf" + text.encode()
    if kind == 1:
        return text.encode("utf-16")
    if kind == 2:
        return text.encode()[: rng.randrange(len(text))]
    if kind == 3:
        return (
            json.dumps(json.loads(text), ensure_ascii=False).encode("latin-1", "replace") if len(text) < 10**5 else b""
        )
    return text.encode()


# -------------------------------------------------------------------------------------------------------------- reading


def read(path: str) -> None:
    """Loads a file, makes a training sample of its first image, and evaluates its objects as detections."""
    name = f"coco objects of {os.path.basename(path)}"
    try:
        register_coco_instances(name, {}, path, os.path.dirname(path))
        dicts = get_detection_dataset_dicts(name)
        for use_masks in (False, True):
            _make_sample(dicts[0], use_masks)
        _evaluate(name, dicts)
    finally:
        with contextlib.suppress(KeyError):
            DatasetCatalog.remove(name)
        with contextlib.suppress(KeyError):
            MetadataCatalog.remove(name)


def _make_sample(image: dict[str, Any], use_masks: bool) -> None:
    mapper = DatasetMapper(
        True, augmentations=[], image_format="RGB", use_instance_mask=use_masks, instance_mask_format="bitmask"
    )
    try:
        mapper(image)
    except (FileNotFoundError, ValueError) as error:
        # What only shows beside the image is told of the image.
        if image["file_name"] not in str(error) and repr(image["file_name"]) not in str(error):
            raise


def _evaluate(name: str, dicts: list[dict[str, Any]]) -> None:
    has_masks = all(image["height"] * image["width"] < 10**6 for image in dicts)
    for use_fast_impl in (False, True):
        evaluator = COCOEvaluator(name, distributed=False, use_fast_impl=use_fast_impl)
        evaluator.reset()
        for image in dicts:
            evaluator.process([image], [{"instances": _as_detections(image, has_masks)}])
        evaluator.evaluate()


def _as_detections(image: dict[str, Any], has_masks: bool) -> Instances:
    objects = [obj for obj in image["annotations"] if not obj.get("iscrowd") and len(obj["bbox"]) == 4]
    boxes = [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
    detections = Instances((image["height"], image["width"]))
    detections.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    detections.scores = torch.ones(len(objects))
    detections.pred_classes = torch.tensor([obj["category_id"] for obj in objects], dtype=torch.int64)
    nowhere = [0.0] * 3 * NUM_KEYPOINTS
    points = [obj.get("keypoints", nowhere) for obj in objects]
    points = [own if len(own) == len(nowhere) else nowhere for own in points]
    detections.pred_keypoints = torch.tensor(points, dtype=torch.float32).reshape(-1, NUM_KEYPOINTS, 3)
    if has_masks:
        detections.pred_masks = torch.ones(len(objects), *detections.image_size, dtype=torch.bool)
    return detections


TARGET = Target(read=read, seeds=write_seeds, refusals=("ValueError", "FileNotFoundError"), mutate=mutate)
