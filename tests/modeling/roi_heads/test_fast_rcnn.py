import math

import pytest
import torch
import torch.nn.functional as F

from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.box_regression import Box2BoxTransform
from detlab.modeling.packing import Rows
from detlab.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.instances import Instances
from detlab.structures.object_batch import as_batch


def make_layers(num_classes=3, **kwargs):
    torch.manual_seed(0)
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=6), box2box_transform=Box2BoxTransform((10, 10, 5, 5)), num_classes=num_classes, **kwargs
    )
    torch.nn.init.normal_(layers.cls_score.weight)
    torch.nn.init.normal_(layers.bbox_pred.weight)
    return layers


def random_boxes(count, side=60.0):
    low = torch.rand(count, 2) * side
    return torch.cat((low, low + 5 + torch.rand(count, 2) * side), dim=1)


def make_proposals(counts=(7, 4), labelled=True, num_classes=3):
    proposals = []
    for count in counts:
        own = Instances((100, 120), proposal_boxes=Boxes(random_boxes(count)))
        if labelled:
            own.gt_classes = torch.randint(0, num_classes + 1, (count,))
            own.gt_boxes = Boxes(random_boxes(count))
        proposals.append(own)
    return proposals


def slow_detections(boxes, scores, size, score_thresh, nms_thresh, topk):
    """One image: greedy suppression class by class, one box at a time."""
    found = []
    for k in range(scores.shape[1] - 1):
        kept = []
        for r in scores[:, k].argsort(descending=True).tolist():
            if not (scores[r, k] > score_thresh and boxes[r].isfinite().all() and scores[r].isfinite().all()):
                continue
            box = boxes[r].view(-1, 4)[k if boxes.shape[1] > 4 else 0].clone()
            box[0::2].clamp_(0, size[1])
            box[1::2].clamp_(0, size[0])
            if all(pairwise_iou(Boxes(box[None]), Boxes(o[2][None])).item() <= nms_thresh for o in kept):
                kept.append((scores[r, k].item(), k, box, r))
        found += kept
    return sorted(found, key=lambda d: -d[0])[:topk]


@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_equal_a_slow_greedy_suppression(agnostic):
    torch.manual_seed(5)
    counts, sizes = (40, 25), [(70, 90), (100, 60)]
    boxes = [torch.cat([random_boxes(c) for _ in range(1 if agnostic else 3)], dim=1) for c in counts]
    scores = [torch.randn(c, 4).mul(2).softmax(1) for c in counts]
    boxes[0][3, 1], scores[1][2, 0] = float("inf"), float("nan")
    found, rows = fast_rcnn_inference(boxes, scores, sizes, 0.15, 0.4, 20)
    for i, size in enumerate(sizes):
        expected = slow_detections(boxes[i], scores[i], size, 0.15, 0.4, 20)
        assert len(found[i]) == len(expected) > 8
        assert torch.allclose(found[i].scores, torch.tensor([e[0] for e in expected]))
        assert found[i].pred_classes.tolist() == [e[1] for e in expected]
        assert torch.allclose(found[i].pred_boxes.tensor, torch.stack([e[2] for e in expected]))
        assert rows[i].tolist() == [e[3] for e in expected]


def test_a_negative_limit_keeps_every_detection():
    boxes, scores = [random_boxes(30)], [torch.full((30, 2), 0.5)]
    limited = fast_rcnn_inference(boxes, scores, [(200, 200)], 0.1, 1.0, 10)[0][0]
    unlimited = fast_rcnn_inference(boxes, scores, [(200, 200)], 0.1, 1.0, -1)[0][0]
    assert len(limited) == 10 and len(unlimited) == 30


def test_an_image_without_proposals_has_no_detections():
    layers = make_layers().eval()
    proposals = make_proposals((0, 5), labelled=False)
    found, _ = layers.inference(layers(torch.randn(5, 6)), proposals)
    assert len(found[0]) == 0 and found[0].pred_boxes.tensor.shape == (0, 4) and len(found[1]) > 0


def test_a_batch_without_any_proposal_has_no_detections():
    layers = make_layers().eval()
    found, rows = layers.inference(layers(torch.randn(0, 6)), make_proposals((0, 0), labelled=False))
    assert [len(x) for x in found] == [len(x) for x in rows] == [0, 0]


def test_losses_equal_a_loop_over_the_proposals():
    layers, proposals = make_layers(), make_proposals()
    logits, deltas = layers(torch.randn(11, 6))
    losses = layers.losses((logits, deltas), proposals)
    classes = torch.cat([p.gt_classes for p in proposals])
    source = torch.cat([p.proposal_boxes.tensor for p in proposals])
    target = torch.cat([p.gt_boxes.tensor for p in proposals])
    regression = sum(
        (deltas[r, 4 * k : 4 * k + 4] - layers.box2box_transform.get_deltas(source[r], target[r])).abs().sum()
        for r, k in enumerate(classes.tolist())
        if k < 3
    )
    assert torch.allclose(losses["loss_cls"], F.cross_entropy(logits, classes))
    assert torch.allclose(losses["loss_box_reg"], regression / 11)


def test_losses_of_no_proposals_are_zero_and_reach_every_parameter():
    layers = make_layers()
    proposals = make_proposals((0, 0))
    losses = layers.losses(layers(torch.randn(0, 6)), proposals)
    assert [v.item() for v in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in layers.parameters())


