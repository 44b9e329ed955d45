import copy

import numpy as np
import pytest
import torch

from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks, PolygonMasks
from detlab.structures.object_batch import (
    NotedList,
    ObjectBatch,
    PartsOnDemand,
    StepNotes,
    as_batch,
    assign,
    batch_on_device,
    gather_places,
    notes_of,
    padded,
    takes_padded,
    valid_parts,
    with_notes,
)

SIZES = [(40, 50), (30, 60), (20, 20)]


class Tags:
    """A field as users write them: it has a length and an index, and nothing else."""

    def __init__(self, tags):
        self.tags = np.array(tags, dtype=object)

    def __len__(self):
        return len(self.tags)

    def __getitem__(self, item):
        return Tags(self.tags[item.numpy() if isinstance(item, torch.Tensor) else item])


def make_list(counts=(3, 0, 2)):
    torch.manual_seed(0)
    instances = []
    for size, count in zip(SIZES, counts):
        own = Instances(size, proposal_boxes=Boxes(torch.rand(count, 4) * 20))
        own.objectness_logits = torch.rand(count)
        own.names = [f"{size[0]}-{i}" for i in range(count)]
        own.tags = Tags([f"tag {size[0]}-{i}" for i in range(count)])
        own.codes = np.arange(count) + 100
        instances.append(own)
    return instances


def assert_same(element, expected):
    assert element.image_size == expected.image_size and len(element) == len(expected)
    assert element.get_fields().keys() == expected.get_fields().keys()
    for name, value in expected.get_fields().items():
        got = element.get(name)
        assert type(got) is type(value), name
        if isinstance(value, Boxes | Keypoints):
            got, value = got.tensor, value.tensor
        if isinstance(value, Tags):
            got, value = got.tags, value.tags
        if isinstance(value, BitMasks):
            got, value = got.tensor, value.tensor
        assert (got == value) if isinstance(value, list) else (np.asarray(got) == np.asarray(value)).all(), name


def test_a_list_that_becomes_a_batch_comes_back():
    instances = make_list()
    batch = as_batch(instances)
    assert batch.valid.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert batch.tensor("proposal_boxes").shape == (3, 3, 4) and batch.kind("proposal_boxes") is Boxes
    for element, expected in zip(batch, instances):
        assert_same(element, expected)


def test_a_batch_is_a_sequence_of_its_images():
    batch, instances = as_batch(make_list()), make_list()
    assert len(batch) == 3
    assert_same(batch[0], instances[0])
    assert_same(batch[-1], instances[2])
    assert isinstance(batch[1:], list) and [len(x) for x in batch[1:]] == [0, 2]
    assert [x.image_size for x in batch[::-1]] == SIZES[::-1]
    assert [len(x) for x in batch] == [3, 0, 2]
    assert [(len(a), len(b)) for a, b in zip(batch, instances)] == [(3, 3), (0, 0), (2, 2)]
    assert batch[2] is batch[-1] is list(batch)[2]
    assert batch[0] in batch and batch.index(batch[2]) == 2
    with pytest.raises(IndexError):
        batch[3]


def test_batches_and_lists_are_joined_as_lists_are():
    batch, more = as_batch(make_list()), make_list()[:1]
    assert [len(x) for x in batch + more] == [3, 0, 2, 3]
    assert [len(x) for x in more + batch] == [3, 3, 0, 2]
    assert [len(x) for x in batch + as_batch(more)] == [3, 0, 2, 3]


def test_elements_are_made_when_they_are_asked_for_and_not_before():
    batch = as_batch(make_list())
    assert not batch.was_handed_out and as_batch(batch) is batch
    first = batch[0]
    assert batch.was_handed_out and [*batch._elements] == [0]
    assert batch[0] is first


def test_what_somebody_changes_in_an_element_is_what_the_next_stage_sees():
    batch = as_batch(make_list())
    batch[0].proposal_boxes = Boxes(torch.ones(3, 4))
    batch[2].extra = torch.tensor([5, 6])
    again = as_batch(batch)
    assert again is not batch
    assert (again.tensor("proposal_boxes")[0] == 1).all()
    assert again[2].extra.tolist() == [5, 6] and not again[0].has("extra")
    assert torch.equal(again[1].proposal_boxes.tensor, torch.zeros(0, 4))


