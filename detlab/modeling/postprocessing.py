"""From the network's picture of an image to the image as the user gave it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from detlab.structures.instances import Instances
from detlab.structures.masks import ROIMasks

__all__ = ["detector_postprocess", "postprocess_each", "sem_seg_postprocess"]


def postprocess_each(
    results: Sequence[Instances], batched_inputs: Sequence[dict], image_sizes: Sequence[tuple[int, int]]
) -> list[Instances]:
    """:func:`detector_postprocess` of each image, at the ``height`` and ``width`` that its input wants."""
    return [
        detector_postprocess(result, item.get("height", size[0]), item.get("width", size[1]))
        for result, item, size in zip(results, batched_inputs, image_sizes)
    ]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Rescale an image's detections to its original size, and paste their masks.

    Boxes that have no area left after clipping are dropped.

    Args:
        results: detections at the network's input size: ``pred_boxes`` or ``proposal_boxes``; ``pred_masks``
            (R, 1, M, M) probabilities and ``pred_keypoints`` (R, K, 3) where there are any.
        output_height: height wanted, in pixels.
        output_width: width wanted, in pixels.
        mask_threshold: the probability from which on a pixel belongs to an object.

    Returns:
        New instances of size (output_height, output_width); ``pred_masks`` is a (R, H, W) bool tensor.

    Raises:
        ValueError: if there are no boxes.
    """
    height, width = results.image_size
    scale_x, scale_y = output_width / width, output_height / height
    scaled = Instances((output_height, output_width), **results.get_fields())
    box_field = next((name for name in ("pred_boxes", "proposal_boxes") if scaled.has(name)), None)
    if box_field is None:
        known = ", ".join(results.get_fields()) or "none"
        raise ValueError(f"postprocessing needs pred_boxes or proposal_boxes; the fields are: {known}")
    boxes = scaled.get(box_field).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(scaled.image_size)
    scaled.set(box_field, boxes)
    scaled = scaled[boxes.nonempty()]
    if scaled.has("pred_masks"):
        masks = scaled.pred_masks
        roi_masks = masks if isinstance(masks, ROIMasks) else ROIMasks(masks[:, 0])
        pasted = roi_masks.to_bitmasks(scaled.get(box_field), output_height, output_width, mask_threshold)
        scaled.pred_masks = pasted.tensor
    if scaled.has("pred_keypoints"):
        keypoints = scaled.pred_keypoints.clone()
        keypoints[:, :, 0] *= scale_x
        keypoints[:, :, 1] *= scale_y
        scaled.pred_keypoints = keypoints
    return scaled


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Class scores of an image (C, H, W) with its padding cut off, resized to (C, output_height, output_width).

    Args:
        result: scores at the network's padded input size.
        img_size: (height, width) of the part that is the image.
        output_height: height wanted, in pixels.
        output_width: width wanted, in pixels.
    """
    image = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(image, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
