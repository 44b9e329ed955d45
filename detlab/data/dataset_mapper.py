"""From one entry of a dataset to one training sample.

Shapes: H x W pixels after augmentation, C colours, N objects.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import Transform, TransformList
from torch import Tensor

from detlab.config.config import CfgNode, configurable
from detlab.data.detection_utils import (
    SizeMismatchError,
    annotations_to_instances,
    build_augmentation,
    check_image_size,
    create_keypoint_hflip_indices,
    filter_empty_instances,
    get_bbox,
    transform_annotations,
    transform_proposals,
)
from detlab.data.transforms.augmentation import AugInput, Augmentation, AugmentationList
from detlab.data.transforms.augmentation_impl import RandomCrop
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks, PolygonMasks
from detlab.utils.image import read_image, read_label_map

__all__ = ["DatasetMapper"]

SampleDict = dict[str, Any]

# Whose losses take a label for the number of a class. Others may have a map of any labels beside their images.
ARCHITECTURES_WITH_SEMANTIC_HEAD = ("PanopticFPN", "SemanticSegmentor")


class DatasetMapper:
    """Reads an image, augments it together with its annotations, and gives both in the form that models take.

    A call takes a dictionary in the standard dataset format and returns a new one with its entries and:

    - ``image``: (C, H, W) uint8, contiguous (floating for a floating image format);
    - ``sem_seg``: (H, W) int64 labels, in training, if there is a ``sem_seg_file_name``;
    - ``instances``: in training, if there are ``annotations``; crowds and empty objects are left out. Images without
      objects have the same fields as others;
    - ``proposals``: if there are ``proposal_boxes`` and a number of them is asked for.

    ``annotations`` and ``sem_seg_file_name`` are taken out. ``width`` and ``height`` stay those of the file::

        mapper = DatasetMapper(cfg, is_train=True)
        mapper = DatasetMapper(cfg, is_train=True, augmentations=[T.Resize((640, 640)), T.RandomFlip()])
        sample = mapper(DatasetCatalog.get("coco_2017_train")[0])

    Args:
        is_train: whether to use annotations.
        augmentations: applied one after the other.
        image_format: see ``read_image``.
        use_instance_mask: whether to use ``segmentation``.
        use_keypoint: whether to use ``keypoints``.
        instance_mask_format: ``"polygon"`` or ``"bitmask"``.
        keypoint_hflip_indices: see ``create_keypoint_hflip_indices``.
        precomputed_proposal_topk: how many proposals to keep; None for no use of them.
        recompute_boxes: take boxes from the masks after augmentation, which are tighter where a crop cut the object.
        num_sem_seg_classes: K: labels of semantic maps are from 0 to K - 1, or the one that is ignored; None for any.
        sem_seg_ignore_value: the label that is ignored.

    Raises:
        ValueError: ``recompute_boxes`` without masks.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[Augmentation | Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        num_sem_seg_classes: int | None = None,
        sem_seg_ignore_value: int = 255,
    ) -> None:
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes takes boxes from masks: it needs use_instance_mask=True (MODEL.MASK_ON)")
        self.is_train = is_train
        self.augmentations = AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        self.num_sem_seg_classes = num_sem_seg_classes
        self.sem_seg_ignore_value = sem_seg_ignore_value
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("augmentations in %s: %s", mode, list(augmentations))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments by ``INPUT``, ``MODEL.MASK_ON``, ``MODEL.KEYPOINT_ON`` and ``MODEL.LOAD_PROPOSALS``."""
        augmentations = build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        hflip_indices = create_keypoint_hflip_indices(cfg.DATASETS.TRAIN) if cfg.MODEL.KEYPOINT_ON else None
        semantic = cfg.MODEL.SEM_SEG_HEAD
        learns_labels = cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES_WITH_SEMANTIC_HEAD
        topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if is_train else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "keypoint_hflip_indices": hflip_indices,
            "precomputed_proposal_topk": topk if cfg.MODEL.LOAD_PROPOSALS else None,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
            "num_sem_seg_classes": semantic.NUM_CLASSES if learns_labels else None,
            "sem_seg_ignore_value": semantic.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: SampleDict) -> SampleDict:
        """The sample of an image.

        Args:
            dataset_dict: in the standard dataset format; not changed.

        Raises:
            FileNotFoundError: there is no such image.
            SizeMismatchError: the image has another size than the dictionary says, or its semantic map another one
                than the image.
            ValueError: the image or its semantic map cannot be read, an annotation is wrong, or a label is not among
                the classes; the message names the file.
        """
        sample = dict(dataset_dict)
        annotations = self._wanted_annotations(sample.pop("annotations", None))
        sem_seg_file = sample.pop("sem_seg_file_name", None)
        image = read_image(sample["file_name"], format=self.image_format)
        check_image_size(sample, image)
        sem_seg = self._read_labels(sem_seg_file, sample) if self.is_train and sem_seg_file is not None else None

        with _naming(sample["file_name"]):
            self._check_labels(annotations)
            aug_input = AugInput(image, boxes=_boxes_of(annotations), sem_seg=sem_seg)
            transforms = self.augmentations(aug_input)
            image_size = aug_input.image.shape[:2]
            sample["image"] = _to_planes(aug_input.image)
            if aug_input.sem_seg is not None:
                sample["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
            if self.proposal_topk is not None:
                transform_proposals(sample, image_size, transforms, proposal_topk=self.proposal_topk)
            if annotations is not None:
                sample["instances"] = self._to_instances(annotations, transforms, image_size)
        return sample

    def _read_labels(self, file_name: str, sample: SampleDict) -> np.ndarray:
        """The semantic map of an image whose size is in ``sample``: (H, W)."""
        labels = read_label_map(file_name)
        height, width = labels.shape
        if (height, width) != (sample["height"], sample["width"]):
            raise SizeMismatchError(
                f"the semantic map {file_name!r} is {width} wide and {height} high, but its image "
                f"{sample['file_name']!r} is {sample['width']} wide and {sample['height']} high: make the map anew"
            )
        if self.num_sem_seg_classes is not None:
            is_wrong = ((labels < 0) | (labels >= self.num_sem_seg_classes)) & (labels != self.sem_seg_ignore_value)
            if is_wrong.any():
                wrong = np.unique(labels[is_wrong])[:5].tolist()
                raise ValueError(
                    f"the semantic map {file_name!r} has labels {wrong}, but the model has classes 0 to "
                    f"{self.num_sem_seg_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES) and ignores "
                    f"{self.sem_seg_ignore_value} (MODEL.SEM_SEG_HEAD.IGNORE_VALUE)"
                )
        return labels

    def _wanted_annotations(self, annotations: list[SampleDict] | None) -> list[SampleDict] | None:
        """Copies without crowds and without what this mapper does not use; None in inference."""
        if not self.is_train or annotations is None:
            return None
        unused = set()
        if not self.use_instance_mask:
            unused.add("segmentation")
        if not self.use_keypoint:
            unused.add("keypoints")
        return [
            {key: value for key, value in annotation.items() if key not in unused}
            for annotation in annotations
            if annotation.get("iscrowd", 0) == 0
        ]

    def _check_labels(self, annotations: list[SampleDict] | None) -> None:
        needs = (
            ("segmentation", self.use_instance_mask, "MODEL.MASK_ON"),
            ("keypoints", self.use_keypoint, "MODEL.KEYPOINT_ON"),
        )
        for key, is_needed, setting in needs:
            if is_needed and annotations and not any(key in annotation for annotation in annotations):
                raise ValueError(
                    f"none of its {len(annotations)} annotations has {key!r}, which {setting} needs; turn that off, or "
                    "train on a dataset that has them"
                )

    def _to_instances(
        self, annotations: list[SampleDict], transforms: TransformList, image_size: tuple[int, int]
    ) -> Instances:
        moved = transform_annotations(
            annotations, transforms, image_size, keypoint_hflip_indices=self.keypoint_hflip_indices
        )
        instances = annotations_to_instances(moved, image_size, mask_format=self.instance_mask_format)
        if not moved:
            self._add_empty_fields(instances)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return filter_empty_instances(instances)

    def _add_empty_fields(self, instances: Instances) -> None:
        if self.use_instance_mask and self.instance_mask_format == "polygon":
            instances.gt_masks = PolygonMasks([])
        elif self.use_instance_mask:
            instances.gt_masks = BitMasks(torch.zeros(0, *instances.image_size, dtype=torch.bool))
        if self.use_keypoint and self.keypoint_hflip_indices is not None:
            instances.gt_keypoints = Keypoints(torch.zeros(0, len(self.keypoint_hflip_indices), 3))


@contextmanager
def _naming(file_name: str) -> Iterator[None]:
    """Errors in the values of a sample say which image they belong to."""
    try:
        yield
    except SizeMismatchError:
        raise
    except ValueError as error:
        raise ValueError(f"image {file_name!r}: {error}") from error


def _boxes_of(annotations: list[SampleDict] | None) -> np.ndarray | None:
    """(N, 4) xyxy for augmentations that look at boxes; None without annotations."""
    if annotations is None:
        return None
    return np.array([get_bbox(a) for a in annotations], dtype=np.float64).reshape(-1, 4)


def _to_planes(image: np.ndarray) -> Tensor:
    """(H, W, C) or (H, W) -> contiguous (C, H, W) that may be written to."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1) if image.ndim == 3 else image[None])
    return torch.from_numpy(planes if planes.flags.writeable else planes.copy())
