"""Images of several sizes in one tensor.

Shapes: N images, C channels, H x W the padded size, h x w an image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ImageList"]


class ImageList:
    """A batch of images, padded at the right and the bottom to one size; indexing gives an image without padding.

    Attributes:
        tensor: (N, C, H, W) or (N, H, W).
        image_sizes: (h, w) of each image; inside a compiled or exported model a (N, 2) tensor.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]] | Any) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """The image (C, h, w) or (h, w), a view."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """The batch on another device or in another dtype."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
        pin_memory: bool = False,
    ) -> ImageList:
        """Pads images to one size.

        Args:
            tensors: images (C, h, w) or (h, w), alike but for h and w. A single image that needs no padding is
                not copied.
            size_divisibility: H and W become multiples of it; 0 and 1 ask for nothing.
            pad_value: what is put around the images.
            padding_constraints: what a backbone asks for: "size_divisibility" overrides the argument, and
                "square_size" > 0 makes H and W equal to it.
            pin_memory: put the batch where a GPU can fetch it while the host goes on.

        Raises:
            ValueError: if there is no image, leading sizes differ, or an image is larger than "square_size".
        """
        if len(tensors) == 0:
            raise ValueError("a batch needs at least one image")
        _check_leading_sizes(tensors)
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        padded_size = _padded_size(sizes, size_divisibility, padding_constraints or {})
        return ImageList(_stack_padded(tensors, padded_size, pad_value, pin_memory), sizes)


def _check_leading_sizes(images: Sequence[Tensor]) -> None:
    for image in images:
        if image.dim() not in (2, 3) or image.shape[:-2] != images[0].shape[:-2]:
            raise ValueError(
                f"images of a batch are all (C, h, w) with one C, or all (h, w); "
                f"got {tuple(images[0].shape)} and {tuple(image.shape)}"
            )


def _padded_size(
    sizes: Sequence[tuple[int, int]], size_divisibility: int, constraints: dict[str, int]
) -> tuple[int, int]:
    height, width = (max(side) for side in zip(*sizes))
    square = constraints.get("square_size", 0)
    if square > 0:
        if height > square or width > square:
            raise ValueError(f"an image of {height}x{width} does not fit the model's square_size {square}; resize it")
        height = width = square
    step = constraints.get("size_divisibility", size_divisibility)
    if step > 1:
        height, width = (-(-side // step) * step for side in (height, width))
    return height, width


def _stack_padded(images: Sequence[Tensor], padded_size: tuple[int, int], pad_value: float, pin_memory: bool) -> Tensor:
    height, width = padded_size
    if len(images) == 1 and not pin_memory:
        image = images[0]
        right, bottom = width - image.shape[-1], height - image.shape[-2]
        padded = F.pad(image, (0, right, 0, bottom), value=pad_value) if right or bottom else image
        return padded.unsqueeze(0)
    if all(image.shape[-2:] == padded_size for image in images) and not pin_memory:
        return torch.stack(list(images))
    shape = (len(images), *images[0].shape[:-2], height, width)
    batch = images[0].new_empty(shape, pin_memory=pin_memory)
    for i, image in enumerate(images):
        h, w = image.shape[-2:]
        batch[i, ..., :h, :w] = image
        # Only the margins are filled: a fill of everything would write each pixel twice.
        batch[i, ..., h:, :] = pad_value
        batch[i, ..., :h, w:] = pad_value
    return batch
