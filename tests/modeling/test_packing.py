import pytest
import torch
from torch import nn

from detlab.modeling import packing
from detlab.modeling.packing import Rows, by_group, lay_out, lengths_are_free, pack, rows_of, unpad_for
from detlab.structures.instances import Instances
from detlab.structures.object_batch import ObjectBatch, as_batch

VALID = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])


@pytest.fixture(params=["packed", "padded"])
def layout(request, monkeypatch):
    monkeypatch.setattr(packing, "lengths_are_free", lambda tensor: request.param == "packed")
    return request.param


def make_batch(valid=VALID):
    return ObjectBatch([(9, 9)] * len(valid), valid, {"x": torch.arange(valid.numel()).view(valid.shape)})


def test_rows_are_the_valid_places_where_lengths_are_free_and_all_places_elsewhere(layout):
    rows = lay_out(make_batch(), None)
    taken = rows.take(make_batch().tensor("x"))
    assert taken.tolist() == ([0, 2, 6, 7] if layout == "packed" else list(range(9)))
    assert taken[rows.counts].tolist() == [0, 2, 6, 7]
    back = rows.put(taken)
    assert torch.equal(back[VALID], make_batch().tensor("x")[VALID]) and back.shape == VALID.shape


def test_rows_put_back_have_a_gradient_where_there_is_a_place(layout):
    rows = lay_out(make_batch(), None)
    values = torch.randn(len(rows.counts), 2, requires_grad=True)
    rows.put(values)[VALID].sum().backward()
    assert torch.equal(values.grad, rows.counts[:, None].expand(-1, 2).float())


def test_regions_have_the_index_of_their_image_in_front(layout):
    boxes = torch.rand(3, 3, 4)
    rows = lay_out(make_batch(), None)
    rois = rows.rois(boxes)[rows.counts]
    assert rois[:, 0].tolist() == [0, 0, 2, 2] and torch.equal(rois[:, 1:], boxes[VALID])


def test_a_list_has_a_row_for_each_object(layout):
    instances = [Instances((1, 1), x=torch.arange(count)) for count in (2, 0, 1)]
    rows = rows_of(instances)
    assert rows.counts.tolist() == [True] * 3
    assert rows.take(as_batch(instances).tensor("x")).tolist() == [0, 1, 0]


def test_full_lists_need_no_index():
    assert rows_of([Instances((1, 1), x=torch.arange(2))] * 2).index is None


def test_a_batch_has_the_rows_that_were_chosen_for_the_last_head(layout):
    batch = make_batch()
    first = lay_out(batch, None)
    assert rows_of(batch) is first
    exact = lay_out(batch, None, must_be_exact=True)
    assert rows_of(batch) is exact and exact.index.tolist() == [0, 2, 6, 7]
    assert rows_of(make_batch()).index.tolist() == [0, 2, 6, 7], "rows that nobody laid out are a user's"


def test_batch_statistics_see_no_padding(layout):
    head = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    assert lay_out(make_batch(), head).counts.all()
    head.eval()
    assert lay_out(make_batch(), head).counts.all() == (layout == "packed")


@pytest.mark.parametrize("valid", [torch.zeros(0, 1, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)])
def test_no_objects_make_no_rows_that_count(valid, layout):
    rows = lay_out(make_batch(valid), None)
    assert not rows.counts.any() and rows.rois(torch.rand(*valid.shape, 4)).shape[1] == 5
    assert rows.put(torch.ones(len(rows.counts), 7)).shape == (*valid.shape, 7)


def test_what_a_loss_has_to_see_is_the_same_either_way(layout):
    a, b = torch.rand(3, 3), torch.rand(3, 3, 4)
    counts, rows_a, rows_b = pack(VALID, a, b)
    assert torch.equal(rows_a[counts], a[VALID]) and torch.equal(rows_b[counts], b[VALID])


def test_every_row_goes_through_the_function_of_its_group(layout):
    groups, rows = torch.tensor([2, 0, 1, 0, 2]), torch.rand(5, 3)
    functions = [lambda x: x, lambda x: 10 * x, lambda x: -x]
    expected = torch.stack([functions[g](row) for g, row in zip(groups.tolist(), rows)])
    assert torch.equal(by_group(groups, functions, rows), expected)
    assert by_group(groups[:0], functions, rows[:0]).shape == (0, 3)


def test_parts_that_know_nothing_of_padding_get_a_list_with_the_notes_of_the_batch():
    batch = make_batch()
    assert unpad_for(True, batch) is batch
    given = unpad_for(False, batch)
    assert isinstance(given, list) and [len(x) for x in given] == [2, 0, 2] and given.notes is batch.notes
    assert given[0] is batch[0], "what the part changes is seen by the next stage"


def test_lengths_are_free_on_a_cpu_and_not_in_a_compiled_model():
    assert lengths_are_free(torch.zeros(1)) and not lengths_are_free(torch.zeros(1, device="meta"))
    compiled = torch.compile(lambda x: x + int(lengths_are_free(x)), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == 0


def test_rows_of_every_place_are_views():
    values = torch.rand(3, 3, 2)
    assert Rows(VALID, None).take(values).data_ptr() == values.data_ptr()
