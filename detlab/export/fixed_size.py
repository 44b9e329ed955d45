"""A model as one function from tensors to tensors of sizes known beforehand.

Shapes: N images, H x W their size.

The stages are the model's own; only the shell of ``Instances`` is missing. So ``torch.export`` and ``torch.compile``
follow it without a break, and a CUDA graph can hold it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detlab.modeling.meta_arch.rcnn import FixedSizeOutput
from detlab.modeling.tensor_form import check_tensor_form

__all__ = ["FixedSizeOutput", "FixedSizeRCNN"]


class FixedSizeRCNN(nn.Module):
    """The tensor core of a model, in inference.

    Args:
        model: with a method ``tensor_core``, such as a :class:`GeneralizedRCNN`; its weights are shared, and it is put
            into evaluation mode.

    Raises:
        TypeError: for a model without a tensor core, or with a part that overrides a stage without having one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, "tensor_core"):
            raise TypeError(f"{type(model).__name__} has no tensor core: a method tensor_core(images, image_sizes)")
        if getattr(model, "proposal_generator", model) is None:
            raise TypeError(
                f"{type(model).__name__} takes its proposals from its inputs; it needs a proposal generator"
            )
        check_tensor_form(model)
        self.model: Any = model.eval()

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> NamedTuple:
        """Detect.

        Args:
            images: (N, 3, H, W) in the channel order and range that the model was trained on, H and W multiples of the
                backbone's ``size_divisibility``; smaller images lie in the upper left corner.
            image_sizes: (N, 2), height and width of the part that is the image; None if that is all of it.

        Returns:
            What the model's ``tensor_core`` gives: a :class:`FixedSizeOutput` for a :class:`GeneralizedRCNN`.
        """
        sizes = _full_sizes(images) if image_sizes is None else image_sizes
        return self.model.tensor_core(images, sizes)


def _full_sizes(images: Tensor) -> Tensor:
    """(N, 2): every image fills the batch's height and width."""
    num_images, _, height, width = images.shape
    sides = [torch.full((num_images,), side, dtype=torch.float32, device=images.device) for side in (height, width)]
    return torch.stack(sides, dim=1)
