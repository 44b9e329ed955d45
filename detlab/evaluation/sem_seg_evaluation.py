"""Semantic segmentation: one confusion matrix, and the means that are read off it.

Shapes: K classes, images of H x W pixels.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.evaluation.evaluator import DatasetEvaluator
from detlab.utils import comm
from detlab.utils.file_io import PathManager, write_atomically, write_json
from detlab.utils.image import read_label_map
from detlab.utils.logger import create_small_table

logger = logging.getLogger(__name__)


def load_image_into_numpy_array(filename: str, dtype: np.dtype | str | None = None) -> np.ndarray:
    """The labels of a map (H, W) in the given type, read as for training: see :func:`read_label_map`."""
    return np.asarray(read_label_map(filename), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """Intersection over union and accuracy of semantic segmentation.

    Outputs of the model are dicts with ``"sem_seg"``, scores of (K, H, W) at the size of the ground truth.

    Args:
        dataset_name: a registered dataset whose dicts have ``sem_seg_file_name`` and whose metadata have
            ``stuff_classes``, ``ignore_label``, and optionally ``stuff_dataset_id_to_contiguous_id``.
        distributed: add up the counts of all processes on the main one.
        output_dir: where to leave ``sem_seg_predictions.json`` and ``sem_seg_evaluation.pth``; None: nowhere.
        sem_seg_loading_fn: reads a label map: called with the file name and ``dtype=int``.
        num_classes, ignore_label: out of date; the metadata say both.

    Raises:
        ValueError: the metadata have no ``stuff_classes``.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ):
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("stuff_classes") is None:
            raise ValueError(f"the metadata of {dataset_name!r} have no stuff_classes; set them to the class names")
        self._class_names = list(metadata.stuff_classes)
        if num_classes is not None and num_classes != len(self._class_names):
            raise ValueError(f"num_classes {num_classes}, but {dataset_name!r} has {len(self._class_names)} classes")
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._read_labels = sem_seg_loading_fn
        self._ignore_label = metadata.get("ignore_label") if ignore_label is None else ignore_label
        self._to_dataset = {
            index: dataset_id for dataset_id, index in (metadata.get("stuff_dataset_id_to_contiguous_id") or {}).items()
        }
        self._label_files: dict[str, str | None] | None = None
        self.reset()

    def reset(self) -> None:
        # The last row and column take what is ignored, so that counting needs no selection.
        self._confusion = np.zeros((len(self._class_names) + 1,) * 2, dtype=np.int64)
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of a batch.

        Raises:
            ValueError: a label outside the classes, a label map of another size than the prediction, or an image
                without one; scores that are NaN, not (K, H, W), or of more classes than the dataset has.
        """
        for dataset_dict, output in zip(inputs, outputs):
            file_name = dataset_dict["file_name"]
            self._check_scores(output["sem_seg"], file_name)
            predicted = output["sem_seg"].argmax(dim=0).to("cpu").numpy()
            label_file = dataset_dict.get("sem_seg_file_name") or self._label_file_of(file_name)
            self._confusion += self._count(predicted, self._read_labels(label_file, dtype=int), label_file)
            self._predictions.extend(self.encode_json_sem_seg(predicted, file_name))

    def _check_scores(self, scores: Tensor, file_name: str) -> None:
        num_classes = len(self._class_names)
        if scores.dim() != 3 or not 1 <= scores.shape[0] <= num_classes:
            raise ValueError(
                f"'sem_seg' of image {file_name!r} has shape {tuple(scores.shape)}, but {self._dataset_name!r} has "
                f"{num_classes} classes; it is (classes, height, width): was the model built with the "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES of another dataset?"
            )
        if scores.isnan().any():
            raise ValueError(
                f"'sem_seg' of image {file_name!r} has {int(scores.isnan().sum())} scores that are NaN, which have no "
                "largest; did the training diverge, or were other weights loaded than the model's?"
            )

    def _label_file_of(self, file_name: str) -> str:
        if self._label_files is None:
            dicts = DatasetCatalog.get(self._dataset_name)
            self._label_files = {entry["file_name"]: entry.get("sem_seg_file_name") for entry in dicts}
        label_file = self._label_files.get(file_name)
        if label_file is None:
            raise ValueError(
                f"dataset {self._dataset_name!r} has no 'sem_seg_file_name' for image {file_name!r}; was the evaluator "
                "made for another dataset than the loader?"
            )
        return label_file

    def _count(self, predicted: np.ndarray, labels: np.ndarray, label_file: str) -> np.ndarray:
        """(K + 1, K + 1) pixels by predicted and true class."""
        num_classes = len(self._class_names)
        if predicted.shape != labels.shape:
            raise ValueError(f"{label_file} is {labels.shape}, the prediction {predicted.shape} (height, width)")
        known = (labels >= 0) & (labels < num_classes)
        wrong = sorted(set(np.unique(labels[~known]).tolist()) - {self._ignore_label})
        labels = np.where(known, labels, num_classes)
        if wrong:
            raise ValueError(
                f"{label_file} has labels {wrong[:5]}, but {self._dataset_name!r} has {num_classes} classes and "
                f"ignore_label {self._ignore_label}"
            )
        counts = np.bincount(
            (num_classes + 1) * predicted.reshape(-1) + labels.reshape(-1), minlength=(num_classes + 1) ** 2
        )
        return counts.reshape(num_classes + 1, num_classes + 1)

    def metric_names(self) -> Mapping[str, Sequence[str]]:
        return {"sem_seg": list(sem_seg_metrics(np.zeros((0, 0)), []))}

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Percentages of the task ``sem_seg``; None but on the main process.

        ``mIoU`` and ``mACC`` are means over the classes that occur, ``fwIoU`` is weighted by how often they do,
        ``pACC`` is the share of right pixels; ``IoU-<class>`` and ``ACC-<class>`` follow.
        """
        confusion, predictions = self._confusion, self._predictions
        if self._distributed:
            comm.synchronize()
            parts = comm.gather((confusion, predictions), dst=0)
            if not comm.is_main_process():
                return None
            confusion = np.sum([part[0] for part in parts], axis=0)
            predictions = list(itertools.chain.from_iterable(part[1] for part in parts))
        metrics = sem_seg_metrics(confusion[:-1, :-1], self._class_names)
        if self._output_dir:
            self._save(predictions, metrics)
        logger.info("Semantic segmentation:\n" + create_small_table({k: v for k, v in metrics.items() if "-" not in k}))
        return OrderedDict(sem_seg=metrics)

    def _save(self, predictions: list[dict[str, Any]], metrics: dict[str, float]) -> None:
        import torch

        assert self._output_dir is not None
        PathManager.mkdirs(self._output_dir)
        write_json(os.path.join(self._output_dir, "sem_seg_predictions.json"), predictions)
        with write_atomically(os.path.join(self._output_dir, "sem_seg_evaluation.pth")) as file:
            torch.save(metrics, file)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """A label map in COCO's stuff results format, one mask for each class in it.

        Args:
            sem_seg: (H, W) class indices.
            input_file_name: of the image.

        Raises:
            ValueError: a class without an id in ``stuff_dataset_id_to_contiguous_id``.
        """
        from detlab.evaluation._mask_rle import encode_masks

        labels = np.unique(sem_seg)
        if self._to_dataset and (unknown := set(labels.tolist()) - set(self._to_dataset)):
            raise ValueError(f"predicted classes {sorted(unknown)} have no id in {self._dataset_name!r}'s metadata")
        codes = encode_masks(sem_seg == labels[:, None, None])
        return [
            {"file_name": input_file_name, "category_id": self._to_dataset.get(label, label), "segmentation": code}
            for label, code in zip(labels.tolist(), codes)
        ]


def sem_seg_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Means of a confusion matrix in percent.

    Args:
        confusion: (K, K) pixels by predicted and true class.
        class_names: K names.
    """
    right = confusion.diagonal().astype(float)
    true, predicted = confusion.sum(axis=0).astype(float), confusion.sum(axis=1).astype(float)
    union = true + predicted - right
    occurs = true > 0
    accuracy = np.divide(right, true, out=np.full_like(right, np.nan), where=occurs)
    iou = np.divide(right, union, out=np.full_like(right, np.nan), where=occurs & (union > 0))
    total = true.sum()
    metrics = OrderedDict(
        mIoU=_mean(iou[occurs]),
        fwIoU=100 * float((iou[occurs] * true[occurs]).sum() / total) if total else float("nan"),
    )
    metrics.update((f"IoU-{name}", 100 * float(value)) for name, value in zip(class_names, iou))
    metrics.update(mACC=_mean(accuracy[occurs]), pACC=100 * float(right.sum() / total) if total else float("nan"))
    metrics.update((f"ACC-{name}", 100 * float(value)) for name, value in zip(class_names, accuracy))
    return metrics


def _mean(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else float("nan")
