"""Masks of objects: as polygons, as bitmaps of the image, as small maps over a region.

Shapes: N masks, H x W the image, M x M a region's map. A polygon is a flat array x0 y0 x1 y1 ..., in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlab.layers._ops import mask_targets_from_bitmaps
from detlab.layers.mask_ops import paste_masks_in_image
from detlab.structures.boxes import Boxes
from detlab.structures.packed_polygons import PackedPolygons
from detlab.utils.mask_codes import Polygons, checked_objects, checked_polygons, draw_polygons

__all__ = [
    "BitMasks",
    "PolygonMasks",
    "ROIMasks",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area inside a closed polygon with the corners (x, y), by the shoelace formula."""
    return 0.5 * float(np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def polygons_to_bitmask(polygons: Polygons, height: int, width: int) -> np.ndarray:
    """Draws the union of polygons, as the COCO tools do.

    Args:
        polygons: of one object; none give an empty mask.
        height: H.
        width: W.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: as of ``PolygonMasks``.
    """
    return draw_polygons([checked_polygons(polygons)], height, width)[0]


def rasterize_polygons_within_box(polygons: Polygons, box: np.ndarray, mask_size: int) -> Tensor:
    """Draws the part of an object that lies in a box, stretched to a square.

    Args:
        polygons: of one object.
        box: (4,) xyxy in pixels.
        mask_size: M.

    Returns:
        (M, M) bool.

    Raises:
        ValueError: as of ``PolygonMasks``, or the box is not finite.
    """
    place = torch.as_tensor(box)
    boxes = (place if place.is_floating_point() else place.double())[None].cpu()
    _check_finite(boxes)
    packed = PackedPolygons.from_polygons([checked_polygons(polygons)])
    return packed.crop_and_resize(torch.zeros(1, dtype=torch.int64), boxes, mask_size)[0]


class BitMasks:
    """Masks as one bit for each pixel of the image.

    Attributes:
        tensor: (N, H, W) bool.
        image_size: (H, W).

    Args:
        tensor: (N, H, W), a tensor or array; what is not 0 is inside.

    Raises:
        ValueError: for another shape.
    """

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        bitmaps = torch.as_tensor(tensor).to(torch.bool)
        if bitmaps.dim() != 3:
            raise ValueError(f"BitMasks need a tensor (N, H, W); got {tuple(bitmaps.shape)}")
        self.image_size = (bitmaps.shape[1], bitmaps.shape[2])
        self.tensor = bitmaps

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """The masks on another device."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        """Some of the masks; an int gives a set of one. A slice shares memory with this set."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        chosen = self.tensor[item]
        if chosen.dim() != 3:
            raise IndexError(f"BitMasks are indexed along one dimension; {item} gives {tuple(chosen.shape)}")
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"BitMasks(num_instances={len(self)}, image_height={height}, image_width={width})"

    def nonempty(self) -> Tensor:
        """(N,) bool: which masks have a pixel inside."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[Polygons], height: int, width: int) -> BitMasks:
        """Draws polygons.

        Args:
            polygon_masks: N objects.
            height: H.
            width: W.

        Raises:
            ValueError: as of ``PolygonMasks``.
        """
        masks = polygon_masks if isinstance(polygon_masks, PolygonMasks) else PolygonMasks(polygon_masks)
        return BitMasks(torch.from_numpy(draw_polygons(masks.polygons, height, width)))

    @staticmethod
    def from_roi_masks(
        roi_masks: ROIMasks, height: int, width: int, boxes: Tensor | None = None, threshold: float = 0.5
    ) -> BitMasks:
        """Stretches the maps of regions over their boxes; see ``ROIMasks.to_bitmasks``.

        Raises:
            ValueError: without ``boxes``: the maps do not know their places.
        """
        if boxes is None:
            raise ValueError("ROIMasks do not know where they lie in the image; pass boxes=, one box for each mask")
        return roi_masks.to_bitmasks(boxes, height, width, threshold)

    def crop_and_resize(self, boxes: Tensor, mask_size: int, rows: Tensor | None = None) -> Tensor:
        """The part of a mask that lies in each box, resampled (by ROIAlign) to a square, where the masks are.

        Args:
            boxes: (R, 4) xyxy in pixels. One that is not finite gives an empty mask.
            mask_size: M.
            rows: (R,) int64, the mask of each box, of which no copy is made; -1 of a place without an object gives an
                empty mask. Without it there is one box for each mask.

        Returns:
            (R, M, M) bool, on the device of ``boxes``.

        Raises:
            ValueError: without ``rows``, if there are not as many boxes as masks.
        """
        own_rows = _rows_of_boxes(boxes, len(self), rows).to(self.device)
        own_boxes = boxes.detach().to(self.device, torch.float32)
        return mask_targets_from_bitmaps(self.tensor, own_rows, own_boxes, mask_size).to(boxes.device)

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around each mask, which covers its outermost pixels; zeros for an empty mask."""
        left, right = _first_and_past_last(self.tensor.any(dim=1))
        top, bottom = _first_and_past_last(self.tensor.any(dim=2))
        return Boxes(torch.stack([left, top, right, bottom], dim=1).to(torch.float32))

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """All masks of a list, in order.

        Raises:
            ValueError: for an empty list: the image's size is not known.
        """
        if not bitmasks_list:
            raise ValueError("cat takes a list of at least one BitMasks; with none, the image size is not known")
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


def _first_and_past_last(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L) bool -> (N,) index of the first true entry and of the one after the last; 0 and 0 where none is."""
    length = occupied.shape[1]
    if length == 0:
        none = occupied.new_zeros(len(occupied), dtype=torch.int64)
        return none, none
    marks = occupied.to(torch.uint8)
    first = marks.argmax(dim=1)
    past_last = length - marks.flip(1).argmax(dim=1)
    return first, torch.where(occupied.any(dim=1), past_last, first)


def _rows_of_boxes(boxes: Tensor, num_masks: int, rows: Tensor | None) -> Tensor:
    """(R,) int64, on the device of the boxes."""
    if rows is not None:
        return rows.to(boxes.device)
    if len(boxes) != num_masks:
        raise ValueError(f"{num_masks} masks but {len(boxes)} boxes; give one box for each mask")
    return torch.arange(num_masks, device=boxes.device)


def _check_finite(boxes: Tensor) -> None:
    is_finite = boxes.isfinite().all(dim=1)
    if not is_finite.all():
        wrong = int((~is_finite).nonzero()[0])
        raise ValueError(
            f"box {wrong} of {len(boxes)} to draw a mask in is {boxes[wrong].tolist()}, which is not finite"
        )


class PolygonMasks:
    """Masks as polygons: exact under any resizing, and small. They stay on the CPU.

    Attributes:
        polygons: for each object, the polygons whose union it is, each a flat float64 array x0 y0 x1 y1 ...

    Args:
        polygons: as the attribute; lists and tensors are converted.

    Raises:
        ValueError: if it is no list of lists, or a polygon is not of numbers, has fewer than 3 points or an odd number
            of values, or a coordinate that is not finite or beyond 1e12.
    """

    def __init__(self, polygons: Sequence[Sequence[Tensor | np.ndarray]]) -> None:
        if not isinstance(polygons, list | tuple):
            raise ValueError(
                f"PolygonMasks take a list with a list of polygons per object; got {type(polygons).__name__}"
            )
        self.polygons: list[Polygons] = checked_objects(
            polygons, lambda index: f"object {index} of PolygonMasks", are_moved=True
        )

    @classmethod
    def _of_checked(cls, polygons: list[Polygons]) -> PolygonMasks:
        masks = cls.__new__(cls)
        masks.polygons = polygons
        return masks

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """These masks themselves: polygons have no device."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def nonempty(self) -> Tensor:
        """(N,) bool: which objects have a polygon."""
        return torch.tensor([len(own) > 0 for own in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around the corners of each object; zeros for an object without polygons."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        visible = [i for i, own in enumerate(self.polygons) if len(own) > 0]
        if visible:
            corners = np.concatenate([polygon for i in visible for polygon in self.polygons[i]]).reshape(-1, 2)
            counts = [sum(len(polygon) for polygon in self.polygons[i]) // 2 for i in visible]
            starts = np.cumsum([0, *counts[:-1]])
            boxes[visible, :2] = np.minimum.reduceat(corners, starts)
            boxes[visible, 2:] = np.maximum.reduceat(corners, starts)
        return Boxes(torch.from_numpy(boxes))

    def crop_and_resize(self, boxes: Tensor, mask_size: int, rows: Tensor | None = None) -> Tensor:
        """Draws the part of an object that lies in each box, stretched to a square, where the boxes are.

        For the boxes of a whole batch on a GPU, pack its polygons once and crop these: see ``PackedPolygons``.

        Args:
            boxes: (R, 4) xyxy in pixels.
            mask_size: M.
            rows: (R,) int64, the object of each box; -1 of a place without an object gives an empty mask. Without it
                there is one box for each object.

        Returns:
            (R, M, M) bool, on the device of ``boxes``.

        Raises:
            ValueError: without ``rows``, if there are not as many boxes as objects; or if a box is not finite.
        """
        own_rows = _rows_of_boxes(boxes, len(self), rows)
        _check_finite(boxes)
        packed = PackedPolygons.from_polygons(self).to(boxes.device)
        return packed.crop_and_resize(own_rows, boxes.detach().to(torch.float32), mask_size)

    def area(self) -> Tensor:
        """(N,) float64: the sum over each object's polygons, overlaps counted twice."""
        return torch.tensor(
            [sum(polygon_area(polygon[0::2], polygon[1::2]) for polygon in own) for own in self.polygons],
            dtype=torch.float64,
        )

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """All objects of a list, in order."""
        return PolygonMasks._of_checked([own for masks in polymasks_list for own in masks.polygons])

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """Some of the objects; an int gives a set of one.

        Raises:
            IndexError: for an index that is neither int, slice, nor a vector of ints or bools.
        """
        if isinstance(item, int | np.integer):
            return PolygonMasks._of_checked([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks._of_checked(self.polygons[item])
        positions = _positions(item, len(self))
        return PolygonMasks._of_checked([self.polygons[i] for i in positions])

    def __iter__(self) -> Iterator[Polygons]:
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"


def _positions(item: Any, length: int) -> list[int]:
    index = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    if index.size == 0 and index.dtype != bool:
        index = index.astype(np.int64)
    if index.ndim != 1 or index.dtype.kind not in "biu":
        raise IndexError(f"masks are indexed by ints, slices, or vectors of ints or bools; got {item!r}")
    return np.arange(length)[index].tolist()


class ROIMasks:
    """Masks as small maps, each meant to be stretched over a box that is kept elsewhere.

    Attributes:
        tensor: (N, M, M) probabilities.

    Raises:
        ValueError: for another number of dimensions.
    """

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 3:
            raise ValueError(f"ROIMasks need a tensor (N, M, M); got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ROIMasks:
        """The masks on another device."""
        return ROIMasks(self.tensor.to(device, non_blocking=non_blocking))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: int | slice | Tensor) -> ROIMasks:
        """Some of the masks; an int gives a set of one."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            return ROIMasks(chosen.unsqueeze(0))
        if chosen.dim() != 3:
            raise IndexError(f"ROIMasks are indexed along one dimension; {item} gives {tuple(chosen.shape)}")
        return ROIMasks(chosen)

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)}, mask_size={tuple(self.tensor.shape[1:])})"

    def to_bitmasks(self, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Stretches each map over its box and cuts at a threshold.

        Args:
            boxes: (N, 4) xyxy in pixels, a tensor or ``Boxes``.
            height: H.
            width: W.
            threshold: what is at or above it is inside.
        """
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold=threshold))
