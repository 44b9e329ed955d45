"""Named fields of one length."""

import copy
import pickle

import numpy as np
import pytest
import torch

from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.masks import PolygonMasks


def three_objects():
    return Instances(
        (10, 20),
        boxes=Boxes(torch.arange(12.0).view(3, 4)),
        classes=torch.tensor([5, 6, 7]),
        names=["a", "b", "c"],
        masks=PolygonMasks([[np.arange(6.0) + i] for i in range(3)]),
    )


def test_fields_are_attributes():
    labels = Instances((10, 20))
    labels.scores = torch.ones(2)
    assert labels.has("scores")
    assert labels.scores is labels.get("scores")
    assert labels.get_fields() == {"scores": labels.scores}
    labels.remove("scores")
    assert not labels.has("scores")
    assert labels.image_size == (10, 20)


def test_a_field_of_another_length_is_refused_with_both_lengths():
    labels = three_objects()
    with pytest.raises(ValueError, match=r"field 'scores' has 2 entries, but these Instances hold 3 objects.*boxes"):
        labels.scores = torch.ones(2)
    assert not labels.has("scores")
    with pytest.raises(ValueError, match="1 entries"):
        Instances((4, 4), a=[1, 2], b=[1])


def test_the_only_field_may_change_its_length():
    labels = Instances((4, 4), scores=torch.ones(2))
    labels.scores = torch.ones(5)
    assert len(labels) == 5


def test_a_missing_field_is_named_with_the_known_ones():
    labels = three_objects()
    with pytest.raises(AttributeError, match="no field 'scores'; known fields: boxes, classes, names, masks"):
        labels.scores  # noqa: B018
    with pytest.raises(KeyError, match="no field 'scores'"):
        labels.get("scores")
    with pytest.raises(KeyError, match="no field 'scores'"):
        labels.remove("scores")
    assert getattr(Instances((1, 1)), "x", None) is None


def test_the_image_size_cannot_be_replaced():
    with pytest.raises(AttributeError, match="image_size is fixed"):
        Instances((1, 1)).image_size = (2, 2)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (1, [6]),
        (-1, [7]),
        (slice(1, None), [6, 7]),
        (torch.tensor([True, False, True]), [5, 7]),
        (torch.tensor([2, 0]), [7, 5]),
        ([2, 0], [7, 5]),
        (np.array([1]), [6]),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
)
def test_index_chooses_in_every_field(item, expected):
    chosen = three_objects()[item]
    assert chosen.classes.tolist() == expected
    assert len(chosen) == len(chosen.boxes) == len(chosen.masks) == len(expected)
    assert chosen.names == ["abc"[c - 5] for c in expected]
    assert chosen.image_size == (10, 20)


def test_an_index_out_of_range_is_refused():
    for item in (3, -4):
        with pytest.raises(IndexError, match=f"index {item} is out of range for 3 objects"):
            three_objects()[item]


def test_iterates_over_single_objects():
    assert [one.names for one in three_objects()] == [["a"], ["b"], ["c"]]


def test_without_fields_there_are_no_objects():
    nothing = Instances((3, 4))
    assert len(nothing) == 0
    assert list(nothing) == []
    assert len(nothing[:1]) == 0


def test_cat_joins_every_kind_of_field():
    first, second = three_objects(), three_objects()[1:]
    first.extra, second.extra = np.zeros(3), np.ones(2)
    joined = Instances.cat([first, second])
    assert joined.classes.tolist() == [5, 6, 7, 6, 7]
    assert joined.names == ["a", "b", "c", "b", "c"]
    assert joined.boxes.tensor.shape == (5, 4)
    assert joined.extra.tolist() == [0, 0, 0, 1, 1]
    assert len(joined.masks) == 5
    assert Instances.cat([first]) is first


def test_cat_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one"):
        Instances.cat([])
    with pytest.raises(ValueError, match=r"size \(10, 20\) and \(5, 5\)"):
        Instances.cat([three_objects(), Instances((5, 5))])
    other = three_objects()
    other.remove("names")
    with pytest.raises(ValueError, match=r"not in all of them: \['names'\]"):
        Instances.cat([three_objects(), other])
    with pytest.raises(ValueError, match="field 'odd' of type dict cannot be joined"):
        Instances.cat([Instances((1, 1), odd={1: 2}), Instances((1, 1), odd={1: 2})])


def test_to_moves_what_can_be_moved():
    moved = three_objects().to("cpu")
    assert moved.names == ["a", "b", "c"]
    assert moved.classes.device == torch.device("cpu")
    assert Instances((1, 1), x=torch.ones(1)).to(torch.float64).x.dtype == torch.float64


def test_survives_copy_and_pickle():
    for made in (copy.deepcopy(three_objects()), pickle.loads(pickle.dumps(three_objects()))):
        assert made.image_size == (10, 20)
        assert made.names == ["a", "b", "c"]


def test_text_shows_size_and_fields():
    text = repr(three_objects())
    assert "num_instances=3, image_height=10, image_width=20" in text
    assert "names=['a', 'b', 'c']" in text


def test_one_index_in_a_tensor_leaves_an_array_an_array():
    own = Instances((4, 4), codes=np.arange(3) + 100)
    assert own[torch.tensor([1])].codes.tolist() == [101]
