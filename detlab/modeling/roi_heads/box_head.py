"""Heads from a box's pooled features to one vector."""

import math

from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.conv_relu import conv3x3_relu
from detlab.modeling.weight_init import xavier_uniform_fan_in
from detlab.utils.registry import Registry

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead", "build_box_head"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = "Modules ``(cfg, input_shape)`` from pooled features to what the box predictor takes."


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that ``cfg.MODEL.ROI_BOX_HEAD.NAME`` names, for pooled features of ``input_shape``."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each followed by a ReLU.

    Args:
        input_shape: channels, height and width of the pooled features.
        conv_dims: channels of the convolutions ``conv1``, ``conv2``, ...
        fc_dims: widths of the layers ``fc1``, ``fc2``, ...
        conv_norm: a name or callable that :func:`get_norm` knows.

    Raises:
        ValueError: if there would be no layer at all.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dims: list[int], fc_dims: list[int], conv_norm="") -> None:
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ValueError("the box head has no layers; set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC above 0")
        channels, height, width = input_shape.channels or 0, input_shape.height, input_shape.width
        for i, dim in enumerate(conv_dims, start=1):
            self.add_module(f"conv{i}", conv3x3_relu(channels, dim, conv_norm))
            channels = dim
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)
        if not fc_dims:
            return
        self.add_module("flatten", nn.Flatten())
        width_in = math.prod((channels or 1, height or 1, width or 1))
        for i, dim in enumerate(fc_dims, start=1):
            fc = nn.Linear(width_in, dim)
            xavier_uniform_fan_in(fc)
            self.add_module(f"fc{i}", fc)
            self.add_module(f"fc_relu{i}", nn.ReLU(inplace=True))
            width_in = dim
        self._output_shape = ShapeSpec(channels=width_in)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        settings = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [settings.CONV_DIM] * settings.NUM_CONV,
            "fc_dims": [settings.FC_DIM] * settings.NUM_FC,
            "conv_norm": settings.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the vectors; also height and width where there is no fully connected layer."""
        return self._output_shape

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, h, w) -> (R, D)."""
        return super().forward(x)
