"""Backbones: from images to feature maps."""

from detlab.layers.blocks import CNNBlockBase as ResNetBlockBase
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone
from detlab.modeling.backbone.fpn import FPN
from detlab.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet, build_resnet_backbone, make_stage

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_backbone",
    "build_resnet_backbone",
    "make_stage",
]