def test_an_element_may_be_put_in_the_place_of_another():
    batch = as_batch(make_list())
    batch[0] = batch[0][1:2]
    batch[-1] = batch[2][:0]
    again = as_batch(batch)
    assert again.counts == [1, 0, 0] and again.num_places == 1
    assert again[0].names == ["40-1"]


def test_places_are_taken_with_every_kind_of_field():
    instances = make_list()
    places, valid = torch.tensor([[2, 0], [0, 0], [1, 1]]), torch.tensor([[True, True], [False, False], [True, False]])
    taken = as_batch(instances).take(places, valid)
    for element, own, rows in zip(taken, instances, ([2, 0], [], [1])):
        assert_same(element, own[torch.tensor(rows, dtype=torch.int64)])
    again = taken.take(torch.tensor([[1], [0], [0]]), torch.ones(3, 1, dtype=torch.bool) & valid[:, :1])
    assert again[0].names == ["40-0"] and again[2].tags.tags.tolist() == ["tag 20-1"]


def test_a_mask_leaves_the_chosen_places_of_every_kind_of_field():
    instances = make_list()
    mask = torch.tensor([[True, False, True], [True, True, True], [False, True, True]])
    chosen = as_batch(instances).where(mask)
    for element, own, keep in zip(chosen, instances, mask):
        assert_same(element, own[keep[: len(own)]])


def test_the_first_places_are_a_batch_of_them():
    instances = make_list()
    batch = as_batch(instances)
    first = batch.first(1)
    assert first.num_places == 1 and first.counts == [1, 0, 1] and batch.first(3) is batch
    for element, own in zip(first, instances):
        assert_same(element, own[:1])


def test_places_of_two_batches_are_joined_in_order():
    boxes = [Instances(size, proposal_boxes=own.proposal_boxes) for size, own in zip(SIZES, make_list())]
    more = [Instances(size, proposal_boxes=Boxes(torch.full((2, 4), 9.0, dtype=torch.float64))) for size in SIZES]
    joined = as_batch(boxes).join(as_batch(more))
    for element, a, b in zip(joined, boxes, more):
        expected = torch.cat((a.proposal_boxes.tensor, b.proposal_boxes.tensor.float()))
        assert torch.equal(element.proposal_boxes.tensor, expected)
    with pytest.raises(ValueError, match="objectness_logits"):
        as_batch([Instances(size, objectness_logits=torch.ones(1)) for size in SIZES]).join(as_batch(more))


def make_truth():
    """Of three images the second has no objects and the third no keypoints."""
    masks = PolygonMasks([[np.array([0.0, 0, 5, 0, 5, 5])], [np.array([1.0, 1, 9, 1, 9, 9])]])
    first = Instances(SIZES[0], gt_boxes=Boxes(torch.rand(2, 4)), gt_classes=torch.tensor([4, 5]), gt_masks=masks)
    first.gt_keypoints = Keypoints(torch.rand(2, 3, 3))
    first.gt_names, first.weight = ["a", "b"], torch.ones(2)
    second = Instances(SIZES[1], gt_boxes=Boxes(torch.rand(0, 4)), gt_classes=torch.empty(0, dtype=torch.int64))
    third = Instances(SIZES[2], gt_boxes=Boxes(torch.rand(1, 4)), gt_classes=torch.tensor([6]))
    return [first, second, third]


def test_places_that_stand_for_objects_have_their_fields_where_the_image_has_objects():
    proposals = as_batch([Instances(own.image_size, proposal_boxes=own.proposal_boxes) for own in make_list((3, 2, 2))])
    truth = make_truth()
    proposals.set("gt_classes", torch.full((3, 3), 80))
    proposals.refer_to(as_batch(truth), torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 0]]))
    assert proposals.has("gt_boxes") and not proposals.has("weight")
    first, second, third = proposals
    assert torch.equal(first.gt_boxes.tensor, truth[0].gt_boxes.tensor[[1, 0, 1]])
    assert first.gt_names == ["b", "a", "b"] and first.gt_classes.tolist() == [80] * 3
    assert [p[0][3] for p in first.gt_masks.polygons] == [1, 0, 1]
    assert torch.equal(first.gt_keypoints.tensor, truth[0].gt_keypoints.tensor[[1, 0, 1]])
    assert {*second.get_fields()} == {"proposal_boxes", "gt_classes"}
    assert {*third.get_fields()} == {"proposal_boxes", "gt_classes", "gt_boxes"}
    kept = proposals.where(torch.tensor([[False, True, True], [True] * 3, [True] * 3]))
    assert kept[0].gt_names == ["a", "b"]
    assert kept.loose("gt_masks").rows.tolist()[0] == [1, 0, 1]