def padded_proposals(proposals):
    """The same proposals in a batch with places that are not valid, full of numbers that must not count."""
    batch = as_batch(proposals)
    places = torch.arange(batch.num_places + 3).expand(len(batch), -1).clamp(max=batch.num_places - 1)
    valid = torch.cat((batch.valid, torch.zeros(len(batch), 3, dtype=torch.bool)), dim=1)
    spoilt = batch.take(places, valid)
    for name in spoilt.names:
        values = spoilt.tensor(name)
        spoilt.set(name, values.masked_fill(expand_to(~valid, values), 2), spoilt.kind(name))
    spoilt.layout = Rows(valid, None)
    return spoilt


def expand_to(mask, values):
    return mask.view(*mask.shape, *[1] * (values.dim() - 2)).expand_as(values)


def padded_rows(batch, rows):
    """A row for each place of the batch, where the padding holds numbers that must not count."""
    full = torch.full((batch.valid.numel(), *rows.shape[1:]), 1e4)
    return full.masked_scatter(batch.valid.flatten()[:, None].expand_as(full), rows)


@pytest.mark.parametrize("settings", [{}, {"use_sigmoid_ce": True}, {"box_reg_loss_type": "giou"}])
def test_padding_changes_neither_losses_nor_gradients(settings):
    layers, proposals = make_layers(**settings), make_proposals()
    spoilt = padded_proposals(proposals)
    grads = []
    for given, pad in ((proposals, False), (spoilt, True)):
        x = torch.randn(11, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
        losses = layers.losses(layers(padded_rows(spoilt, x) if pad else x), given)
        grads.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), [x, *layers.parameters()])])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads))


def test_padding_gives_no_detection():
    layers = make_layers(test_score_thresh=0.2, test_topk_per_image=6).eval()
    proposals = make_proposals((7, 4), labelled=False)
    x = torch.randn(11, 6)
    shell, rows = layers.inference(layers(x), proposals)
    spoilt = padded_proposals(proposals)
    found, padded_from = layers.inference(layers(padded_rows(spoilt, x)), spoilt)
    for n, own in enumerate(shell):
        count = len(own)
        assert found.valid[n].sum() == count > 0 and len(padded_from[n]) == count
        assert torch.allclose(own.pred_boxes.tensor, found.tensor("pred_boxes")[n, :count], atol=1e-4)
        assert torch.allclose(own.scores, found.tensor("scores")[n, :count])
        assert torch.equal(own.pred_classes, found.tensor("pred_classes")[n, :count])
        assert torch.equal(rows[n], padded_from[n])
        assert (found.tensor("scores")[n, count:] == 0).all()


def test_a_predictor_with_probabilities_of_its_own_is_honoured():
    class Doubtful(FastRCNNOutputLayers):
        def predict_probs(self, predictions, proposals):
            return [p * 0.5 for p in super().predict_probs(predictions, proposals)]

    layers, proposals = make_layers().eval(), make_proposals((7, 4), labelled=False)
    predictions = layers(torch.randn(11, 6))
    sure = layers.inference(predictions, proposals)[0]
    layers.__class__ = Doubtful
    doubtful = layers.inference(predictions, proposals)[0]
    assert torch.allclose(doubtful[0].scores, sure[0].scores / 2)


def test_no_images_give_no_detections():
    assert fast_rcnn_inference([], [], [], 0.5, 0.5, 10) == ([], [])


def test_sigmoid_loss_scores_each_class_by_itself():
    layers = make_layers(use_sigmoid_ce=True)
    logits, classes = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 3])
    expected = sum(
        math.log1p(math.exp(-x if k == c else x))
        for row, c in zip(logits.tolist(), classes)
        for k, x in enumerate(row[:3])
    )
    assert layers.sigmoid_cross_entropy_loss(logits, classes).item() == pytest.approx(expected / 5, rel=1e-5)
    assert (
        layers.predict_probs((logits, None), [Instances((1, 1), x=torch.zeros(5))])[0].tolist()
        == logits.sigmoid().tolist()
    )


def test_federated_loss_counts_the_classes_present_and_some_others():
    layers = make_layers(5, use_sigmoid_ce=True, use_fed_loss=True, fed_loss_num_classes=3,
                         get_fed_loss_cls_weights=lambda: torch.tensor([1.0, 1, 1, 1, 0]))  # fmt: skip
    drawn = layers.get_fed_loss_classes(torch.tensor([4, 5, 4]), 4, 5, layers.fed_loss_cls_weights)
    assert {4, 5} <= set(drawn.tolist()) and len(set(drawn.tolist())) == 4
    with pytest.raises(ValueError, match="USE_SIGMOID_CE"):
        make_layers(use_fed_loss=True)


def test_boxes_for_ground_truth_classes_pick_the_class():
    layers, proposals = make_layers(), make_proposals((5,))
    predictions = layers(torch.randn(5, 6))
    every = layers.predict_boxes(predictions, proposals)[0].view(5, 3, 4)
    chosen = layers.predict_boxes_for_gt_classes(predictions, proposals)[0]
    for r, k in enumerate(proposals[0].gt_classes.tolist()):
        assert torch.equal(chosen[r], every[r, min(k, 2)])
