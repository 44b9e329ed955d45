"""From the images of a batch to the tensor that a backbone takes.

Shapes: N images of C channels, Hi x Wi the size of image i.
"""

import torch
from torch import Tensor, nn

from detlab.modeling.backbone.backbone import Backbone
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances

__all__ = ["ground_truth_of", "normalize_and_batch", "register_pixel_statistics"]


def register_pixel_statistics(model: nn.Module, pixel_mean, pixel_std) -> None:
    """Give the model the buffers ``pixel_mean`` and ``pixel_std``, (C, 1, 1) each, outside its state dict.

    Raises:
        ValueError: if they have not one value a channel each.
    """
    if len(pixel_mean) != len(pixel_std):
        raise ValueError(f"pixel_mean {pixel_mean} and pixel_std {pixel_std} need one value a channel each")
    model.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
    model.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)


def normalize_and_batch(
    batched_inputs: list[dict], pixel_mean: Tensor, pixel_std: Tensor, backbone: Backbone
) -> ImageList:
    """Normalise the images and pad them to one size, with zeros, to the right and below.

    Args:
        batched_inputs: each with ``image``, (C, Hi, Wi) in the channel order and range of ``pixel_mean``.
        pixel_mean: (C, 1, 1).
        pixel_std: (C, 1, 1).
        backbone: says what the padded size must be divisible by.
    """
    images = [(x["image"].to(pixel_mean.device, non_blocking=True) - pixel_mean) / pixel_std for x in batched_inputs]
    return ImageList.from_tensors(images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints)


def ground_truth_of(batched_inputs: list[dict], device) -> list[Instances] | None:
    """The ``instances`` of each input on the device, or None if the inputs have none."""
    if "instances" not in batched_inputs[0]:
        return None
    return [x["instances"].to(device) for x in batched_inputs]
