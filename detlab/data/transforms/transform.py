"""Deterministic changes of an image, and of everything that is drawn on it.

A transform knows its numbers; it draws none at random. Shapes: H x W pixels, C colours, N rows. Images are (H, W) or
(H, W, C) arrays. Points are (x, y) in continuous coordinates: pixel i covers [i, i + 1). Rotated boxes are (N, 5):
center x, center y, width, height in pixels, angle in degrees, counter-clockwise on the screen.

Two numberings of interpolation are in use: Pillow's (0 nearest, 2 bilinear, 3 bicubic) for resizing and extents, and
OpenCV's (0 nearest, 1 bilinear, 2 bicubic) for rotations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from detlab.utils.optional import require

__all__ = [
    "ColorTransform",
    "ExtentTransform",
    "HFlip_rotated_box",
    "PILColorTransform",
    "ResizeTransform",
    "Resize_rotated_box",
    "RotationTransform",
]

NEAREST = int(Image.Resampling.NEAREST)
BILINEAR = int(Image.Resampling.BILINEAR)
BICUBIC = int(Image.Resampling.BICUBIC)

CV2_NEAREST = 0
CV2_LINEAR = 1

_TORCH_MODES = {BILINEAR: "bilinear", BICUBIC: "bicubic"}


# ---------------------------------------------------------------------------------------------------------- resizing


class ResizeTransform(Transform):
    """Resizes an image.

    uint8 images go through Pillow, which smooths when it shrinks; other dtypes are sampled by torch, which does not.
    Nearest-neighbour takes the same pixels for every dtype.

    Args:
        h: height of the image.
        w: width of the image.
        new_h: height of the result.
        new_w: width of the result.
        interp: Pillow's number of the interpolation; None means bilinear.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resizes an image of the size this transform was made for.

        Args:
            img: (H, W) or (H, W, C). Integers other than uint8, and booleans, are rounded back to their dtype.
            interp: used instead of the transform's own.

        Raises:
            ValueError: the image has another size.
        """
        _check_size(self, img, (self.h, self.w))
        if (self.new_h, self.new_w) == (self.h, self.w):
            return img
        resample = self.interp if interp is None else interp
        size_hw = (self.new_h, self.new_w)
        if img.dtype == np.uint8:
            return _by_pillow(img, lambda image: image.resize(size_hw[::-1], resample))
        if resample == NEAREST:
            return _pick_nearest(img, size_hw)
        return _interpolate(img, size_hw, resample)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points."""
        return _times(coords, self.new_w / self.w, self.new_h / self.h)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) labels; none is mixed from two."""
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> ResizeTransform:
        """Resizes back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


def _check_size(transform: Transform, img: np.ndarray, size_hw: tuple[int, int]) -> None:
    if img.ndim not in (2, 3) or img.shape[:2] != size_hw:
        raise ValueError(f"{transform} is for images of height and width {size_hw}, got an array of shape {img.shape}")


def _by_pillow(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Applies an operation that treats each channel by itself to a uint8 array (H, W) or (H, W, C)."""
    if img.ndim == 2 or img.shape[2] == 3:
        return np.asarray(operation(Image.fromarray(img)))
    # Pillow has no mode for these numbers of channels, or, for four, one that takes the last for opacity.
    planes = [np.asarray(operation(Image.fromarray(img[:, :, channel]))) for channel in range(img.shape[2])]
    return np.stack(planes, axis=2)


def _pick_nearest(img: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    rows, columns = (_nearest_index(old, new) for old, new in zip(img.shape, size_hw))
    return img[rows[:, None], columns]


def _nearest_index(length: int, new_length: int) -> np.ndarray:
    """Which entry of ``length`` stands at each of ``new_length`` places, by Pillow's own rule."""
    ruler = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ruler.resize((new_length, 1), NEAREST))[0]


def _interpolate(img: np.ndarray, size_hw: tuple[int, int], interp: int) -> np.ndarray:
    if interp not in _TORCH_MODES:
        raise ValueError(
            f"an image of dtype {img.dtype} can be resized with interp 0 (nearest), 2 (bilinear) or 3 (bicubic); got "
            f"{interp}. The others work on uint8 images"
        )
    exact = img.dtype in (np.float32, np.float64)
    values = np.ascontiguousarray(img, dtype=img.dtype if exact else np.float64)
    planes = torch.tensor(values).reshape(*img.shape[:2], -1).permute(2, 0, 1)[None]  # (1, C, H, W)
    resized = F.interpolate(planes, size_hw, mode=_TORCH_MODES[interp], align_corners=False)[0]
    result = resized.permute(1, 2, 0).reshape(*size_hw, *img.shape[2:]).numpy()
    return result if exact else _round_to(result, img.dtype)


