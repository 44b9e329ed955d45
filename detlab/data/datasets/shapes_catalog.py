"""The names of the generated ``shapes`` data set. Its files are drawn when one of the names is first loaded."""

from __future__ import annotations

import functools
import os

from detlab.data.datasets.builtin_meta import builtin_metadata
from detlab.data.datasets.coco import register_coco_instances
from detlab.data.datasets.coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated

__all__ = ["register_all_shapes"]

SPLITS = ("train", "val")


def register_all_shapes(root: str) -> None:
    """Registers ``shapes_<split>``, ``shapes_keypoints_<split>``, ``shapes_<split>_panoptic`` and the last one's forms
    ``_separated`` and ``_stuffonly``, for the splits train and val; the files are in ``root/shapes``."""
    for split in SPLITS:
        _register_split(os.path.join(root, "shapes"), split)


def _register_split(folder: str, split: str) -> None:
    prepare = functools.partial(_draw_if_missing, folder)
    images = os.path.join(folder, split)
    instances, keypoints, panoptic = (
        os.path.join(folder, "annotations", f"{kind}_{split}.json") for kind in ("instances", "keypoints", "panoptic")
    )
    register_coco_instances(f"shapes_{split}", builtin_metadata("shapes"), instances, images, prepare)
    register_coco_instances(
        f"shapes_keypoints_{split}", builtin_metadata("shapes_keypoints"), keypoints, images, prepare
    )
    name = f"shapes_{split}_panoptic"
    maps = os.path.join(folder, f"panoptic_{split}")
    register_coco_panoptic(
        name, builtin_metadata("shapes_panoptic_standard"), images, maps, panoptic, instances, prepare
    )
    stuff = os.path.join(folder, f"stuff_{split}")
    register_coco_panoptic_separated(
        name, builtin_metadata("shapes_panoptic_separated"), images, maps, panoptic, stuff, instances, prepare
    )


def _draw_if_missing(folder: str) -> None:
    # Imported here so that ``python -m detlab.data.datasets.shapes`` does not find itself loaded already.
    from detlab.data.datasets.shapes import ensure_shapes

    ensure_shapes(folder)
