"""The formulas of overlap. Their values are compared in tests/structures/test_boxes.py, by the public functions."""

import pytest
import torch

from detlab.layers.box_overlap import box_intersection, box_ioa, box_iou, matched_box_iou


def random_boxes(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 10
    return torch.cat([low, low + torch.rand(*shape, 2, generator=generator, dtype=dtype) * 8], dim=-1)


def test_batches_are_batches():
    a, b = random_boxes(2, 3), random_boxes(2, 5, seed=1)
    each = torch.stack([box_iou(p, q) for p, q in zip(a, b)])
    assert torch.equal(box_iou(a, b), each)
    assert torch.equal(box_iou(a[0], b), torch.stack([box_iou(a[0], q) for q in b]))
    assert box_ioa(a, b).shape == (2, 3, 5)
    assert matched_box_iou(a, b[:, :3]).shape == (2, 3)


def test_arguments_are_not_changed():
    a, b = random_boxes(3), random_boxes(4, seed=1)
    before = a.clone(), b.clone()
    box_iou(a, b)
    box_ioa(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_empty_boxes_overlap_nothing():
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    for overlap in (box_iou, box_ioa, box_intersection):
        assert overlap(point, point).item() == 0
    assert matched_box_iou(point, point).item() == 0


@pytest.mark.parametrize("overlap", [box_iou, box_ioa, box_intersection])
def test_gradients(overlap):
    a, b = random_boxes(3, dtype=torch.float64), random_boxes(4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(overlap, (a.requires_grad_(), b.requires_grad_()))


def test_gradient_of_matched_iou():
    a, b = random_boxes(4, dtype=torch.float64), random_boxes(4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(matched_box_iou, (a.requires_grad_(), b.requires_grad_()))
