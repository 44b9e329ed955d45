"""Fills polygons exactly as the COCO tools do, in time and memory that the canvas bounds, wherever the corners lie.

The COCO tools walk along each edge in steps of a fifth of a pixel, so that one corner 1e8 pixels away costs gigabytes.
Here each edge is only asked where it crosses the columns of the canvas.

Shapes: P corners, E edges, K crossings. Units are fifths of a pixel where a name says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["runs_between", "runs_of_polygon"]

# A lattice of fifths of a pixel; the line between its columns 5c + 2 and 5c + 3 is the middle of pixel column c.
STEPS = 5
# Crossings worked on at once: some 100 bytes each.
CHUNK = 1 << 18


def runs_of_polygon(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths of a filled polygon, equal to those of the COCO tools for coordinates that these can hold.

    Args:
        polygon: flat x0 y0 x1 y1 ..., finite, below 1e15 in size.
        height: H.
        width: W.

    Returns:
        int64, column by column, alternately outside and inside, starting outside; the sum is H * W.
    """
    points = np.trunc(STEPS * polygon.reshape(-1, 2) + 0.5).astype(np.int64)
    toggles = np.zeros(0, dtype=np.int64)
    for start, end, column in _chunks(points, np.roll(points, -1, axis=0), width):
        # Kept reduced, so that there are never more than the canvas has pixels.
        toggles = _odd(np.concatenate([toggles, _crossings(start, end, column, height)]))
    return runs_between(toggles, height * width)


def runs_between(toggles: np.ndarray, area: int) -> np.ndarray:
    """Lengths of runs from the places, in any order, where they change; two changes at one place undo each other."""
    places = _odd(toggles)
    return np.diff(places[places < area], prepend=0, append=area)


def _odd(values: np.ndarray) -> np.ndarray:
    """The distinct values that occur an odd number of times, sorted."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[counts % 2 == 1]


def _chunks(start: np.ndarray, end: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Edges from (E, 2) to (E, 2), in fifths -> (start, end, column) of crossings: (K, 2), (K, 2), (K,)."""
    left, right = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.maximum(-((2 - left) // STEPS), 0)  # least c with 5c + 2 >= left
    last = np.minimum((right - 3) // STEPS, width - 1)  # greatest c with 5c + 3 <= right
    counts = np.maximum(last - first + 1, 0)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    for begin in range(0, int(bounds[-1]), CHUNK):
        crossing = np.arange(begin, min(begin + CHUNK, int(bounds[-1])))
        edge = np.searchsorted(bounds, crossing, side="right") - 1
        yield start[edge], end[edge], first[edge] + crossing - bounds[edge]


def _crossings(start: np.ndarray, end: np.ndarray, column: np.ndarray, height: int) -> np.ndarray:
    """(K,) places, counted down the columns, from where on an edge turns the inside out.

    An edge is walked along its longer direction, and rounded in the other. Of the two points of the lattice beside the
    middle of the column the upper one counts.
    """
    extent = np.abs(end - start)
    is_flat = extent[:, 0] >= extent[:, 1]
    along = np.where(is_flat, 0, 1)
    every = np.arange(len(start))
    is_backward = start[every, along] > end[every, along]
    low = np.where(is_backward[:, None], end, start)
    high = np.where(is_backward[:, None], start, end)
    rise = (high - low)[every, 1 - along] / extent[every, along]
    upper = np.empty(len(start), dtype=np.int64)
    upper[is_flat] = _upper_of_flat(low[is_flat], rise[is_flat], column[is_flat])
    upper[~is_flat] = _upper_of_steep(low[~is_flat], rise[~is_flat], column[~is_flat])
    row = np.clip(np.ceil((upper + 0.5) / STEPS - 0.5), 0, height).astype(np.int64)
    return column * height + row


def _upper_of_flat(low: np.ndarray, rise: np.ndarray, column: np.ndarray) -> np.ndarray:
    steps = STEPS * column + 3 - low[:, 0]
    after = np.trunc(low[:, 1] + rise * steps + 0.5)
    before = np.trunc(low[:, 1] + rise * (steps - 1) + 0.5)
    return np.minimum(before, after).astype(np.int64)


def _upper_of_steep(low: np.ndarray, rise: np.ndarray, column: np.ndarray) -> np.ndarray:
    middle = STEPS * column + 3
    # One step short of the real crossing; where rounding puts it, only trying tells.
    steps = np.floor((middle - 0.5 - low[:, 0]) / rise) - 1
    for _ in range(3):
        is_past = (low[:, 0] + rise * steps + 0.5 >= middle) == (rise > 0)
        steps += ~is_past
    return low[:, 1] + steps.astype(np.int64) - 1
