"""Losses against plain loops over single pairs."""

import math

import pytest
import torch
import torch.nn.functional as F

from detlab.layers.losses import ciou_loss, diou_loss, giou_loss, sigmoid_focal_loss, smooth_l1_loss


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 6
    return torch.cat([low, low + 0.5 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 4], dim=1)


def plain_box_loss(kind, a, b):
    """The formula of the paper for one pair of boxes, in Python numbers."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    shared = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    iou = shared / union
    if kind == "giou":
        return 1 - (iou - (hull[0] * hull[1] - union) / (hull[0] * hull[1]))
    centers = [((p[0] + p[2]) / 2, (p[1] + p[3]) / 2) for p in (a, b)]
    loss = 1 - iou + math.dist(*centers) ** 2 / (hull[0] ** 2 + hull[1] ** 2)
    if kind == "ciou":
        angles = [math.atan((p[2] - p[0]) / (p[3] - p[1])) for p in (a, b)]
        aspect = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
        loss += aspect * aspect / (1 - iou + aspect)
    return loss


BOX_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


@pytest.mark.parametrize("kind", BOX_LOSSES)
class TestBoxLosses:
    def test_equals_the_formula_pair_by_pair(self, kind):
        a, b = random_boxes(50, 0), random_boxes(50, 1)
        expected = [plain_box_loss(kind, *pair) for pair in zip(a.tolist(), b.tolist())]
        torch.testing.assert_close(
            BOX_LOSSES[kind](a, b), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
        )

    def test_is_zero_for_equal_boxes(self, kind):
        a = random_boxes(5, 2)
        assert BOX_LOSSES[kind](a, a).abs().max() < 1e-6

    def test_reductions_agree_and_nothing_gives_zero(self, kind):
        a, b = random_boxes(6, 3), random_boxes(6, 4)
        loss = BOX_LOSSES[kind]
        torch.testing.assert_close(loss(a, b, reduction="sum") / 6, loss(a, b, reduction="mean"))
        empty = a[:0].requires_grad_()
        total = loss(empty, b[:0], reduction="mean")
        assert total.item() == 0
        total.backward()

    def test_boxes_of_no_size_stay_finite(self, kind):
        box = torch.tensor([[1.0, 1.0, 1.0, 3.0]])
        assert BOX_LOSSES[kind](box, box).isfinite().all()

    def test_leading_sizes_are_kept(self, kind):
        a, b = random_boxes(6, 3), random_boxes(6, 4)
        assert torch.equal(BOX_LOSSES[kind](a.view(2, 3, 4), b.view(2, 3, 4)).flatten(), BOX_LOSSES[kind](a, b))


@pytest.mark.parametrize("loss", [giou_loss, diou_loss])
def test_gradients_of_box_losses(loss):
    assert torch.autograd.gradcheck(loss, (random_boxes(8, 5).requires_grad_(), random_boxes(8, 6).requires_grad_()))


def test_gradient_of_ciou_takes_the_trade_off_for_a_constant():
    a, b = random_boxes(8, 5).requires_grad_(), random_boxes(8, 6)
    got = torch.autograd.grad(ciou_loss(a, b).sum(), a)[0]
    angles = [torch.atan((p[:, 2] - p[:, 0]) / (p[:, 3] - p[:, 1])) for p in (a, b)]
    aspect = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    rest = ciou_loss(a, b) - diou_loss(a, b)
    trade_off = (rest / aspect).detach()
    expected = torch.autograd.grad((diou_loss(a, b) + trade_off * aspect).sum(), a)[0]
    torch.testing.assert_close(got, expected)


class TestSmoothL1:
    def test_is_a_parabola_below_beta_and_a_line_above(self):
        got = smooth_l1_loss(torch.tensor([0.0, 0.25, -0.5, 2.0]), torch.zeros(4), beta=0.5)
        assert got.tolist() == [0.0, 0.0625, 0.25, 1.75]

    def test_equals_torch_for_a_positive_beta(self):
        a, b = torch.randn(50), torch.randn(50)
        torch.testing.assert_close(smooth_l1_loss(a, b, 0.7), F.smooth_l1_loss(a, b, beta=0.7, reduction="none"))

    def test_beta_zero_is_l1_with_finite_gradient(self):
        x = torch.zeros(3, requires_grad=True)
        smooth_l1_loss(x, torch.tensor([0.0, 1.0, -2.0]), beta=0.0, reduction="sum").backward()
        assert x.grad.tolist() == [0.0, -1.0, 1.0]

    def test_gradient(self):
        a, b = torch.randn(20, dtype=torch.float64, requires_grad=True), torch.randn(20, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: smooth_l1_loss(x, b, 0.5, "sum"), a)

    def test_mean_of_nothing_is_zero(self):
        assert smooth_l1_loss(torch.zeros(0), torch.zeros(0), 1.0, "mean").item() == 0


class TestFocalLoss:
    @pytest.mark.parametrize("alpha", [-1, 0.25])
    def test_equals_the_formula_number_by_number(self, alpha):
        logits = torch.randn(20, dtype=torch.float64) * 3
        targets = (torch.rand(20) < 0.3).double()
        expected = []
        for x, y in zip(logits.tolist(), targets.tolist()):
            p = 1 / (1 + math.exp(-x))
            p_true = p if y else 1 - p
            weight = 1.0 if alpha < 0 else (alpha if y else 1 - alpha)
            expected.append(-weight * (1 - p_true) ** 1.5 * math.log(p_true))
        got = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=1.5)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))

    def test_gamma_zero_is_cross_entropy(self):
        logits, targets = torch.randn(10), (torch.rand(10) < 0.5).float()
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, targets, gamma=0, reduction="mean"),
            F.binary_cross_entropy_with_logits(logits, targets),
        )

    def test_sure_predictions_stay_finite(self):
        logits = torch.tensor([200.0, -200.0], requires_grad=True)
        sigmoid_focal_loss(logits, torch.tensor([0.0, 1.0]), reduction="sum").backward()
        assert logits.grad.isfinite().all()


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction 'avg' is unknown"):
        smooth_l1_loss(torch.zeros(1), torch.zeros(1), 1.0, "avg")
