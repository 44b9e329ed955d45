"""How often the plain operators make the host wait for a device, found on tensors of a GPU that is not there.

What they compute is compared with the others in the tests of each operator.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from detlab.layers import _ops_plain
from tests.layers.backends import plain_backend

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this torch knows of no GPU, not even of one that is not there"
)


@pytest.fixture(autouse=True)
def needs_torchvision():
    plain_backend()


# On a GPU the sizes or values of their results are not known before it has come so far.
VALUES = ["_local_scalar_dense", "equal", "is_nonzero"]
SIZES = ["nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim", "bincount"]
WAITING = {f"aten::{name}" for name in [*VALUES, *SIZES, "repeat_interleave.Tensor"]}


class CountedWaits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in args) and name in WAITING:
            self.waits.append(name)
        if name.startswith("aten::index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] or ()
        ):
            self.waits.append(name)
        if name == "aten::_to_copy" and result.device != args[0].device and not (kwargs or {}).get("non_blocking"):
            self.waits.append(f"{name} {args[0].device} to {result.device}")
        return result


def waits_of(call, *shapes_and_types):
    with FakeTensorMode(shape_env=ShapeEnv()), CountedWaits() as counted:
        call(*[torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in shapes_and_types])
    return counted.waits


def candidates(images, count):
    shape = (images, count) if images else (count,)
    return ((*shape, 4), torch.float32), (shape, torch.float32), (shape, torch.int64)


def test_waits_are_noticed():
    assert len(waits_of(lambda x: x.nonzero(), ((3,), torch.int64))) == 1
    assert len(waits_of(lambda x: x[x > 0], ((3,), torch.int64))) > 0
    assert len(waits_of(lambda x: x.cpu(), ((3,), torch.int64))) == 1
    assert len(waits_of(lambda x: torch.ones(3).to(x.device), ((3,), torch.int64))) == 1
    assert waits_of(lambda x: x + 1, ((3,), torch.int64)) == []


@pytest.mark.parametrize(("images", "count"), [(1, 80), (2, 1000), (1, 80000)])
def test_suppression_waits_once_for_a_batch(images, count):
    waits = waits_of(lambda *x: _ops_plain.nms_fixed(*x, 0.5, 100), *candidates(images, count))
    assert waits == ["aten::_to_copy cuda:0 to cpu"]


def test_suppression_by_class_waits_once():
    assert len(waits_of(lambda *x: _ops_plain.nms(*x, 0.5), *candidates(0, 1000))) == 1
    boxes, scores, classes = ((1000, 5), torch.float32), ((1000,), torch.float32), ((1000,), torch.int64)
    assert len(waits_of(lambda *x: _ops_plain.nms_rotated(*x, 0.5), boxes, scores, classes)) == 1
    assert len(waits_of(lambda b, s: _ops_plain.nms_rotated(b, s, None, 0.5), boxes, scores)) == 1


MAPS = [((2, 8, 32, 40), torch.float32), ((2, 8, 16, 20), torch.float32)]
REGIONS = [((50, 5), torch.float32), ((50,), torch.int64)]


def test_pooling_never_waits():
    settings = (7, 7), [0.25, 0.125], 0, True
    assert waits_of(lambda a, b, *x: _ops_plain.roi_align_levels([a, b], *x, *settings), *MAPS, *REGIONS) == []
    backward = waits_of(
        lambda grad, a, b, *x: _ops_plain.roi_align_levels_backward(grad, [a, b], *x, *settings, False),
        ((50, 8, 7, 7), torch.float32),
        *MAPS,
        *REGIONS,
    )
    assert backward == []


def test_pasting_never_waits():
    masks, boxes = ((20, 28, 28), torch.float32), ((20, 4), torch.float32)
    assert waits_of(lambda *x: _ops_plain.paste_masks(*x, 100, 90, 0.5), masks, boxes) == []


def test_tensors_of_any_type_are_fetched_together():
    tensors = [torch.tensor([[1.5, 2.5]]), torch.tensor([2**62 + 1]), torch.zeros(0), torch.tensor([True, False, True])]
    tensors.append(torch.tensor([0.1], dtype=torch.float64))
    for fetched, tensor in zip(_ops_plain._fetched(*tensors), tensors):
        assert fetched.dtype == tensor.dtype
        assert torch.equal(fetched, tensor)
