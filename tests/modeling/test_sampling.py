import torch

from detlab.modeling.sampling import subsample_labels


def test_draws_no_more_positives_than_their_share_and_fills_up_with_negatives():
    labels = torch.tensor([1] * 50 + [80] * 500 + [-1] * 20)
    positive, negative = subsample_labels(labels, 64, 0.25, bg_label=80)
    assert len(positive) == 16 and len(negative) == 48
    assert (labels[positive] == 1).all() and (labels[negative] == 80).all()
    assert len(set(positive.tolist())) == 16 and len(set(negative.tolist())) == 48


def test_few_positives_leave_room_for_negatives():
    labels = torch.tensor([3, 3] + [0] * 100)
    positive, negative = subsample_labels(labels, 10, 0.5, bg_label=0)
    assert sorted(positive.tolist()) == [0, 1] and len(negative) == 8


def test_asking_for_more_than_there_are_gives_all_but_the_ignored():
    labels = torch.tensor([1, 0, -1, 0])
    positive, negative = subsample_labels(labels, 1000, 0.5, bg_label=0)
    assert positive.tolist() == [0] and sorted(negative.tolist()) == [1, 3]


def test_no_labels_draw_nothing():
    positive, negative = subsample_labels(torch.empty(0, dtype=torch.int64), 10, 0.5, bg_label=0)
    assert len(positive) == len(negative) == 0


def test_the_draw_follows_the_random_state():
    labels = torch.tensor([0] * 1000)
    torch.manual_seed(1)
    first = subsample_labels(labels, 10, 0.5, 0)[1]
    torch.manual_seed(1)
    assert torch.equal(first, subsample_labels(labels, 10, 0.5, 0)[1])
    assert not torch.equal(first, subsample_labels(labels, 10, 0.5, 0)[1])
