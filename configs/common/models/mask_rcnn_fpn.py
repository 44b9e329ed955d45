"""Mask R-CNN: Faster R-CNN and a branch for masks."""

from detlab.config import LazyCall as L
from detlab.layers import ShapeSpec
from detlab.modeling.poolers import ROIPooler
from detlab.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead

from .faster_rcnn_fpn import model

model.roi_heads.update(
    mask_in_features=["p2", "p3", "p4", "p5"],
    mask_pooler=L(ROIPooler)(
        output_size=14,
        scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32],
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
    ),
    mask_head=L(MaskRCNNConvUpsampleHead)(
        input_shape=ShapeSpec(channels=256, height=14, width=14),
        num_classes="${..num_classes}",
        # Four convolutions and the upsampling one.
        conv_dims=[256] * 5,
    ),
)
