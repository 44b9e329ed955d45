"""Masks of detected objects (Mask R-CNN, He et al. 2017).

Shapes: R boxes of the whole batch, C channels, K classes (1 if all share one mask), M x M the mask's resolution.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.conv_relu import conv3x3_relu
from detlab.modeling.loss_normalizer import normalizer_of
from detlab.modeling.losses import mask_cross_entropy
from detlab.modeling.packing import rows_of
from detlab.modeling.roi_heads.mask_targets import mask_targets
from detlab.modeling.weight_init import he_normal_fan_out, normal_init
from detlab.structures.instances import Instances
from detlab.structures.object_batch import as_batch, assign, padded
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
    # A row of padding may have any class.
    known = classes.clamp(0, mask_logits.shape[1] - 1)
    return mask_logits[torch.arange(mask_logits.shape[0], device=mask_logits.device), known]


def mask_statistics(logits: Tensor, targets: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """How well the pixels of masks are classified, as 0-dim tensors.

    Args:
        logits: (R, M, M).
        targets: (R, M, M) bool.
        counts: (R,) bool, the rows that count.
    """
    predicted, counts = logits > 0, counts[:, None, None]
    inside, outside = targets & counts, ~targets & counts
    return {
        "mask_rcnn/accuracy": ((predicted == targets) & counts).sum() / (inside.sum() + outside.sum()).clamp(min=1),
        "mask_rcnn/false_positive": (predicted & outside).sum() / outside.sum().clamp(min=1),
        "mask_rcnn/false_negative": (~predicted & inside).sum() / inside.sum().clamp(min=1),
    }


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: Sequence[Instances], vis_period: int = 0) -> Tensor:
    """Binary cross entropy of each object's mask in its own class's channel, the mean over all pixels.

    Args:
        pred_mask_logits: (R, K, M, M).
        instances: N instances, R together, with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``.
        vis_period: above 0, predicted beside true masks are among the pictures of the step, if it wants any.
    """
    batch = as_batch(instances)
    rows = rows_of(batch)
    mask_size = pred_mask_logits.shape[-1]
    targets, counts = mask_targets(batch, rows, mask_size), rows.counts
    logits = select_class_masks(pred_mask_logits, rows.take(batch.tensor("gt_classes")))
    notes = batch.notes
    notes.measured |= mask_statistics(logits.detach(), targets, counts)
    if vis_period > 0 and notes.pictures is not None:
        notes.pictures[MASK_PICTURE] = _masks_side_by_side(logits.detach().float().sigmoid()[counts], targets[counts])
    num_pixels = normalizer_of(notes, "objects", counts.sum()) * mask_size**2
    return mask_cross_entropy(logits, targets, counts) / num_pixels


MASK_PICTURE = "Left-right: objects; top-down: predicted, true mask"


def _masks_side_by_side(probabilities: Tensor, targets: Tensor, max_shown: int = 32) -> Tensor:
    """Predicted above true masks, (3, 2 M, R M)."""
    pairs = torch.cat((probabilities, targets.to(probabilities.dtype)), dim=1)[:max_shown]  # R, 2 M, M
    return pairs.transpose(0, 1).flatten(1).expand(3, -1, -1)


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: Sequence[Instances]) -> None:
    """Add ``pred_masks``, (D, 1, M, M) probabilities, to each of N instances.

    Args:
        pred_mask_logits: (R, K, M, M).
        pred_instances: with ``pred_classes``, R together.
    """
    if isinstance(pred_instances, list) and not pred_instances:
        return
    batch = as_batch(pred_instances)
    rows = rows_of(batch)
    masks = select_class_masks(pred_mask_logits, rows.take(batch.tensor("pred_classes"))).float().sigmoid()
    assign(pred_instances, batch, "pred_masks", rows.put(masks[:, None]))


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

    @padded
    def forward(self, x: Tensor, instances: Sequence[Instances]) -> dict[str, Tensor] | Sequence[Instances]:
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
