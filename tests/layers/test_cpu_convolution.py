"""Convolution with a backward of its own: when, and with the results of torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from detlab.layers import cpu_convolution
from detlab.layers.cpu_convolution import conv2d
from detlab.layers.wrappers import Conv2d

SAME = ((1, 1), (1, 1), (1, 1))
GEOMETRIES = [SAME, ((2, 2), (1, 1), (1, 1)), ((1, 2), (2, 0), (2, 1)), ((2, 1), (3, 3), (1, 2))]
KINDS_OF_CPU = {"AVX2": True, "AVX512": False}


@pytest.fixture(params=KINDS_OF_CPU)
def kind_of_cpu(request, monkeypatch):
    """With weight gradients that are slow in channels-last, or not."""
    monkeypatch.setattr(cpu_convolution, "_is_slow_in_channels_last", lambda: KINDS_OF_CPU[request.param])


@pytest.fixture
def compared_cells(monkeypatch):
    """How many cells each backward went through one by one, None for those that took the whole map."""
    counts = []
    find = cpu_convolution._cells_with_gradient

    def found(grad):
        cells = find(grad)
        counts.append(None if cells is None else len(cells))
        return cells

    monkeypatch.setattr(cpu_convolution, "_cells_with_gradient", found)
    return counts


def inputs(kernel=(3, 3), channels=16, dtype=torch.float32, layout=torch.channels_last, groups=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 19, 18, generator=generator, dtype=dtype).to(memory_format=layout)
    shape = (8, channels // groups, *kernel)
    weight = torch.randn(shape, generator=generator, dtype=dtype).to(memory_format=layout)
    bias = torch.randn(8, generator=generator, dtype=dtype)
    return [value.requires_grad_() for value in (x, weight, bias)]


def few_cells(like, cells=(0, 1, 17, -1)):
    """A gradient of some cells, those at the edges among them."""
    grad = torch.zeros_like(like)
    rows = grad.permute(0, 2, 3, 1).view(-1, like.shape[1])
    for cell in cells:
        rows[cell] = torch.randn(like.shape[1])
    return grad


def has_own_backward(y):
    return type(y.grad_fn).__name__ == "_ConvolutionBackward"


def assert_gradients_are_torchs(arguments, geometry, grad_of):
    wanted = [value for value in arguments if value is not None and value.requires_grad]
    ours, torchs = conv2d(*arguments, *geometry, 1), F.conv2d(*arguments, *geometry)
    assert has_own_backward(ours)
    assert torch.equal(ours, torchs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    grad = grad_of(ours)
    for got, expected in zip(torch.autograd.grad(ours, wanted, grad), torch.autograd.grad(torchs, wanted, grad)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_gradients_are_torchs(kind_of_cpu, compared_cells, geometry):
    assert_gradients_are_torchs(inputs(), geometry, torch.randn_like)
    assert compared_cells == [None]


@pytest.mark.parametrize("kernel", [(3, 3), (2, 5)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_of_a_few_cells_are_torchs(compared_cells, geometry, kernel):
    assert_gradients_are_torchs(inputs(kernel), geometry, few_cells)
    assert compared_cells == [4]


@pytest.mark.parametrize("grad_of", [torch.randn_like, few_cells])
def test_gradients_come_for_what_asks_for_them(kind_of_cpu, grad_of):
    x, weight, bias = inputs()
    assert_gradients_are_torchs([x.detach(), weight, None], SAME, grad_of)
    assert_gradients_are_torchs([x, weight, bias.detach()], SAME, grad_of)
    assert not has_own_backward(conv2d(x, weight.detach(), bias, *SAME, 1)), "the weight is not trained"


def test_no_gradient_at_all_gives_zeros(compared_cells):
    arguments = inputs()
    y = conv2d(*arguments, *SAME, 1)
    for grad, argument in zip(torch.autograd.grad(y, arguments, torch.zeros_like(y)), arguments):
        assert grad.shape == argument.shape
        assert not grad.any()
    assert compared_cells == [0]


def test_a_nan_of_a_single_cell_reaches_the_gradients(compared_cells):
    arguments = inputs()
    y = conv2d(*arguments, *SAME, 1)
    grad = torch.zeros_like(y)
    grad[0, 3, 4, 5] = float("nan")
    for got in torch.autograd.grad(y, arguments, grad):
        assert got.isnan().any()
    assert compared_cells == [1]


def test_infinite_pixels_that_no_cell_touches_do_no_harm():
    x, weight, bias = inputs()
    with torch.no_grad():
        x[0, :, 0, 0] = float("inf")
    y = conv2d(x, weight, bias, *SAME, 1)
    grad_weight = torch.autograd.grad(y, weight, few_cells(y, cells=[17]))[0]
    assert grad_weight.isfinite().all()


def test_the_same_gradient_comes_to_the_same_bits():
    arguments = inputs()
    y = conv2d(*arguments, *SAME, 1)
    grad = few_cells(y, cells=range(40))
    first, second = (torch.autograd.grad(y, arguments, grad, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("grad_of", [torch.ones_like, few_cells])
def test_a_gradient_has_a_gradient(kind_of_cpu, grad_of):
    x, weight, bias = inputs()
    grad = grad_of(conv2d(x, weight, bias, *SAME, 1))

    def second(y):
        (first,) = torch.autograd.grad(y, weight, grad.requires_grad_(), create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, grad))

    for got, expected in zip(second(conv2d(x, weight, bias, *SAME, 1)), second(F.conv2d(x, weight, bias, *SAME))):
        scale = expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=1e-4, atol=1e-4)


def test_gradients_of_torch_func_and_of_a_batch_of_gradients_are_torchs(kind_of_cpu):
    x, weight, bias = inputs()
    values = [value.detach() for value in (x, weight, bias)]
    ours = torch.func.grad(lambda w: conv2d(values[0], w, values[2], *SAME, 1).square().sum())(values[1])
    torchs = torch.func.grad(lambda w: F.conv2d(values[0], w, values[2], *SAME).square().sum())(values[1])
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-1)

    y, expected = conv2d(x, weight, bias, *SAME, 1), F.conv2d(x, weight, bias, *SAME)
    grads = torch.stack([few_cells(y), few_cells(y)])
    for got, torchs in zip(
        torch.autograd.grad(y, (x, weight), grads, is_grads_batched=True),
        torch.autograd.grad(expected, (x, weight), grads, is_grads_batched=True),
    ):
        torch.testing.assert_close(got, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [{"kernel": (1, 1)}, {"channels": 3}, {"dtype": torch.float64}, {"layout": torch.contiguous_format}, {"groups": 4}],
    ids=lambda kind: next(iter(kind)),
)
def test_where_nothing_is_gained_torchs_convolution_runs(kind_of_cpu, kind):
    arguments = inputs(**kind)
    y = conv2d(*arguments, *SAME, kind.get("groups", 1))
    assert not has_own_backward(y)
    assert torch.equal(y, F.conv2d(*arguments, *SAME, kind.get("groups", 1)))


def test_nothing_changes_without_a_gradient_under_autocast_and_without_images(kind_of_cpu):
    x, weight, bias = inputs()
    with torch.no_grad():
        assert conv2d(x, weight, bias, *SAME, 1).grad_fn is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv2d(x, weight, bias, *SAME, 1)
        assert y.dtype == torch.bfloat16
        assert not has_own_backward(y)
    assert not has_own_backward(conv2d(x[:0], weight, bias, *SAME, 1))


def test_fake_tensors_pass():
    with FakeTensorMode():
        arguments = inputs()
        y = conv2d(*arguments, *SAME, 1)
        assert torch.autograd.grad(y.sum(), arguments)[0].shape == arguments[0].shape


@pytest.mark.parametrize(("capability", "is_slow"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_the_kind_of_cpu_decides(monkeypatch, capability, is_slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert cpu_convolution._is_slow_in_channels_last.__wrapped__() is is_slow


def test_the_layer_takes_it_except_with_another_padding():
    x = inputs()[0]
    assert has_own_backward(Conv2d(16, 8, 3, padding=1).to(memory_format=torch.channels_last)(x))
    assert not has_own_backward(Conv2d(16, 8, 3, padding=1, padding_mode="reflect")(x))
    assert not has_own_backward(Conv2d(16, 8, 3, padding="same")(x))


def test_the_compiler_follows_without_a_break():
    layer = Conv2d(16, 8, 3, padding=1).to(memory_format=torch.channels_last)
    x = inputs()[0].detach()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_forward_mode_derivatives_are_those_of_torch():
    x = torch.randn(1, 16, 9, 9).to(memory_format=torch.channels_last)
    weight, tangent = torch.randn(4, 16, 3, 3, requires_grad=True), torch.randn_like(x)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    own = torch.func.jvp(lambda z: conv2d(z, weight, None, *geometry), (x,), (tangent,))
    torchs = torch.func.jvp(lambda z: F.conv2d(z, weight, None, *geometry), (x,), (tangent,))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, torchs))
