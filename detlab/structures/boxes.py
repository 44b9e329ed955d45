"""Axis-aligned boxes: formats, a container, and how much they overlap.

Shapes: N and M boxes, P points. Corners are (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, in pixels; continuous
coordinates, so a box covers (x2 - x1) * (y2 - y1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from detlab.layers.box_overlap import box_area, box_intersection, box_ioa, box_iou, matched_box_iou

__all__ = [
    "BoxMode",
    "Boxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]

RawBox = TypeVar("RawBox", list, tuple, Tensor, np.ndarray)
Columns = tuple[Any, ...]


def _corners_from_xywh(x, y, w, h) -> Columns:
    return x, y, x + w, y + h


def _xywh_from_corners(x1, y1, x2, y2) -> Columns:
    return x1, y1, x2 - x1, y2 - y1


def _rotated_from_xywh(x, y, w, h) -> Columns:
    return x + w / 2, y + h / 2, w, h, w * 0


def _rotated_from_corners(x1, y1, x2, y2) -> Columns:
    return _rotated_from_xywh(*_xywh_from_corners(x1, y1, x2, y2))


def _corners_from_rotated(cx, cy, w, h, angle) -> Columns:
    """The smallest upright box around a rotated one."""
    cos, sin = _abs_cos_sin(angle)
    half_width = (cos * w + sin * h) / 2
    half_height = (cos * h + sin * w) / 2
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def _xywh_from_rotated(cx, cy, w, h, angle) -> Columns:
    return _xywh_from_corners(*_corners_from_rotated(cx, cy, w, h, angle))


def _abs_cos_sin(degrees) -> tuple[Any, Any]:
    if isinstance(degrees, Tensor):
        return torch.deg2rad(degrees).cos().abs(), torch.deg2rad(degrees).sin().abs()
    if isinstance(degrees, np.ndarray):
        return np.abs(np.cos(np.deg2rad(degrees))), np.abs(np.sin(np.deg2rad(degrees)))
    return abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))


@unique
class BoxMode(IntEnum):
    """The ways to write a box down. The numbers are part of files: they never change."""

    XYXY_ABS = 0
    """Corners x1 y1 x2 y2, in pixels."""
    XYWH_ABS = 1
    """Corner x1 y1, width, height, in pixels."""
    XYXY_REL = 2
    """Corners, in fractions of the image's width and height; conversion is not offered, it needs the image size."""
    XYWH_REL = 3
    """Corner and size, in fractions of the image's width and height; likewise."""
    XYWHA_ABS = 4
    """Center x y, width, height in pixels, angle in degrees, counter-clockwise."""

    @staticmethod
    def convert(box: RawBox, from_mode: BoxMode, to_mode: BoxMode) -> RawBox:
        """Rewrites boxes in another format.

        A rotated box becomes the upright one around it.

        Args:
            box: one box as a list, tuple, array or tensor of 4 (or 5) numbers, or many as an array or tensor (N, k).
            from_mode: the format of ``box``.
            to_mode: the wanted format.

        Returns:
            The same kind of object; ``box`` itself if the formats are the same.

        Raises:
            ValueError: for relative modes, an unknown mode, or a wrong number of values.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        convert_columns = _CONVERSIONS.get((from_mode, to_mode))
        if convert_columns is None:
            raise ValueError(
                f"boxes cannot be converted from {from_mode.name} to {to_mode.name}; relative boxes first need to be "
                "multiplied by the width and height of their image"
            )
        _check_box_width(box, from_mode)
        return _convert_columns(box, convert_columns)


_CONVERSIONS: dict[tuple[BoxMode, BoxMode], Callable[..., Columns]] = {
    (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): _corners_from_xywh,
    (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): _xywh_from_corners,
    (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS): _rotated_from_xywh,
    (BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS): _rotated_from_corners,
    (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS): _corners_from_rotated,
    (BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS): _xywh_from_rotated,
}


def _check_box_width(box: RawBox, mode: BoxMode) -> None:
    if not isinstance(box, list | tuple | Tensor | np.ndarray):
        raise ValueError(f"a box is a list, tuple, array or tensor; got {type(box).__name__}")
    width = len(box) if isinstance(box, list | tuple) else box.shape[-1]
    expected = 5 if mode == BoxMode.XYWHA_ABS else 4
    if width != expected:
        raise ValueError(f"a box in mode {mode.name} has {expected} numbers; got {width}: {box}")


def _convert_columns(box: RawBox, convert: Callable[..., Columns]) -> RawBox:
    if isinstance(box, list | tuple):
        return type(box)(convert(*box))
    is_rotated = box.shape[-1] == 5  # sine and cosine of float32 lose digits that pixels need
    if isinstance(box, Tensor):
        columns = (box.double() if is_rotated else box).unbind(-1)
        return torch.stack(convert(*columns), dim=-1).to(box.dtype)
    rows = np.moveaxis(box.astype(np.float64) if is_rotated else box, -1, 0)
    return np.stack(convert(*rows), axis=-1).astype(box.dtype)


class Boxes:
    """A set of upright boxes, with the operations that a detector needs. Iterates over (4,) tensors.

    Attributes:
        tensor: (N, 4) x1 y1 x2 y2 in pixels.

    Args:
        tensor: (N, 4), or anything that makes such a tensor; what is not of a floating dtype becomes float32.

    Raises:
        ValueError: for another shape.
    """

    _box_dim = 4
    _columns = "x1, y1, x2, y2"

    def __init__(self, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(np.asarray(tensor), dtype=torch.float32)
        if not tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        if tensor.dim() != 2 or tensor.shape[1] != self._box_dim:
            if tensor.numel() > 0:
                raise ValueError(
                    f"{type(self).__name__} need a tensor (N, {self._box_dim}): {self._columns}; "
                    f"got {tuple(tensor.shape)}"
                )
            tensor = tensor.reshape(0, self._box_dim)
        self.tensor = tensor

    def clone(self) -> Boxes:
        """A copy that shares no memory."""
        return type(self)(self.tensor.clone())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Boxes:
        """The boxes on another device."""
        return type(self)(self.tensor.to(device=device, non_blocking=non_blocking))

    def area(self) -> Tensor:
        """(N,) in square pixels."""
        return box_area(self.tensor)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Cuts the boxes at the border of an image, in place.

        Args:
            box_size: (height, width) of the image.
        """
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(-1)
        self.tensor = torch.stack(
            (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1
        )

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: which boxes are wider and higher than ``threshold`` pixels. False for NaN."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Which boxes lie inside an image.

        Args:
            box_size: (height, width) of the image.
            boundary_threshold: how far, in pixels, a box may stick out.

        Returns:
            (N,) bool.
        """
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(-1)
        low = -boundary_threshold
        return (x1 >= low) & (y1 >= low) & (x2 < width - low) & (y2 < height - low)

    def get_centers(self) -> Tensor:
        """(N, 2) x y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiplies the coordinates, in place, as when the image is resized."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        """All boxes of a list, in order; none of an empty list. Always new memory."""
        if not isinstance(boxes_list, list | tuple):
            raise ValueError(f"cat takes a list of {cls.__name__}; got {type(boxes_list).__name__}")
        if not boxes_list:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        """Where the boxes are."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """Some of the boxes; an int gives a set of one. A slice shares memory with this set."""
        if isinstance(item, int):
            return type(self)(self.tensor[item].view(1, -1))
        chosen = self.tensor[item]
        if chosen.dim() != 2:
            raise IndexError(f"{type(self).__name__} are indexed along one dimension; {item} gives {chosen.dim()}")
        return type(self)(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tensor})"


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): the area that each pair of N and M boxes shares."""
    return box_intersection(boxes1.tensor, boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): intersection over union of each pair of N and M boxes."""
    return box_iou(boxes1.tensor, boxes2.tensor)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): intersection of each pair of N and M boxes, over the area of the second."""
    return box_ioa(boxes1.tensor, boxes2.tensor)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,): IoU of the i-th box of one set with the i-th of the other.

    Raises:
        ValueError: if the sets differ in size.
    """
    if len(boxes1) != len(boxes2):
        raise ValueError(f"matched IoU needs sets of one size; got {len(boxes1)} and {len(boxes2)} boxes")
    return matched_box_iou(boxes1.tensor, boxes2.tensor)


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """Distance of each point from the four sides of each box.

    Args:
        points: (P, 2) x y.
        boxes: N boxes.

    Returns:
        (P, N, 4): from the left, top, right and bottom side; all are positive for a point inside.
    """
    points = points.unsqueeze(1)  # (P, 1, 2)
    low, high = boxes.tensor[:, :2], boxes.tensor[:, 2:]
    return torch.cat([points - low, high - points], dim=2)
