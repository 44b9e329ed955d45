"""Polygons under transforms: all those of an image in one call, and cut along straight lines by crops.

Shapes: P corners; a polygon is a (P, 2) float64 array of (x, y), closed from its last corner to its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from fvcore.transforms.transform import CropTransform, Transform, TransformList

__all__ = ["clip_polygon", "transform_polygons"]

Polygon = np.ndarray


class Pieces(NamedTuple):
    """Polygons of several objects in a row."""

    polygons: list[Polygon]
    owners: list[int]  # for each polygon, the index of its object


def transform_polygons(objects: Sequence[Sequence[Polygon]], transforms: Transform) -> list[list[Polygon]]:
    """Applies a transform to the polygons of N objects.

    Crops cut the polygons at their border; an object outside of the crop is left without any. Everything else moves the
    corners.

    Args:
        objects: for each object its polygons, each (P, 2).
        transforms: a transform or a list of them.

    Returns:
        For each object its polygons, in new memory; a polygon that a crop cuts apart becomes several.
    """
    pieces = Pieces([p for own in objects for p in own], [i for i, own in enumerate(objects) for _ in own])
    for transform in transforms.transforms if isinstance(transforms, TransformList) else [transforms]:
        if pieces.polygons:
            pieces = _apply(transform, pieces)
    result: list[list[Polygon]] = [[] for _ in objects]
    for polygon, owner in zip(*pieces):
        result[owner].append(polygon)
    return result


def _apply(transform: Transform, pieces: Pieces) -> Pieces:
    method = type(transform).apply_polygons
    if method is Transform.apply_polygons:
        return Pieces(_move_corners(transform, pieces.polygons), pieces.owners)
    if method is CropTransform.apply_polygons:
        # fvcore's own needs shapely.
        pieces = _clip_all(pieces, (transform.x0, transform.y0, transform.x0 + transform.w, transform.y0 + transform.h))
        return Pieces([p - np.array([transform.x0, transform.y0]) for p in pieces.polygons], pieces.owners)
    moved, owners = [], []
    for polygon, owner in zip(*pieces):
        parts = transform.apply_polygons([polygon.copy()])
        moved += parts
        owners += [owner] * len(parts)
    return Pieces(moved, owners)


def _move_corners(transform: Transform, polygons: list[Polygon]) -> list[Polygon]:
    """One call for all corners: most polygons are so small that the call costs more than the arithmetic."""
    corners = transform.apply_coords(np.concatenate(polygons))
    ends = np.cumsum([len(polygon) for polygon in polygons]).tolist()
    return [corners[start:end] for start, end in zip([0, *ends], ends)]


def _clip_all(pieces: Pieces, rect_xyxy: tuple[float, float, float, float]) -> Pieces:
    clipped = [(part, owner) for polygon, owner in zip(*pieces) for part in clip_polygon(polygon, rect_xyxy)]
    return Pieces([part for part, _ in clipped], [owner for _, owner in clipped])


def clip_polygon(polygon: Polygon, rect_xyxy: tuple[float, float, float, float]) -> list[Polygon]:
    """The parts of a polygon that lie in a rectangle; none without area.

    Args:
        polygon: (P, 2); may be concave, and may cross itself (even-odd rule).
        rect_xyxy: x0, y0, x1, y1.
    """
    x0, y0, x1, y1 = rect_xyxy
    parts = [polygon]
    for axis, bound, sign in ((0, x0, 1), (1, y0, 1), (0, x1, -1), (1, y1, -1)):
        parts = [half for part in parts for half in _cut(part, axis, bound, sign)]
    return parts


def _cut(polygon: Polygon, axis: int, bound: float, sign: int) -> list[Polygon]:
    """The parts of a polygon on one side of an upright or level line.

    Args:
        polygon: (P, 2).
        axis: 0 for the line x = ``bound``, 1 for y = ``bound``.
        bound: see ``axis``.
        sign: 1 to keep what is above the bound, -1 for what is below.
    """
    height = sign * (polygon[:, axis] - bound)
    if (height <= 0).all():
        return []
    if (height >= 0).all():
        return [polygon]
    chains = _chains_above(polygon, height, axis, bound)
    parts = [_simplified(loop) for loop in _join_along_line(chains, 1 - axis)]
    return [part for part in parts if len(part) > 2 and (np.ptp(part, axis=0) > 0).all()]


def _chains_above(polygon: Polygon, height: np.ndarray, axis: int, bound: float) -> list[Polygon]:
    """The runs of corners above a line, each with the points where it rises from the line and falls back to it."""
    above = height > 0
    rises = np.flatnonzero(above & ~np.roll(above, 1))
    falls = np.flatnonzero(above & ~np.roll(above, -1))
    if falls[0] < rises[0]:
        falls = np.roll(falls, -1)
    count = len(polygon)
    chains = []
    for rise, fall in zip(rises.tolist(), falls.tolist()):
        run = np.arange(rise, fall + 1 if fall >= rise else fall + 1 + count) % count
        ends = [
            _crossing(polygon, height, inner, outer, axis, bound)
            for inner, outer in ((rise, (rise - 1) % count), (fall, (fall + 1) % count))
        ]
        chains.append(np.concatenate([ends[0], polygon[run], ends[1]]))
    return chains


def _crossing(polygon: Polygon, height: np.ndarray, inner: int, outer: int, axis: int, bound: float) -> np.ndarray:
    """(1, 2): where the edge between a corner above the line and one that is not meets the line."""
    part = height[inner] / (height[inner] - height[outer])
    point = polygon[inner] + part * (polygon[outer] - polygon[inner])
    point[axis] = bound
    return point[None]


def _join_along_line(chains: list[Polygon], along: int) -> list[Polygon]:
    """Closes chains that begin and end on a line to loops.

    Along the line, the inside of the polygon lies between the first and second end, the third and fourth, and so on.

    Args:
        chains: each (P, 2).
        along: the coordinate that varies on the line.
    """
    # End 2 * i is the start of chain i, end 2 * i + 1 its finish.
    positions = [chain[end, along] for chain in chains for end in (0, -1)]
    order = np.argsort(positions, kind="stable").tolist()
    partner = {a: b for pair in zip(order[::2], order[1::2]) for a, b in (pair, pair[::-1])}
    loops, unused = [], set(range(len(chains)))
    while unused:
        loop, end = [], 2 * min(unused)
        while end // 2 in unused:
            unused.remove(end // 2)
            loop.append(chains[end // 2][:: -1 if end % 2 else 1])
            end = partner[end ^ 1]
        loops.append(np.concatenate(loop))
    return loops


def _simplified(loop: Polygon) -> Polygon:
    """Without corners that repeat the one before."""
    return loop[(loop != np.roll(loop, 1, axis=0)).any(axis=1)]
