"""Parts that users derive, written for lists of ``Instances``: each takes part, and what it does is right.

Every model runs twice: with lengths that are free to know, and as on a GPU, where a batch is padded.
"""

import itertools

import pytest
import torch
from torch import nn

from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    GeneralizedRCNN,
    build_model,
    packing,
)
from detlab.modeling.box_regression import Box2BoxTransform, box_regression_loss
from detlab.modeling.poolers import ROIPooler
from detlab.modeling.proposal_generator import RPN
from detlab.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals, find_top_rpn_proposals
from detlab.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detlab.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detlab.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference, keypoint_rcnn_loss
from detlab.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detlab.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
from detlab.modeling.sampling import subsample_labels
from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances
from detlab.structures.object_batch import as_batch
from detlab.utils.events import EventStorage
from tests.modeling.tiny import tiny_batch, tiny_c4_config, tiny_config

SIZES, NUM_OBJECTS = ((64, 96), (80, 64), (64, 64)), (2, 0, 3)


@pytest.fixture(params=["packed", "padded"], autouse=True)
def layout(request, monkeypatch):
    """Whether rows of padding are left out, as eagerly on a CPU, or computed, as on a GPU."""
    if request.param == "padded":
        monkeypatch.setattr(packing, "lengths_are_free", lambda tensor: False)
    return request.param


@pytest.fixture
def registered():
    """Registers parts for one test: ``registered(REGISTRY, part)``."""
    added = []

    def register(registry, part):
        registry.register(part)
        added.append((registry, part.__name__))
        return part.__name__

    yield register
    for registry, name in added:
        registry._obj_map.pop(name)


def make_config(**parts):
    return all_are_drawn(tiny_config(**parts))


def all_are_drawn(cfg):
    """Every random draw is of all anchors and proposals there are, so that order alone is random.

    There are more places for proposals and detections than are taken, so that batches have padding.
    """
    cfg.merge_from_list(["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000,
                         "MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0,
                         "MODEL.RPN.NMS_THRESH", 0.1, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 90,
                         "MODEL.RPN.POST_NMS_TOPK_TEST", 90, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.1,
                         "TEST.DETECTIONS_PER_IMAGE", 90])  # fmt: skip
    return cfg


def make_model(cfg=None, **parts):
    torch.manual_seed(0)
    return build_model(make_config(**parts) if cfg is None else cfg)


def make_inputs():
    return tiny_batch(SIZES, NUM_OBJECTS)


class Trained:
    """Losses, gradients and statistics of one training step."""

    def __init__(self, model, inputs=None):
        torch.manual_seed(7)
        model.train()
        with EventStorage(0) as storage:
            self.losses = model(make_inputs() if inputs is None else inputs)
            self.measured = {name: value for name, (value, _) in storage.latest().items()}
        sum(self.losses.values()).backward()
        self.grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()


def detect(model):
    with torch.no_grad():
        return [found["instances"] for found in model.eval()(make_inputs())]


def assert_sound(trained):
    assert trained.losses and all(loss.isfinite() for loss in trained.losses.values())
    assert [name for name, grad in trained.grads.items() if grad is None or not grad.isfinite().all()] == []


def assert_same_training(got, expected, but=()):
    """Losses, gradients and statistics are equal; ``but`` names statistics that may be missing."""
    assert_sound(got)
    assert got.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        assert got.losses[name].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6), name
    for name, grad in expected.grads.items():
        assert (got.grads[name] - grad).abs().max() <= 1e-3 * grad.abs().max() + 1e-6, name
    assert {*expected.measured} - {*got.measured} <= {*but}
    for name in {*expected.measured} & {*got.measured}:
        assert float(got.measured[name]) == pytest.approx(float(expected.measured[name]), rel=1e-4, abs=1e-6), name


def assert_same_detections(got, expected):
    assert [len(x) for x in got] == [len(x) for x in expected] and sum(len(x) for x in got) > 0
    for own, wanted in zip(got, expected):
        assert own.get_fields().keys() == wanted.get_fields().keys()
        assert torch.allclose(own.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-3)
        assert torch.allclose(own.scores, wanted.scores, atol=1e-5)
        assert torch.equal(own.pred_classes, wanted.pred_classes)
        if wanted.has("pred_masks"):
            assert (own.pred_masks != wanted.pred_masks).float().mean() < 1e-3
        if wanted.has("pred_keypoints"):
            assert torch.allclose(own.pred_keypoints, wanted.pred_keypoints, atol=1e-2)


def becomes(part, kind, **attributes):
    """The same part as an object of a class that was derived from its own."""
    part.__class__ = kind
    for name, value in attributes.items():
        setattr(part, name, value)


