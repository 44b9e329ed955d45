import pytest
import torch

from detlab.modeling.sampling import draw_balanced, subsample_labels


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


def make_labels():
    """Of four images: many of both kinds, few positives, few negatives, nothing but ignored ones."""
    torch.manual_seed(0)
    rows = [
        [1] * 40 + [0] * 100 + [-1] * 10,
        [2] * 3 + [0] * 100 + [-1] * 47,
        [5] * 140 + [0] * 4 + [-1] * 6,
        [-1] * 150,
    ]
    return torch.stack([torch.tensor(row)[torch.randperm(150)] for row in rows])


def test_each_image_gets_its_share_and_no_place_twice():
    labels = make_labels()
    drawn = draw_balanced(labels, 32, 0.25, bg_label=0)
    assert drawn.places.shape == drawn.valid.shape == (4, 32)
    for own, places, valid, shares in zip(labels, drawn.places, drawn.valid, [(8, 24), (3, 29), (8, 4), (0, 0)]):
        chosen = own[places[valid]].tolist()
        assert sum(k > 0 for k in chosen) == shares[0] and sum(k == 0 for k in chosen) == shares[1]
        assert -1 not in chosen and len(chosen) == sum(shares)
        assert chosen == sorted(chosen, key=lambda k: k == 0), "positives come first"
        assert len({*places.tolist()}) == 32
        assert valid.tolist() == sorted(valid.tolist(), reverse=True)


def test_fewer_boxes_than_are_asked_for_are_all_drawn():
    labels = torch.tensor([[1, 0, -1, 0, 2]])
    drawn = draw_balanced(labels, 100, 0.5, bg_label=0)
    assert drawn.places.shape == (1, 5)
    assert sorted(drawn.places[drawn.valid].tolist()) == [0, 1, 3, 4]


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)])
def test_no_boxes_and_no_images_draw_nothing(shape):
    drawn = draw_balanced(torch.zeros(shape, dtype=torch.int64), 10, 0.5, bg_label=0)
    assert drawn.places.shape == (shape[0], min(shape[1], 10)) and not drawn.valid.any()


def test_a_share_of_nothing_draws_no_positive():
    drawn = draw_balanced(make_labels(), 32, 0.0, bg_label=0)
    assert (make_labels().gather(1, drawn.places)[drawn.valid] == 0).all() and drawn.valid[0].all()


def test_every_box_of_a_kind_is_drawn_as_often_as_another():
    labels = torch.tensor([1] * 10 + [0] * 30 + [-1] * 5).expand(8000, -1)
    torch.manual_seed(3)
    drawn = draw_balanced(labels, 16, 0.25, bg_label=0)
    assert drawn.valid.all()
    often = torch.bincount(drawn.places.flatten(), minlength=45).double() / 8000
    # Standard deviations are 0.0055 for a chance of 0.4; five of them.
    assert (often[:10] - 4 / 10).abs().max() < 0.028 and (often[10:40] - 12 / 30).abs().max() < 0.028
    assert often[40:].max() == 0
    first = torch.bincount(drawn.places[:, 0], minlength=45).double() / 8000
    assert (first[:10] - 0.1).abs().max() < 0.017, "the order is random, too"


def test_pairs_are_drawn_independently_of_each_other():
    torch.manual_seed(4)
    drawn = draw_balanced(torch.zeros(20000, 6, dtype=torch.int64), 3, 0.5, bg_label=0)
    chosen = torch.zeros(20000, 6).scatter(1, drawn.places, 1.0)
    together = (chosen.T @ chosen) / 20000
    pairs = together[~torch.eye(6, dtype=torch.bool)]
    assert (pairs - 0.2).abs().max() < 0.015  # 3 / 6 * 2 / 5; standard deviation 0.003
