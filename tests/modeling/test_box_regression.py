import math

import pytest
import torch

from detlab.modeling.box_regression import (
    Box2BoxTransform,
    Box2BoxTransformLinear,
    Box2BoxTransformRotated,
    box_regression_loss,
    dense_box_regression_loss,
)
from detlab.structures.boxes import Boxes


def random_boxes(*shape):
    low = torch.rand(*shape, 2, dtype=torch.float64) * 100
    return torch.cat((low, low + 1 + torch.rand(*shape, 2, dtype=torch.float64) * 80), dim=-1)


def random_rotated(count):
    return torch.cat((random_boxes(count), torch.rand(count, 1, dtype=torch.float64) * 360 - 180), dim=1)


def test_deltas_follow_the_formula_of_the_paper():
    deltas = Box2BoxTransform((10, 10, 5, 5)).get_deltas(
        torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 10.0]])
    )
    expected = [10 * (15 - 5) / 10, 10 * (5 - 10) / 20, 5 * math.log(20 / 10), 5 * math.log(10 / 20)]
    assert torch.allclose(deltas[0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("transform", "make"),
    [
        (Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), random_boxes),
        (Box2BoxTransformRotated((10.0, 10.0, 5.0, 5.0, 1.0)), random_rotated),
    ],
)
def test_decoding_undoes_encoding(transform, make):
    source, target = make(50), make(50)
    assert torch.allclose(transform.apply_deltas(transform.get_deltas(source, target), source), target)


@pytest.mark.parametrize("normalize", [True, False])
def test_distances_to_the_sides_come_back_when_the_center_is_inside(normalize):
    transform = Box2BoxTransformLinear(normalize)
    source = torch.tensor([[10.0, 10, 20, 30]], dtype=torch.float64)
    target = torch.tensor([[2.0, 4, 40, 60]], dtype=torch.float64)
    deltas = transform.get_deltas(source, target)
    assert torch.allclose(
        deltas, torch.tensor([[13.0, 16, 25, 40]]).double() / (torch.tensor([10, 20, 10, 20.0]) if normalize else 1)
    )
    assert torch.allclose(transform.apply_deltas(deltas, source), target)


def test_several_moves_of_a_box_and_leading_sizes_decode_one_by_one():
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    boxes, deltas = random_boxes(2, 7), torch.randn(2, 7, 12, dtype=torch.float64)
    together = transform.apply_deltas(deltas, boxes)
    assert together.shape == (2, 7, 12)
    for k in range(3):
        one = transform.apply_deltas(deltas[1, :, 4 * k : 4 * k + 4], boxes[1])
        assert torch.equal(together[1, :, 4 * k : 4 * k + 4], one)


def test_growth_is_clamped_and_half_precision_is_decoded_in_float32():
    deltas = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]], dtype=torch.float16)
    decoded = Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(deltas, torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    assert decoded.dtype == torch.float32
    assert torch.allclose(decoded[0, 2] - decoded[0, 0], torch.tensor(1000.0))


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_losses_have_right_gradients_and_vanish_at_the_target(loss_type):
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    source, target = random_boxes(6), random_boxes(6)

    def loss(deltas, beta=0.3):
        return box_regression_loss(
            transform, loss_type, pred_deltas=deltas, src_boxes=source, target_boxes=target, smooth_l1_beta=beta
        )

    exact = transform.get_deltas(source, target)
    assert loss(exact).item() == pytest.approx(0, abs=1e-5)
    start = (0.1 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    if loss_type != "ciou":  # its trade-off weight is a constant for the gradient (Zheng et al. 2020)
        assert torch.autograd.gradcheck(loss, start)
    assert loss(start).item() > 0


def test_an_unknown_loss_names_the_known_ones():
    with pytest.raises(ValueError, match="'l3' is unknown; use smooth_l1, giou"):
        box_regression_loss(Box2BoxTransform((1, 1, 1, 1)), "l3", pred_deltas=torch.ones(1, 4),
                            src_boxes=random_boxes(1), target_boxes=random_boxes(1))  # fmt: skip


def test_dense_loss_equals_a_loop_over_the_matched_anchors():
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    anchors = [Boxes(random_boxes(8).float()), Boxes(random_boxes(3).float())]
    deltas = [torch.randn(2, 8, 4), torch.randn(2, 3, 4)]
    targets = [random_boxes(11).float() for _ in range(2)]
    mask = torch.rand(2, 11) > 0.5
    flat_anchors, flat_deltas = torch.cat([a.tensor for a in anchors]), torch.cat(deltas, dim=1)
    expected = sum(
        (flat_deltas[n, a] - transform.get_deltas(flat_anchors[a], targets[n][a])).abs().sum()
        for n, a in mask.nonzero().tolist()
    )
    loss = dense_box_regression_loss(anchors, transform, deltas, targets, mask)
    assert torch.allclose(loss, expected)
    assert dense_box_regression_loss(anchors, transform, deltas, targets, torch.zeros_like(mask)).item() == 0
