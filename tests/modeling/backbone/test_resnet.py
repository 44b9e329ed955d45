import pytest
import torch

from detlab.config import get_cfg
from detlab.layers.batch_norm import FrozenBatchNorm2d
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.backbone.build import build_backbone
from detlab.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet


def small_config(**resnets):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    for name, value in resnets.items():
        cfg.MODEL.RESNETS[name] = value
    return cfg


@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        ({"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN"}, 512),
        ({"DEPTH": 50, "RES2_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 32, "NORM": "GN", "STEM_OUT_CHANNELS": 32}, 512),
        ({"DEPTH": 50, "RES2_OUT_CHANNELS": 32, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False}, 256),
    ],
)
def test_maps_have_the_promised_shapes(settings, channels):
    backbone = build_backbone(small_config(**settings))
    shapes = backbone.output_shape()
    outputs = backbone(torch.randn(2, 3, 64, 96))
    assert shapes["res5"] == ShapeSpec(channels=channels, stride=32)
    for name, shape in shapes.items():
        assert outputs[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_dilation_keeps_the_resolution_of_res5():
    backbone = build_backbone(small_config(RES5_DILATION=2, RES2_OUT_CHANNELS=32, WIDTH_PER_GROUP=8))
    assert backbone.output_shape()["res5"].stride == 16
    assert backbone(torch.randn(1, 3, 64, 64))["res5"].shape[-1] == 4


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_stages_start_as_ordinary_convolutions(modulated):
    settings = {"RES2_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 8, "DEFORM_MODULATED": modulated}
    deformable = build_backbone(small_config(DEFORM_ON_PER_STAGE=[False, True, True, True], **settings)).eval()
    plain = build_backbone(small_config(**settings)).eval()
    missing = plain.load_state_dict(deformable.state_dict(), strict=False)
    assert not missing.missing_keys
    x = torch.randn(1, 3, 64, 64)
    if modulated:  # every sample's weight starts at sigmoid(0) = 1 / 2
        for name, module in deformable.named_modules():
            if name.endswith("conv2") and hasattr(module, "deformable_groups"):
                module.weight.data *= 2
    assert torch.allclose(deformable(x)["res5"], plain(x)["res5"], atol=1e-4)


def test_freezing_stops_gradients_up_to_the_stage_named():
    cfg = small_config(DEPTH=18, RES2_OUT_CHANNELS=64, NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg)
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    free = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert frozen <= {"stem", "res2"} and free == {"res3", "res4", "res5"}
    assert isinstance(backbone.stem.conv1.norm, FrozenBatchNorm2d)
    assert not isinstance(backbone.res3[0].conv1.norm, FrozenBatchNorm2d)


def test_a_classifier_sits_on_the_average_of_the_last_stage():
    net = ResNet(BasicStem(3, 64), ResNet.make_default_stages(18, norm="BN"), num_classes=10)
    assert net(torch.randn(2, 3, 64, 64))["linear"].shape == (2, 10)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_default_stages_have_the_depth_they_are_named_after(depth):
    stages = ResNet.make_default_stages(depth, norm="")
    convs = 2 if depth < 50 else 3
    assert 2 + convs * sum(map(len, stages)) == depth


def test_per_block_lists_are_checked():
    with pytest.raises(ValueError, match="1 values for 2 blocks"):
        ResNet.make_stage(BasicBlock, 2, in_channels=8, out_channels=8, stride_per_block=[1])
    with pytest.raises(ValueError, match="not both"):
        ResNet.make_stage(BasicBlock, 1, in_channels=8, out_channels=8, stride=1, stride_per_block=[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"DEPTH": 20}, "depth 20"),
        ({"DEPTH": 18}, "RES2_OUT_CHANNELS 64, got 256"),
        ({"RES5_DILATION": 3}, "must be 1 or 2"),
        ({"OUT_FEATURES": ["res9"]}, "must name some of"),
    ],
)
def test_settings_that_fit_no_network_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        build_backbone(small_config(**settings))
