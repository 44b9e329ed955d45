"""The datasets that are known from the start, by name. Importing this file registers them; no file is touched.

They are looked for in the folder that the environment variable ``DETLAB_DATASETS`` names, ``datasets`` where
that is unset or empty, each in the layout its publishers give it.
"""

from __future__ import annotations

import os
from typing import Any

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.builtin_meta import builtin_metadata
from detlab.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from detlab.data.datasets.cityscapes_panoptic import register_all_cityscapes_panoptic
from detlab.data.datasets.coco import load_sem_seg, register_coco_instances
from detlab.data.datasets.coco_panoptic import (
    IGNORED_LABEL,
    register_coco_panoptic,
    register_coco_panoptic_separated,
)
from detlab.data.datasets.lvis import register_lvis_instances
from detlab.data.datasets.pascal_voc import register_pascal_voc
from detlab.data.datasets.root_folder import datasets_root
from detlab.data.datasets.shapes_catalog import register_all_shapes

__all__ = [
    "register_all_ade20k",
    "register_all_cityscapes",
    "register_all_coco",
    "register_all_lvis",
    "register_all_pascal_voc",
]

# Split -> folder of images and file of annotations below coco/; the names are coco_<split>.
COCO_INSTANCES = {
    "2014_train": ("train2014", "instances_train2014"),
    "2014_val": ("val2014", "instances_val2014"),
    "2014_minival": ("val2014", "instances_minival2014"),
    "2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "2017_train": ("train2017", "instances_train2017"),
    "2017_val": ("val2017", "instances_val2017"),
    "2017_test": ("test2017", "image_info_test2017"),
    "2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "2017_val_100": ("val2017", "instances_val2017_100"),
}
SPLITS_WITHOUT_KEYPOINTS = ("2017_test", "2017_test-dev")
PANOPTIC_SPLITS = ("2017_train", "2017_val", "2017_val_100")

# Version -> split -> file below lvis/, without its beginning lvis_<version>_.
LVIS_FILES = {
    "v1": {
        "train": "train",
        "val": "val",
        "test_dev": "image_info_test_dev",
        "test_challenge": "image_info_test_challenge",
    },
    "v0.5": {
        "train": "train",
        "val": "val",
        "val_rand_100": "val_rand_100",
        "test": "image_info_test",
        "train_cocofied": "train_cocofied",
        "val_cocofied": "val_cocofied",
    },
}

VOC_SPLITS = {2007: ("train", "val", "trainval", "test"), 2012: ("train", "val", "trainval")}
CITYSCAPES_SPLITS = ("train", "val", "test")
ADE20K_FOLDERS = {"train": "training", "val": "validation"}


def register_all_coco(root: str) -> None:
    """Registers the instance, keypoint and panoptic datasets of COCO, whose files are in ``root/coco``."""
    folder = os.path.join(root, "coco")
    for split, (images, instances) in COCO_INSTANCES.items():
        image_root = os.path.join(folder, images)
        json_file = os.path.join(folder, "annotations", f"{instances}.json")
        register_coco_instances(f"coco_{split}", builtin_metadata("coco"), json_file, image_root)
        if split not in SPLITS_WITHOUT_KEYPOINTS:
            json_file = json_file.replace("instances_", "person_keypoints_")
            register_coco_instances(f"keypoints_coco_{split}", builtin_metadata("coco_person"), json_file, image_root)
    for split in PANOPTIC_SPLITS:
        _register_coco_panoptic(folder, split)


def _register_coco_panoptic(folder: str, split: str) -> None:
    images, instances = COCO_INSTANCES[split]
    suffix = instances.removeprefix("instances_")
    files: dict[str, Any] = {
        "image_root": os.path.join(folder, images),
        "panoptic_root": os.path.join(folder, f"panoptic_{suffix}"),
        "panoptic_json": os.path.join(folder, "annotations", f"panoptic_{suffix}.json"),
        "instances_json": os.path.join(folder, "annotations", f"{instances}.json"),
    }
    name = f"coco_{split}_panoptic"
    register_coco_panoptic(name, builtin_metadata("coco_panoptic_standard"), **files)
    register_coco_panoptic_separated(
        name,
        builtin_metadata("coco_panoptic_separated"),
        sem_seg_root=os.path.join(folder, f"panoptic_stuff_{suffix}"),
        **files,
    )


def register_all_lvis(root: str) -> None:
    """Registers LVIS: annotations in ``root/lvis``, images in ``root/coco``."""
    for version, splits in LVIS_FILES.items():
        for split, file in splits.items():
            json_file = os.path.join(root, "lvis", f"lvis_{version}_{file}.json")
            metadata = builtin_metadata("coco") if "cocofied" in split else {}
            register_lvis_instances(f"lvis_{version}_{split}", metadata, json_file, os.path.join(root, "coco"))


def register_all_pascal_voc(root: str) -> None:
    """Registers PASCAL VOC, whose files are in ``root/VOC2007`` and ``root/VOC2012``."""
    for year, splits in VOC_SPLITS.items():
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


def register_all_cityscapes(root: str) -> None:
    """Registers the instance and semantic datasets of Cityscapes, whose files are in ``root/cityscapes``."""
    for split in CITYSCAPES_SPLITS:
        _register_cityscapes(os.path.join(root, "cityscapes"), split)


def _register_cityscapes(folder: str, split: str) -> None:
    image_dir, gt_dir = os.path.join(folder, "leftImg8bit", split), os.path.join(folder, "gtFine", split)
    common: dict[str, Any] = {"image_dir": image_dir, "gt_dir": gt_dir, **builtin_metadata("cityscapes")}
    instances, semantic = f"cityscapes_fine_instance_seg_{split}", f"cityscapes_fine_sem_seg_{split}"
    DatasetCatalog.register(instances, lambda: load_cityscapes_instances(image_dir, gt_dir))
    MetadataCatalog.get(instances).set(evaluator_type="cityscapes_instance", **common)
    DatasetCatalog.register(semantic, lambda: load_cityscapes_semantic(image_dir, gt_dir))
    MetadataCatalog.get(semantic).set(evaluator_type="cityscapes_sem_seg", ignore_label=IGNORED_LABEL, **common)


def register_all_ade20k(root: str) -> None:
    """Registers ADE20K scene parsing, whose files are in ``root/ADEChallengeData2016``.

    The maps are those whose classes count from 0, in the folder that the reference's preparation script writes.
    """
    for split, part in ADE20K_FOLDERS.items():
        _register_ade20k(f"ade20k_sem_seg_{split}", os.path.join(root, "ADEChallengeData2016"), part)


def _register_ade20k(name: str, folder: str, part: str) -> None:
    image_dir = os.path.join(folder, "images", part)
    gt_dir = os.path.join(folder, "annotations_detectron2", part)
    DatasetCatalog.register(name, lambda: load_sem_seg(gt_dir, image_dir))
    MetadataCatalog.get(name).set(
        image_root=image_dir,
        sem_seg_root=gt_dir,
        evaluator_type="sem_seg",
        ignore_label=IGNORED_LABEL,
        **builtin_metadata("ade20k_sem_seg"),
    )


def _register_everything() -> None:
    root = datasets_root()
    for register in (
        register_all_coco,
        register_all_lvis,
        register_all_cityscapes,
        register_all_cityscapes_panoptic,
        register_all_pascal_voc,
        register_all_ade20k,
        register_all_shapes,
    ):
        register(root)


_register_everything()
