"""Which evaluator a dataset asks for."""

from __future__ import annotations

import os
from collections.abc import Callable

from detlab.config.config import CfgNode
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.evaluation.evaluator import DatasetEvaluator
from detlab.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlab.evaluation.sem_seg_evaluation import SemSegEvaluator


def _coco(cfg: CfgNode, dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return COCOEvaluator(dataset_name, output_dir=output_folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)


def _sem_seg(cfg: CfgNode, dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return SemSegEvaluator(dataset_name, output_dir=output_folder)


def _pascal_voc(cfg: CfgNode, dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(dataset_name)


MAKERS: dict[str, Callable[[CfgNode, str, str | None], DatasetEvaluator]] = {
    "coco": _coco,
    "sem_seg": _sem_seg,
    "pascal_voc": _pascal_voc,
}
"""By the ``evaluator_type`` in a dataset's metadata."""


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator for a dataset, by the ``evaluator_type`` of its metadata.

    A dataset that names none and has ``thing_classes`` and annotations of boxes gets the one of COCO, which converts
    them.

    Args:
        cfg: a whole config.
        dataset_name: a registered dataset.
        output_folder: where evaluators leave their files; by default ``inference`` under ``cfg.OUTPUT_DIR``, and
            nowhere if that is empty.

    Raises:
        ValueError: the metadata has an ``evaluator_type`` that has no evaluator here, or none, and no boxes.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind is None and _has_boxes_of_classes(dataset_name):
        kind = "coco"
    if kind not in MAKERS:
        problem = "has no evaluator_type in its metadata" if kind is None else f"asks for evaluator_type {kind!r}"
        raise ValueError(
            f"dataset {dataset_name!r} {problem}; build_evaluator knows {sorted(MAKERS)}. Set one, as in "
            f"MetadataCatalog.get({dataset_name!r}).set(evaluator_type='coco'), or pass an evaluator of your own: "
            "override build_evaluator of your trainer, or call inference_on_dataset(model, loader, evaluator); with "
            "DATASETS.TEST () nothing is evaluated"
        )
    if output_folder is None and cfg.OUTPUT_DIR:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return MAKERS[kind](cfg, dataset_name, output_folder)


def _has_boxes_of_classes(dataset_name: str) -> bool:
    if dataset_name not in DatasetCatalog or not MetadataCatalog.get(dataset_name).get("thing_classes"):
        return False
    images = DatasetCatalog.get(dataset_name)
    if not isinstance(images, list):
        return False
    return any("bbox" in obj for image in images for obj in image.get("annotations", ()))
