import copy
from functools import partial

import pytest
import torch

from detlab.modeling import build_model, loss_normalizer
from detlab.modeling.meta_arch import rcnn
from detlab.modeling.meta_arch.image_model import ground_truth_of
from detlab.modeling.meta_arch.rcnn import GeneralizedRCNN
from detlab.modeling.roi_heads.roi_heads import StandardROIHeads
from detlab.structures.image_list import ImageList
from detlab.utils.events import EventStorage
from tests.modeling.tiny import tiny_batch, tiny_c4_config, tiny_config

SIZES, NUM_OBJECTS = ((64, 96), (80, 64), (64, 64)), (2, 0, 3)


def make_model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def by_visible_keypoints(cfg):
    cfg.MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = True
    return cfg


def by_each_class(cfg):
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    return cfg


@pytest.mark.parametrize(
    "make_config",
    [
        tiny_config,
        tiny_c4_config,
        lambda: tiny_config(masks=True),
        lambda: by_visible_keypoints(tiny_config(masks=True, keypoints=True)),
        lambda: by_each_class(tiny_config()),
    ],
)
@pytest.mark.parametrize("num_objects", [NUM_OBJECTS, (0, 0, 0)])
def test_a_step_exchanges_what_losses_are_divided_by_once(make_config, num_objects, monkeypatch):
    sent = []

    def exchange(count):
        sent.append(count.numel())
        return count

    cfg = make_config()
    monkeypatch.setattr(loss_normalizer, "all_reduce_mean", exchange)
    inputs = tiny_batch(SIZES, num_objects)
    if num_objects == (0, 0, 0):  # as a mapper leaves images that have no annotations
        for item in inputs:
            item["instances"].remove("gt_masks")
            item["instances"].remove("gt_keypoints")
    make_model(cfg).train()(inputs)
    assert sent == [3 if cfg.MODEL.KEYPOINT_ON else 2]


class Watched(EventStorage):
    """Remembers each scalar that is put, in order."""

    def __init__(self):
        super().__init__(0)
        self.put = []

    def put_scalar(self, name, value, *args, **kwargs):
        self.put.append((name, float(value)))
        super().put_scalar(name, value, *args, **kwargs)


class Seen:
    """What the heads of a model get and give in a training step."""

    def __init__(self, model):
        heads = model.roi_heads
        self.logits = self.sampled = self.mask_logits = self.anchor_labels = None
        label_anchors = model.proposal_generator.label_and_sample_anchors
        label_proposals, predict, layers = (
            heads.label_and_sample_proposals, heads.box_predictor.forward, heads.mask_head.layers,
        )  # fmt: skip

        def watch(name, function, choose):
            def watched(*args):
                result = function(*args)
                setattr(self, name, choose(result))
                return result

            return watched

        model.proposal_generator.label_and_sample_anchors = watch("anchor_labels", label_anchors, lambda x: x[0])
        heads.label_and_sample_proposals = watch("sampled", label_proposals, lambda x: x.where(x.valid))
        heads.box_predictor.forward = watch("logits", predict, lambda x: x[0].detach())
        heads.mask_head.layers = watch("mask_logits", layers, lambda x: x.detach())
        for function in (label_anchors, label_proposals):  # the stand-ins take padded batches as these do
            assert function._takes_padded
        model.proposal_generator.label_and_sample_anchors._takes_padded = True
        heads.label_and_sample_proposals._takes_padded = True


