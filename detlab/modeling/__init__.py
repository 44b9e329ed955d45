"""Models and their parts, each behind a registry."""

from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone
from detlab.modeling.backbone.fpn import FPN
from detlab.modeling.backbone.resnet import ResNet, ResNetBlockBase, build_resnet_backbone, make_stage
from detlab.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detlab.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detlab.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor, build_sem_seg_head
from detlab.modeling.postprocessing import detector_postprocess
from detlab.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator
from detlab.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, build_rpn_head
from detlab.modeling.roi_heads.box_head import ROI_BOX_HEAD_REGISTRY, build_box_head
from detlab.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detlab.modeling.roi_heads.keypoint_head import (
    ROI_KEYPOINT_HEAD_REGISTRY,
    BaseKeypointRCNNHead,
    build_keypoint_head,
)
from detlab.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead, build_mask_head
from detlab.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads, build_roi_heads

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BACKBONE_REGISTRY",
    "FPN",
    "META_ARCH_REGISTRY",
    "PROPOSAL_GENERATOR_REGISTRY",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "BaseKeypointRCNNHead",
    "BaseMaskRCNNHead",
    "FastRCNNOutputLayers",
    "GeneralizedRCNN",
    "ProposalNetwork",
    "ROIHeads",
    "ResNet",
    "ResNetBlockBase",
    "SemanticSegmentor",
    "ShapeSpec",
    "StandardROIHeads",
    "build_anchor_generator",
    "build_backbone",
    "build_box_head",
    "build_keypoint_head",
    "build_mask_head",
    "build_model",
    "build_proposal_generator",
    "build_resnet_backbone",
    "build_roi_heads",
    "build_rpn_head",
    "build_sem_seg_head",
    "detector_postprocess",
    "make_stage",
]
