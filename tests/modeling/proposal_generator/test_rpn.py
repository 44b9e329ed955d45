import pytest
import torch
import torch.nn.functional as F

from detlab.config import get_cfg
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.dense_prediction import flatten_cells
from detlab.modeling.proposal_generator.build import build_proposal_generator
from detlab.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detlab.modeling.sampling import subsample_labels
from detlab.structures.boxes import Boxes
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances

SHAPES = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}


def make_rpn(**settings):
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    for name, value in settings.items():
        cfg.MODEL.RPN[name] = value
    torch.manual_seed(0)
    return build_proposal_generator(cfg, SHAPES)


def make_inputs():
    torch.manual_seed(1)
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (50, 60)])
    features = {"p2": torch.randn(2, 8, 16, 24), "p3": torch.randn(2, 8, 8, 12)}
    return images, features


def truth(*boxes, size=(64, 96)):
    return Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))


def test_cells_are_flattened_row_column_anchor():
    maps = torch.arange(2 * 6 * 2 * 3).reshape(2, 6, 2, 3)
    flat = flatten_cells(maps, 3)
    assert flat.shape == (2, 12, 3)
    for row in range(2):
        for column in range(3):
            for anchor in range(2):
                expected = maps[1, 3 * anchor : 3 * anchor + 3, row, column]
                assert torch.equal(flat[1, (row * 3 + column) * 2 + anchor], expected)


def test_losses_equal_a_loop_over_the_sampled_anchors():
    rpn = make_rpn(BATCH_SIZE_PER_IMAGE=64)
    _, features = make_inputs()
    targets = [truth([10, 10, 40, 40], [50, 5, 80, 30]), truth(size=(50, 60))]
    maps = [features["p2"], features["p3"]]
    anchors = rpn.anchor_generator(maps)
    logits, deltas = rpn.predict_anchors(maps)
    labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
    losses = rpn.losses(anchors, logits, labels, deltas, boxes)
    flat_logits, flat_deltas = torch.cat(logits, 1), torch.cat(deltas, 1)
    flat_anchors = torch.cat([a.tensor for a in anchors])
    classification, regression = 0.0, 0.0
    for n in range(2):
        assert (labels[n] >= 0).sum() == 64
        for a in (labels[n] >= 0).nonzero().flatten().tolist():
            target = labels[n][a].float()
            classification += F.binary_cross_entropy(flat_logits[n, a].sigmoid(), target)
            if target == 1:
                wanted = rpn.box2box_transform.get_deltas(flat_anchors[a], boxes[n][a])
                regression += (flat_deltas[n, a] - wanted).abs().sum()
    assert (labels[0] == 1).any() and not (labels[1] == 1).any()
    assert losses["loss_rpn_cls"].item() == pytest.approx(classification.item() / 128, rel=1e-4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(regression.item() / 128, rel=1e-4)


def test_a_batch_without_objects_has_no_regression_loss_but_gradients():
    rpn = make_rpn().train()
    images, features = make_inputs()
    _, losses = rpn(images, features, [truth(), truth()])
    assert losses["loss_rpn_loc"].item() == 0 and losses["loss_rpn_cls"].item() > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in rpn.parameters())


def test_proposals_are_padded_to_one_number_and_sorted_by_their_logit():
    rpn = make_rpn(POST_NMS_TOPK_TEST=500, NMS_THRESH=0.2).eval()
    images, features = make_inputs()
    proposals, losses = rpn(images, features)
    assert losses == {} and proposals.tensor("proposal_boxes").shape == (2, 500, 4)
    for n, own in enumerate(proposals):
        assert len(own) == proposals.valid[n].sum() and 0 < len(own) < 500
        assert (own.objectness_logits.diff() <= 0).all()
        assert (proposals.tensor("proposal_boxes")[n, len(own) :] == 0).all()
    assert proposals[1].proposal_boxes.tensor[:, 2].max() <= 60


def test_a_subsampling_of_the_users_own_is_asked_for_each_image():
    class FirstAnchors(RPN):
        def _subsample_labels(self, label):
            positive, negative = subsample_labels(label, 4, 0.5, 0)
            label.fill_(-1)
            label[positive], label[negative] = 1, 0
            return label

    rpn = make_rpn()
    rpn.__class__ = FirstAnchors
    anchors = rpn.anchor_generator([torch.zeros(1, 8, 16, 24), torch.zeros(1, 8, 8, 12)])
    labels, _ = rpn.label_and_sample_anchors(anchors, [truth([10, 10, 40, 40]), truth(size=(50, 60))])
    assert [(own >= 0).sum().item() for own in labels] == [4, 4] and (labels[0] == 1).any()


def test_anchors_across_the_boundary_take_no_part_when_a_threshold_is_set():
    rpn = make_rpn(BOUNDARY_THRESH=0, BATCH_SIZE_PER_IMAGE=100000)
    _, features = make_inputs()
    anchors = rpn.anchor_generator([features["p2"], features["p3"]])
    labels = rpn.label_and_sample_anchors(anchors, [truth([10, 10, 40, 40])])[0][0]
    boxes = torch.cat([a.tensor for a in anchors])
    outside = (boxes[:, 0] < 0) | (boxes[:, 1] < 0) | (boxes[:, 2] > 96) | (boxes[:, 3] > 64)
    assert (labels[outside] == -1).all() and (labels[~outside] >= 0).any()


def test_several_shared_convolutions_get_numbered_names():
    head = StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=[-1, 16])
    assert {n.rsplit(".", 1)[0] for n in head.state_dict()} == {
        "conv.conv0", "conv.conv1", "objectness_logits", "anchor_deltas"
    }  # fmt: skip
    logits, deltas = head([torch.randn(1, 8, 4, 5)])
    assert logits[0].shape == (1, 3, 4, 5) and deltas[0].shape == (1, 12, 4, 5)


def test_levels_of_unlike_channels_are_refused_in_words():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
    with pytest.raises(ValueError, match="equal channels"):
        build_proposal_generator(cfg, {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=4, stride=8)})