def test_statistics_are_logged_once_a_step_with_their_right_values():
    cfg = tiny_config(masks=True, keypoints=True)
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.3]
    model = make_model(cfg).train()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight)
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
    seen, storage = Seen(model), Watched()
    with storage:
        model(tiny_batch(SIZES, NUM_OBJECTS))
    measured = dict(storage.put)
    assert len(measured) == len(storage.put)
    sampled = list(seen.sampled)
    classes, predicted = torch.cat([x.gt_classes for x in sampled]).tolist(), seen.logits.argmax(1).tolist()
    assert len(classes) == len(predicted)
    objects = [i for i, k in enumerate(classes) if k < 3]
    visible = 0
    targets = []
    for own in sampled:
        chosen = own[own.gt_classes < 3]
        if len(chosen) == 0:
            continue
        targets.append(chosen.gt_masks.crop_and_resize(chosen.proposal_boxes.tensor, 14))
        for box, points in zip(chosen.proposal_boxes.tensor, chosen.gt_keypoints.tensor):
            x1, y1, x2, y2 = box.tolist()
            visible += any(x1 <= x <= x2 and y1 <= y <= y2 and v >= 1 for x, y, v in points.tolist())
    mask_targets = torch.cat(targets)
    mask_predicted = torch.stack([own[classes[i]] for own, i in zip(seen.mask_logits, objects)]) > 0
    labels = torch.stack(list(seen.anchor_labels))
    expected = {
        "rpn/num_pos_anchors": (labels == 1).sum().item() / 3,
        "rpn/num_neg_anchors": (labels == 0).sum().item() / 3,
        "roi_head/num_fg_samples": len(objects) / 3,
        "roi_head/num_bg_samples": (len(classes) - len(objects)) / 3,
        "fast_rcnn/cls_accuracy": sum(p == k for p, k in zip(predicted, classes)) / len(classes),
        "fast_rcnn/fg_cls_accuracy": sum(predicted[i] == classes[i] for i in objects) / len(objects),
        "fast_rcnn/false_negative": sum(predicted[i] == 3 for i in objects) / len(objects),
        "mask_rcnn/accuracy": (mask_predicted == mask_targets).float().mean().item(),
        "mask_rcnn/false_positive": mask_predicted[~mask_targets].float().mean().item(),
        "mask_rcnn/false_negative": (~mask_predicted)[mask_targets].float().mean().item(),
        "keypoint_head/num_fg_samples": visible / 3,
        "kpts_num_skipped_batches": 0.0,
    }
    assert measured.keys() == expected.keys()
    assert len(objects) > 5 and visible > 0
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=1e-5), name


def test_a_proposal_network_logs_its_statistics_once():
    storage = Watched()
    with storage:
        make_model(tiny_config("ProposalNetwork")).train()(tiny_batch(SIZES, NUM_OBJECTS))
    assert [name for name, _ in storage.put] == ["rpn/num_pos_anchors", "rpn/num_neg_anchors"]


def test_a_tensor_core_in_half_precision_is_close_to_one_in_single():
    model = make_model(tiny_config(masks=True)).eval()
    images, sizes = torch.rand(2, 3, 64, 96) * 255, torch.tensor([[64.0, 96.0], [50.0, 70.0]])
    with torch.no_grad():
        expected = model.tensor_core(images, sizes)
        got = model.half().tensor_core(images.half(), sizes)
    assert (got.counts > 0).all() and all(x.isfinite().all() for x in got if x is not None)
    assert (got.boxes[1, :, 2] <= 70).all() and (got.boxes[1, :, 3] <= 50).all()
    assert (got.scores[:, 0] - expected.scores[:, 0]).abs().max() < 0.02


COMPILED = [
    pytest.param({}, id="boxes", marks=pytest.mark.slow),  # the others have all of its stages
    pytest.param({"masks": True}, id="masks", marks=pytest.mark.slow),
    pytest.param({"keypoints": True}, id="keypoints", marks=pytest.mark.slow),
    pytest.param({"masks": True, "keypoints": True}, id="all"),
]


