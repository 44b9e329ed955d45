"""Fills polygons exactly as the COCO tools do, in time and memory that the canvas bounds, wherever the corners lie.

The COCO tools walk along each edge in steps of a fifth of a pixel, so that one corner 1e8 pixels away costs gigabytes,
and unite polygons one by one, each time over all runs there are. Here each edge is only asked where it crosses the
columns of the canvas, only as far as it is on the canvas, and polygons are united by sorting.

Shapes: P corners, E edges, K crossings, R ranges of columns. Units are fifths of a pixel where a name says so. A place
is a pixel's number, counted down the columns; a key is a place in one of several polygons, ``polygon * (area + 1) +
place``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["runs_between", "runs_of_polygons"]

# A lattice of fifths of a pixel; the line between its columns 5c + 2 and 5c + 3 is the middle of pixel column c.
STEPS = 5
# Crossings worked on at once: some 100 bytes each.
CHUNK = 1 << 18
# Fifths above and below the canvas where edges are still walked along; and how much of a coordinate rounding may take.
MARGIN = 2 * STEPS
ROUNDING = 1e-14


def runs_of_polygons(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Run lengths of the union of filled polygons, equal to those of the COCO tools where these can hold the numbers.

    Args:
        polygons: each flat x0 y0 x1 y1 ..., finite, below 1e15 in size.
        height: H.
        width: W.

    Returns:
        int64, column by column, alternately outside and inside, starting outside; the sum is H * W.
    """
    area = height * width
    toggles, pending, num_pending = np.zeros(0, dtype=np.int64), [], 0
    for edges in _groups(_edges_of(polygons), width):
        pending.append(_toggles_of_group(edges, height, width))
        num_pending += len(pending[-1])
        # United only when they are as many as before: in all that takes as long as sorting once or twice.
        if num_pending > len(toggles) + CHUNK:
            toggles, pending, num_pending = _union([toggles, *pending]), [], 0
    return runs_between(_union([toggles, *pending]), area)


def runs_between(toggles: np.ndarray, area: int) -> np.ndarray:
    """Lengths of runs from the places, in any order, where they change; two changes at one place undo each other."""
    places = _odd(toggles)
    return np.diff(places[places < area], prepend=0, append=area)


def _odd(values: np.ndarray) -> np.ndarray:
    """The distinct values that occur an odd number of times, sorted."""
    if len(values) == 0:
        return values.astype(np.int64)
    ordered = np.sort(values)
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    return ordered[starts[np.diff(starts, append=len(ordered)) % 2 == 1]]


