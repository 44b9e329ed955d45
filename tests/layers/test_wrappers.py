"""Convolution with norm and activation, and the small functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detlab.layers.batch_norm import FrozenBatchNorm2d, get_norm
from detlab.layers.wrappers import (
    Conv2d,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)


def frozen_conv(bias, activation=None):
    conv = Conv2d(3, 4, kernel_size=3, padding=1, bias=bias, norm=FrozenBatchNorm2d(4), activation=activation)
    for buffer in conv.norm.buffers():
        buffer.copy_(torch.rand(4) + 0.5)
    return conv.double()


def unfused(conv, x):
    """The formula, one step after the other."""
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    norm = conv.norm
    column = (slice(None), None, None)
    y = (y - norm.running_mean[column]) / (norm.running_var[column] + norm.eps).sqrt()
    y = y * norm.weight[column] + norm.bias[column]
    return F.relu(y) if conv.activation is not None else y


def unfused_with(conv, given, x):
    other = copy.deepcopy(conv)
    other.load_state_dict({**conv.state_dict(), **given})
    return unfused(other, x)


def operators_of(call):
    """Names of the operators that a call runs, in order."""

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    names = []
    with Record():
        call()
    return names


class TestConv2d:
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("activation", [None, F.relu_])
    def test_folding_a_frozen_norm_changes_neither_values_nor_gradients(self, bias, activation):
        conv = frozen_conv(bias, activation)
        x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
        inputs = [x, *conv.parameters()]
        weights = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        folded, plain = conv(x), unfused(conv, x)
        torch.testing.assert_close(folded, plain)
        for got, expected in zip(
            torch.autograd.grad((folded * weights).sum(), inputs), torch.autograd.grad((plain * weights).sum(), inputs)
        ):
            torch.testing.assert_close(got, expected)

    def test_folding_works_with_groups_stride_and_dilation(self):
        conv = Conv2d(4, 4, 3, stride=2, padding=2, dilation=2, groups=2, norm=FrozenBatchNorm2d(4)).double()
        conv.norm.running_mean.fill_(0.3)
        x = torch.randn(1, 4, 9, 9).double()
        torch.testing.assert_close(conv(x), unfused(conv, x))

    def test_norm_buffers_that_are_loaded_later_count(self):
        conv = frozen_conv(bias=False)
        x = torch.randn(1, 3, 4, 4).double()
        before = conv(x)
        conv.norm.weight.mul_(2)
        assert not torch.allclose(conv(x), before)
        torch.testing.assert_close(conv(x), unfused(conv, x))

    def test_the_folded_weight_is_computed_once_in_inference(self):
        conv = frozen_conv(bias=True)
        x = torch.randn(1, 3, 4, 4).double()
        with torch.no_grad():
            expected = conv(x)
            assert operators_of(lambda: conv(x)) == ["aten::convolution"]
            assert torch.equal(conv(x), expected)

    def test_in_training_only_the_product_with_the_scale_is_left(self):
        conv = frozen_conv(bias=False)
        x = torch.randn(1, 3, 4, 4).double()
        conv(x)
        assert operators_of(lambda: conv(x)) == ["aten::view", "aten::mul", "aten::convolution"]

    def test_weights_that_an_optimizer_has_changed_count_in_the_next_inference(self):
        conv = frozen_conv(bias=True)
        x = torch.randn(1, 3, 4, 4).double()
        optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
        for _ in range(2):
            with torch.no_grad():
                torch.testing.assert_close(conv(x), unfused(conv, x))
            optimizer.zero_grad()
            conv(x).square().sum().backward()
            optimizer.step()

    def test_weights_loaded_moved_or_replaced_count(self):
        conv = frozen_conv(bias=True)
        x = torch.randn(1, 3, 4, 4).double()
        other = frozen_conv(bias=True)
        with torch.no_grad():
            conv(x)
            conv.load_state_dict(other.state_dict())
            torch.testing.assert_close(conv(x), other(x))
            conv.norm.running_mean = conv.norm.running_mean + 1
            torch.testing.assert_close(conv(x), unfused(conv, x))
            assert conv.float()(x.float()).dtype == torch.float32
            assert copy.deepcopy(conv)(x.float()).equal(conv(x.float()))

    def test_a_model_that_moves_leaves_no_folded_weights_behind(self):
        conv = frozen_conv(bias=False)
        with torch.no_grad():
            conv(torch.randn(1, 3, 4, 4).double())
        assert conv._folded._kept is not None
        conv.to("meta")
        assert conv._folded._kept is None

    def test_autocast_and_full_precision_take_turns(self):
        conv = frozen_conv(bias=True).float()
        x = torch.randn(1, 3, 6, 6)
        with torch.no_grad():
            exact = conv(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                half = conv(x)
                assert "aten::mul" not in operators_of(lambda: conv(x))
            assert half.dtype == torch.bfloat16
            assert torch.equal(conv(x), exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(conv(x), half), "kept weights are those that autocast makes"

    def test_a_training_step_after_inference_mode_works(self):
        conv = frozen_conv(bias=False)
        x = torch.randn(1, 3, 4, 4).double()
        with torch.inference_mode():
            conv(x)
        conv(x).sum().backward()
        assert conv.weight.grad is not None

    def test_functional_call_takes_the_tensors_that_it_is_given(self):
        conv = frozen_conv(bias=False)
        x = torch.randn(1, 3, 4, 4).double()
        with torch.no_grad():
            conv(x)
            for factor in (2.0, 3.0, 5.0):
                given = {"norm.weight": torch.full((4,), factor).double(), "norm.bias": torch.zeros(4).double()}
                scaled = torch.func.functional_call(conv, given, (x,))
                torch.testing.assert_close(scaled, unfused_with(conv, given, x))

    def test_state_names_are_those_of_conv_and_norm(self):
        assert list(frozen_conv(bias=True).state_dict()) == [
            "weight",
            "bias",
            "norm.weight",
            "norm.bias",
            "norm.running_mean",
            "norm.running_var",
        ]

    def test_a_subclass_of_the_frozen_norm_is_called(self):
        class Doubled(FrozenBatchNorm2d):
            def forward(self, x):
                return 2 * super().forward(x)

        conv = Conv2d(3, 4, 1, norm=Doubled(4))
        x = torch.randn(1, 3, 2, 2)
        torch.testing.assert_close(conv(x), 2 * F.conv2d(x, conv.weight, conv.bias))

    @pytest.mark.parametrize("name", ["BN", "GN", "LN"])
    def test_other_norms_come_between_convolution_and_activation(self, name):
        conv = Conv2d(3, 32, 1, norm=get_norm(name, 32), activation=F.relu)
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(conv(x), F.relu(conv.norm(F.conv2d(x, conv.weight, conv.bias))))

    def test_is_torch_convolution_without_norm_and_activation(self):
        conv = Conv2d(3, 4, 3)
        assert isinstance(conv, nn.Conv2d)
        x = torch.randn(1, 3, 5, 5)
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))

    def test_an_unknown_argument_is_refused(self):
        with pytest.raises(TypeError, match="activatoin"):
            Conv2d(3, 4, 3, activatoin=F.relu)

    @pytest.mark.parametrize("norm", ["", "FrozenBN"])
    def test_no_images_give_no_images_and_zero_gradients(self, norm):
        conv = Conv2d(3, 4, 3, stride=2, padding=1, norm=get_norm(norm, 4))
        out = conv(torch.zeros(0, 3, 8, 8))
        assert out.shape == (0, 4, 4, 4)
        out.sum().backward()
        assert conv.weight.grad.abs().sum() == 0

    def test_compiler_and_export_follow_without_a_break(self):
        conv = frozen_conv(bias=False, activation=F.relu_)
        x = torch.randn(1, 3, 4, 4).double()
        assert torch._dynamo.explain(conv)(x).graph_break_count == 0
        exported = torch.export.export(conv, (x,), strict=False)
        torch.testing.assert_close(exported.module()(x), conv(x))


class TestCrossEntropy:
    def test_no_targets_give_a_zero_that_has_a_gradient(self):
        logits = torch.zeros(0, 5, requires_grad=True)
        loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
        assert loss.item() == 0
        loss.backward()
        assert logits.grad.shape == (0, 5)

    def test_targets_give_torchs_loss(self):
        logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
        weight = torch.rand(5)
        torch.testing.assert_close(
            cross_entropy(logits, target, weight=weight), F.cross_entropy(logits, target, weight=weight)
        )
        assert cross_entropy(logits, target, reduction="none").shape == (4,)

    def test_any_loss_can_be_wrapped(self):
        loss = empty_input_loss_func_wrapper(F.binary_cross_entropy_with_logits)
        assert loss(torch.zeros(0), torch.zeros(0)).item() == 0
        assert loss(torch.zeros(0), torch.zeros(0), reduction="sum").item() == 0


def test_cat_of_one_tensor_does_not_copy():
    x = torch.zeros(2, 3)
    assert cat([x]) is x
    assert cat((x, x), dim=1).shape == (2, 6)


def test_shapes_become_int64():
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert shapes_to_tensor([3, 4]).dtype == torch.int64


def test_nonzero_tuple_has_one_vector_for_each_dimension():
    rows, columns = nonzero_tuple(torch.eye(3))
    assert rows.tolist() == columns.tolist() == [0, 1, 2]
    assert [i.tolist() for i in nonzero_tuple(torch.tensor(True))] == [[0]]


def test_moving_to_a_device_keeps_the_dtype():
    assert move_device_like(torch.ones(2, dtype=torch.int64), torch.zeros(1)).dtype == torch.int64
