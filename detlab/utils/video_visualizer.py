"""Drawing of predictions on the frames of a video, an object keeping its colour from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from detlab.structures.instances import Instances
from detlab.utils._generic_mask import GenericMask
from detlab.utils.colormap import random_color
from detlab.utils.visualizer import ColorMode, VisImage, Visualizer

__all__ = ["VideoVisualizer"]

FRAMES_REMEMBERED = 8
BOX_IOU_TO_FOLLOW = 0.6
MASK_IOU_TO_FOLLOW = 0.5


@dataclass
class _Seen:
    """An object of a frame."""

    label: int
    box_xyxy: np.ndarray | None
    mask: np.ndarray | None  # (H, W)
    color: tuple[float, ...] = field(default_factory=lambda: tuple(random_color(rgb=True, maximum=1).tolist()))
    frames_missing: int = 0


class VideoVisualizer:
    """Draws on the frames of one video, given in order.

    An object has the colour of the object of the last frames that has its class and overlaps it most. That is for
    looking at, not for tracking.

    Args:
        metadata: of the dataset, for the names and colours of classes.
        instance_mode: ``IMAGE`` or ``IMAGE_BW``: how to colour; classes have no fixed colours here.

    Raises:
        ValueError: for the ``SEGMENTATION`` mode.
    """

    def __init__(self, metadata: Any, instance_mode: ColorMode = ColorMode.IMAGE):
        if instance_mode == ColorMode.SEGMENTATION:
            raise ValueError(f"VideoVisualizer colours by object; {instance_mode} is for single images")
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._remembered: list[_Seen] = []

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """Draw the detections of the next frame; masks where there are any, boxes otherwise.

        Args:
            frame: (H, W, 3) RGB, 0 to 255.
            predictions: with any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks``, ``pred_keypoints``;
                colours of one's own may come as ``COLOR``.
        """
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        predictions = predictions.to("cpu")
        num_objects = len(predictions)
        boxes = predictions.pred_boxes.tensor.numpy() if predictions.has("pred_boxes") else [None] * num_objects
        masks = predictions.pred_masks if predictions.has("pred_masks") else None
        masks = None if masks is None else getattr(masks, "tensor", masks).numpy()
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else [0] * num_objects
        seen = [_Seen(c, box, None if masks is None else masks[i]) for i, (c, box) in enumerate(zip(classes, boxes))]
        colors = list(predictions.COLOR) if predictions.has("COLOR") else self._followed_colors(seen)
        alpha = 0.5
        if self._instance_mode == ColorMode.IMAGE_BW and masks is not None:
            visualizer.grey_out_but([GenericMask(mask, *frame.shape[:2]) for mask in masks])
            alpha = 0.3
        return visualizer.overlay_instances(
            boxes=None if masks is not None or not predictions.has("pred_boxes") else predictions.pred_boxes,
            masks=masks,
            labels=visualizer.prediction_labels(predictions),
            keypoints=predictions.pred_keypoints if predictions.has("pred_keypoints") else None,
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_sem_seg(
        self, frame: np.ndarray, sem_seg: torch.Tensor | np.ndarray, area_threshold: float | None = None
    ) -> VisImage:
        """Draw the (H, W) label map of the next frame; see ``Visualizer.draw_sem_seg``."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw stuff and things of the next frame; see ``Visualizer.draw_panoptic_seg``."""

        def follow(masks: Sequence[np.ndarray], classes: Sequence[int]) -> list[tuple[float, ...]]:
            return self._followed_colors([_Seen(label, None, mask) for label, mask in zip(classes, masks)])

        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        return visualizer.draw_panoptic_seg(panoptic_seg, segments_info, area_threshold, alpha, thing_colors=follow)

    def _followed_colors(self, seen: list[_Seen]) -> list[tuple[float, ...]]:
        """Give objects the colours of those they continue, and remember them for the next frames."""
        overlaps = np.array([[_overlap(old, new) for new in seen] for old in self._remembered])
        overlaps = overlaps.reshape(len(self._remembered), len(seen))
        followed = set()
        while overlaps.size and overlaps.max() > 0:
            old, new = np.unravel_index(overlaps.argmax(), overlaps.shape)
            seen[new].color = self._remembered[old].color
            followed.add(old)
            overlaps[old] = overlaps[:, new] = 0
        lost = [gone for index, gone in enumerate(self._remembered) if index not in followed]
        for gone in lost:
            gone.frames_missing += 1
        self._remembered = seen + [gone for gone in lost if gone.frames_missing < FRAMES_REMEMBERED]
        return [new.color for new in seen]


def _overlap(old: _Seen, new: _Seen) -> float:
    """IoU of two objects, 0 if it is too little to be the same one, or if the classes differ."""
    if old.label != new.label:
        return 0.0
    if old.mask is not None and new.mask is not None and old.mask.shape == new.mask.shape:
        union = np.logical_or(old.mask, new.mask).sum()
        iou = float(np.logical_and(old.mask, new.mask).sum() / union) if union else 0.0
        return iou if iou > MASK_IOU_TO_FOLLOW else 0.0
    if old.box_xyxy is None or new.box_xyxy is None:
        return 0.0
    sides = np.minimum(old.box_xyxy[2:], new.box_xyxy[2:]) - np.maximum(old.box_xyxy[:2], new.box_xyxy[:2])
    common = np.maximum(sides, 0).prod()
    areas = [np.maximum(box[2:] - box[:2], 0).prod() for box in (old.box_xyxy, new.box_xyxy)]
    union = sum(areas) - common
    iou = float(common / union) if union else 0.0
    return iou if iou > BOX_IOU_TO_FOLLOW else 0.0
