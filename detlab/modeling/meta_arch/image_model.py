"""What all models share that take images: a backbone, and how pixels come to it.

Shapes: N images of C channels, Hi x Wi the size of image i.
"""

import torch
from torch import Tensor, nn

from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import build_backbone
from detlab.modeling.suppression import sizes_tensor
from detlab.structures.image_list import ImageList
from detlab.structures.object_batch import ObjectBatch, batch_on_device

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
        """Pad the images to one size, to the right and below, and normalise them; the padding is zeros.

        Args:
            batched_inputs: each with ``image``, (C, Hi, Wi) in the channel order and range of ``pixel_mean``.
        """
        tensors = [x["image"] for x in batched_inputs]
        images = ImageList.from_tensors(
            tensors,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
            pin_memory=self.device.type == "cuda" and torch.cuda.is_available() and not tensors[0].is_cuda,
        ).to(self.device, non_blocking=True)
        if all(size == images.tensor.shape[-2:] for size in images.image_sizes):
            return ImageList(self._scaled(images.tensor), images.image_sizes)
        sizes = sizes_tensor(images.image_sizes, self.pixel_mean)
        return ImageList(self.normalize(images.tensor, sizes), images.image_sizes)

    def _scaled(self, images: Tensor) -> Tensor:
        """Of zero mean, in the model's type, whatever the type of the images."""
        images = images.to(self.pixel_mean.dtype) if images.is_floating_point() else images
        return (images - self.pixel_mean) / self.pixel_std

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """What the backbone sees of padded images: of zero mean, with zeros in the padding.

        Args:
            images: (N, C, H, W).
            image_sizes: (N, 2), height and width of the part that is the image.
        """
        normalized = self._scaled(images)
        height, width = images.shape[-2:]
        below = torch.arange(height, device=images.device) >= image_sizes[:, 0:1]
        right = torch.arange(width, device=images.device) >= image_sizes[:, 1:2]
        return normalized.masked_fill((below[:, :, None] | right[:, None, :]).unsqueeze(1), 0.0)


def image_model_settings(cfg) -> dict:
    """The arguments of :class:`ImageModel` that a config gives."""
    return {
        "backbone": build_backbone(cfg),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def ground_truth_of(batched_inputs: list[dict], device: torch.device) -> ObjectBatch | None:
    """The ``instances`` of each input as one batch on the device, or None if the inputs have none."""
    if "instances" not in batched_inputs[0]:
        return None
    return batch_on_device([x["instances"] for x in batched_inputs], device)
