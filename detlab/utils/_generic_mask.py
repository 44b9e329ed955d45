"""One object's mask, whichever way it was given: a bitmap, polygons, or run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from detlab.utils.mask_codes import Polygons, checked_polygons, decode_rle, draw_polygons
from detlab.utils.optional import require


class Part(NamedTuple):
    """A connected part of a mask."""

    outline: np.ndarray  # (P, 2) x, y
    holes: list[np.ndarray]  # each (P, 2)

    @property
    def area(self) -> float:
        """In square pixels, holes taken off."""
        return shoelace_area(self.outline) - sum(shoelace_area(hole) for hole in self.holes)


class GenericMask:
    """A mask that turns into the form one asks for.

    Args:
        mask_or_polygons: a bitmap (H, W) of zeros and ones; a list of polygons, flat [x0, y0, x1, y1 ...]; or a COCO
            run-length code, compressed or not.
        height, width: of the image.

    Raises:
        ValueError: the bitmap or the code is of another size, the code cannot be decoded, or a polygon not be drawn.
        TypeError: none of these.
    """

    def __init__(self, mask_or_polygons: np.ndarray | Sequence[Any] | Mapping[str, Any], height: int, width: int):
        self.height = height
        self.width = width
        self._given_mask: np.ndarray | None = None
        self._given_polygons: list[np.ndarray] | None = None
        if isinstance(mask_or_polygons, Mapping):
            mask_or_polygons = decode_rle(mask_or_polygons, (height, width))
        if isinstance(mask_or_polygons, np.ndarray):
            if mask_or_polygons.shape != (height, width):
                raise ValueError(f"a mask of {mask_or_polygons.shape} in an image of {(height, width)} (height, width)")
            self._given_mask = mask_or_polygons.astype(np.uint8)
        elif isinstance(mask_or_polygons, Sequence):
            self._given_polygons = _drawable(mask_or_polygons)
        else:
            raise TypeError(
                f"a mask is an (H, W) array, a list of polygons or a run-length code; got {type(mask_or_polygons)}"
            )

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) uint8, 0 or 1."""
        if self._given_mask is not None:
            return self._given_mask
        assert self._given_polygons is not None
        return self.polygons_to_mask(self._given_polygons)

    @cached_property
    def parts(self) -> list[Part]:
        """The outlines to draw; polygons that were given are each a part of their own, without holes."""
        if self._given_polygons is None:
            return trace(self.mask)
        return [Part(polygon.reshape(-1, 2), []) for polygon in self._given_polygons]

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines, of holes too, each flat [x0, y0, x1, y1 ...]."""
        return [ring.reshape(-1) for part in self.parts for ring in (part.outline, *part.holes)]

    @property
    def has_holes(self) -> bool:
        """Whether a part has a hole; polygons alone cannot say, so those given are taken as they fill the image."""
        if self._given_polygons is None:
            return any(part.holes for part in self.parts)
        return self.mask_to_polygons(self.mask)[1]

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of a bitmap, each flat, and whether there are holes among them."""
        parts = trace(mask)
        rings = [ring.reshape(-1) for part in parts for ring in (part.outline, *part.holes)]
        return rings, any(part.holes for part in parts)

    def polygons_to_mask(self, polygons: Sequence[Any]) -> np.ndarray:
        """Fills polygons as COCO does: (H, W) uint8."""
        return draw_polygons([_drawable(polygons)], self.height, self.width)[0].astype(np.uint8)

    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """(4,) x0, y0, x1, y1 around the mask; zeros if it is empty."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return np.zeros(4)
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def _drawable(polygons: Sequence[Any]) -> Polygons:
    """Flat arrays, without those of less than 3 corners, which have no inside."""
    return checked_polygons([polygon for polygon in polygons if np.size(polygon) >= 6])


def trace(mask: np.ndarray) -> list[Part]:
    """Outlines of the connected parts of an (H, W) bitmap, along the edges of its pixels, corners cut."""
    contourpy = require("contourpy", "draw", "drawing masks")
    # A frame of zeros closes the outlines of parts at the image's border.
    framed = np.pad(np.asarray(mask) != 0, 1).astype(float)
    generator = contourpy.contour_generator(z=framed, fill_type=contourpy.FillType.OuterOffset)
    parts = []
    for points, offsets in zip(*generator.filled(0.5, 2.0)):
        # Of sample i, counted from the frame, the centre lies at i - 1 + 0.5 in the image's coordinates.
        rings = [points[start : end - 1] - 0.5 for start, end in pairwise(offsets)]
        parts.append(Part(rings[0], rings[1:]))
    return parts


def shoelace_area(polygon: np.ndarray) -> float:
    """Area in a simple polygon (P, 2)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def middle_of_longest_run(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of a point well inside a mask that is not empty: the middle of the middle one of its longest rows."""
    edges = np.diff(mask.astype(bool), axis=1, prepend=False, append=False)
    rows, columns = np.nonzero(edges)
    starts, ends = columns[::2], columns[1::2]
    longest = np.flatnonzero(ends - starts == (ends - starts).max())
    run = longest[len(longest) // 2]
    return float(starts[run] + ends[run]) / 2, float(rows[::2][run]) + 0.5
