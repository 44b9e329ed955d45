"""Keypoints of detected objects (Mask R-CNN, He et al. 2017, section 5).

Shapes: R boxes of the whole batch, C channels, K keypoints, S x S the heat map's resolution.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import Conv2d
from detlab.modeling.loss_normalizer import normalizer_of
from detlab.modeling.losses import heatmap_cross_entropy
from detlab.modeling.packing import rows_of
from detlab.modeling.weight_init import he_normal_fan_out
from detlab.structures.instances import Instances
from detlab.structures.keypoints import heatmaps_to_keypoints, keypoints_to_heatmap
from detlab.structures.object_batch import as_batch, assign, padded
from detlab.utils.registry import Registry

__all__ = [
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "BaseKeypointRCNNHead",
    "KRCNNConvDeconvUpsampleHead",
    "build_keypoint_head",
    "keypoint_rcnn_inference",
    "keypoint_rcnn_loss",
]

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")
ROI_KEYPOINT_HEAD_REGISTRY.__doc__ = """Modules ``(cfg, input_shape)`` called with pooled features and N instances:
in training they return losses, in inference the instances with ``pred_keypoints``."""


def build_keypoint_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that ``cfg.MODEL.ROI_KEYPOINT_HEAD.NAME`` names, for pooled features of ``input_shape``."""
    return ROI_KEYPOINT_HEAD_REGISTRY.get(cfg.MODEL.ROI_KEYPOINT_HEAD.NAME)(cfg, input_shape)


def keypoint_rcnn_loss(
    pred_keypoint_logits: Tensor, instances: Sequence[Instances], normalizer: float | None
) -> Tensor:
    """Cross entropy over the cells of each keypoint's heat map.

    Args:
        pred_keypoint_logits: (R, K, S, S).
        instances: N instances, R together, with ``proposal_boxes`` and ``gt_keypoints``.
        normalizer: what the sum is divided by; None for the number of visible keypoints.
    """
    batch = as_batch(instances)
    rows = rows_of(batch)
    batch.require("gt_keypoints")
    if not batch.has("gt_keypoints"):
        total, num_visible = pred_keypoint_logits[:0].sum(), batch.valid.new_zeros((), dtype=torch.int64)
    else:
        boxes, points = rows.take(batch.tensor("proposal_boxes")), rows.take(batch.tensor("gt_keypoints"))
        cells, is_visible = keypoints_to_heatmap(points, boxes, pred_keypoint_logits.shape[-1])
        is_visible = is_visible & rows.counts[:, None]
        total, num_visible = heatmap_cross_entropy(pred_keypoint_logits, cells, is_visible), is_visible.sum()
    batch.notes.measured["kpts_num_skipped_batches"] = (num_visible == 0).float()
    return total / (normalizer if normalizer is not None else normalizer_of(batch.notes, "keypoints", num_visible))


def keypoint_rcnn_inference(pred_keypoint_logits: Tensor, pred_instances: Sequence[Instances]) -> None:
    """Add ``pred_keypoints`` (D, K, 3) [x, y, score] and ``pred_keypoint_heatmaps`` (D, K, S, S) to N instances.

    Where a heat map peaks is found at the size of its box, which nobody knows beforehand: in a batch the keypoints are
    read off when they are asked for. A compiled or exported model gives the heat maps alone.

    Args:
        pred_keypoint_logits: (R, K, S, S).
        pred_instances: with ``pred_boxes``, R together.
    """
    if isinstance(pred_instances, list) and not pred_instances:
        return
    batch = as_batch(pred_instances)
    rows = rows_of(batch)
    heatmaps = pred_keypoint_logits.detach()
    boxes = rows.take(batch.tensor("pred_boxes")).detach()

    def read_keypoints() -> Tensor:
        return rows.put(heatmaps_to_keypoints(heatmaps, boxes)[:, :, [0, 1, 3]])

    assign(pred_instances, batch, "pred_keypoints", read_keypoints)
    assign(pred_instances, batch, "pred_keypoint_heatmaps", rows.put(heatmaps))


class BaseKeypointRCNNHead(nn.Module):
    """The loss and the inference of Keypoint R-CNN; a subclass supplies the network, :meth:`layers`.

    Args:
        num_keypoints: K.
        loss_weight: of ``loss_keypoint``.
        loss_normalizer: ``"visible"`` divides the loss by the visible keypoints of the batch; a number divides it by
            that times the number of images.

    Raises:
        ValueError: for another string.
    """

    @configurable
    def __init__(self, *, num_keypoints, loss_weight=1.0, loss_normalizer=1.0) -> None:
        super().__init__()
        if isinstance(loss_normalizer, str) and loss_normalizer != "visible":
            raise ValueError(f"loss_normalizer is a number or 'visible', got '{loss_normalizer}'")
        self.num_keypoints = num_keypoints
        self.loss_weight = loss_weight
        self.loss_normalizer = loss_normalizer

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        settings = cfg.MODEL.ROI_KEYPOINT_HEAD
        heads = cfg.MODEL.ROI_HEADS
        most_keypoints = settings.NUM_KEYPOINTS * heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION
        return {
            "loss_weight": settings.LOSS_WEIGHT,
            "num_keypoints": settings.NUM_KEYPOINTS,
            "loss_normalizer": "visible" if settings.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS else most_keypoints,
        }

    @padded
    def forward(self, x: Tensor, instances: Sequence[Instances]) -> dict[str, Tensor] | Sequence[Instances]:
        """Pooled features (R, C, h, w) to ``{"loss_keypoint": ...}`` in training, else to instances with keypoints."""
        logits = self.layers(x)
        if self.training:
            by_visible = self.loss_normalizer == "visible"
            normalizer = None if by_visible else len(instances) * self.loss_normalizer
            return {"loss_keypoint": keypoint_rcnn_loss(logits, instances, normalizer) * self.loss_weight}
        keypoint_rcnn_inference(logits, instances)
        return instances

    @abstractmethod
    def layers(self, x: Tensor) -> Tensor:
        """Pooled features (R, C, h, w) to logits (R, K, S, S)."""


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class KRCNNConvDeconvUpsampleHead(BaseKeypointRCNNHead, nn.Sequential):  # type: ignore[misc]
    """3x3 convolutions, a transposed convolution and bilinear upsampling, which double the resolution each.

    Args:
        input_shape: channels of the pooled features.
        num_keypoints: K.
        conv_dims: channels of the convolutions.
        kwargs: see :class:`BaseKeypointRCNNHead`.
    """

    @configurable
    def __init__(self, input_shape, *, num_keypoints, conv_dims, **kwargs) -> None:
        super().__init__(num_keypoints=num_keypoints, **kwargs)
        channels = input_shape.channels
        for i, dim in enumerate(conv_dims, start=1):
            conv = Conv2d(channels, dim, kernel_size=3, padding=1)
            he_normal_fan_out(conv)
            self.add_module(f"conv_fcn{i}", conv)
            self.add_module(f"conv_fcn_relu{i}", nn.ReLU(inplace=True))
            channels = dim
        self.score_lowres = nn.ConvTranspose2d(channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        he_normal_fan_out(self.score_lowres)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dims": cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS,
        }

    def layers(self, x: Tensor) -> Tensor:
        low_resolution = nn.Sequential.forward(self, x)
        return F.interpolate(low_resolution, scale_factor=2, mode="bilinear", align_corners=False)
