import pytest
import torch

from detlab.modeling.matcher import Matcher


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


@pytest.mark.parametrize(
    ("thresholds", "labels", "words"),
    [([0.7, 0.3], [0, -1, 1], "increasing"), ([0.5], [0, -1, 1], "2 intervals"), ([0.5], [0, 2], "ignore")],
)
def test_wrong_settings_are_refused_in_words(thresholds, labels, words):
    with pytest.raises(ValueError, match=words):
        Matcher(thresholds, labels)