def test_masks_are_one_table_also_where_an_image_has_none():
    batch = as_batch(make_truth())
    images, rows = torch.tensor([0, 0, 2]), torch.tensor([1, 0, 0])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    table = batch.loose("gt_masks").table(torch.device("cpu"))
    got = table.crop(images, rows, torch.tensor([True, True, False]), boxes, 8)
    masks = make_truth()[0].gt_masks
    assert torch.equal(got[:2], masks[[1, 0]].crop_and_resize(boxes[:2], 8)) and not got[2].any()
    assert batch.take(torch.zeros(3, 1).long(), batch.valid[:, :1]).loose("gt_masks").table(boxes.device) is table


def test_masks_stay_as_they_were_on_the_way_to_a_device():
    masks = BitMasks(torch.rand(2, 40, 50) > 0.5)
    own = Instances(SIZES[0], gt_masks=masks, names=["a", "b"])
    moved = as_batch([own]).to(torch.device("cpu"))
    assert_same(moved[0], own)
    assert moved.take(torch.tensor([[1]]), torch.tensor([[True]]))[0].names == ["b"]


class Portable(Tags):
    """A field that can be moved."""

    moves = 0

    def to(self, device):
        Portable.moves += 1
        moved = copy.copy(self)
        moved.device = device
        return moved

    def __getitem__(self, item):
        chosen = Portable(super().__getitem__(item).tags)
        chosen.device = self.device
        return chosen


def test_fields_of_the_users_own_are_moved_once_when_somebody_asks():
    Portable.moves = 0
    own = Instances(SIZES[0], tags=Portable(["a", "b"]))
    moved = as_batch([own]).to(torch.device("meta"))
    moved.valid, moved.counts = torch.ones(1, 2, dtype=torch.bool), [2]
    assert Portable.moves == 0
    assert moved[0].tags.device == torch.device("meta")
    assert moved.where(moved.valid)[0].tags.device == torch.device("meta") and Portable.moves == 1


@pytest.mark.parametrize("counts", [(), (0,), (0, 0, 0)])
def test_batches_without_objects_have_a_place_each_that_is_not_valid(counts):
    batch = as_batch(make_list(counts))
    assert batch.valid.shape == (len(counts), 1) and not batch.valid.any()
    assert [len(x) for x in batch] == list(counts)


def test_instances_without_fields_make_a_batch():
    batch = as_batch([Instances((4, 5)), Instances((6, 7))])
    assert [x.image_size for x in batch] == [(4, 5), (6, 7)] and batch.names == []


def test_a_field_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(KeyError, match=r"no tensor field 'pred_boxes'.*proposal_boxes, objectness_logits"):
        as_batch(make_list()).tensor("pred_boxes")


def test_fields_of_unlike_shapes_stay_with_their_images():
    instances = [Instances((1, 1), maps=torch.rand(2, 3, 4)), Instances((1, 1), maps=torch.rand(1, 5, 6))]
    batch = as_batch(instances)
    assert batch.names != [] and batch.loose("maps") is not None
    assert [x.maps.shape for x in batch] == [(2, 3, 4), (1, 5, 6)]
    assert batch.where(torch.tensor([[False, True], [True, False]]))[0].maps.shape == (1, 3, 4)


def test_a_field_that_is_set_replaces_one_of_another_kind():
    batch = as_batch(make_truth())
    batch.set("gt_masks", torch.zeros(3, 2, 7))
    batch.set("gt_boxes", torch.zeros(3, 2, 4))
    assert isinstance(batch[0].gt_boxes, torch.Tensor) and batch[2].gt_masks.shape == (1, 7)


