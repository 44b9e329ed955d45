"""Blobs of Caffe2 and shortened names find their places."""

import pytest
import torch
from torch import nn

from detlab.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
    strip_prefix,
)


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("conv1_w", "stem.conv1.weight"),
        ("conv1_b", "stem.conv1.bias"),
        ("res_conv1_bn_s", "stem.conv1.norm.weight"),
        ("res_conv1_bn_b", "stem.conv1.norm.bias"),
        ("conv1_gn_s", "stem.conv1.norm.weight"),
        ("res2_0_branch2a_w", "res2.0.conv1.weight"),
        ("res2_0_branch2a_bn_s", "res2.0.conv1.norm.weight"),
        ("res4_22_branch2b_bn_b", "res4.22.conv2.norm.bias"),
        ("res5_2_branch2c_bn_rm", "res5.2.conv3.norm.running_mean"),
        ("res5_2_branch2c_bn_riv", "res5.2.conv3.norm.running_var"),
        ("res3_0_branch1_w", "res3.0.shortcut.weight"),
        ("res3_0_branch1_gn_b", "res3.0.shortcut.norm.bias"),
        ("fc1000_w", "linear.weight"),
        ("pred_b", "linear.bias"),
    ],
)
def test_names_of_a_resnets_blobs(blob, name):
    assert convert_basic_c2_names([blob]) == [name]


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("fpn_inner_res5_2_sum_w", "fpn_lateral5.weight"),
        ("fpn_inner_res4_5_sum_lateral_w", "fpn_lateral4.weight"),
        ("fpn_inner_res4_22_sum_lateral_gn_s", "fpn_lateral4.norm.weight"),
        ("fpn_res2_2_sum_b", "fpn_output2.bias"),
        ("fpn_7_w", "top_block.p7.weight"),
        ("conv_rpn_w", "proposal_generator.rpn_head.conv.weight"),
        ("conv_rpn_fpn2_w", "proposal_generator.rpn_head.conv.weight"),
        ("rpn_cls_logits_fpn2_b", "proposal_generator.rpn_head.objectness_logits.bias"),
        ("rpn_bbox_pred_fpn2_w", "proposal_generator.rpn_head.anchor_deltas.weight"),
        ("retnet_cls_conv_n3_fpn3_w", "head.cls_subnet.6.weight"),
        ("retnet_bbox_conv_n0_fpn3_b", "head.bbox_subnet.0.bias"),
        ("retnet_cls_pred_fpn3_w", "head.cls_score.weight"),
        ("retnet_bbox_pred_fpn3_w", "head.bbox_pred.weight"),
        ("fc6_w", "box_head.fc1.weight"),
        ("fc7_b", "box_head.fc2.bias"),
        ("head_conv4_gn_b", "box_head.conv4.norm.bias"),
        ("_[mask]_fcn1_w", "mask_head.mask_fcn1.weight"),
        ("_[mask]_fcn4_gn_s", "mask_head.mask_fcn4.norm.weight"),
        ("conv5_mask_w", "mask_head.deconv.weight"),
        ("conv_fcn8_w", "keypoint_head.conv_fcn8.weight"),
        ("kps_score_lowres_w", "keypoint_head.score_lowres.weight"),
        ("res2_0_branch2a_bn_s", "res2.0.conv1.norm.weight"),
    ],
)
def test_names_of_a_detectors_blobs(blob, name):
    value = torch.ones(5)
    converted, originals = convert_c2_detectron_names({blob: value})
    assert originals == {name: blob}
    assert torch.equal(converted[name], value)


def test_the_background_class_moves_to_where_it_is_expected():
    """3 classes; Detectron's background is class 0."""
    blobs = {
        "cls_score_w": torch.tensor([[0.0], [1.0], [2.0], [3.0]]),
        "cls_score_b": torch.tensor([0.0, 1.0, 2.0, 3.0]),
        "bbox_pred_w": torch.arange(16.0)[:, None],
        "bbox_pred_b": torch.arange(16.0),
        "mask_fcn_logits_w": torch.arange(4.0).view(4, 1, 1, 1),
        "rpn_bbox_pred_fpn2_b": torch.arange(12.0),
        "retnet_cls_pred_fpn3_b": torch.arange(9.0),
        "kps_score_w": torch.ones(3),
    }
    converted, _ = convert_c2_detectron_names(blobs)
    assert converted["box_predictor.cls_score.weight"].flatten().tolist() == [1, 2, 3, 0]
    assert converted["box_predictor.cls_score.bias"].tolist() == [1, 2, 3, 0]
    assert converted["box_predictor.bbox_pred.weight"].flatten().tolist() == list(range(4, 16))
    assert converted["box_predictor.bbox_pred.bias"].tolist() == list(range(4, 16))
    assert converted["mask_head.predictor.weight"].flatten().tolist() == [1, 2, 3]
    assert len(converted["proposal_generator.rpn_head.anchor_deltas.bias"]) == 12
    assert len(converted["head.cls_score.bias"]) == 9
    assert len(converted) == 7


