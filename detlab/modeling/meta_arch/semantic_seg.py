"""A class for every pixel (the semantic branch of Panoptic FPN, Kirillov et al. 2019).

Shapes: N images, K classes, H x W the padded image, s the common stride of the fused maps.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import Conv2d
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.conv_relu import conv3x3_relu
from detlab.modeling.feature_shapes import select_features
from detlab.modeling.loss_normalizer import mean_over_ranks
from detlab.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlab.modeling.meta_arch.image_model import ImageModel, image_model_settings
from detlab.modeling.postprocessing import sem_seg_postprocess
from detlab.modeling.weight_init import he_normal_fan_out
from detlab.structures.image_list import ImageList
from detlab.utils.registry import Registry

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head"]

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """Modules ``(cfg, input_shape)`` called with maps by name and, in training, targets
(N, H, W): they return (logits, {}) in inference and (None, losses) in training."""


def build_sem_seg_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The head that ``cfg.MODEL.SEM_SEG_HEAD.NAME`` names, for a backbone of ``input_shape``."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


def batch_sem_seg(batched_inputs: list[dict], images: ImageList, ignore_value: int, backbone: Backbone) -> Tensor:
    """The inputs' ``sem_seg`` labels as one (N, H, W) tensor, padded with ``ignore_value`` as the images are."""
    labels = [x["sem_seg"].to(images.tensor.device) for x in batched_inputs]
    return ImageList.from_tensors(labels, backbone.size_divisibility, ignore_value, backbone.padding_constraints).tensor


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Brings every pyramid level to one stride by convolutions and doublings, adds them up, and classifies.

    Args:
        input_shape: of the maps used, by name.
        num_classes: K.
        conv_dims: channels of the convolutions.
        common_stride: s.
        loss_weight: of ``loss_sem_seg``.
        norm: a name or callable that :func:`get_norm` knows.
        ignore_value: a label that takes no part in the loss.

    Raises:
        ValueError: if there is no map to use.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: str | Callable | None = None,
        ignore_value: int = -1,
    ) -> None:
        super().__init__()
        if not input_shape:
            raise ValueError("the semantic head has no maps to use; set MODEL.SEM_SEG_HEAD.IN_FEATURES")
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride or 0)
        self.in_features = [name for name, _ in by_stride]
        self.ignore_value = ignore_value
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        for name, shape in by_stride:
            self.add_module(name, self._scale_head(shape, conv_dims, norm))
        self.predictor = Conv2d(conv_dims, num_classes, kernel_size=1)
        he_normal_fan_out(self.predictor)

    def _scale_head(self, shape: ShapeSpec, conv_dims: int, norm) -> nn.Sequential:
        """A convolution for each doubling that the level needs, one at least."""
        doublings = round(math.log2((shape.stride or 1) / self.common_stride))
        layers: list[nn.Module] = []
        channels = shape.channels or 0
        for _ in range(max(doublings, 1)):
            layers.append(conv3x3_relu(channels, conv_dims, norm))
            channels = conv_dims
            if doublings > 0:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        settings = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": select_features(input_shape, settings.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
            "ignore_value": settings.IGNORE_VALUE,
            "num_classes": settings.NUM_CLASSES,
            "conv_dims": settings.CONVS_DIM,
            "common_stride": settings.COMMON_STRIDE,
            "norm": settings.NORM,
            "loss_weight": settings.LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None):
        """Maps by name to (None, losses) in training, else to (logits (N, K, H, W), {}).

        Args:
            features: by name.
            targets: (N, H, W) int64 labels, in training.
        """
        x = self.layers(features)
        if self.training:
            if targets is None:
                raise ValueError("training the semantic head needs targets: each input must have 'sem_seg'")
            return None, self.losses(x, targets)
        return F.interpolate(x, scale_factor=self.common_stride, mode="bilinear", align_corners=False), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Maps by name to logits (N, K, H / s, W / s)."""
        scaled = [getattr(self, name)(features[name]) for name in self.in_features]
        return self.predictor(torch.stack(scaled).sum(dim=0) if len(scaled) > 1 else scaled[0])

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg``: cross entropy of logits (N, K, H / s, W / s), the mean over labelled pixels."""
        logits = F.interpolate(
            predictions.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        num_labelled = (targets != self.ignore_value).sum()
        return {"loss_sem_seg": total / mean_over_ranks(num_labelled) * self.loss_weight}


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(ImageModel):
    """Backbone and semantic head.

    Args:
        backbone: from images to feature maps.
        sem_seg_head: see :data:`SEM_SEG_HEADS_REGISTRY`.
        pixel_mean: of each channel.
        pixel_std: of each channel.
    """

    sem_seg_head: Any  # what the registry gives

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: tuple[float],
        pixel_std: tuple[float],
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def from_config(cls, cfg) -> dict:
        settings = image_model_settings(cfg)
        return settings | {"sem_seg_head": build_sem_seg_head(cfg, settings["backbone"].output_shape())}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses by name in training; else of each input a dict with ``sem_seg``, scores (K, height, width).

        Args:
            batched_inputs: each with ``image`` (C, H, W), in training ``sem_seg`` (H, W), and perhaps the ``height``
                and ``width`` wanted.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        targets = None
        if self.training:
            targets = batch_sem_seg(batched_inputs, images, self.sem_seg_head.ignore_value, self.backbone)
        logits, losses = self.sem_seg_head(features, targets)
        if self.training:
            return losses
        return [
            {"sem_seg": sem_seg_postprocess(own, size, item.get("height", size[0]), item.get("width", size[1]))}
            for own, item, size in zip(logits, batched_inputs, images.image_sizes)
        ]
