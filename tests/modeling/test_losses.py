import math

import pytest
import torch
import torch.nn.functional as F

from detlab.modeling import packing
from detlab.modeling.losses import (
    class_cross_entropy,
    every_class_cross_entropy,
    heatmap_cross_entropy,
    mask_cross_entropy,
    masked_binary_cross_entropy,
)

SPOILT = [float("nan"), float("inf"), -float("inf"), 1e30]


@pytest.fixture(params=["packed", "padded"], autouse=True)
def layout(request, monkeypatch):
    monkeypatch.setattr(packing, "lengths_are_free", lambda tensor: request.param == "packed")


def binary(logit, target):
    """The cross entropy of one number."""
    return math.log1p(math.exp(-logit if target else logit))


def spoil(logits, counts, value):
    """The same logits with ``value`` where they do not count."""
    return torch.where(counts, logits, torch.full_like(logits, value)).requires_grad_()


def loss_and_gradient(function, logits):
    loss = function(logits)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def assert_padding_is_not_seen(function, logits, counts):
    """``function`` of logits that do not count but hold anything."""
    expected, gradient = loss_and_gradient(function, spoil(logits, counts, 0.0))
    assert expected > 0 and (gradient[~counts] == 0).all() and (gradient[counts] != 0).any()
    for value in SPOILT:
        loss, own = loss_and_gradient(function, spoil(logits, counts, value))
        assert loss == expected and torch.equal(own, gradient), value


def make_dense():
    torch.manual_seed(0)
    return torch.randn(3, 7), torch.rand(3, 7) > 0.5, torch.rand(3, 7) > 0.4


def test_the_masked_loss_equals_a_loop_over_what_counts():
    logits, targets, mask = make_dense()
    expected = sum(binary(logits[n, p].item(), targets[n, p].item()) for n in range(3) for p in range(7) if mask[n, p])
    assert masked_binary_cross_entropy(logits, targets, mask).item() == pytest.approx(expected, rel=1e-5)
    assert_padding_is_not_seen(lambda x: masked_binary_cross_entropy(x, targets, mask), logits, mask)


def test_targets_that_are_probabilities_are_weighed():
    loss = masked_binary_cross_entropy(torch.tensor([[1.0]]), torch.tensor([[0.25]]), torch.tensor([[True]]))
    assert loss.item() == pytest.approx(0.25 * binary(1.0, True) + 0.75 * binary(1.0, False), rel=1e-5)


def test_rows_of_class_minus_one_take_no_part_in_the_softmax_loss():
    torch.manual_seed(1)
    logits, classes = torch.randn(6, 4), torch.tensor([0, 3, -1, 2, -1, 1])
    rows = [(row.tolist(), k) for row, k in zip(logits, classes.tolist()) if k >= 0]
    expected = sum(math.log(sum(map(math.exp, row))) - row[k] for row, k in rows)
    assert class_cross_entropy(logits, classes).item() == pytest.approx(expected, rel=1e-5)
    counts = (classes >= 0)[:, None].expand_as(logits)
    assert_padding_is_not_seen(lambda x: class_cross_entropy(x, classes), logits, counts)


def test_independent_classes_are_scored_where_they_count():
    torch.manual_seed(2)
    logits, targets, counts = torch.randn(4, 3), torch.rand(4, 3) > 0.5, torch.rand(4, 3) > 0.4
    expected = sum(binary(logits[r, k].item(), targets[r, k].item()) for r, k in counts.nonzero().tolist())
    assert every_class_cross_entropy(logits, targets, counts).item() == pytest.approx(expected, rel=1e-5)
    assert_padding_is_not_seen(lambda x: every_class_cross_entropy(x, targets, counts), logits, counts)