def assert_equivalent(change, but=(), train=True, **parts):
    """A model that ``change`` was made to does the same as the plain one.

    ``change`` is called with the model and gives the calls its part counts.
    """
    model = make_model(**parts)
    plain, plain_found = Trained(model), detect(model)
    calls = change(model)
    if train:
        assert_same_training(Trained(model), plain, but)
        assert calls, "the override took no part in training"
        calls.clear()
    found = detect(model)
    assert_same_detections(found, plain_found)
    return calls


# ------------------------------------------------------------------------------------------------- plain models


@pytest.mark.parametrize("parts", [{}, {"masks": True}, {"keypoints": True}])
def test_padding_changes_no_loss_no_gradient_and_no_detection(parts, monkeypatch):
    model = make_model(tiny_config(**parts))
    with monkeypatch.context() as patch:
        patch.setattr(packing, "lengths_are_free", lambda tensor: False)
        padded, padded_found = Trained(model), detect(model)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "lengths_are_free", lambda tensor: True)
        packed, packed_found = Trained(model), detect(model)
    assert_same_training(padded, packed)
    assert_same_detections(padded_found, packed_found)


@pytest.mark.parametrize("config", [tiny_config, tiny_c4_config])
def test_the_batches_of_these_tests_have_padding(config):
    model = make_model(all_are_drawn(config())).eval()
    with torch.no_grad():
        images = model.preprocess_image(make_inputs())
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        found, _ = model.roi_heads(images, features, proposals, None)
    for batch in (proposals, found):
        counts = batch.valid.sum(dim=1).tolist()
        assert 0 < min(counts) < max(counts) < batch.num_places == 90


# ---------------------------------------------------------------------------------------------------- ROI heads


def test_a_box_stage_written_for_lists():
    class Heads(StandardROIHeads):
        def _forward_box(self, features, proposals):
            self.calls.append(len(proposals))
            maps = [features[f] for f in self.box_in_features]
            box_features = self.box_head(self.box_pooler(maps, [x.proposal_boxes for x in proposals]))
            scores, deltas = predictions = self.box_predictor(box_features)
            assert len(scores) == len(deltas) == sum(len(x) for x in proposals)
            if self.training:
                return self.box_predictor.losses(predictions, proposals)
            found, kept = self.box_predictor.inference(predictions, proposals)
            assert len(torch.cat(list(kept))) == sum(len(x) for x in found)
            return found

    def change(model):
        becomes(model.roi_heads, Heads, calls=[])
        return model.roi_heads.calls

    assert assert_equivalent(change, masks=True, keypoints=True) == [3]


