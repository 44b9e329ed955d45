"""From the small mask of a region to a mask of the whole image.

Shapes: N masks of M x M values in [0, 1], image H x W. Cell (i, j) of an image has its center at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detlab.layers import _ops

__all__ = ["pad_masks", "paste_mask_in_image_old", "paste_masks_in_image", "scale_boxes"]


def paste_masks_in_image(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Stretches each mask over its box, bilinearly, in an image that is empty elsewhere.

    Args:
        masks: (N, M, M) probabilities.
        boxes: (N, 4) xyxy in pixels of the image, a tensor or ``Boxes``.
        image_shape: (H, W).
        threshold: pixels at or above it are in the mask; negative asks for the soft values instead.

    Returns:
        (N, H, W): bool, or uint8 in 0..255 for a negative threshold.

    Raises:
        ValueError: if the masks are not square, or their number is not that of the boxes.
    """
    corners = getattr(boxes, "tensor", boxes)
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks to paste are (N, M, M); got {tuple(masks.shape)}")
    if len(masks) != len(corners):
        raise ValueError(f"{len(masks)} masks but {len(corners)} boxes; give one box for each mask")
    height, width = image_shape
    return _ops.paste_masks(masks, corners, (height, width), threshold)


def paste_mask_in_image_old(mask: Tensor, box: Tensor, img_h: int, img_w: int, threshold: float) -> Tensor:
    """Pastes one mask the way the first R-CNN codes did: the box is cut to whole pixels, its last pixel included.

    Kept for comparison with old results; ``paste_masks_in_image`` is more exact.

    Args:
        mask: (M, M) probabilities.
        box: (4,) xyxy in pixels.
        img_h: H.
        img_w: W.
        threshold: pixels above it are in the mask; negative asks for the soft values in 0..255 instead.

    Returns:
        (H, W) uint8.
    """
    from PIL import Image

    left, top, right, bottom = (int(v) for v in box.tolist())
    size_wh = (max(right - left + 1, 1), max(bottom - top + 1, 1))
    stretched = Image.fromarray(mask.detach().float().cpu().numpy()).resize(size_wh, resample=Image.Resampling.BILINEAR)
    values = np.asarray(stretched)
    pixels = (values > threshold).astype(np.uint8) if threshold >= 0 else (values * 255).astype(np.uint8)
    canvas = torch.zeros(img_h, img_w, dtype=torch.uint8)
    rows = slice(max(top, 0), min(bottom + 1, img_h))
    columns = slice(max(left, 0), min(right + 1, img_w))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        canvas[rows, columns] = torch.from_numpy(inside.copy())
    return canvas


def pad_masks(masks: Tensor, padding: int) -> tuple[Tensor, float]:
    """Surrounds masks with zeros, so that interpolation at their border fades out.

    Args:
        masks: (N, M, M).
        padding: cells on each side.

    Returns:
        The masks (N, M + 2 padding, M + 2 padding), and the factor by which they grew.
    """
    size = masks.shape[-1]
    return F.pad(masks, (padding,) * 4), (size + 2 * padding) / size


def scale_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Grows boxes about their centers.

    Args:
        boxes: (N, 4) xyxy.
        scale: factor of width and height.

    Returns:
        (N, 4), new.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    center = (low + high) * 0.5
    half_size = (high - low) * (0.5 * scale)
    return torch.cat([center - half_size, center + half_size], dim=1)
