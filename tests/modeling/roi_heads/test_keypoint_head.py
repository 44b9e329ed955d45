import pytest
import torch

from detlab.modeling import packing
from detlab.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference, keypoint_rcnn_loss
from detlab.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints, heatmaps_to_keypoints
from detlab.structures.object_batch import as_batch


def make_instances(counts=(3, 0, 2)):
    torch.manual_seed(0)
    instances = []
    for count in counts:
        low = torch.rand(count, 2) * 20
        boxes = torch.cat((low, low + 8 + torch.rand(count, 2) * 20), dim=1)
        points = torch.cat((torch.rand(count, 4, 2) * 45, torch.randint(0, 3, (count, 4, 1)).float()), dim=2)
        instances.append(Instances((48, 48), proposal_boxes=Boxes(boxes), gt_keypoints=Keypoints(points)))
    return instances


def slow_loss(logits, instances):
    """The sum over keypoints, and how many there are."""
    total, number, row = 0.0, 0, 0
    for own in instances:
        for box, points in zip(own.proposal_boxes.tensor.tolist(), own.gt_keypoints.tensor.tolist()):
            for j, (x, y, v) in enumerate(points):
                if v > 0 and box[0] <= x <= box[2] and box[1] <= y <= box[3]:
                    column = int((x - box[0]) / (box[2] - box[0]) * 8)
                    line = int((y - box[1]) / (box[3] - box[1]) * 8)
                    total -= logits[row, j].flatten().log_softmax(0)[line * 8 + column].item()
                    number += 1
            row += 1
    return total, number


def test_the_loss_equals_a_loop_over_the_keypoints():
    instances, logits = make_instances(), torch.randn(5, 4, 8, 8)
    total, number = slow_loss(logits, instances)
    assert number > 3
    assert keypoint_rcnn_loss(logits, instances, None).item() == pytest.approx(total / number, rel=1e-5)
    assert keypoint_rcnn_loss(logits, instances, 50.0).item() == pytest.approx(total / 50, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_changes_neither_the_loss_nor_a_gradient(value, monkeypatch):
    instances, logits = make_instances(), torch.randn(5, 4, 8, 8)
    expected = keypoint_rcnn_loss(logits.requires_grad_(), instances, None)
    gradient = torch.autograd.grad(expected, logits)[0]
    monkeypatch.setattr(packing, "lengths_are_free", lambda tensor: False)
    batch = as_batch(instances)
    batch.counts = None
    for name in ("proposal_boxes", "gt_keypoints"):
        spoilt = batch.tensor(name).clone()
        spoilt[~batch.valid] = value
        batch.set(name, spoilt, batch.kind(name))
    packing.lay_out(batch, None)
    wide = torch.full((9, 4, 8, 8), value)
    wide[batch.valid.flatten()] = logits.detach()
    loss = keypoint_rcnn_loss(wide.requires_grad_(), batch, None)
    own = torch.autograd.grad(loss, wide)[0]
    assert torch.allclose(loss, expected) and torch.allclose(own[batch.valid.flatten()], gradient)
    assert (own[~batch.valid.flatten()] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_finite_loss_and_gradient(dtype):
    """Of 56 x 56 cells the softmax's sum alone would leave the range of half precision."""
    instances = make_instances((40, 40))
    logits = (torch.randn(80, 4, 56, 56) * 20).to(dtype).requires_grad_()
    loss = keypoint_rcnn_loss(logits, instances, 1.0)
    assert loss.item() == pytest.approx(keypoint_rcnn_loss(logits.detach().float(), instances, 1.0).item())
    assert loss.isfinite() and torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_a_step_without_keypoints_has_a_loss_of_zero_that_reaches_the_logits():
    nothing = [Instances((9, 9), proposal_boxes=Boxes(torch.rand(2, 4)))]
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    batch = as_batch(nothing)
    loss = keypoint_rcnn_loss(logits, batch, None)
    assert loss == 0 and batch.notes.measured["kpts_num_skipped_batches"] == 1
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_the_proposals_with_a_visible_keypoint_are_counted_as_the_mean_over_images():
    instances = make_instances()
    instances[0].gt_keypoints.tensor[1, :, 2] = 0
    batch = as_batch(instances)
    selected = select_proposals_with_visible_keypoints(batch)
    number = 0
    for own, found in zip(instances, selected):
        keep = [
            any(b[0] <= x <= b[2] and b[1] <= y <= b[3] and v >= 1 for x, y, v in points)
            for b, points in zip(own.proposal_boxes.tensor.tolist(), own.gt_keypoints.tensor.tolist())
        ]
        number += sum(keep)
        assert torch.equal(found.proposal_boxes.tensor, own.proposal_boxes.tensor[torch.tensor(keep, dtype=torch.bool)])
    assert 0 < number < 5
    assert batch.notes.measured["keypoint_head/num_fg_samples"].item() == pytest.approx(number / 3)


def test_inference_gives_each_image_its_keypoints_and_heat_maps():
    torch.manual_seed(1)
    boxes = [torch.tensor([[0.0, 0, 10, 20], [3, 4, 9, 9]]), torch.zeros(0, 4), torch.tensor([[1.0, 1, 30, 8]])]
    instances = [Instances((48, 48), pred_boxes=Boxes(own)) for own in boxes]
    logits = torch.randn(3, 4, 8, 8)
    keypoint_rcnn_inference(logits, instances)
    expected = heatmaps_to_keypoints(logits, torch.cat(boxes))[:, :, [0, 1, 3]]
    assert torch.equal(torch.cat([x.pred_keypoints for x in instances]), expected)
    assert torch.equal(torch.cat([x.pred_keypoint_heatmaps for x in instances]), logits)
    keypoint_rcnn_inference(logits[:0], [])
