"""Faster R-CNN on a ResNet-50 with a feature pyramid."""

from detlab.config import LazyCall as L
from detlab.layers import ShapeSpec
from detlab.modeling.anchor_generator import DefaultAnchorGenerator
from detlab.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detlab.modeling.backbone.resnet import BasicStem, ResNet
from detlab.modeling.box_regression import Box2BoxTransform
from detlab.modeling.matcher import Matcher
from detlab.modeling.meta_arch.rcnn import GeneralizedRCNN
from detlab.modeling.poolers import ROIPooler
from detlab.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detlab.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detlab.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detlab.modeling.roi_heads.roi_heads import StandardROIHeads

from ..data.constants import constants

_CHANNELS = 256
_STRIDES = [4, 8, 16, 32, 64]
# The ROI heads leave out the coarsest map.
_ROI_FEATURES = ["p2", "p3", "p4", "p5"]

_backbone = L(FPN)(
    bottom_up=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=0,
    ),
    in_features="${.bottom_up.out_features}",
    out_channels=_CHANNELS,
    top_block=L(LastLevelMaxPool)(),
)

# Pairs are (training, inference).
_proposal_generator = L(RPN)(
    in_features=["p2", "p3", "p4", "p5", "p6"],
    head=L(StandardRPNHead)(in_channels=_CHANNELS, num_anchors=3),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[32], [64], [128], [256], [512]],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=_STRIDES,
        offset=0.0,
    ),
    anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    batch_size_per_image=256,
    positive_fraction=0.5,
    pre_nms_topk=(2000, 1000),
    post_nms_topk=(1000, 1000),
    nms_thresh=0.7,
)

_roi_heads = L(StandardROIHeads)(
    num_classes=80,
    batch_size_per_image=512,
    positive_fraction=0.25,
    proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
    box_in_features=_ROI_FEATURES,
    box_pooler=L(ROIPooler)(
        output_size=7,
        scales=[1 / stride for stride in _STRIDES[:4]],
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
    ),
    box_head=L(FastRCNNConvFCHead)(
        input_shape=ShapeSpec(channels=_CHANNELS, height=7, width=7),
        conv_dims=[],
        fc_dims=[1024, 1024],
    ),
    box_predictor=L(FastRCNNOutputLayers)(
        input_shape=ShapeSpec(channels=1024),
        box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
        num_classes="${..num_classes}",
        test_score_thresh=0.05,
        test_nms_thresh=0.5,
        test_topk_per_image=100,
    ),
)

model = L(GeneralizedRCNN)(
    backbone=_backbone,
    proposal_generator=_proposal_generator,
    roi_heads=_roi_heads,
    pixel_mean=constants.imagenet_bgr256_mean,
    pixel_std=constants.imagenet_bgr256_std,
    input_format="BGR",
)
