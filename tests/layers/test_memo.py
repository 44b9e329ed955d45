"""Values kept until their sources change."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from detlab.layers.memo import Memo


class Doubled(nn.Module):
    """Counts how often it computes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.ones(3))
        self.memo = Memo()
        self.computed = 0

    def forward(self, factor=2.0):
        def make():
            self.computed += 1
            return (self.value * factor,)

        (doubled,) = self.memo.get((self.value,), make, factor)
        return doubled


def test_a_value_is_computed_once():
    module = Doubled()
    assert module() is module()
    assert module.computed == 1


CHANGES = {
    "written in place": lambda m: m.value.fill_(5.0),
    "loaded": lambda m: m.load_state_dict({"value": torch.full((3,), 5.0)}),
    "loaded by assignment": lambda m: m.load_state_dict({"value": torch.full((3,), 5.0)}, assign=True),
    "another tensor": lambda m: setattr(m, "value", torch.full((3,), 5.0)),
    "another storage": lambda m: setattr(m.value, "data", torch.full((3,), 5.0)),
    "written in inference mode": lambda m: torch.inference_mode()(lambda: m.value.fill_(5.0))(),
    "written by numpy, and forgotten": lambda m: (m.value.numpy().fill(5.0), m.memo.forget()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_is_noticed(change):
    module = Doubled()
    module()
    CHANGES[change](module)
    assert module().tolist() == [10.0] * 3


def test_another_dtype_is_noticed():
    module = Doubled()
    module()
    assert module.double()().dtype == torch.float64


def test_the_context_counts():
    module = Doubled()
    assert module(2.0).tolist() != module(3.0).tolist()


def test_a_tensor_in_the_place_of_one_that_is_gone_is_another():
    memo = Memo()
    for number in range(20):
        # Freed at each turn, so that the next one is likely to get its memory, its id and its version.
        source = torch.full((3,), float(number))
        (value,) = memo.get((source,), lambda source=source: (source * 1,))
        assert value.tolist() == [number] * 3
        del source


def test_sources_are_not_kept_alive():
    memo, source = Memo(), torch.ones(3)
    memo.get((source,), lambda: (torch.zeros(1),))
    assert all(watched.source() is source for watched in memo._kept.sources)
    del source
    assert all(watched.source() is None for watched in memo._kept.sources)


def test_a_source_with_a_gradient_has_its_value_computed_in_the_graph():
    memo, source = Memo(), torch.ones(3, requires_grad=True)
    with torch.no_grad():
        memo.get((source,), lambda: (source * 2,))
    (value,) = memo.get((source,), lambda: (source * 2,))
    assert torch.autograd.grad(value.sum(), source)[0].tolist() == [2.0] * 3
    assert memo._kept is None


def test_a_value_from_inference_mode_serves_a_training_step():
    module, weight = Doubled(), torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        module()
    (module() * weight).sum().backward()
    assert weight.grad.tolist() == [2.0] * 3


def test_sources_that_count_no_versions_are_read_each_time():
    with torch.inference_mode():
        module = Doubled()
        module()
        module.value.fill_(5.0)
        assert module().tolist() == [10.0] * 3


def test_nothing_fake_is_kept():
    module = Doubled()
    with FakeTensorMode(allow_non_fake_inputs=True):
        module()
    assert type(module()) is torch.Tensor
    assert module().tolist() == [2.0] * 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_values_of_their_own(copied):
    module = Doubled()
    module()
    other = copied(module)
    assert other.memo._kept is None
    other.value.fill_(7.0)
    assert other().tolist() == [14.0] * 3
    assert module().tolist() == [2.0] * 3


def test_a_compiled_graph_reads_the_sources():
    module = Doubled()
    module()
    compiled = torch.compile(lambda: module(), backend="eager", fullgraph=True)
    assert compiled().tolist() == [2.0] * 3
    module.value.fill_(5.0)
    assert compiled().tolist() == [10.0] * 3


@pytest.mark.parametrize("shape", [(8,), (64, 32, 3, 3)])
@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.data.mul_(0.9),
        lambda x: x.data[3].zero_(),
        lambda x: np.multiply(x.detach().numpy(), 1.5, out=x.detach().numpy()),
    ],
)
def test_writes_that_autograd_does_not_count_are_seen_on_a_cpu(shape, write):
    source, memo = torch.nn.Parameter(torch.rand(shape) + 0.5), Memo()
    with torch.no_grad():
        first = memo.get((source,), lambda: (source * 2,))[0]
        assert memo.get((source,), lambda: (source * 2,))[0] is first
        write(source)
        assert torch.equal(memo.get((source,), lambda: (source * 2,))[0], source * 2)


def test_a_write_to_one_input_channel_is_seen():
    source, memo = torch.rand(64, 32, 3, 3) + 0.5, Memo()
    memo.get((source,), lambda: (source * 2,))
    source.data[:, 5] = 0
    assert torch.equal(memo.get((source,), lambda: (source * 2,))[0], source * 2)
