import pytest
import torch
from torch import nn

from detlab.modeling import ROI_MASK_HEAD_REGISTRY, build_model
from detlab.modeling.roi_heads import select_foreground_proposals
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.object_batch import as_batch, padded
from tests.modeling.tiny import tiny_batch, tiny_config


@pytest.fixture
def register():
    names = []

    def add(kind):
        ROI_MASK_HEAD_REGISTRY.register(kind)
        names.append(kind.__name__)
        return kind.__name__

    yield add
    for name in names:
        ROI_MASK_HEAD_REGISTRY._obj_map.pop(name)


class MapsHead(nn.Module):
    """Has no pooler: it sees the maps by name, and looks up what it wants."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.shapes = input_shape
        self.layer = nn.Linear(input_shape["p2"].channels, 1)

    def forward(self, maps, instances):
        assert {name: x.shape[1] for name, x in maps.items()} == {n: s.channels for n, s in self.shapes.items()}
        logits = [self.layer(own.mean(dim=(1, 2))).expand(len(x), 1, 1, 1) for own, x in zip(maps["p2"], instances)]
        if self.training:
            return {"loss_mask": sum(own.square().sum() for own in logits)}
        for own, x in zip(logits, instances):
            x.pred_masks = own.sigmoid()
        return instances


class PaddedMapsHead(MapsHead):
    @padded
    def forward(self, maps, instances):
        return super().forward(maps, instances)


@pytest.mark.parametrize("kind", [MapsHead, PaddedMapsHead])
def test_a_head_without_a_pooler_sees_the_maps(kind, register):
    cfg = tiny_config(masks=True, keypoints=True)
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    cfg.MODEL.ROI_MASK_HEAD.NAME = register(kind)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    assert model.roi_heads.mask_pooler is None and {*model.roi_heads.mask_head.shapes} == {"p2", "p3"}
    losses = model(tiny_batch())
    sum(losses.values()).backward()
    assert losses["loss_mask"] > 0 and model.roi_heads.mask_head.layer.weight.grad.abs().max() > 0
    with torch.no_grad():
        found = model.eval()(tiny_batch())
    assert all(len(x["instances"]) > 0 and x["instances"].has("pred_masks") for x in found)
    assert all(x["instances"].has("pred_keypoints") for x in found)


def test_a_box_head_without_a_pooler_is_refused_in_words():
    cfg = tiny_config()
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = ""
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.POOLER_TYPE is empty"):
        build_model(cfg)


def test_foreground_proposals_come_with_the_masks_that_chose_them():
    classes = [torch.tensor([3, 0, -1, 2]), torch.tensor([3, 3]), torch.empty(0, dtype=torch.int64)]
    proposals = [Instances((9, 9), proposal_boxes=Boxes(torch.rand(len(k), 4)), gt_classes=k) for k in classes]
    for given in (proposals, as_batch(proposals)):
        objects, masks = select_foreground_proposals(given, bg_label=3)
        assert torch.cat(masks).tolist() == [False, True, False, True, False, False]
        assert [x.gt_classes.tolist() for x in objects] == [[0, 2], [], []]


def make_heads(**settings):
    cfg = tiny_config()
    for name, value in settings.items():
        cfg.MODEL.ROI_HEADS[name] = value
    return build_model(cfg).roi_heads


def make_proposals_and_targets():
    """The first image has an object on which one proposal lies, the second has none."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [1, 1, 10, 10], [70, 0, 80, 9]])
    proposals = [
        Instances((90, 90), proposal_boxes=Boxes(own), objectness_logits=torch.zeros(len(own)))
        for own in (boxes, boxes[:2])
    ]
    truth = Instances((90, 90), gt_boxes=Boxes(boxes[:1]), gt_classes=torch.tensor([2]), gt_names=["thing"])
    return proposals, [truth, truth[:0]]


def test_sampled_proposals_have_the_fields_of_their_objects():
    proposals, targets = make_proposals_and_targets()
    heads = make_heads(POSITIVE_FRACTION=1.0)
    first, second = heads.label_and_sample_proposals(proposals, targets)
    assert first.gt_classes.tolist() == [2, 2, 2, 3, 3] and first.gt_names == ["thing"] * 5
    assert sorted(first.proposal_boxes.tensor[:3, 0].tolist()) == [0, 0, 1]
    assert second.gt_classes.tolist() == [3, 3] and not second.has("gt_boxes") and not second.has("gt_names")
    assert [x.gt_names for x in targets] == [["thing"], []]


def test_proposals_without_the_ground_truth_among_them():
    proposals, targets = make_proposals_and_targets()
    heads = make_heads(PROPOSAL_APPEND_GT=False, POSITIVE_FRACTION=0.25, BATCH_SIZE_PER_IMAGE=4)
    first, second = heads.label_and_sample_proposals(proposals, targets)
    assert first.gt_classes.tolist() == [2, 3, 3] and second.gt_classes.tolist() == [3, 3]
