"""Masks of detected objects (Mask R-CNN, He et al. 2017).

Shapes: R boxes of the whole batch, C channels, K classes (1 if all share one mask), M x M the mask's resolution.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.conv_relu import conv3x3_relu
from detlab.modeling.loss_normalizer import mean_over_ranks
from detlab.modeling.weight_init import he_normal_fan_out, normal_init
from detlab.structures.instances import Instances
from detlab.utils.events import get_event_storage, has_event_storage, log_scalars
from detlab.utils.registry import Registry

__all__ = [
    "ROI_MASK_HEAD_REGISTRY",
    "BaseMaskRCNNHead",
    "MaskRCNNConvUpsampleHead",
    "build_mask_head",
    "mask_rcnn_inference",
    "mask_rcnn_loss",
    "select_class_masks",
]

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = """Modules ``(cfg, input_shape)`` called with pooled features and N instances:
in training they return losses, in inference the instances with ``pred_masks``."""


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that ``cfg.MODEL.ROI_MASK_HEAD.NAME`` names, for pooled features of ``input_shape``."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


def select_class_masks(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """Of logits (R, K, M, M) those of the classes (R,), as (R, M, M); the only ones if K is 1."""
    if mask_logits.shape[1] == 1:
        return mask_logits[:, 0]
    rows = torch.arange(mask_logits.shape[0], device=mask_logits.device)
    return mask_logits[rows, classes]


class _MaskTargets(NamedTuple):
    classes: Tensor  # (R,) int64
    masks: Tensor  # (R, M, M) bool


def _mask_targets(instances: list[Instances], mask_size: int) -> _MaskTargets:
    """What R foreground proposals should predict: their object's mask, cropped to the proposal."""
    with_boxes = [x for x in instances if len(x) > 0]
    return _MaskTargets(
        classes=torch.cat([x.gt_classes for x in with_boxes]),
        masks=torch.cat([x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, mask_size) for x in with_boxes]),
    )


def mask_statistics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How well the pixels of (R, M, M) masks are classified, as 0-dim tensors."""
    predicted = logits > 0
    return {
        "mask_rcnn/accuracy": (predicted == targets).float().mean(),
        "mask_rcnn/false_positive": (predicted & ~targets).sum() / (~targets).sum().clamp(min=1),
        "mask_rcnn/false_negative": (~predicted & targets).sum() / targets.sum().clamp(min=1),
    }


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances], vis_period: int = 0) -> Tensor:
    """Binary cross entropy of each object's mask in its own class's channel, the mean over all pixels.

    Args:
        pred_mask_logits: (R, K, M, M).
        instances: N instances, R together, with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``.
        vis_period: puts predicted beside true masks into the event storage every so many iterations, 0 never.
    """
    has_objects = len(pred_mask_logits) > 0
    total, num_pixels = pred_mask_logits.sum() * 0, 0
    if has_objects:
        targets = _mask_targets(instances, pred_mask_logits.shape[-1])
        logits = select_class_masks(pred_mask_logits, targets.classes).float()
        total = F.binary_cross_entropy_with_logits(logits, targets.masks.to(torch.float32), reduction="sum")
        num_pixels = logits.numel()
        log_scalars(**mask_statistics(logits.detach(), targets.masks))
        if vis_period > 0 and has_event_storage() and get_event_storage().iter % vis_period == 0:
            _show_masks(logits.detach().sigmoid(), targets.masks)
    return total / mean_over_ranks(num_pixels, pred_mask_logits)


def _show_masks(probabilities: Tensor, targets: Tensor, max_shown: int = 32) -> None:
    """Predicted above true masks, side by side."""
    pairs = torch.cat((probabilities, targets.to(probabilities.dtype)), dim=1)[:max_shown]  # R, 2 M, M
    strip = torch.cat(list(pairs), dim=1)
    get_event_storage().put_image("Left-right: objects; top-down: predicted, true mask", strip.expand(3, -1, -1))


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Add ``pred_masks``, (D, 1, M, M) probabilities, to each of N instances.

    Args:
        pred_mask_logits: (R, K, M, M).
        pred_instances: with ``pred_classes``, R together.
    """
    classes = torch.cat([x.pred_classes for x in pred_instances])
    masks = select_class_masks(pred_mask_logits, classes).float().sigmoid()[:, None]
    for instances, own in zip(pred_instances, masks.split([len(x) for x in pred_instances])):
        instances.pred_masks = own


class BaseMaskRCNNHead(nn.Module):
    """The loss and the inference of Mask R-CNN; a subclass supplies the network, :meth:`layers`.

    Args:
        loss_weight: of ``loss_mask``.
        vis_period: see :func:`mask_rcnn_loss`.
    """

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Pooled features (R, C, h, w) to ``{"loss_mask": ...}`` in training, else to instances with ``pred_masks``."""
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    @abstractmethod
    def layers(self, x: Tensor) -> Tensor:
        """Pooled features (R, C, h, w) to logits (R, K, M, M)."""


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):  # type: ignore[misc]
    """3x3 convolutions, a transposed convolution that doubles the resolution, and a 1x1 predictor.

    Args:
        input_shape: channels of the pooled features.
        num_classes: K.
        conv_dims: channels of the 3x3 convolutions, then of the transposed one.
        conv_norm: a name or callable that :func:`get_norm` knows.
        kwargs: see :class:`BaseMaskRCNNHead`.

    Raises:
        ValueError: if ``conv_dims`` is empty.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_classes, conv_dims, conv_norm="", **kwargs) -> None:
        super().__init__(**kwargs)
        if not conv_dims:
            raise ValueError("conv_dims must name at least the channels of the transposed convolution")
        channels = input_shape.channels or 0
        for i, dim in enumerate(conv_dims[:-1], start=1):
            self.add_module(f"mask_fcn{i}", conv3x3_relu(channels, dim, conv_norm))
            channels = dim
        self.deconv = nn.ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.add_module("deconv_relu", nn.ReLU(inplace=True))
        self.predictor = nn.Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        he_normal_fan_out(self.deconv)
        normal_init(self.predictor, std=0.001)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        settings = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if settings.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [settings.CONV_DIM] * (settings.NUM_CONV + 1),
            "conv_norm": settings.NORM,
        }

    def layers(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)
