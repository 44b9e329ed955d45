import pytest
import torch

from detlab.layers.rotated_boxes import pairwise_iou_rotated
from detlab.modeling.matcher import Matcher
from detlab.structures.boxes import Boxes, pairwise_iou


def slow_labels(quality, thresholds, labels):
    """One prediction at a time: the label of the interval its best overlap falls into."""
    result = []
    for column in quality.T.tolist():
        best = max(column)
        result.append(labels[sum(best >= t for t in thresholds)])
    return result


def test_labels_equal_a_slow_version_also_on_the_cut_points():
    quality = torch.rand(5, 300)
    quality[0, :3] = torch.tensor([0.3, 0.7, 0.69999])
    quality[1:, :3] = 0
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(quality)
    assert labels.tolist() == slow_labels(quality, [quality.new_tensor(0.3), quality.new_tensor(0.7)], [0, -1, 1])
    assert torch.equal(matches, quality.argmax(dim=0))
    assert labels.dtype == torch.int8


def test_low_quality_matches_make_every_ties_best_prediction_positive():
    quality = torch.tensor([[0.1, 0.2, 0.2, 0.0], [0.0, 0.0, 0.05, 0.0]])
    labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(quality)[1]
    assert labels.tolist() == [0, 1, 1, 0]


def test_a_ground_truth_that_nothing_overlaps_makes_nothing_positive():
    labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(torch.zeros(1, 4))[1]
    assert labels.tolist() == [0, 0, 0, 0]


def test_without_ground_truth_everything_gets_the_lowest_label():
    matches, labels = Matcher([0.5], [0, 1])(torch.zeros(0, 7))
    assert matches.tolist() == [0] * 7 and labels.tolist() == [0] * 7


def test_without_predictions_nothing_is_matched():
    matches, labels = Matcher([0.5], [0, 1], allow_low_quality_matches=True)(torch.zeros(3, 0).reshape(3, 0)[:0])
    assert len(matches) == len(labels) == 0


def random_boxes(*shape, seed=0, whole=False):
    """``whole``: on a small grid, where many overlaps are equal or on a cut point."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * 40
    boxes = torch.cat([low, low + torch.rand(*shape, 2, generator=generator) * 25], dim=-1)
    return (boxes / 5).round() if whole else boxes


def expected_of_image(matcher, objects, valid, boxes):
    """By the matrix of the objects that exist."""
    rows = valid.nonzero().squeeze(1)
    overlaps = pairwise_iou_rotated if boxes.shape[1] == 5 else lambda a, b: pairwise_iou(Boxes(a), Boxes(b))
    matches, labels = matcher(overlaps(objects[rows], boxes))
    return (rows[matches] if len(rows) else matches), labels


@pytest.mark.parametrize("allow_low_quality_matches", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("num_sets", [1, 3])
def test_a_batch_is_matched_as_each_image_by_its_matrix(allow_low_quality_matches, whole, num_sets):
    matcher = Matcher([0.3, 0.5], [0, -1, 1], allow_low_quality_matches)
    objects, boxes = random_boxes(3, 8, whole=whole), random_boxes(num_sets, 500, seed=1, whole=whole)
    valid = torch.tensor([[True] * 8, [False, True] * 4, [False] * 8])
    matches, labels = matcher.match_batch(objects, valid, boxes)
    assert matches.dtype == torch.int64 and labels.dtype == torch.int8
    assert {-1, 0, 1} == set(labels.unique().tolist())
    for i in range(3):
        expected = expected_of_image(matcher, objects[i], valid[i], boxes[i % num_sets])
        assert torch.equal(matches[i], expected[0])
        assert torch.equal(labels[i], expected[1])


def test_rotated_boxes_are_matched_by_the_same_rules():
    matcher = Matcher([0.3, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    objects, boxes = (torch.cat([random_boxes(2, n, seed=n), torch.rand(2, n, 1) * 360], dim=2) for n in (6, 300))
    valid = torch.tensor([[True] * 6, [True, False] * 3])
    matches, labels = matcher.match_batch(objects, valid, boxes)
    for i in range(2):
        expected = expected_of_image(matcher, objects[i], valid[i], boxes[i])
        assert torch.equal(matches[i], expected[0])
        assert torch.equal(labels[i], expected[1])


def test_a_batch_without_objects_gets_the_lowest_label():
    matches, labels = Matcher([0.5], [-1, 1], True).match_batch(
        torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), random_boxes(1, 9)
    )
    assert torch.equal(matches, torch.zeros(2, 9, dtype=torch.int64))
    assert torch.equal(labels, torch.full((2, 9), -1, dtype=torch.int8))


def test_matching_a_batch_asks_the_host_for_no_value():
    """A device without memory has none to tell."""
    inputs = random_boxes(2, 5), torch.ones(2, 5, dtype=torch.bool), random_boxes(1, 30)
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], True).match_batch(*(x.to("meta") for x in inputs))
    assert matches.shape == labels.shape == (2, 30)
    assert matches.is_meta and labels.is_meta


@pytest.mark.parametrize(
    ("thresholds", "labels", "words"),
    [([0.7, 0.3], [0, -1, 1], "increasing"), ([0.5], [0, -1, 1], "2 intervals"), ([0.5], [0, 2], "ignore")],
)
def test_wrong_settings_are_refused_in_words(thresholds, labels, words):
    with pytest.raises(ValueError, match=words):
        Matcher(thresholds, labels)