def test_values_are_given_to_objects_wherever_they_lie():
    instances = make_list()
    batch = as_batch(instances)
    values = torch.arange(9.0).view(3, 3, 1).expand(3, 3, 4)
    assign(instances, batch, "score", values[..., 0])
    assign(instances, batch, "pred_boxes", values, Boxes)
    assign(batch, batch, "pred_boxes", values, Boxes)
    assert instances[2].score.tolist() == [6, 7]
    assert batch[2].pred_boxes.tensor[:, 0].tolist() == instances[2].pred_boxes.tensor[:, 0].tolist() == [6, 7]


def test_parts_on_demand_are_those_of_the_valid_places():
    batch = as_batch(make_list()).where(torch.tensor([[False, True, True], [True] * 3, [True, False, True]]))
    values = torch.arange(9).view(3, 3)
    parts = PartsOnDemand(values, batch)
    assert len(parts) == 3 and batch._positions is None
    assert [x.tolist() for x in parts] == [x.tolist() for x in valid_parts(values, batch)] == [[1, 2], [], [6]]
    assert parts[-1].tolist() == [6] and [x.tolist() for x in parts[1:]] == [[], [6]]


def test_places_are_gathered_for_any_number_of_trailing_sizes():
    values, places = torch.rand(2, 5, 3, 4), torch.tensor([[4, 0], [1, 1]])
    expected = torch.stack([own[rows] for own, rows in zip(values, places)])
    assert torch.equal(gather_places(values, places), expected)
    assert torch.equal(gather_places(values[..., 0, 0], places), expected[..., 0, 0])


def test_what_a_step_says_travels_with_everything_made_of_a_batch():
    batch = as_batch(make_list())
    notes = StepNotes()
    assert with_notes(batch, notes) is batch
    batch.where(batch.valid).first(1).notes.measured["a"] = 1
    assert notes.measured == {"a": 1}
    batch[0].proposal_boxes = Boxes(torch.zeros(3, 4))
    assert as_batch(batch) is not batch and as_batch(batch).notes is notes


def test_a_list_takes_notes_along_and_remains_a_list():
    noted = with_notes(make_list(), notes := StepNotes())
    assert isinstance(noted, list) and notes_of(noted) is notes and notes_of(make_list()) is not notes
    assert as_batch(noted).notes is notes
    assert with_notes(noted, other := StepNotes()) is noted and notes_of(noted) is other
    assert isinstance(NotedList(noted, notes)[0], Instances)


def test_only_marked_methods_take_padded_batches():
    class Head(torch.nn.Module):
        @padded
        def forward(self, x, instances):
            """In the padded form."""

    class Derived(Head):
        def forward(self, x, instances):
            """As users write it."""

    class Inherits(Head):
        pass

    assert takes_padded(Head()) and takes_padded(Inherits()) and takes_padded(Head().forward)
    assert not takes_padded(Derived()) and not takes_padded(Derived().forward) and not takes_padded(torch.nn.ReLU())


@pytest.mark.parametrize("sizes", [[(4, 5)], torch.tensor([[4.0, 5.0]])])
def test_image_sizes_are_tuples_wherever_they_come_from(sizes):
    batch = ObjectBatch(sizes, torch.ones(1, 2, dtype=torch.bool), {"x": torch.arange(2)[None]})
    assert batch[0].image_size == (4, 5) and batch[0].x.tolist() == [0, 1]


def test_a_loaders_objects_come_to_the_device_as_they_are():
    truth = make_truth()
    batch = batch_on_device(truth, torch.device("cpu"))
    for element, expected in zip(batch, truth):
        assert {*element.get_fields()} == {*expected.get_fields()}
        assert torch.equal(element.gt_boxes.tensor, expected.gt_boxes.tensor)
    assert batch.counts == [2, 0, 1]


def test_fields_of_every_dtype_share_one_buffer_on_the_way_to_a_device():
    fields = {
        "flags": torch.tensor([[True, False, True]]),
        "classes": torch.tensor([[3, 4, 5]]),
        "scores": torch.tensor([[0.5, 0.25, 1]], dtype=torch.float16),
        "boxes": torch.rand(1, 3, 4, dtype=torch.float64),
        "empty": torch.zeros(1, 3, 0),
    }
    batch = ObjectBatch([(1, 1)], torch.tensor([[True, True, False]]), fields)
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.valid, batch.valid)
    for name, value in fields.items():
        assert torch.equal(moved.tensor(name), value) and moved.tensor(name).dtype == value.dtype
