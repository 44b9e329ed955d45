"""Layers and operators that models are made of."""

from detlab.layers.aspp import ASPP
from detlab.layers.batch_norm import (
    CycleBatchNormList,
    FrozenBatchNorm2d,
    LayerNorm,
    NaiveSyncBatchNorm,
    get_norm,
)
from detlab.layers.blocks import CNNBlockBase, DepthwiseSeparableConv2d
from detlab.layers.deform_conv import DeformConv, ModulatedDeformConv
from detlab.layers.losses import ciou_loss, diou_loss, giou_loss, sigmoid_focal_loss, smooth_l1_loss
from detlab.layers.mask_ops import paste_masks_in_image
from detlab.layers.nms import batched_nms, batched_nms_rotated, nms, nms_fixed, nms_rotated
from detlab.layers.roi_align import ROIAlign
from detlab.layers.roi_align_rotated import ROIAlignRotated, roi_align_rotated
from detlab.layers.rotated_boxes import pairwise_iou_rotated
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    MaxPool2d,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "ASPP",
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "CycleBatchNormList",
    "DeformConv",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ROIAlignRotated",
    "ShapeSpec",
    "batched_nms",
    "batched_nms_rotated",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "giou_loss",
    "interpolate",
    "move_device_like",
    "nms",
    "nms_fixed",
    "nms_rotated",
    "nonzero_tuple",
    "pairwise_iou_rotated",
    "paste_masks_in_image",
    "roi_align_rotated",
    "shapes_to_tensor",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
