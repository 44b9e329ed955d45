import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from detlab.data import transfer
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks, PolygonMasks
from detlab.structures.rotated_boxes import RotatedBoxes


def make_instances(count=3):
    torch.manual_seed(count)
    return Instances(
        (40, 60),
        gt_boxes=Boxes(torch.rand(count, 4)),
        gt_classes=torch.arange(count),
        gt_masks=PolygonMasks([[np.array([0.0, 0, 5, 0, 5, 5])] for _ in range(count)]),
        gt_keypoints=Keypoints(torch.rand(count, 2, 3)),
        turned=RotatedBoxes(torch.rand(count, 5)),
        small_masks=BitMasks(torch.rand(count, 8, 8) > 0.5),
        flags=torch.rand(count) > 0.5,
        doubles=torch.rand(count, 2, dtype=torch.float64)[:, :1],
        halves=torch.rand(count).to(torch.bfloat16),
        names=[f"object {i}" for i in range(count)],
    )


def sent(value):
    """What another process would get, and the tensors that went through shared memory."""
    return pickle.loads(ForkingPickler.dumps(value))


def assert_equal(got, expected):
    assert got.image_size == expected.image_size and {*got.get_fields()} == {*expected.get_fields()}
    for name, value in expected.get_fields().items():
        other = got.get(name)
        assert type(other) is type(value)
        if isinstance(value, PolygonMasks | list):
            assert len(other) == len(value)
            continue
        a, b = (x if isinstance(x, torch.Tensor) else x.tensor for x in (other, value))
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("count", [3, 0])
def test_fields_arrive_as_they_were(count):
    instances = make_instances(count)
    assert_equal(sent(instances), instances)


def count_shared(monkeypatch, value):
    """How many tensors go through shared memory."""
    reduce, shared = ForkingPickler._extra_reducers[torch.Tensor], []
    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.Tensor, lambda x: shared.append(x.shape) or reduce(x))
    ForkingPickler.dumps(value)
    return shared


def test_only_what_is_large_goes_through_shared_memory(monkeypatch):
    instances = make_instances()
    instances.remove("halves")  # numpy does not know the type
    instances.large = BitMasks(torch.ones(3, 400, 600, dtype=torch.bool))
    image = torch.zeros(3, 400, 600, dtype=torch.uint8)
    assert count_shared(monkeypatch, {"image": image, "instances": instances}) == [(3, 400, 600), (3, 400, 600)]


def test_what_arrives_can_be_written_to_and_takes_no_more_than_it_is():
    instances = Instances((4, 4), part=torch.zeros(1 << 20)[:2])
    got = sent(instances).part
    got += 1
    assert got.tolist() == [1, 1] and got.untyped_storage().nbytes() == 8


def test_tensors_with_a_gradient_are_left_to_torch():
    weight = torch.ones(2, requires_grad=True)
    assert transfer._pack(weight) is weight


def test_files_and_copies_are_as_ever():
    instances = make_instances()
    assert b"_Packed" not in pickle.dumps(instances)
    assert_equal(pickle.loads(pickle.dumps(instances)), instances)


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"image": torch.full((3, 8, 8), index, dtype=torch.uint8), "instances": make_instances(index)}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_hand_over_what_one_process_makes(method):
    loader = DataLoader(Samples(), batch_size=2, num_workers=1, collate_fn=list, multiprocessing_context=method)
    items = [item for batch in loader for item in batch]
    assert [int(item["image"][0, 0, 0]) for item in items] == [0, 1, 2, 3]
    for i, item in enumerate(items):
        assert_equal(item["instances"], make_instances(i))
