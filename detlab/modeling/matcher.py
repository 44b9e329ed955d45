"""Assigning each predicted box to at most one ground-truth box."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from detlab.layers._ops import match_boxes

__all__ = ["Matcher"]


class Matcher:
    """Gives every prediction the ground truth it overlaps most, and a label by how much it overlaps.

    The overlaps are cut at ``thresholds`` into ``len(thresholds) + 1`` intervals, each closed below and open above;
    interval i gets ``labels[i]``: 1 positive, 0 negative, -1 ignored.

    Args:
        thresholds: increasing, positive cut points.
        labels: one of -1, 0, 1 for each interval.
        allow_low_quality_matches: also label as positive the predictions that overlap some ground truth more than any
            other prediction does, however little (Faster R-CNN, section 3.1.2, case (i)).

    Raises:
        ValueError: if the thresholds do not increase, or the labels do not fit them.
    """

    def __init__(self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False) -> None:
        cuts = [float(t) for t in thresholds]
        if not cuts or cuts[0] <= 0 or any(a > b for a, b in pairwise(cuts)):
            raise ValueError(f"Matcher thresholds must be positive and increasing, got {thresholds}")
        if len(labels) != len(cuts) + 1:
            raise ValueError(f"{len(cuts)} thresholds make {len(cuts) + 1} intervals, but {len(labels)} labels came")
        if not set(labels) <= {-1, 0, 1}:
            raise ValueError(f"Matcher labels must be -1 (ignore), 0 (negative) or 1 (positive), got {labels}")
        self.thresholds = [-math.inf, *cuts, math.inf]
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match.

        Args:
            match_quality_matrix: (M, B), the overlap of each of M ground truths with each of B predictions.

        Returns:
            The row of the best ground truth, (B,) int64 (0 where there is none), and the label, (B,) int8.
        """
        num_gt, num_predictions = match_quality_matrix.shape
        if num_gt == 0:
            matches = match_quality_matrix.new_zeros(num_predictions, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best_quality, matches = match_quality_matrix.max(dim=0)
        match_labels = self._labels_of(best_quality)
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def match_batch(self, objects: Tensor, object_valid: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Match the boxes of a batch with objects by their IoU, by the rules of a call with the matrix of overlaps.

        That matrix is never built, and the host does not wait for the device.

        Args:
            objects: (N, G, 4) xyxy, or (N, G, 5) rotated boxes.
            object_valid: (N, G) bool: which objects exist; the others match nothing.
            boxes: (N, B, 4 or 5), or (1, B, 4 or 5) for all images the same.

        Returns:
            The object of each box, (N, B) int64 (0 in an image without objects), and the label, (N, B) int8.
        """
        found = match_boxes(objects, object_valid, boxes)
        labels = self._labels_of(found.overlaps)
        if self.allow_low_quality_matches:
            labels.masked_fill_(found.is_best, 1)
        return found.objects, labels

    def _labels_of(self, best_quality: Tensor) -> Tensor:
        """The label, int8, of the interval that each value lies in."""
        labels = torch.full_like(best_quality, self.labels[0], dtype=torch.int8)
        for cut, label in zip(self.thresholds[1:-1], self.labels[1:]):
            labels.masked_fill_(best_quality >= cut, label)
        return labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Label 1, in place, every prediction that ties for the best overlap of some ground truth.

        A ground truth that nothing overlaps has no best prediction and changes nothing.
        """
        best_of_gt = match_quality_matrix.amax(dim=1, keepdim=True)
        is_best = (match_quality_matrix == best_of_gt) & (best_of_gt > 0)
        match_labels.masked_fill_(is_best.any(dim=0), 1)