@pytest.mark.parametrize("parts", COMPILED)
def test_a_training_step_compiles_whole_and_gives_the_losses_and_gradients_of_the_eager_one(parts):
    model = make_model(tiny_config(**parts)).train()
    inputs = tiny_batch(((64, 96), (64, 96)), (2, 3))
    prepared, targets = model.preprocess_image(inputs), ground_truth_of(inputs, model.device)
    images = ImageList(prepared.tensor, torch.tensor(prepared.image_sizes).float())
    targets.image_sizes, targets.counts = images.image_sizes, None

    def step(images, targets):
        found = model.compute_losses(images, targets)
        return found.losses, found.measured

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        losses, measured = function(images, targets)
        sum(losses.values()).backward()
        results.append((losses, measured, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
        model.zero_grad()
    (losses, measured, grads), (compiled, compiled_measured, compiled_grads) = results
    assert losses.keys() == compiled.keys() and measured.keys() == compiled_measured.keys()
    for name, loss in losses.items():
        assert compiled[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    for name, value in measured.items():
        assert float(compiled_measured[name]) == pytest.approx(float(value), rel=1e-5), name
    largest = max(grad.abs().max().item() for grad in grads.values())
    for name, grad in grads.items():
        # What a softmax does not depend on has a gradient of rounding errors.
        assert torch.allclose(compiled_grads[name], grad, rtol=1e-3, atol=1e-6 * largest), name


def test_a_model_that_compiles_its_training_trains_as_one_that_does_not(monkeypatch):
    """By the config; with a backend that compiles nothing, for the graph is what matters here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    rcnn._compiled_losses.cache_clear()
    losses = []
    for compiles in (False, True):
        cfg = tiny_config()
        cfg.MODEL.COMPILE = compiles
        model = make_model(cfg).train()
        torch.manual_seed(3)
        losses.append(model(tiny_batch()))
    rcnn._compiled_losses.cache_clear()
    assert all(torch.allclose(losses[1][name], value, atol=1e-5) for name, value in losses[0].items())


def test_a_copy_of_a_compiling_model_trains_itself():
    cfg = tiny_config()
    cfg.MODEL.COMPILE = True
    model = build_model(cfg).train()
    assert copy.deepcopy(model).compile_training and "compute_losses" not in vars(model)


def test_a_part_that_cannot_be_compiled_is_refused_when_the_model_is_built():
    class OwnHeads(StandardROIHeads):
        def _forward_box(self, features, proposals):
            return super()._forward_box(features, proposals)

    cfg = tiny_config()
    parts = GeneralizedRCNN.from_config(cfg)
    parts["roi_heads"].__class__ = OwnHeads
    with pytest.raises(TypeError, match=r"OwnHeads\._forward_box"):
        GeneralizedRCNN(**{**parts, "compile_training": True})


@pytest.mark.parametrize("name", ["gt_boxes", "gt_classes", "gt_masks", "gt_keypoints"])
def test_objects_without_a_field_that_those_of_other_images_have_are_refused_by_image_and_field(name):
    model = make_model(tiny_config(masks=True, keypoints=True)).train()
    inputs = tiny_batch(SIZES, (2, 1, 3))
    inputs[1]["instances"].remove(name)
    with pytest.raises(ValueError, match=f"image 1 of the batch has objects without the field '{name}'"):
        model(inputs)


def test_an_image_without_objects_may_lack_every_field():
    model = make_model(tiny_config(masks=True, keypoints=True)).train()
    inputs = tiny_batch(SIZES, (2, 0, 3))
    torch.manual_seed(1)
    expected = model(inputs)
    for name in list(inputs[1]["instances"].get_fields()):
        inputs[1]["instances"].remove(name)
    torch.manual_seed(1)
    assert all(torch.equal(value, expected[name]) for name, value in model(inputs).items())


def test_images_and_labels_of_any_type_are_those_of_the_models():
    model = make_model(tiny_config()).train()
    losses = []
    for convert in (False, True):
        inputs = tiny_batch(SIZES, (2, 1, 3))
        if convert:
            inputs = [{**item, "image": item["image"].double()} for item in inputs]
            inputs[1]["instances"].gt_classes = inputs[1]["instances"].gt_classes.int()
        torch.manual_seed(1)
        losses.append(model(inputs))
    assert all(torch.allclose(value, losses[1][name]) for name, value in losses[0].items())
