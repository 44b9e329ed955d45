"""What evaluators refuse in a model's output, since comparing with it would give numbers that mean nothing.

Shapes: N detections in one image of H x W pixels.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from detlab.structures.instances import Instances

__all__ = ["check_detections", "refuse_class"]


def check_detections(instances: Instances, image_id: Any, size_hw: tuple[int, int] | None = None) -> None:
    """Makes sure that detections can be compared with objects.

    Args:
        instances: N, with ``pred_boxes`` and ``scores``, perhaps ``pred_keypoints`` and ``pred_masks`` (N, H, W).
        image_id: the image's, for messages.
        size_hw: height and width of the image; None if they are not known.

    Raises:
        ValueError: a number in a box, a score or keypoints is not finite; or masks are not of the image's size.
    """
    for field in ("pred_boxes", "scores", "pred_keypoints"):
        if instances.has(field):
            _check_finite(field, instances.get(field), image_id)
    if size_hw is None or not instances.has("pred_masks") or not len(instances):
        return
    masks = instances.pred_masks
    size = tuple(getattr(masks, "tensor", masks).shape[-2:])
    if size != tuple(size_hw):
        raise ValueError(
            f"pred_masks in image {image_id!r} have height and width {size}, but the image {tuple(size_hw)}; paste "
            "masks into the whole image (see detector_postprocess)"
        )


def _check_finite(field: str, values: Any, image_id: Any) -> None:
    numbers = getattr(values, "tensor", values)
    is_finite = torch.isfinite(numbers)
    if not is_finite.all():
        place = int((~is_finite.reshape(len(numbers), -1)).any(dim=1).nonzero()[0])
        raise ValueError(
            f"detection {place} in image {image_id!r} has {field} {numbers[place].tolist()}, which is not finite; "
            "did the training diverge, or were other weights loaded than the model's?"
        )


def refuse_class(index: int, last: int, image_id: Any, dataset_name: str) -> NoReturn:
    """Raises the ValueError of a predicted class that is not among a dataset's, which are 0 to ``last``."""
    raise ValueError(
        f"predicted class {index} in image {image_id}, but {dataset_name!r} has classes 0 to {last}; was the model "
        "built with the NUM_CLASSES of another dataset?"
    )