def _union(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The places, sorted, where the union of regions changes, from those of each: sorted, none twice."""
    if len(parts) == 1:
        return parts[0]
    # The sign beside the place: what is entered at even positions is left at odd ones.
    events = np.sort(np.concatenate([2 * part + np.arange(len(part)) % 2 for part in parts]))
    if len(events) == 0:
        return events
    places = events >> 1
    is_last = np.append(places[1:] != places[:-1], True)
    is_inside = np.cumsum(1 - 2 * (events & 1))[is_last] > 0
    return places[is_last][np.diff(is_inside, prepend=False)]


# --------------------------------------------------------------------------------------------------------------- edges


class _Edges(NamedTuple):
    """E edges, from left to right, that cross the middle of a column."""

    polygon: np.ndarray  # (E,) index of the polygon
    left: np.ndarray  # (E, 2) x, y in fifths
    right: np.ndarray  # (E, 2)
    first: np.ndarray  # (E,) least column that is crossed
    last: np.ndarray  # (E,) greatest

    def where(self, chosen: np.ndarray | slice) -> _Edges:
        return _Edges(*(values[chosen] for values in self))


def _edges_of(polygons: Sequence[np.ndarray]) -> _Edges:
    counts = np.array([polygon.size // 2 for polygon in polygons], dtype=np.int64)
    points = np.trunc(STEPS * np.concatenate([np.zeros(0), *polygons]).reshape(-1, 2) + 0.5).astype(np.int64)
    following = np.arange(1, len(points) + 1)
    ends = np.cumsum(counts)
    following[ends[counts > 0] - 1] = (ends - counts)[counts > 0]
    start, end = points, points[following]
    is_rightward = (start[:, 0] <= end[:, 0])[:, None]
    left, right = np.where(is_rightward, start, end), np.where(is_rightward, end, start)
    first = -((2 - left[:, 0]) // STEPS)  # least c with 5c + 2 >= left
    last = (right[:, 0] - 3) // STEPS  # greatest c with 5c + 3 <= right
    return _Edges(np.repeat(np.arange(len(polygons)), counts), left, right, first, last)


def _groups(edges: _Edges, width: int) -> Iterator[_Edges]:
    """Edges that reach into the canvas's columns, of some polygons at a time: as many as make a chunk, or one."""
    edges = _Edges(*edges[:3], np.maximum(edges.first, 0), np.minimum(edges.last, width - 1))
    edges = edges.where(edges.first <= edges.last)
    if len(edges.polygon) == 0:
        return
    starts = np.flatnonzero(np.diff(edges.polygon, prepend=-1))
    # A polygon costs its crossings, and once the width of the canvas.
    costs = np.add.reduceat(edges.last - edges.first + 1, starts) + width
    bounds = [*starts.tolist(), len(edges.polygon)]
    begin, cost = 0, 0
    for place, own in enumerate(costs.tolist()):
        if cost and cost + own > CHUNK:
            yield edges.where(slice(bounds[begin], bounds[place]))
            begin, cost = place, 0
        cost += own
    yield edges.where(slice(bounds[begin], bounds[-1]))


# ----------------------------------------------------------------------------------------------------------- crossings


def _toggles_of_group(edges: _Edges, height: int, width: int) -> np.ndarray:
    """Where the union of some polygons changes, sorted."""
    names, polygon = np.unique(edges.polygon, return_inverse=True)
    edges = edges._replace(polygon=polygon)
    area = height * width
    first, last, is_falling = _part_on_canvas(edges, height)
    keys = _keys_beyond(edges, first, last, is_falling, height, width)
    on_canvas = edges._replace(first=first, last=last).where(first <= last)
    is_flat = on_canvas.right[:, 0] - on_canvas.left[:, 0] >= np.abs(on_canvas.right[:, 1] - on_canvas.left[:, 1])
    pending, num_pending = [keys], 0
    for chosen, rows_of in ((is_flat, _flat_rows), (~is_flat, _steep_rows)):
        for part in _chunks(on_canvas.where(chosen)):
            pending.append(_crossing_keys(part, rows_of, height, area))
            num_pending += len(pending[-1])
            # Kept reduced, so that of one polygon there are hardly more than the canvas has pixels.
            if num_pending > len(pending[0]) + CHUNK:
                pending, num_pending = [_odd(np.concatenate(pending))], 0
    keys = _odd(np.concatenate(pending))
    owner, places = np.divmod(keys, area + 1)
    is_inside = places < area
    places = places[is_inside]
    return _union(np.split(places, np.searchsorted(owner[is_inside], np.arange(1, len(names)))))


def _part_on_canvas(edges: _Edges, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first, last, is_falling), (E,) each: the columns to walk along; before and after them edges are off the canvas.

    A falling edge, whose y grows to the right, is above the canvas before them and below it after them.
    """
    x, y = edges.left.T.astype(np.float64)
    run, drop = (edges.right - edges.left).T.astype(np.float64)
    slack = MARGIN + ROUNDING * np.abs(np.concatenate([edges.left, edges.right], axis=1)).max(axis=1)
    top, bottom = -slack, STEPS * height + slack
    # Level edges are taken for falling ones that are on the canvas everywhere, or nowhere.
    is_falling = drop >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        crossed = np.stack([(top - y) * run / drop, (bottom - y) * run / drop])
    is_level = drop == 0
    crossed[:, is_level] = np.where((top - y)[is_level] > 0, np.inf, -np.inf)
    is_in = is_level & (y >= top) & (y <= bottom)
    crossed[:, is_in] = [[-np.inf], [np.inf]]
    low, high = x + crossed.min(axis=0) - slack, x + crossed.max(axis=0) + slack
    first = np.clip(np.floor(low / STEPS), edges.first, edges.last + 1).astype(np.int64)
    last = np.clip(np.ceil(high / STEPS), edges.first - 1, edges.last).astype(np.int64)
    return first, last, is_falling


def _keys_beyond(
    edges: _Edges, first: np.ndarray, last: np.ndarray, is_falling: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Keys from what passes columns above the canvas, which counts at their top, or below it, at the next one's top."""
    # (2E,) ranges of columns: before the part on the canvas, and after it.
    begin, end = np.concatenate([edges.first, last + 1]), np.concatenate([first, edges.last + 1])
    is_below = np.concatenate([~is_falling, is_falling])
    polygon = np.concatenate([edges.polygon, edges.polygon])
    is_there = begin < end
    begin, end, polygon = begin[is_there] + is_below[is_there], end[is_there] + is_below[is_there], polygon[is_there]
    if len(begin) == 0:
        return np.zeros(0, dtype=np.int64)
    lines = width + 2
    num_cells = lines * (int(polygon.max()) + 1)
    changes = np.bincount(polygon * lines + begin, minlength=num_cells)
    changes += np.bincount(polygon * lines + end, minlength=num_cells)
    is_odd = np.cumsum(changes.reshape(-1, lines), axis=1) % 2 == 1
    owner, line = np.nonzero(is_odd)
    return owner * (height * width + 1) + line * height


class _Crossings(NamedTuple):
    """K crossings: which of the edges of a chunk, and which column."""

    edge: np.ndarray  # (K,)
    column: np.ndarray  # (K,)


def _chunks(edges: _Edges) -> Iterator[_Edges]:
    """Edges in pieces of at most some crossings, long ones cut."""
    bounds = np.concatenate([[0], np.cumsum(edges.last - edges.first + 1)])
    total = int(bounds[-1])
    for begin in range(0, total, CHUNK):
        stop = min(begin + CHUNK, total)
        start_edge = int(np.searchsorted(bounds, begin, side="right")) - 1
        stop_edge = int(np.searchsorted(bounds, stop, side="left"))
        part = edges.where(slice(start_edge, stop_edge))
        first, last = part.first.copy(), part.last.copy()
        first[0] += begin - int(bounds[start_edge])
        last[-1] -= int(bounds[stop_edge]) - stop
        yield part._replace(first=first, last=last)


def _crossing_keys(edges: _Edges, rows_of: Callable[..., np.ndarray], height: int, area: int) -> np.ndarray:
    """(K,) keys from where on the edges turn the inside out, one for each column that one crosses.

    An edge is walked along its longer direction, and rounded in the other. Of the two points of the lattice beside the
    middle of the column the upper one counts.
    """
    counts = edges.last - edges.first + 1
    starts = np.cumsum(counts) - counts
    edge = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(edge)) + (edges.first - starts)[edge]
    upper = rows_of(edges, _Crossings(edge, column))
    row = np.clip((upper + STEPS // 2) // STEPS, 0, height)
    return (edges.polygon * (area + 1))[edge] + column * height + row


def _flat_rows(edges: _Edges, at: _Crossings) -> np.ndarray:
    """(K,) fifths, of edges that are no steeper than 45 degrees."""
    x, y = edges.left.T
    rise = (edges.right[:, 1] - y) / (edges.right[:, 0] - x)
    # The point before the middle is the upper one where the edge falls, that after it where it climbs.
    offset = STEPS - 2 - x - (rise >= 0)
    steps = STEPS * at.column + offset[at.edge]
    return (y[at.edge] + rise[at.edge] * steps + 0.5).astype(np.int64)


def _steep_rows(edges: _Edges, at: _Crossings) -> np.ndarray:
    """(K,) fifths, of edges that are steeper than 45 degrees; they are walked along from above."""
    is_falling = (edges.left[:, 1] < edges.right[:, 1])[:, None]
    x, y = np.where(is_falling, edges.left, edges.right).T
    run, drop = np.where(is_falling, edges.right - edges.left, edges.left - edges.right).T
    rise = (run / drop)[at.edge]
    start, is_rightward = x[at.edge], (run > 0)[at.edge]
    middle = STEPS * at.column + 3
    # One step short of the real crossing; where rounding puts it, only trying tells.
    steps = np.floor((middle - 0.5 - start) / rise) - 1
    for _ in range(3):
        is_past = (start + rise * steps + 0.5 >= middle) == is_rightward
        steps += ~is_past
    return y[at.edge] + steps.astype(np.int64) - 1
