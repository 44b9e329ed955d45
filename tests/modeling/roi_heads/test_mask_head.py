import pytest
import torch
import torch.nn.functional as F

from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling import packing
from detlab.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
    select_class_masks,
)
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.masks import BitMasks
from detlab.structures.object_batch import as_batch


def make_instances(count):
    torch.manual_seed(count)
    low = torch.rand(count, 2) * 20
    boxes = torch.cat((low, low + 8 + torch.rand(count, 2) * 20), dim=1)
    masks = BitMasks(torch.rand(count, 48, 48) > 0.5)
    return Instances((48, 48), proposal_boxes=Boxes(boxes), gt_classes=torch.randint(0, 3, (count,)), gt_masks=masks)


def test_loss_equals_a_loop_over_objects():
    instances, logits = [make_instances(3), make_instances(2)], torch.randn(5, 3, 14, 14)
    targets = torch.cat([x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, 14) for x in instances]).float()
    classes = torch.cat([x.gt_classes for x in instances]).tolist()
    expected = sum(F.binary_cross_entropy(logits[r, k].sigmoid(), targets[r]) for r, k in enumerate(classes)) / 5
    assert mask_rcnn_loss(logits, instances).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_single_channel_serves_all_classes():
    logits = torch.randn(4, 1, 5, 5)
    assert torch.equal(select_class_masks(logits, torch.tensor([2, 0, 1, 5])), logits[:, 0])


@pytest.mark.parametrize("norm", ["", "GN"])
def test_no_objects_give_a_zero_loss_that_reaches_every_parameter(norm):
    head = MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=32, height=14, width=14), num_classes=3, conv_dims=[32, 32], conv_norm=norm
    )
    losses = head(torch.zeros(0, 32, 14, 14), [make_instances(3)[:0]])
    assert losses["loss_mask"].item() == 0
    losses["loss_mask"].backward()
    assert all(p.grad is not None for p in head.parameters())


def test_inference_gives_each_image_its_masks_at_twice_the_resolution():
    head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=4, height=7, width=7), num_classes=3, conv_dims=[4, 4]).eval()
    instances = [
        Instances((9, 9), pred_classes=torch.tensor([0, 2])),
        Instances((9, 9), pred_classes=torch.tensor([1])),
    ]
    x = torch.randn(3, 4, 7, 7)
    head(x, instances)
    assert instances[0].pred_masks.shape == (2, 1, 14, 14)
    assert torch.allclose(instances[1].pred_masks[0, 0], head.layers(x)[2, 1].sigmoid())


def test_no_images_have_no_masks():
    assert mask_rcnn_inference(torch.zeros(0, 3, 14, 14), []) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_changes_neither_the_loss_nor_a_gradient(value, monkeypatch):
    instances, logits = [make_instances(3), make_instances(2)], torch.randn(5, 3, 14, 14, requires_grad=True)
    expected = mask_rcnn_loss(logits, instances)
    gradient = torch.autograd.grad(expected, logits)[0]
    monkeypatch.setattr(packing, "lengths_are_free", lambda tensor: False)
    batch = as_batch(instances)
    batch.counts = None
    boxes = batch.tensor("proposal_boxes").clone()
    boxes[~batch.valid] = value
    batch.set("proposal_boxes", boxes, batch.kind("proposal_boxes"))
    packing.lay_out(batch, None)
    wide = torch.full((6, 3, 14, 14), value)
    wide[batch.valid.flatten()] = logits.detach()
    loss = mask_rcnn_loss(wide.requires_grad_(), batch)
    own = torch.autograd.grad(loss, wide)[0]
    assert torch.allclose(loss, expected) and torch.allclose(own[batch.valid.flatten()], gradient)
    assert (own[~batch.valid.flatten()] == 0).all()