def test_a_box_stage_that_filters_proposals_trains_on_those_alone():
    class Heads(StandardROIHeads):
        def _forward_box(self, features, proposals):
            for i, own in enumerate(proposals):
                proposals[i] = own[: len(own) // 2]
            return super()._forward_box(features, proposals)

    class Sampled(StandardROIHeads):
        def label_and_sample_proposals(self, proposals, targets):
            return [own[: len(own) // 2] for own in super().label_and_sample_proposals(proposals, targets)]

    model = make_model()
    whole = Trained(model)
    becomes(model.roi_heads, Heads)
    filtered = Trained(model)
    becomes(model.roi_heads, Sampled)
    expected = Trained(model)
    assert filtered.losses["loss_box_reg"].item() == pytest.approx(expected.losses["loss_box_reg"].item(), rel=1e-4)
    assert filtered.losses["loss_cls"].item() == pytest.approx(expected.losses["loss_cls"].item(), rel=1e-4)
    assert abs(filtered.losses["loss_box_reg"] - whole.losses["loss_box_reg"]) > 0.1 * whole.losses["loss_box_reg"]


def test_a_box_stage_gets_a_list_that_it_can_shorten_for_all_that_follow():
    class Heads(StandardROIHeads):
        def _forward_box(self, features, proposals):
            assert isinstance(proposals, list)
            last = proposals.pop()
            proposals.append(last[: len(last) // 2])
            return super()._forward_box(features, proposals)

        def _forward_mask(self, features, instances):
            self.seen.append([len(own) for own in instances])
            return super()._forward_mask(features, instances)

    model = make_model(masks=True)
    becomes(model.roi_heads, Heads, seen=[])
    assert all(value.isfinite() for value in Trained(model).losses.values())
    *others, last = model.roi_heads.seen[0]
    assert last < min(others)


def test_a_batch_that_is_no_list_says_how_to_make_one():
    batch = as_batch([Instances((4, 4), gt_boxes=Boxes(torch.rand(2, 4)))])
    with pytest.raises(AttributeError, match=r"no 'append'; make a list of it first"):
        batch.append(batch[0])


def test_a_sampling_that_calls_its_parent_and_changes_elements():
    class Heads(StandardROIHeads):
        def label_and_sample_proposals(self, proposals, targets):
            sampled = super().label_and_sample_proposals(proposals, targets)
            for own in sampled:
                own.gt_classes = torch.where(own.gt_classes < self.num_classes, 0, own.gt_classes)
                own.origin = [f"row {i}" for i in range(len(own))]
            return sampled

        def _forward_box(self, features, proposals):
            self.origins = [own.origin for own in proposals]
            return super()._forward_box(features, proposals)

    inputs = make_inputs()
    for item in inputs:
        item["instances"].gt_classes = torch.zeros_like(item["instances"].gt_classes)
    model = make_model(masks=True)
    expected = Trained(model, inputs)
    becomes(model.roi_heads, Heads)
    assert_same_training(Trained(model), expected)
    assert [own[:2] for own in model.roi_heads.origins] == [["row 0", "row 1"]] * 3


@pytest.mark.parametrize("in_place", [False, True])
def test_a_sampling_that_filters_elements(in_place):
    class Heads(StandardROIHeads):
        def label_and_sample_proposals(self, proposals, targets):
            sampled = super().label_and_sample_proposals(proposals, targets)
            kept = [own[own.gt_classes < self.num_classes] for own in sampled]
            if not in_place:
                return kept
            for i, own in enumerate(kept):
                sampled[i] = own
            return sampled

        def _forward_box(self, features, proposals):
            self.seen = [own.gt_classes.tolist() for own in proposals]
            return super()._forward_box(features, proposals)

    model = make_model(masks=True)
    plain = Trained(model)
    becomes(model.roi_heads, Heads)
    objects = Trained(model)
    assert_sound(objects)
    seen = list(itertools.chain(*model.roi_heads.seen))
    assert max(seen) < 3 and len(model.roi_heads.seen[1]) == 0
    total = 3 * (plain.measured["roi_head/num_fg_samples"] + plain.measured["roi_head/num_bg_samples"])
    share = len(seen) / float(total)
    assert objects.losses["loss_box_reg"].item() == pytest.approx(plain.losses["loss_box_reg"].item() / share, rel=1e-4)
    assert objects.losses["loss_mask"].item() == pytest.approx(plain.losses["loss_mask"].item(), rel=1e-4)
    assert objects.measured.keys() == plain.measured.keys()


class SamplesWithLists(StandardROIHeads):
    """The stage anew, as the method's paper would be typed in."""

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals, targets):
        self.calls.append("label_and_sample_proposals")
        proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled = []
        for own, truth in zip(proposals, targets):
            overlaps = pairwise_iou(truth.gt_boxes, own.proposal_boxes)
            matched_idxs, matched_labels = self.proposal_matcher(overlaps)
            chosen, gt_classes = self._sample_proposals(matched_idxs, matched_labels, truth.gt_classes)
            own = own[chosen]
            own.gt_classes = gt_classes
            if len(truth) > 0:
                for name, value in truth.get_fields().items():
                    if name.startswith("gt_") and not own.has(name):
                        own.set(name, value[matched_idxs[chosen]])
            sampled.append(own)
        return sampled


def test_a_sampling_written_anew_with_lists():
    def change(model):
        becomes(model.roi_heads, SamplesWithLists, calls=[])
        return model.roi_heads.calls

    own_statistics = ["roi_head/num_fg_samples", "roi_head/num_bg_samples"]
    assert_equivalent(change, own_statistics, masks=True, keypoints=True)


def test_a_draw_of_the_users_own_is_asked_for_each_image():
    class Heads(StandardROIHeads):
        def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
            self.calls.append(len(gt_classes))
            if gt_classes.numel() > 0:
                gt_classes = gt_classes[matched_idxs]
                gt_classes[matched_labels == 0] = self.num_classes
                gt_classes[matched_labels == -1] = -1
            else:
                gt_classes = torch.zeros_like(matched_idxs) + self.num_classes
            drawn = subsample_labels(gt_classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
            chosen = torch.cat(drawn)
            return chosen, gt_classes[chosen]

    def change(model):
        becomes(model.roi_heads, Heads, calls=[])
        return model.roi_heads.calls

    assert_equivalent(change, masks=True)


def test_a_draw_of_nothing_gives_zero_losses():
    class Heads(StandardROIHeads):
        def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
            nothing = matched_idxs[:0]
            return nothing, nothing

    model = make_model(masks=True, keypoints=True)
    becomes(model.roi_heads, Heads)
    trained = Trained(model)
    assert_sound(trained)
    assert all(trained.losses[name] == 0 for name in ("loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"))


def test_a_mask_stage_written_for_lists():
    class Heads(StandardROIHeads):
        def _forward_mask(self, features, instances):
            self.calls.append(len(instances))
            maps = [features[f] for f in self.mask_in_features]
            if self.training:
                num_proposals = sum(len(x) for x in instances)
                instances, chosen = select_foreground_proposals(instances, self.num_classes)
                assert len(torch.cat(chosen)) == num_proposals
                assert torch.cat(chosen).sum() == sum(len(x) for x in instances)
                return self.mask_head(self.mask_pooler(maps, [x.proposal_boxes for x in instances]), instances)
            return self.mask_head(self.mask_pooler(maps, [x.pred_boxes for x in instances]), instances)

    def change(model):
        becomes(model.roi_heads, Heads, calls=[])
        return model.roi_heads.calls

    assert assert_equivalent(change, masks=True, keypoints=True) == [3]


def test_a_keypoint_stage_written_for_lists():
    class Heads(StandardROIHeads):
        def _forward_keypoint(self, features, instances):
            self.calls.append(len(instances))
            maps = [features[f] for f in self.keypoint_in_features]
            if self.training:
                instances, _ = select_foreground_proposals(instances, self.num_classes)
                instances = select_proposals_with_visible_keypoints(instances)
                boxes = [x.proposal_boxes for x in instances]
            else:
                boxes = [x.pred_boxes for x in instances]
            return self.keypoint_head(self.keypoint_pooler(maps, boxes), instances)

    def change(model):
        becomes(model.roi_heads, Heads, calls=[])
        return model.roi_heads.calls

    assert assert_equivalent(change, masks=True, keypoints=True) == [3]


def test_masks_trained_in_predicted_boxes_see_them_after_a_box_stage_of_the_users_own():
    class Heads(StandardROIHeads):
        def _forward_box(self, features, proposals):
            self.calls.append([len(x) for x in proposals])
            return super()._forward_box(features, proposals)

    def change(model):
        becomes(model.roi_heads, Heads, calls=[])
        return model.roi_heads.calls

    cfg = make_config(masks=True)
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    model = make_model(cfg)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.3)
    nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
    plain = Trained(model)
    change(model)
    assert_same_training(Trained(model), plain)
    model.roi_heads.train_on_pred_boxes = False
    assert Trained(model).losses["loss_mask"].item() != pytest.approx(plain.losses["loss_mask"].item(), rel=1e-3)


def test_registered_heads_from_roi_heads_alone(registered):
    class FromScratch(ROIHeads):
        def __init__(self, cfg, input_shape):
            super().__init__(**ROIHeads.from_config(cfg))
            self.pooler = ROIPooler((5, 5), (1.0 / input_shape["p2"].stride,), 2, "ROIAlignV2")
            self.fc = nn.Linear(input_shape["p2"].channels * 25, self.num_classes + 1)

        def forward(self, images, features, proposals, targets=None):
            if self.training:
                assert targets is not None
                proposals = self.label_and_sample_proposals(proposals, targets)
            x = self.pooler([features["p2"]], [p.proposal_boxes for p in proposals])
            scores = self.fc(x.flatten(1))
            if self.training:
                gt_classes = torch.cat([p.gt_classes for p in proposals])
                return [], {"loss_mine": nn.functional.cross_entropy(scores, gt_classes)}
            results = []
            for p, own in zip(proposals, scores.softmax(1).split([len(p) for p in proposals])):
                best, classes = own[:, :-1].max(1)
                found = Instances(p.image_size)
                found.pred_boxes, found.scores, found.pred_classes = p.proposal_boxes, best, classes
                results.append(found)
            return results, {}

    cfg = make_config()
    cfg.MODEL.ROI_HEADS.NAME = registered(ROI_HEADS_REGISTRY, FromScratch)
    model = make_model(cfg)
    trained = Trained(model)
    assert trained.losses.keys() == {"loss_mine", "loss_rpn_cls", "loss_rpn_loc"}
    assert trained.losses["loss_mine"] > 0 and trained.grads["roi_heads.fc.weight"].abs().max() > 0
    assert {"roi_head/num_fg_samples", "rpn/num_pos_anchors"} <= trained.measured.keys()
    assert [len(x) > 0 for x in detect(model)] == [True] * 3


# -------------------------------------------------------------------------------------------------------- RPN


def test_labelling_of_anchors_written_for_lists():
    class Generator(RPN):
        @torch.no_grad()
        def label_and_sample_anchors(self, anchors, gt_instances):
            anchors = Boxes.cat(anchors)
            gt_boxes = [x.gt_boxes for x in gt_instances]
            sizes = [x.image_size for x in gt_instances]
            self.calls.append(sizes)
            labels, matched = [], []
            for own in gt_boxes:
                matched_idxs, own_labels = self.anchor_matcher(pairwise_iou(own, anchors))
                labels.append(self._subsample_labels(own_labels.to(own.device)))
                matched.append(torch.zeros_like(anchors.tensor) if len(own) == 0 else own[matched_idxs].tensor)
            return labels, matched

    def change(model):
        becomes(model.proposal_generator, Generator, calls=[])
        return model.proposal_generator.calls

    assert_equivalent(change)


def test_a_subsampling_of_anchors_is_asked_for_each_image():
    class Generator(RPN):
        def _subsample_labels(self, label):
            self.calls.append(label.shape)
            positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
            label.fill_(-1)
            label.scatter_(0, positive, 1)
            label.scatter_(0, negative, 0)
            return label

    def change(model):
        becomes(model.proposal_generator, Generator, calls=[])
        return model.proposal_generator.calls

    assert_equivalent(change)


def test_rpn_losses_written_for_lists():
    class Generator(RPN):
        def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
            self.calls.append(len(gt_labels))
            labels = torch.stack(gt_labels)
            positive = labels == 1
            deltas = torch.cat(pred_anchor_deltas, dim=1)
            wanted = [self.box2box_transform.get_deltas(Boxes.cat(anchors).tensor, own) for own in gt_boxes]
            localization = (deltas[positive] - torch.stack(wanted)[positive]).abs().sum()
            logits = torch.cat(pred_objectness_logits, dim=1)
            valid = labels >= 0
            objectness = nn.functional.binary_cross_entropy_with_logits(
                logits[valid], labels[valid].float(), reduction="sum"
            )
            normalizer = self.batch_size_per_image * len(gt_labels)
            return {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}

    def change(model):
        becomes(model.proposal_generator, Generator, calls=[])
        return model.proposal_generator.calls

    assert_equivalent(change)


def test_proposals_written_for_lists():
    class Generator(RPN):
        def predict_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
            self.calls.append(list(image_sizes))
            with torch.no_grad():
                boxes = [
                    self.box2box_transform.apply_deltas(own, level.tensor.expand(len(own), -1, -1))
                    for level, own in zip(anchors, pred_anchor_deltas)
                ]
                found = find_top_rpn_proposals(
                    boxes, pred_objectness_logits, image_sizes, self.nms_thresh, self.pre_nms_topk[self.training],
                    self.post_nms_topk[self.training], self.min_box_size, self.training,
                )  # fmt: skip
            return [own[:] for own in found]

    def change(model):
        becomes(model.proposal_generator, Generator, calls=[])
        return model.proposal_generator.calls

    assert assert_equivalent(change, masks=True) == [list(SIZES)]


def test_an_rpn_head_of_the_users_own(registered):
    class TwoConvs(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.hidden = nn.Conv2d(input_shape[0].channels, 8, 3, padding=1)
            self.scores, self.offsets = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 12, 1)

        def forward(self, features):
            hidden = [self.hidden(x).relu() for x in features]
            return [self.scores(x) for x in hidden], [self.offsets(x) for x in hidden]

    cfg = make_config()
    cfg.MODEL.RPN.HEAD_NAME = registered(RPN_HEAD_REGISTRY, TwoConvs)
    model = make_model(cfg)
    trained = Trained(model)
    assert_sound(trained)
    assert trained.grads["proposal_generator.rpn_head.scores.weight"].abs().max() > 0
    assert sum(len(x) for x in detect(model)) > 0


def test_a_proposal_generator_that_gives_a_plain_list(registered):
    class Grid(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, images, features, gt_instances=None):
            proposals = []
            for height, width in images.image_sizes:
                low = torch.cartesian_prod(torch.arange(0.0, width - 20, 12), torch.arange(0.0, height - 20, 12))
                boxes = Boxes(torch.cat((low, low + 20), dim=1))
                scores = torch.zeros(len(boxes)) + self.bias.detach()
                proposals.append(Instances((height, width), proposal_boxes=boxes, objectness_logits=scores))
            return proposals, {"loss_bias": self.bias.square()} if self.training else {}

    cfg = make_config(masks=True)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = registered(PROPOSAL_GENERATOR_REGISTRY, Grid)
    cfg.VIS_PERIOD = 1
    model = make_model(cfg)
    trained = Trained(model)
    assert_sound(trained)
    assert "loss_bias" in trained.losses and trained.losses["loss_mask"] > 0
    assert {"roi_head/num_fg_samples", "fast_rcnn/cls_accuracy", "mask_rcnn/accuracy"} <= trained.measured.keys()
    with EventStorage(0) as storage:
        model(make_inputs())
        assert len(storage._vis_data) == 2  # the boxes, and the masks that the head learns from
    assert all(len(x) > 0 for x in detect(model))


# -------------------------------------------------------------------------------------------------- predictors


class LossesOverLists(FastRCNNOutputLayers):
    def losses(self, predictions, proposals):
        self.calls.append("losses")
        scores, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals], dim=0)
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        gt_boxes = torch.cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        assert len(scores) == len(gt_classes)
        return {
            "loss_cls": nn.functional.cross_entropy(scores, gt_classes, reduction="mean"),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }


class CallsItsParentsLosses(FastRCNNOutputLayers):
    def losses(self, predictions, proposals):
        self.calls.append("losses")
        assert len(predictions[0]) == sum(len(p) for p in proposals)
        return super().losses(predictions, proposals)


class BoxLossOfRows(FastRCNNOutputLayers):
    def box_reg_loss(self, proposal_boxes, gt_boxes, pred_deltas, gt_classes):
        self.calls.append("box_reg_loss")
        objects = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero().squeeze(1)
        deltas = pred_deltas.view(-1, self.num_classes, 4)[objects, gt_classes[objects]]
        total = box_regression_loss(
            self.box2box_transform, "smooth_l1", pred_deltas=deltas,
            src_boxes=proposal_boxes[objects], target_boxes=gt_boxes[objects],
        )  # fmt: skip
        return total / max(gt_classes.numel(), 1.0)


class InferenceOverLists(FastRCNNOutputLayers):
    def inference(self, predictions, proposals):
        self.calls.append("inference")
        boxes, scores = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
        sizes = [x.image_size for x in proposals]
        return fast_rcnn_inference(
            boxes, scores, sizes, self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
        )


class CallsItsParentsInference(FastRCNNOutputLayers):
    def inference(self, predictions, proposals):
        self.calls.append("inference")
        found, kept = super().inference(predictions, proposals)
        assert len(torch.cat(kept)) == sum(len(x) for x in found)
        probs = self.predict_probs(predictions, proposals)
        for own, rows, own_probs in zip(found, kept, probs):
            own.scores = own_probs[rows, own.pred_classes]
        return found, kept


class ProbabilitiesOfRows(FastRCNNOutputLayers):
    def predict_probs(self, predictions, proposals):
        self.calls.append("predict_probs")
        return nn.functional.softmax(predictions[0], dim=-1).split([len(p) for p in proposals], dim=0)


class BoxesOfRows(FastRCNNOutputLayers):
    def predict_boxes(self, predictions, proposals):
        self.calls.append("predict_boxes")
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        return self.box2box_transform.apply_deltas(predictions[1], boxes).split([len(p) for p in proposals])


OWN_STATISTICS = ("fast_rcnn/cls_accuracy", "fast_rcnn/fg_cls_accuracy", "fast_rcnn/false_negative")


@pytest.mark.parametrize(
    ("kind", "missing"), [(LossesOverLists, OWN_STATISTICS), (CallsItsParentsLosses, ()), (BoxLossOfRows, ())]
)
def test_losses_of_a_predictor_of_the_users_own(kind, missing):
    def change(model):
        becomes(model.roi_heads.box_predictor, kind, calls=[])
        return model.roi_heads.box_predictor.calls

    assert assert_equivalent(change, missing, masks=True) == []


@pytest.mark.parametrize("kind", [InferenceOverLists, CallsItsParentsInference, ProbabilitiesOfRows, BoxesOfRows])
def test_detections_of_a_predictor_of_the_users_own(kind):
    def change(model):
        becomes(model.roi_heads.box_predictor, kind, calls=[])
        return model.roi_heads.box_predictor.calls

    assert len(assert_equivalent(change, train=False, masks=True, keypoints=True)) == 1


def test_a_predictor_that_moves_boxes_in_its_own_way_is_asked_where_masks_are_trained_in_them():
    class Predictor(FastRCNNOutputLayers):
        def predict_boxes_for_gt_classes(self, predictions, proposals):
            self.calls.append("predict_boxes_for_gt_classes")
            boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
            classes = torch.cat([p.gt_classes for p in proposals]).clamp(max=self.num_classes - 1)
            decoded = self.box2box_transform.apply_deltas(predictions[1], boxes).view(len(boxes), -1, 4)
            return decoded[torch.arange(len(boxes)), classes].split([len(p) for p in proposals])

    cfg = make_config(masks=True)
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    model = make_model(cfg)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.3)
    nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
    plain = Trained(model)
    becomes(model.roi_heads.box_predictor, Predictor, calls=[])
    assert_same_training(Trained(model), plain)
    assert model.roi_heads.box_predictor.calls == ["predict_boxes_for_gt_classes"]


def test_a_draw_of_classes_for_the_federated_loss():
    class EveryClass(FastRCNNOutputLayers):
        def get_fed_loss_classes(self, gt_classes, num_fed_loss_classes, num_classes, weight):
            self.calls.append(gt_classes)
            return torch.arange(num_classes)

    model = make_model()
    model.roi_heads.box_predictor.use_sigmoid_ce = True
    whole = Trained(model)
    becomes(model.roi_heads.box_predictor, EveryClass, calls=[], use_fed_loss=True)
    model.roi_heads.box_predictor.register_buffer("fed_loss_cls_weights", torch.ones(3))
    assert_same_training(Trained(model), whole)
    seen = model.roi_heads.box_predictor.calls[0]
    total = float(whole.measured["roi_head/num_fg_samples"] + whole.measured["roi_head/num_bg_samples"]) * 3
    assert len(seen) == round(total) and seen.min() >= 0


# ------------------------------------------------------------------------------------------- mask heads, poolers


def test_a_mask_head_of_which_only_the_layers_are_new():
    class Head(MaskRCNNConvUpsampleHead):
        def layers(self, x):
            self.calls.append(len(x))
            return super().layers(x)

    def change(model):
        becomes(model.roi_heads.mask_head, Head)
        nn.Module.__setattr__(model.roi_heads.mask_head, "calls", [])
        return model.roi_heads.mask_head.calls

    assert len(assert_equivalent(change, masks=True)) == 1


def test_a_mask_head_that_is_a_module_of_its_own(registered):
    class Head(nn.Module):
        def __init__(self, cfg, input_shape: ShapeSpec):
            super().__init__()
            self.predictor = nn.ConvTranspose2d(input_shape.channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 2, stride=2)
            self.calls = []

        def forward(self, x, instances):
            self.calls.append([len(own) for own in instances])
            assert len(x) == sum(self.calls[-1])
            logits = self.predictor(x)
            if self.training:
                return {"loss_mask": mask_rcnn_loss(logits, instances)}
            mask_rcnn_inference(logits, instances)
            return instances

    cfg = make_config(masks=True, keypoints=True)
    cfg.MODEL.ROI_MASK_HEAD.NAME = registered(ROI_MASK_HEAD_REGISTRY, Head)
    model = make_model(cfg)
    trained = Trained(model)
    assert_sound(trained)
    assert trained.losses["loss_mask"] > 0 and "mask_rcnn/accuracy" in trained.measured
    found = detect(model)
    counts = model.roi_heads.mask_head.calls
    assert counts[0][1] == 0 and min(counts[0][0], counts[0][2]) > 0 and counts[1] == [len(own) for own in found]
    assert all(own.has("pred_masks") and own.has("pred_keypoints") for own in found)


def test_a_keypoint_head_that_is_a_module_of_its_own():
    class Head(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.network, self.calls = layers, []

        def forward(self, x, instances):
            self.calls.append(len(x))
            logits = self.network.layers(x)
            if self.training:
                return {"loss_keypoint": keypoint_rcnn_loss(logits, instances, len(instances) * 320.0)}
            keypoint_rcnn_inference(logits, instances)
            return instances

    model = make_model(masks=True, keypoints=True)
    model.roi_heads.keypoint_head.loss_normalizer = 320.0
    plain, plain_found = Trained(model), detect(model)
    model.roi_heads.keypoint_head = head = Head(model.roi_heads.keypoint_head)
    trained = Trained(model)
    assert trained.losses["loss_keypoint"].item() == pytest.approx(plain.losses["loss_keypoint"].item(), rel=1e-4)
    assert trained.measured.keys() == plain.measured.keys()
    assert_same_detections(detect(model), plain_found)
    assert len(head.calls) == 2 and head.calls[1] == sum(len(x) for x in plain_found)


@pytest.mark.parametrize("name", ["box_pooler", "mask_pooler", "keypoint_pooler"])
def test_a_pooler_that_takes_lists_of_boxes(name):
    class Pooler(nn.Module):
        def __init__(self, whole):
            super().__init__()
            self.whole, self.calls = whole, []

        def forward(self, x, box_lists):
            assert all(type(own) is Boxes for own in box_lists)
            self.calls.append(len(box_lists))
            return self.whole(x, box_lists)

    def change(model):
        pooler = Pooler(getattr(model.roi_heads, name))
        setattr(model.roi_heads, name, pooler)
        return pooler.calls

    assert assert_equivalent(change, masks=True, keypoints=True) == [3]


# ------------------------------------------------------------------------------------------- meta-architectures


def test_a_model_with_an_inference_of_its_own():
    class Model(GeneralizedRCNN):
        def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
            self.calls.append(len(batched_inputs))
            images = self.preprocess_image(batched_inputs)
            features = self.backbone(images.tensor)
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
            if not do_postprocess:
                return results
            return self._postprocess(results, batched_inputs, images.image_sizes)

    def change(model):
        becomes(model, Model, calls=[])
        return model.calls

    assert assert_equivalent(change, train=False, masks=True) == [3]


def test_postprocessing_is_a_static_method_that_takes_plain_lists():
    size = (20, 30)
    found = Instances(size, pred_boxes=Boxes(torch.tensor([[1.0, 2, 3, 4]])), scores=torch.ones(1))
    result = GeneralizedRCNN._postprocess([found], [{"height": 40, "width": 60}], [size])
    assert result[0]["instances"].pred_boxes.tensor.tolist() == [[2, 4, 6, 8]]


def test_a_model_with_images_prepared_in_its_own_way(registered):
    class Model(GeneralizedRCNN):
        def preprocess_image(self, batched_inputs):
            images = [(x["image"].float() - self.pixel_mean) / self.pixel_std for x in batched_inputs]
            self.num_prepared = len(images)
            return ImageList.from_tensors(images, self.backbone.size_divisibility)

    cfg = make_config(masks=True)
    plain = make_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = registered(META_ARCH_REGISTRY, Model)
    model = make_model(cfg)
    assert_same_training(Trained(model), Trained(plain))
    assert_same_detections(detect(model), detect(plain))
    assert model.num_prepared == 3


def test_a_training_step_of_the_users_own():
    class Model(GeneralizedRCNN):
        def forward(self, batched_inputs):
            if not self.training:
                return self.inference(batched_inputs)
            images = self.preprocess_image(batched_inputs)
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            features = self.backbone(images.tensor)
            proposals, proposal_losses = self.proposal_generator(images, features, gt_instances)
            _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
            return {**detector_losses, **proposal_losses}

    model = make_model(masks=True, keypoints=True)
    plain = Trained(model)
    becomes(model, Model)
    assert_same_training(Trained(model), plain, but=plain.measured)


# ---------------------------------------------------------------------------------------------------- C4 heads


def make_c4_config():
    cfg = all_are_drawn(tiny_c4_config())
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg


@pytest.mark.parametrize("norm", ["", "BN"])
def test_a_shared_transform_of_c4_heads_written_for_lists(norm):
    class Heads(Res5ROIHeads):
        def _shared_roi_transform(self, features, boxes):
            assert all(type(own) is Boxes for own in boxes)
            self.calls.append(len(boxes))
            return self.res5(self.pooler(features, boxes))

    cfg = make_c4_config()
    cfg.MODEL.RESNETS.NORM = norm
    model = make_model(cfg)
    for module in model.modules():  # running statistics must be the same in all trainings
        module.momentum = 0.0
    plain, plain_found = Trained(model), detect(model)
    assert {"loss_cls", "loss_mask"} <= plain.losses.keys() and "mask_rcnn/accuracy" in plain.measured
    becomes(model.roi_heads, Heads, calls=[])
    assert_same_training(Trained(model), plain)
    assert_same_detections(detect(model), plain_found)
    assert model.roi_heads.calls == [3, 3, 3]  # boxes in training; boxes and masks in inference


def test_c4_heads_with_a_forward_of_the_users_own():
    class Heads(Res5ROIHeads):
        def forward(self, images, features, proposals, targets=None):
            self.calls.append(len(proposals))
            if self.training:
                proposals = self.label_and_sample_proposals(proposals, targets)
            boxes = [x.proposal_boxes for x in proposals]
            box_features = self._shared_roi_transform([features[f] for f in self.in_features], boxes)
            predictions = self.box_predictor(box_features.mean(dim=[2, 3]))
            if not self.training:
                found, _ = self.box_predictor.inference(predictions, proposals)
                return self.forward_with_given_boxes(features, found), {}
            losses = self.box_predictor.losses(predictions, proposals)
            objects, chosen = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(box_features[torch.cat(chosen, dim=0)], objects))
            return [], losses

    cfg = make_c4_config()
    cfg.MODEL.RESNETS.NORM = ""
    model = make_model(cfg)
    plain, plain_found = Trained(model), detect(model)
    becomes(model.roi_heads, Heads, calls=[])
    assert_same_training(Trained(model), plain, OWN_STATISTICS)
    assert_same_detections(detect(model), plain_found)
    assert model.roi_heads.calls == [3, 3]


def test_a_transform_of_boxes_of_the_users_own_is_used_in_losses_and_detections():
    class Halved(Box2BoxTransform):
        def get_deltas(self, src_boxes, target_boxes):
            return super().get_deltas(src_boxes, target_boxes) / 2

        def apply_deltas(self, deltas, boxes):
            return super().apply_deltas(deltas * 2, boxes)

    model = make_model()
    model.roi_heads.box_predictor.box2box_transform = Halved((10.0, 10.0, 5.0, 5.0))
    expected = make_model()
    expected.roi_heads.box_predictor.box2box_transform = Box2BoxTransform((5.0, 5.0, 2.5, 2.5))
    assert_same_training(Trained(model), Trained(expected))
    assert_same_detections(detect(model), detect(expected))
