"""What all models share that take images: a backbone, and how pixels come to it.

Shapes: N images of C channels, Hi x Wi the size of image i.
"""

import torch
from torch import Tensor, nn

from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import build_backbone
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances

__all__ = ["ImageModel", "ground_truth_of", "image_model_settings"]


class ImageModel(nn.Module):
    """Holds the backbone and the pixel statistics, and makes a batch of images ready for it.

    Args:
        backbone: from images to feature maps.
        pixel_mean: of each channel.
        pixel_std: of each channel.

    Raises:
        ValueError: if the means and deviations do not have one value a channel each.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, pixel_mean, pixel_std) -> None:
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"pixel_mean {pixel_mean} and pixel_std {pixel_std} need one value a channel each")
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size, with zeros, to the right and below.

        Args:
            batched_inputs: each with ``image``, (C, Hi, Wi) in the channel order and range of ``pixel_mean``.
        """
        images = [
            (x["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )


def image_model_settings(cfg) -> dict:
    """The arguments of :class:`ImageModel` that a config gives."""
    return {
        "backbone": build_backbone(cfg),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def ground_truth_of(batched_inputs: list[dict], device) -> list[Instances] | None:
    """The ``instances`` of each input on the device, or None if the inputs have none."""
    if "instances" not in batched_inputs[0]:
        return None
    return [x["instances"].to(device) for x in batched_inputs]
