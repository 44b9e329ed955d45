"""Registers the blood-cell images of BCCD (MIT licence) as a user registers a data set: with ``--import`` of this file.

They are expected under ``$DETLAB_DATASETS/bccd``: ``JPEGImages/`` and ``coco_json/instances_{train,val,test}.json``.
"""

from pathlib import Path

from detlab.data.datasets import register_coco_instances
from detlab.data.datasets.root_folder import datasets_root

ROOT = Path(datasets_root()) / "bccd"

for split in ("train", "val", "test"):
    annotations = ROOT / "coco_json" / f"instances_{split}.json"
    register_coco_instances(f"bccd_{split}", {}, str(annotations), str(ROOT / "JPEGImages"))
