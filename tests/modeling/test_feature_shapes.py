"""Maps that are asked for and not there are named, by every part that asks for some."""

import pytest

from detlab.config import get_cfg
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.backbone.build import build_backbone
from detlab.modeling.feature_shapes import select_features
from detlab.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detlab.modeling.proposal_generator.build import build_proposal_generator
from detlab.modeling.roi_heads.roi_heads import build_roi_heads

SHAPES = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 5)}


def test_maps_come_in_the_order_asked_for():
    assert list(select_features(SHAPES, ["p4", "p2"], "KEY")) == ["p4", "p2"]


def test_maps_that_are_not_there_are_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"^KEY names 'p9', 'p8', which the neck does not give; it gives p2, p3, p4$"):
        select_features(SHAPES, ["p2", "p9", "p8"], "KEY", "the neck")
    with pytest.raises(ValueError, match=r"^KEY is empty; the backbone gives p2, p3, p4$"):
        select_features(SHAPES, [], "KEY")


@pytest.mark.parametrize(
    "section, build",
    [
        ("RPN", build_proposal_generator),
        ("ROI_HEADS", build_roi_heads),
        ("SEM_SEG_HEAD", build_sem_seg_head),
        ("FPN", lambda cfg, shapes: build_backbone(cfg)),
    ],
)
def test_every_part_names_the_key_that_asks_for_a_missing_map(section, build):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL[section].IN_FEATURES = ["p9"]
    with pytest.raises(ValueError, match=rf"MODEL\.{section}\.IN_FEATURES names 'p9', which the .* gives"):
        build(cfg, SHAPES)


def test_the_pyramid_of_retinanet_names_the_stage_that_its_top_needs():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    with pytest.raises(
        ValueError, match=r"names 'res5', which .*RESNETS\.OUT_FEATURES\) does not give; it gives res3, res4"
    ):
        build_backbone(cfg)
