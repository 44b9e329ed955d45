"""Polygons of many objects in one piece of memory, as operators read them and as they travel to a device.

Shapes: R boxes, O objects, P polygons, V corners, M x M the map of a box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from detlab.layers._ops import mask_targets_from_polygons
from detlab.utils.mask_codes import Polygons

__all__ = ["PackedPolygons"]


class PackedPolygons:
    """The polygons of O objects, of one image or of all images of a batch, on any device.

    An object is the union of its polygons, and empty without any. It is known by its row; in a batch the rows of an
    image begin where those of the images before it end.

    Attributes:
        coords: (V, 2) float64, x y in pixels: the corners of all polygons, one after the other.
        polygon_offsets: (P + 1,) int64, where each polygon's corners begin, and at last V.
        object_offsets: (O + 1,) int64, where each object's polygons begin, and at last P.

    Args:
        coords: as the attribute.
        polygon_offsets: as the attribute. Offsets beyond what is there read nothing.
        object_offsets: as the attribute.

    Raises:
        ValueError: for another shape, type or device; from ``torch.cat`` for tensors on several devices.
    """

    def __init__(self, coords: Tensor, polygon_offsets: Tensor, object_offsets: Tensor) -> None:
        if coords.dim() != 2 or coords.shape[1] != 2 or coords.dtype != torch.float64:
            raise ValueError(
                f"the corners of PackedPolygons are (V, 2) float64; got {tuple(coords.shape)} {coords.dtype}"
            )
        for name, offsets in (("polygon_offsets", polygon_offsets), ("object_offsets", object_offsets)):
            if offsets.dim() != 1 or len(offsets) == 0 or offsets.dtype != torch.int64:
                raise ValueError(
                    f"the {name} of PackedPolygons are int64, one more than there are parts, the first 0; "
                    f"got {tuple(offsets.shape)} {offsets.dtype}"
                )
        parts = [coords.contiguous().view(-1).view(torch.int64), polygon_offsets, object_offsets]
        self._take(torch.cat(parts), len(coords), len(polygon_offsets) - 1)

    def _take(self, memory: Tensor, num_corners: int, num_polygons: int) -> None:
        """The attributes are views of ``memory``, in which everything is one 8-byte number after the other."""
        self._memory = memory
        ends = (2 * num_corners, 2 * num_corners + num_polygons + 1)
        self.coords = memory[: ends[0]].view(torch.float64).view(num_corners, 2)
        self.polygon_offsets = memory[ends[0] : ends[1]]
        self.object_offsets = memory[ends[1] :]

    def _with_memory(self, memory: Tensor) -> PackedPolygons:
        packed = PackedPolygons.__new__(PackedPolygons)
        packed._take(memory, len(self.coords), len(self.polygon_offsets) - 1)
        return packed

    @classmethod
    def from_polygons(cls, objects: Iterable[Polygons]) -> PackedPolygons:
        """Packs what was checked before, on the CPU.

        Args:
            objects: of each its polygons, flat float64 arrays x0 y0 x1 y1 ...; such as ``PolygonMasks``.
        """
        own = list(objects)
        flat = [polygon for polygons in own for polygon in polygons]
        corners = np.concatenate(flat) if flat else np.zeros(0)
        return cls(
            torch.from_numpy(corners.reshape(-1, 2)),
            _offsets_of([len(polygon) // 2 for polygon in flat]),
            _offsets_of([len(polygons) for polygons in own]),
        )

    @staticmethod
    def cat(packed_list: Sequence[PackedPolygons]) -> PackedPolygons:
        """All objects of a list, in order; none of an empty list, on the CPU."""
        if not packed_list:
            return PackedPolygons.from_polygons([])
        polygon_offsets, object_offsets = [packed_list[0].polygon_offsets[:1]], [packed_list[0].object_offsets[:1]]
        num_corners = num_polygons = 0
        for packed in packed_list:
            polygon_offsets.append(packed.polygon_offsets[1:] + num_corners)
            object_offsets.append(packed.object_offsets[1:] + num_polygons)
            num_corners += len(packed.coords)
            num_polygons += len(packed.polygon_offsets) - 1
        coords = torch.cat([packed.coords for packed in packed_list])
        return PackedPolygons(coords, torch.cat(polygon_offsets), torch.cat(object_offsets))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedPolygons:
        """The polygons on another device, in one copy."""
        return self._with_memory(self._memory.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedPolygons:
        """In memory from which a GPU copies while the host goes on."""
        return self._with_memory(self._memory.pin_memory())

    @property
    def device(self) -> torch.device:
        """Where the polygons are."""
        return self._memory.device

    def crop_and_resize(self, rows: Tensor, boxes: Tensor, mask_size: int) -> Tensor:
        """Draws the part of an object that lies in each box, stretched to a square, without waiting for the device.

        Args:
            rows: (R,) int64, the object of each box; -1 of a place without an object gives an empty mask.
            boxes: (R, 4) xyxy in pixels, on the device of the polygons; one that is not finite gives an empty mask.
            mask_size: M.

        Returns:
            (R, M, M) bool: as ``PolygonMasks.crop_and_resize``.
        """
        return mask_targets_from_polygons(
            self.coords, self.polygon_offsets, self.object_offsets, rows, boxes, mask_size
        )

    def __len__(self) -> int:
        return len(self.object_offsets) - 1

    def __repr__(self) -> str:
        return f"PackedPolygons(num_objects={len(self)}, num_corners={len(self.coords)}, device={self.device})"


def _offsets_of(counts: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *counts], dtype=np.int64))