def test_the_mask_loss_equals_a_loop_over_the_objects():
    torch.manual_seed(3)
    logits, targets, counts = torch.randn(4, 5, 5), torch.rand(4, 5, 5) > 0.5, torch.tensor([True, False, True, False])
    expected = sum(F.binary_cross_entropy(logits[r].sigmoid(), targets[r].float(), reduction="sum") for r in (0, 2))
    assert mask_cross_entropy(logits, targets, counts).item() == pytest.approx(expected.item(), rel=1e-5)
    every_pixel = counts[:, None, None].expand_as(logits)
    assert_padding_is_not_seen(lambda x: mask_cross_entropy(x, targets, counts), logits, every_pixel)


def test_the_heat_map_loss_equals_a_loop_over_the_keypoints():
    torch.manual_seed(4)
    logits, cells = torch.randn(2, 3, 4, 4), torch.randint(0, 16, (2, 3))
    counts = torch.tensor([[True, False, True], [False, True, False]])
    chosen = [(logits[r, j].flatten(), cells[r, j]) for r, j in counts.nonzero().tolist()]
    expected = sum(own.exp().sum().log() - own[cell] for own, cell in chosen)
    assert heatmap_cross_entropy(logits, cells, counts).item() == pytest.approx(expected.item(), rel=1e-5)
    every_cell = counts[:, :, None, None].expand_as(logits)
    assert_padding_is_not_seen(lambda x: heatmap_cross_entropy(x, cells, counts), logits, every_cell)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_logits_are_those_of_the_same_numbers_in_single(dtype):
    torch.manual_seed(5)
    counts, cells = torch.rand(40, 17) > 0.5, torch.randint(0, 56 * 56, (40, 17))
    calls = [
        (lambda x: heatmap_cross_entropy(x, cells, counts), (torch.randn(40, 17, 56, 56) * 8).to(dtype)),
        (lambda x: class_cross_entropy(x, cells[:, 0] % 9 - 1), (torch.randn(40, 81) * 50).to(dtype)),
        (lambda x: mask_cross_entropy(x, x > 0, counts[:, 0]), (torch.randn(40, 28, 28) * 50).to(dtype)),
        (lambda x: masked_binary_cross_entropy(x, counts, counts), (torch.randn(40, 17) * 9e3).to(dtype)),
    ]
    for function, logits in calls:
        loss, gradient = loss_and_gradient(function, logits.requires_grad_())
        expected, _ = loss_and_gradient(function, logits.detach().float().requires_grad_())
        assert loss.isfinite() and loss == expected and loss.dtype == torch.float32
        assert gradient.isfinite().all() and gradient.dtype == dtype


def test_nothing_that_counts_gives_a_loss_of_zero_with_a_gradient():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    calls = [
        (lambda x: masked_binary_cross_entropy(x, nothing, nothing), torch.randn(2, 3)),
        (lambda x: class_cross_entropy(x, torch.full((2,), -1)), torch.randn(2, 3)),
        (lambda x: class_cross_entropy(x, torch.empty(0, dtype=torch.int64)), torch.randn(0, 3)),
        (lambda x: mask_cross_entropy(x, x > 0, nothing[:, 0]), torch.randn(2, 5, 5)),
        (lambda x: mask_cross_entropy(x, x > 0, nothing[:0, 0]), torch.randn(0, 5, 5)),
        (lambda x: heatmap_cross_entropy(x, nothing.long(), nothing), torch.randn(2, 3, 4, 4)),
    ]
    for function, logits in calls:
        loss, gradient = loss_and_gradient(function, logits.requires_grad_())
        assert loss == 0 and (gradient == 0).all() and gradient.shape == logits.shape


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(6)
    counts = torch.tensor([[True, False], [True, True]])
    cells = torch.tensor([[0, 1], [3, 2]])
    # The losses compute in single precision, so steps and tolerances are coarse.
    settings = {"eps": 1e-2, "atol": 1e-2, "rtol": 1e-2, "nondet_tol": 0.0}
    for function, shape in (
        (lambda x: masked_binary_cross_entropy(x, counts, counts), (2, 2)),
        (lambda x: heatmap_cross_entropy(x, cells, counts), (2, 2, 2, 2)),
        (lambda x: class_cross_entropy(x, torch.tensor([1, -1])), (2, 3)),
    ):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, (x,), **settings)