def test_the_longest_end_wins_and_the_rest_keeps_its_name():
    model = {"backbone.bottom_up.res2.0.conv1.weight": torch.zeros(1), "head.conv1.weight": torch.zeros(1)}
    file = {"conv1.weight": torch.ones(1), "0.conv1.weight": torch.full((1,), 2.0), "other": torch.ones(1)}
    aligned = align_and_update_state_dicts(model, file, c2_conversion=False)
    assert aligned["backbone.bottom_up.res2.0.conv1.weight"] == 2 and aligned["head.conv1.weight"] == 1
    assert set(aligned) == {*model, "other"}


def test_a_name_ends_only_at_a_dot():
    model = {"backbone.preconv1.weight": torch.zeros(1)}
    assert set(align_and_update_state_dicts(model, {"conv1.weight": torch.ones(1)}, False)) == {"conv1.weight"}


def test_caffe2_names_are_converted_on_the_way():
    model = {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1), "roi_heads.box_head.fc1.weight": torch.zeros(1)}
    aligned = align_and_update_state_dicts(model, {"conv1_w": torch.ones(1), "fc6_w": torch.ones(1)})
    assert set(aligned) == set(model)


def test_one_weight_for_two_places_is_refused_unless_the_model_shares_it():
    file = {"fc.weight": torch.ones(2, 2)}
    apart = nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(2, 2)}), "b": nn.ModuleDict({"fc": nn.Linear(2, 2)})})
    with pytest.raises(ValueError, match=r"'fc.weight' fits both 'a.fc.weight' and 'b.fc.weight'"):
        align_and_update_state_dicts(apart.state_dict(), file, False)
    fc = nn.Linear(2, 2)
    shared = nn.ModuleDict({"a": nn.ModuleDict({"fc": fc}), "b": nn.ModuleDict({"fc": fc})})
    assert set(align_and_update_state_dicts(shared.state_dict(), file, False)) == {"a.fc.weight", "b.fc.weight"}


@pytest.mark.parametrize("config", ["COCO-InstanceSegmentation__mask_rcnn_R_50_FPN_1x"])
def test_blobs_of_a_whole_mask_rcnn_cover_the_model(shared_dir, config):
    """The blobs that Detectron's Mask R-CNN R50-FPN has, by rule, give every name of the model."""
    import json

    record = json.loads((shared_dir / "compat" / "records" / f"{config}.json").read_text())
    names = record["state"]
    blobs = {"conv1_w", "res_conv1_bn_s", "res_conv1_bn_b", "fc6_w", "fc6_b", "fc7_w", "fc7_b"}
    for stage, num_blocks in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        for block in range(num_blocks):
            for branch in ["branch2a", "branch2b", "branch2c"] + (["branch1"] if block == 0 else []):
                blobs |= {f"res{stage}_{block}_{branch}_{end}" for end in ("w", "bn_s", "bn_b")}
        lateral = "" if stage == 5 else "_lateral"
        for end in ("w", "b"):
            blobs |= {
                f"fpn_inner_res{stage}_{num_blocks - 1}_sum{lateral}_{end}",
                f"fpn_res{stage}_{num_blocks - 1}_sum_{end}",
            }
    for module in (
        "conv_rpn_fpn2",
        "rpn_cls_logits_fpn2",
        "rpn_bbox_pred_fpn2",
        "cls_score",
        "bbox_pred",
        "conv5_mask",
    ):
        blobs |= {f"{module}_w", f"{module}_b"}
    for module in ("_[mask]_fcn1", "_[mask]_fcn2", "_[mask]_fcn3", "_[mask]_fcn4", "mask_fcn_logits"):
        blobs |= {f"{module}_w", f"{module}_b"}
    model = {name: torch.zeros(1) for name in names}
    aligned = align_and_update_state_dicts(model, {blob: torch.zeros(8) for blob in blobs})
    missing = set(model) - {name for name, value in aligned.items() if len(value) != 1}
    assert not set(aligned) - set(model)
    assert {name.rpartition(".")[2] for name in missing} <= {
        "running_mean",
        "running_var",
        "pixel_mean",
        "pixel_std",
    } | {name.rpartition(".")[2] for name in missing if "cell_anchors" in name}


def test_a_prefix_that_all_names_have_is_taken_off_with_its_notes():
    weights = nn.Sequential(nn.BatchNorm2d(1)).state_dict(prefix="module.")
    expected = nn.Sequential(nn.BatchNorm2d(1)).state_dict()
    weights._metadata = {"": {}, **{f"module.{name}".rstrip("."): note for name, note in expected._metadata.items()}}
    strip_prefix(weights, "module.")
    assert list(weights) == list(expected) and weights._metadata == expected._metadata


def test_a_prefix_that_some_names_have_is_kept():
    weights = {"module.a": torch.ones(1), "b": torch.ones(1)}
    strip_prefix(weights, "module.")
    assert list(weights) == ["module.a", "b"]
