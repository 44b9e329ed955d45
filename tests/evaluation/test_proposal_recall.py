"""Recall of proposals, against small cases done by hand."""

import math

import numpy as np
import pytest
import torch

from detlab.evaluation._proposal_recall import ImageOverlaps, average_recall, covered, overlaps_of_image
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances

ALL = (0, 1e10)


def test_a_proposal_covers_one_object_only():
    # Both objects like proposal 0 best; the second has it, as it is covered better, and leaves the first 0.4.
    overlaps = np.array([[0.8, 0.9], [0.4, 0.1]])
    assert sorted(covered(overlaps)) == [0.4, 0.9]


def test_objects_without_proposals_are_not_found():
    assert covered(np.zeros((0, 2))).tolist() == [0, 0]
    assert average_recall([ImageOverlaps(np.zeros((0, 2)), np.array([5.0, 5.0]))], 100, ALL) == 0


def test_recall_is_averaged_over_ten_thresholds():
    image = ImageOverlaps(np.array([[0.72, 0.0]]), np.array([10.0, 2000.0]))
    assert average_recall([image], 100, ALL) == pytest.approx(0.5 * 5 / 10)
    assert average_recall([image], 100, (0, 32**2)) == pytest.approx(5 / 10)
    assert average_recall([image], 0, ALL) == 0


def test_without_objects_of_a_size_there_is_no_recall():
    assert math.isnan(average_recall([], 100, ALL))
    assert math.isnan(average_recall([ImageOverlaps(np.ones((1, 1)), np.array([10.0]))], 100, (96**2, 1e10)))


def test_the_best_proposals_are_kept_and_crowds_left_out():
    proposals = Instances((50, 50), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 5, 5], [10, 10, 20, 20]])))
    proposals.objectness_logits = torch.tensor([-1.0, 2.0])
    annotations = [
        {"bbox": [10, 10, 10, 10], "area": 60.0, "iscrowd": 0},
        {"bbox": [0, 0, 5, 5], "area": 25.0, "iscrowd": 1},
    ]
    image = overlaps_of_image(proposals, annotations, max_limit=1)
    assert image.overlaps.tolist() == [[1.0]] and image.areas.tolist() == [60.0]
