"""A two-stage model as one function from tensors to tensors of sizes known beforehand.

Shapes: N images, H x W their size, D detections kept of each, M x M the masks' resolution.

The stages are the model's own; only the shell of ``Instances`` is missing. So ``torch.export`` and ``torch.compile``
follow it without a break, and a CUDA graph can hold it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detlab.modeling.meta_arch.rcnn import GeneralizedRCNN
from detlab.modeling.proposal_generator.rpn import RPN
from detlab.modeling.roi_heads.roi_heads import StandardROIHeads

__all__ = ["FixedSizeOutput", "FixedSizeRCNN"]


class FixedSizeOutput(NamedTuple):
    """D entries for each image, best first; those from ``counts`` on are padding, with zeros."""

    boxes: Tensor  # (N, D, 4) xyxy in pixels of the input
    scores: Tensor  # (N, D)
    classes: Tensor  # (N, D) int64
    counts: Tensor  # (N,) int64
    masks: Tensor | None  # (N, D, M, M) probabilities inside each box; None for a model without masks


class FixedSizeRCNN(nn.Module):
    """The tensor core of a :class:`GeneralizedRCNN`, in inference.

    Args:
        model: with an :class:`RPN` and :class:`StandardROIHeads`; its weights are shared, and it is put into
            evaluation mode.

    Raises:
        TypeError: for a model whose parts have no tensor core.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        for name, part, wanted in (
            ("model", model, GeneralizedRCNN),
            ("proposal_generator", getattr(model, "proposal_generator", None), RPN),
            ("roi_heads", getattr(model, "roi_heads", None), StandardROIHeads),
        ):
            if not isinstance(part, wanted):
                raise TypeError(f"a fixed-size model needs a {wanted.__name__} as {name}, got {type(part).__name__}")
        if model.roi_heads.keypoint_on:
            raise TypeError("the fixed-size model has no keypoints yet; build the model with MODEL.KEYPOINT_ON False")
        self.model: Any = model.eval()

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> FixedSizeOutput:
        """Detect.

        Args:
            images: (N, 3, H, W) in the channel order and range that the model was trained on, H and W multiples of the
                backbone's ``size_divisibility``; smaller images lie in the upper left corner.
            image_sizes: (N, 2), height and width of the part that is the image; None if that is all of it.
        """
        model = self.model
        if image_sizes is None:
            image_sizes = _full_sizes(images)
        normalized = (images - model.pixel_mean) / model.pixel_std
        normalized = normalized * _inside(image_sizes, images.shape[-2], images.shape[-1])
        features = model.backbone(normalized)
        proposals = model.proposal_generator.propose(features, image_sizes)
        found, masks = model.roi_heads.detect(features, proposals, image_sizes)
        return FixedSizeOutput(found.boxes, found.scores, found.classes, found.counts, masks)


def _full_sizes(images: Tensor) -> Tensor:
    """(N, 2): every image fills the batch's height and width."""
    num_images, _, height, width = images.shape
    sides = [torch.full((num_images,), side, dtype=torch.float32, device=images.device) for side in (height, width)]
    return torch.stack(sides, dim=1)


def _inside(image_sizes: Tensor, height: int, width: int) -> Tensor:
    """(N, 1, H, W): 1 inside each image, 0 in its padding, which the network takes as 0 after normalisation."""
    rows = torch.arange(height, device=image_sizes.device) < image_sizes[:, 0:1]
    columns = torch.arange(width, device=image_sizes.device) < image_sizes[:, 1:2]
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1).to(torch.float32)
