"""The operators of the inference graph in standard ONNX: functions that build nodes in the place of an operator.

Each takes exactly the arguments of the operator of its name.

Shapes: N images, B boxes of each, C channels, L feature levels, R regions, h x w bins of a region, V candidates of all
images, G groups (a class of an image each), T candidates of the largest group, S survivors, M wanted of each image.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.utils.optional import require

__all__ = ["nms_fixed", "roi_align_levels"]


class _OperatorSet:
    """The operator set that the exporter's own translations are written for, looked up when a graph is built."""

    def __getattr__(self, name: str) -> Any:
        return getattr(require("onnxscript", extra="onnx", purpose="exporting to ONNX").opset18, name)


op: Any = _OperatorSet()
_FLOAT, _INT64 = 1, 7  # numbers of types in the ONNX format

Value = Any  # a tensor of the graph that is being built; a size may be a number


def roi_align_levels(
    features: Sequence[Value],
    rois: Value,
    levels: Value | None,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Value:
    """One RoiAlign a level, of the regions that read it, put back into their order.

    RoiAlign chooses samples as the operator does, so that a ``sampling_ratio`` of 0 stays 0: one sample for about each
    cell, ``ceil(region size / bins)``. Regions must be finite.
    """
    images = op.Cast(op.Gather(rois, _int(0), axis=1), to=_INT64)
    corners = op.Slice(rois, _ints(1), _ints(5), _ints(1))

    def pool(level: int, boxes: Value, batch_indices: Value) -> Value:
        return op.RoiAlign(
            features[level],
            boxes,
            batch_indices,
            output_height=output_size[0],
            output_width=output_size[1],
            sampling_ratio=sampling_ratio,
            spatial_scale=scales[level],
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )

    if levels is None or len(features) == 1:
        return pool(0, corners, images)
    rows = [_where_true(op.Equal(levels, _ints(level))) for level in range(len(features))]
    pooled = [pool(level, op.Gather(corners, own), op.Gather(images, own)) for level, own in enumerate(rows)]
    sizes = [op.Shape(rois, start=0, end=1), op.Shape(features[0], start=1, end=2), _ints(*output_size)]
    zeros = op.Expand(op.CastLike(_floats(0.0), features[0]), op.Concat(*sizes, axis=0))
    return op.ScatterND(zeros, op.Unsqueeze(op.Concat(*rows, axis=0), _ints(1)), op.Concat(*pooled, axis=0))


def nms_fixed(
    boxes: Value, scores: Value, classes: Value, iou_threshold: float, max_output: Value
) -> tuple[Value, Value]:
    """One NonMaxSuppression, to which every class of every image is an image of its own.

    So boxes are compared as they are; moving those of each class apart, as is often done, rounds them. Classes are not
    negative, and the largest says how many groups there are. Boxes have ``x1 <= x2`` and ``y1 <= y2``; numbers in
    double precision are rounded to single.

    Raises:
        ValueError: for a negative ``iou_threshold``, which ONNX does not know.
    """
    if iou_threshold < 0:
        raise ValueError(f"ONNX suppresses by an IoU of 0 or more, but iou_threshold is {iou_threshold}; use 0")
    max_output = op.Reshape(max_output, _ints(1))
    flat = _flatten(boxes, scores, classes)
    rows = _rows_of_groups(flat)
    selected = op.NonMaxSuppression(
        op.Gather(flat.boxes, rows),
        op.Unsqueeze(op.Gather(flat.scores, rows), _ints(1)),
        max_output,
        _floats(min(_round_down(iou_threshold), 1.0)),
        _floats(-math.inf),
    )  # (S, 3): group, 0, place in the group
    kept = op.GatherND(rows, op.Gather(selected, _ints(0, 2), axis=1))
    return _best_of_images(flat.scores, kept, op.Shape(scores), max_output)


class _Flat(NamedTuple):
    """The boxes of all images, and behind them one that is no candidate, for no tensor to be empty."""

    boxes: Value  # (N * B + 1, 4)
    scores: Value  # (N * B + 1,), -inf for what is no candidate
    groups: Value  # (N * B + 1,) int64, a number for each class of each image; the last one is alone in its group
    num_groups: Value  # (1,) int64, G


def _flatten(boxes: Value, scores: Value, classes: Value) -> _Flat:
    scores = op.Cast(scores, to=_FLOAT)
    scores = op.Where(op.IsNaN(scores), _floats(-math.inf), scores)
    num_images = op.Shape(scores, start=0, end=1)
    largest_class = op.ReduceMax(op.Concat(op.Reshape(classes, _ints(-1)), _ints(0), axis=0))
    num_classes = op.Add(largest_class, _ints(1))
    images = op.Range(_int(0), op.Squeeze(num_images), _int(1))
    groups = op.Add(classes, op.Unsqueeze(op.Mul(images, num_classes), _ints(1)))
    last_group = op.Mul(num_images, num_classes)
    return _Flat(
        boxes=op.Concat(
            op.Reshape(op.Cast(boxes, to=_FLOAT), _ints(-1, 4)), op.Expand(_floats(0.0), _ints(1, 4)), axis=0
        ),
        scores=op.Concat(op.Reshape(scores, _ints(-1)), _floats(-math.inf), axis=0),
        groups=op.Concat(op.Reshape(groups, _ints(-1)), last_group, axis=0),
        num_groups=op.Add(last_group, _ints(1)),
    )


def _rows_of_groups(flat: _Flat) -> Value:
    """The candidates of each group in their order, (G, T) int64; the last row of all where a group has no more."""
    last_row = op.Sub(op.Shape(flat.scores), _ints(1))
    rows = op.Concat(_where_true(op.Greater(flat.scores, _floats(-math.inf))), last_row, axis=0)
    num_candidates = op.Shape(rows)
    # TopK puts the first of equals first, so the order within a group is kept.
    groups, order = op.TopK(op.Gather(flat.groups, rows), num_candidates, axis=0, largest=0, sorted=1)
    zeros = op.Expand(_ints(0), flat.num_groups)
    counts = op.ScatterElements(zeros, groups, op.Expand(_ints(1), num_candidates), axis=0, reduction="add")
    starts = op.CumSum(counts, _int(0), exclusive=1)
    places = op.Sub(op.Range(_int(0), op.Squeeze(num_candidates), _int(1)), op.Gather(starts, groups))
    cells = op.Concat(op.Unsqueeze(groups, _ints(1)), op.Unsqueeze(places, _ints(1)), axis=1)
    shape = op.Concat(flat.num_groups, op.ReduceMax(counts), axis=0)
    return op.ScatterND(op.Expand(last_row, shape), cells, op.Gather(rows, order))


def _best_of_images(scores: Value, kept: Value, shape: Value, max_output: Value) -> tuple[Value, Value]:
    """The best of the rows ``kept`` (S,) of each image, (N, M) with zeros behind, and how many they are, (N,).

    Args:
        scores: (N * B + 1,).
        kept: (S,) int64, into ``scores``.
        shape: (2,), N and B.
        max_output: (1,), M.
    """
    num_boxes = op.Slice(shape, _ints(1), _ints(2))
    nothing = op.Expand(_floats(-math.inf), op.Shape(scores))
    scores_of_kept = op.ScatterElements(nothing, kept, op.Gather(scores, kept), axis=0)
    by_image = op.Reshape(op.Slice(scores_of_kept, _ints(0), _ints(-1)), shape, allowzero=1)
    num_taken = op.Min(max_output, num_boxes)
    best, places = op.TopK(by_image, num_taken, axis=1, largest=1, sorted=1)
    is_kept = op.Greater(best, _floats(-math.inf))
    indices = op.Where(is_kept, places, _ints(0))
    padding = op.Concat(_ints(0, 0, 0), op.Sub(max_output, num_taken), axis=0)
    counts = op.ReduceSum(op.Cast(is_kept, to=_INT64), _ints(1), keepdims=0)
    return op.Pad(indices, padding, _int(0)), counts


def _round_down(limit: float) -> float:
    """The largest number of single precision that is not above the limit: to be more than either is the same."""
    rounded = np.float32(limit)
    return float(np.nextafter(rounded, np.float32(-math.inf)) if float(rounded) > limit else rounded)


def _where_true(mask: Value) -> Value:
    """The places of a vector where it is true, (V,) int64."""
    return op.Squeeze(op.NonZero(mask), _ints(0))


def _int(value: int) -> Value:
    return op.Constant(value_int=value)


def _ints(*values: int) -> Value:
    return op.Constant(value_ints=list(values))


def _floats(*values: float) -> Value:
    return op.Constant(value_floats=list(values))
