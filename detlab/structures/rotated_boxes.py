"""Boxes at an angle.

Shapes: N and M boxes, each center x, center y, width, height in pixels, angle in degrees. A positive angle turns the
box counter-clockwise as seen on the screen; the width axis of an unturned box points right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detlab.layers.rotated_boxes import pairwise_iou_rotated
from detlab.structures.boxes import Boxes

__all__ = ["RotatedBoxes", "pairwise_iou"]


class RotatedBoxes(Boxes):
    """A set of rotated boxes. (w, h, angle) and (h, w, angle + 90) are the same box, as is any full turn.

    Attributes:
        tensor: (N, 5) center x y, width, height, angle in degrees.
    """

    _box_dim = 5
    _columns = "center x, center y, width, height, angle"

    def area(self) -> Tensor:
        """(N,) in square pixels."""
        return self.tensor[:, 2] * self.tensor[:, 3]

    def normalize_angles(self) -> None:
        """Brings the angles into [-180, 180), in place."""
        self.tensor[:, 4] = (self.tensor[:, 4] + 180.0) % 360.0 - 180.0

    def clip(self, box_size: tuple[int, int], clip_angle_threshold: float = 1.0) -> None:
        """Cuts boxes that are almost upright at the border of an image, in place; others may stick out.

        A cut rotated box is no box any more, so only small angles are cut. Angles are normalised on the way.

        Args:
            box_size: (height, width) of the image.
            clip_angle_threshold: degrees up to which a box counts as upright.
        """
        height, width = box_size
        self.normalize_angles()
        centers, sizes, angles = self.tensor[:, :2], self.tensor[:, 2:4], self.tensor[:, 4:]
        limit = self.tensor.new_tensor([width, height])
        low = (centers - sizes / 2).clamp(min=0).minimum(limit)
        high = (centers + sizes / 2).clamp(min=0).minimum(limit)
        # min(): rounding must not let a box grow that did not need a cut.
        cut = torch.cat([(low + high) / 2, torch.minimum(sizes, high - low), angles], dim=1)
        self.tensor = torch.where(angles.abs() <= clip_angle_threshold, cut, self.tensor)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: which boxes are wider and higher than ``threshold`` pixels."""
        return (self.tensor[:, 2:4] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Which boxes have their center inside an image.

        Args:
            box_size: (height, width) of the image.
            boundary_threshold: how far, in pixels, a center may lie outside.

        Returns:
            (N,) bool.
        """
        height, width = box_size
        x, y = self.tensor[:, 0], self.tensor[:, 1]
        low = -boundary_threshold
        return (x >= low) & (y >= low) & (x < width - low) & (y < height - low)

    def get_centers(self) -> Tensor:
        """(N, 2) x y."""
        return self.tensor[:, :2]

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Resizes the boxes with their image, in place.

        A rectangle under unequal factors becomes a parallelogram. The result has its side lengths, and the angle of
        its height axis; both are exact for equal factors and for multiples of 90 degrees.
        """
        centers, sizes, degrees = self.tensor[:, :2], self.tensor[:, 2:4], self.tensor[:, 4]
        cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
        centers *= self.tensor.new_tensor([scale_x, scale_y])
        stretch = [torch.hypot(scale_x * cos, scale_y * sin), torch.hypot(scale_x * sin, scale_y * cos)]
        sizes *= torch.stack(stretch, dim=1)
        self.tensor[:, 4] = torch.rad2deg(torch.atan2(scale_x * sin, scale_y * cos))

    # The members below do what those of Boxes do; their declarations say that they return rotated boxes.
    def clone(self) -> RotatedBoxes:
        return RotatedBoxes(self.tensor.clone())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RotatedBoxes:
        return RotatedBoxes(self.tensor.to(device=device, non_blocking=non_blocking))

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> RotatedBoxes:
        joined = super().cat(boxes_list)
        assert isinstance(joined, RotatedBoxes)
        return joined

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor


def pairwise_iou(boxes1: RotatedBoxes, boxes2: RotatedBoxes) -> Tensor:
    """(N, M): intersection over union of each pair of N and M rotated boxes."""
    return pairwise_iou_rotated(boxes1.tensor, boxes2.tensor)