def _round_to(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = values.round().clip(limits.min, limits.max)
    elif dtype.kind == "b":
        values = values >= 0.5
    return values.astype(dtype)


def _times(coords: np.ndarray, x_factor: float, y_factor: float) -> np.ndarray:
    coords = _as_float(coords)
    return coords * np.array([x_factor, y_factor], dtype=coords.dtype)


def _as_float(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


# ------------------------------------------------------------------------------------------------------------ extent


class ExtentTransform(Transform):
    """Cuts a rectangle out of an image and stretches it to a size; the rectangle may reach past the image.

    Args:
        src_rect: x0, y0, x1, y1 of the rectangle, in pixels, may be fractions.
        output_size: (height, width) of the result.
        interp: Pillow's number of the interpolation.
        fill: value of the pixels that lie outside of the image.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = BILINEAR,
        fill: float = 0,
    ) -> None:
        super().__init__()
        self.src_rect = src_rect
        self.output_size = output_size
        self.interp = interp
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Cuts a uint8 image.

        Args:
            img: (H, W) or (H, W, C) uint8.
            interp: used instead of the transform's own.

        Raises:
            ValueError: the image is not of dtype uint8.
        """
        if img.dtype != np.uint8:
            raise ValueError(f"{self} works on uint8 arrays, got {img.dtype}; change images before normalising them")
        height, width = self.output_size
        resample = self.interp if interp is None else interp

        def cut(image: Image.Image) -> Image.Image:
            fill = (self.fill,) * 3 if image.mode == "RGB" else self.fill
            return image.transform(
                (width, height), Image.Transform.EXTENT, data=self.src_rect, resample=resample, fillcolor=fill
            )

        return _by_pillow(img, cut)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points."""
        x0, y0, x1, y1 = self.src_rect
        height, width = self.output_size
        coords = _as_float(coords)
        return _times(coords - np.array([x0, y0], dtype=coords.dtype), width / (x1 - x0), height / (y1 - y0))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) labels; outside of the image stands ``fill``."""
        return self.apply_image(segmentation, interp=NEAREST)


# ---------------------------------------------------------------------------------------------------------- rotation


class RotationTransform(Transform):
    """Turns an image counter-clockwise; what comes from outside of it is 0.

    Turning pixels needs OpenCV (``pip install "detlab[opencv]"``); points and boxes need nothing.

    Args:
        h: height of the image.
        w: width of the image.
        angle: degrees.
        expand: make the result large enough for all of the image. Otherwise it keeps the image's size.
        center: (x, y) that stays in its place; the image's center if None. Has no effect with ``expand``.
        interp: OpenCV's number of the interpolation; None means bilinear.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.angle = angle
        self.expand = expand
        self.image_center = np.array([w / 2, h / 2])
        self.center = self.image_center if center is None else np.asarray(center, dtype=np.float64)
        self.interp = CV2_LINEAR if interp is None else interp
        self.bound_h, self.bound_w = _rotated_size(h, w, angle) if expand else (h, w)
        self.rm_coords = self.create_rotation_matrix()
        # OpenCV counts from the center of the first pixel, which in continuous coordinates is at 0.5.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """The map of points as a (2, 3) matrix: a turn, then a shift.

        Args:
            offset: where the corner of the image is in the coordinates of the matrix.
        """
        turn = _turn(self.angle)
        pivot = self.center + offset
        shift = pivot - turn @ pivot
        if self.expand:
            middle = np.array([self.bound_w / 2, self.bound_h / 2]) + offset
            shift = middle - turn @ (self.image_center + offset)
        return np.concatenate([turn, shift[:, None]], axis=1)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Turns an image of the size this transform was made for.

        Args:
            img: (H, W) or (H, W, C).
            interp: used instead of the transform's own.

        Raises:
            ValueError: the image has another size.
            ImportError: OpenCV is not installed.
        """
        _check_size(self, img, (self.h, self.w))
        if self._is_identity():
            return img
        return _warp(img, self.rm_image, (self.bound_h, self.bound_w), self.interp if interp is None else interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points."""
        coords = _as_float(coords)
        if self._is_identity() or len(coords) == 0:
            return coords
        turned = coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]
        return turned.astype(coords.dtype, copy=False)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) labels; outside of the image stands 0."""
        return self.apply_image(segmentation, interp=CV2_NEAREST)

    def apply_rotated_box(self, rotated_boxes: np.ndarray) -> np.ndarray:
        """(N, 5) rotated boxes."""
        turned = _as_float(rotated_boxes).copy()
        turned[:, :2] = self.apply_coords(turned[:, :2])
        turned[:, 4] += self.angle
        return turned

    def inverse(self) -> TransformList:
        """Turns back, then cuts off what the two expansions added.

        Raises:
            ValueError: without ``expand`` the corners are lost.
        """
        if not self.expand:
            raise ValueError(f"{self} has no inverse: what it turned out of the image is lost; use expand=True")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, interp=self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h, back.bound_w, back.bound_h)])

    def _is_identity(self) -> bool:
        return self.angle % 360 == 0


