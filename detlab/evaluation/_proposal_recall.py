"""How many objects a set of class-agnostic boxes covers.

Shapes: P proposals by falling score, G objects of one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.instances import Instances

AREA_RANGES = {
    "all": (0, 1e5**2),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
}
"""Square pixels, both ends included. Areas are those of the objects' masks, where they have any."""

LIMITS = (100, 1000)


class ImageOverlaps(NamedTuple):
    """One image, reduced to what recall depends on."""

    overlaps: np.ndarray  # (P, G) IoU
    areas: np.ndarray  # (G,) square pixels


def overlaps_of_image(proposals: Instances, annotations: Iterable[Mapping[str, Any]], max_limit: int) -> ImageOverlaps:
    """Overlaps of the best ``max_limit`` proposals with the objects that are no crowds.

    Args:
        proposals: with ``proposal_boxes`` and ``objectness_logits``.
        annotations: COCO annotations of the image.
    """
    best = torch.argsort(proposals.objectness_logits, descending=True, stable=True)[:max_limit]
    objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    corners = torch.tensor([annotation["bbox"] for annotation in objects], dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    overlaps = pairwise_iou(proposals.proposal_boxes[best], Boxes(corners))
    return ImageOverlaps(overlaps.numpy(), np.array([annotation["area"] for annotation in objects], dtype=float))


def covered(overlaps: np.ndarray) -> np.ndarray:
    """IoU at which each object of one image is found, each proposal finding at most one; (G,), 0 for not at all.

    The object that is covered best goes first, and takes its best proposal with it.
    """
    remaining = overlaps.copy()
    num_objects = remaining.shape[1]
    found = np.zeros(num_objects)
    for turn in range(min(remaining.shape)):
        proposal, target = np.unravel_index(remaining.argmax(), remaining.shape)
        found[turn] = remaining[proposal, target]
        remaining[proposal] = remaining[:, target] = -1
    return found


def average_recall(images: Sequence[ImageOverlaps], limit: int, area_range: tuple[float, float]) -> float:
    """Mean recall over the IoU thresholds 0.5, 0.55 ... 0.95; NaN when there is no object of this size."""
    low, high = area_range
    found = [covered(o[:limit, (low <= areas) & (areas <= high)]) for o, areas in images]
    all_found = np.concatenate(found) if found else np.zeros(0)
    if not len(all_found):
        return float("nan")
    thresholds = np.arange(0.5, 0.95 + 1e-5, 0.05)
    return float(np.mean([(all_found >= threshold).mean() for threshold in thresholds]))


def recall_table(images: Sequence[ImageOverlaps]) -> dict[str, float]:
    """``AR@100``, ``ARs@100`` (small), ``ARm@100``, ``ARl@100`` and the same at 1000 proposals, in percent."""
    table = {}
    for limit in LIMITS:
        for name, area_range in AREA_RANGES.items():
            suffix = "" if name == "all" else name[0]
            table[f"AR{suffix}@{limit}"] = 100 * average_recall(images, limit, area_range)
    return table