def _turn(angle: float) -> np.ndarray:
    """(2, 2): counter-clockwise on the screen, where y points down."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cos, sin], [-sin, cos]])


def _rotated_size(h: int, w: int, angle: float) -> tuple[int, int]:
    """Height and width, in whole pixels, of the upright box around a turned image."""
    width, height = np.rint(np.abs(_turn(angle)) @ [w, h]).astype(int).tolist()
    return height, width


def _warp(img: np.ndarray, matrix: np.ndarray, size_hw: tuple[int, int], interp: int) -> np.ndarray:
    cv2: Any = require("cv2", extra="opencv", purpose="rotating images")
    # OpenCV warps neither booleans nor wide integers; doubles hold every label exactly.
    stand_in = {"b": np.uint8, "i": np.float64, "u": np.float64}.get(img.dtype.kind)
    native = img.dtype in (np.uint8, np.uint16, np.int16, np.float32, np.float64)
    values = img if native else img.astype(stand_in or np.float32)
    warped = cv2.warpAffine(np.ascontiguousarray(values), matrix, size_hw[::-1], flags=interp)
    if img.ndim == 3 and warped.ndim == 2:
        warped = warped[:, :, None]
    return warped if native else _round_to(warped, img.dtype)


# ------------------------------------------------------------------------------------------------------------ colour


class ColorTransform(Transform):
    """Changes the colours of an image by a function; leaves coordinates and labels alone.

    Args:
        op: takes an image array and returns one of the same size.

    Raises:
        ValueError: ``op`` cannot be called.
    """

    def __init__(self, op: Callable[[Any], Any]) -> None:
        if not callable(op):
            raise ValueError(f"{type(self).__name__} needs a function from image to image, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, C) image."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Returns them as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Returns it as it is."""
        return segmentation

    def apply_rotated_box(self, rotated_boxes: np.ndarray) -> np.ndarray:
        """Returns them as they are."""
        return rotated_boxes

    def inverse(self) -> NoOpTransform:
        """Nothing to do: no coordinate was changed."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """Changes the colours by a function on Pillow images, such as ``PIL.ImageEnhance.Color(image).enhance``.

    Args:
        op: takes a Pillow image and returns one of the same size.
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 image."""
        return np.asarray(self.op(Image.fromarray(img)))


# ----------------------------------------------------------------------------------------------------- rotated boxes


def HFlip_rotated_box(transform: HFlipTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """(N, 5) rotated boxes in the mirror image, left for right."""
    flipped = _as_float(rotated_boxes).copy()
    flipped[:, 0] = transform.width - flipped[:, 0]
    flipped[:, 4] = -flipped[:, 4]
    return flipped


def _vflip_rotated_box(transform: VFlipTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """(N, 5) rotated boxes in the mirror image, top for bottom."""
    flipped = _as_float(rotated_boxes).copy()
    flipped[:, 1] = transform.height - flipped[:, 1]
    flipped[:, 4] = -flipped[:, 4]
    return flipped


def _shift_rotated_box(transform: CropTransform | PadTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """(N, 5) rotated boxes where only the corner of the image moved; nothing is cut."""
    shifted = _as_float(rotated_boxes).copy()
    shifted[:, :2] = transform.apply_coords(shifted[:, :2])
    return shifted


def Resize_rotated_box(transform: Any, rotated_boxes: np.ndarray) -> np.ndarray:
    """(N, 5) rotated boxes of a resized image.

    Under unequal factors a rectangle becomes a parallelogram. The result has its side lengths, and the angle of its
    height axis; both are exact for equal factors and for multiples of 90 degrees.

    Args:
        transform: with attributes h, w, new_h, new_w.
        rotated_boxes: (N, 5).
    """
    boxes = _as_float(rotated_boxes)
    x_factor, y_factor = transform.new_w / transform.w, transform.new_h / transform.h
    center_x, center_y, width, height, degrees = boxes.T
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    columns = (
        center_x * x_factor,
        center_y * y_factor,
        width * np.hypot(x_factor * cos, y_factor * sin),
        height * np.hypot(x_factor * sin, y_factor * cos),
        np.rad2deg(np.arctan2(x_factor * sin, y_factor * cos)),
    )
    return np.stack(columns, axis=1).astype(boxes.dtype, copy=False)


HFlipTransform.register_type("rotated_box", HFlip_rotated_box)
VFlipTransform.register_type("rotated_box", _vflip_rotated_box)
CropTransform.register_type("rotated_box", _shift_rotated_box)
PadTransform.register_type("rotated_box", _shift_rotated_box)
ResizeTransform.register_type("rotated_box", Resize_rotated_box)
