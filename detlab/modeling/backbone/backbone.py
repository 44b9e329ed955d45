"""What a backbone promises."""

from abc import ABCMeta, abstractmethod

import torch
from torch import Tensor, nn

from detlab.layers.shape_spec import ShapeSpec

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images to named feature maps.

    A subclass fills in :meth:`forward`, and either :meth:`output_shape` or the three tables that it reads by default:
    ``_out_features`` (names), ``_out_feature_channels`` and ``_out_feature_strides`` (by name).

    Attributes:
        compute_dtype: ``torch.bfloat16`` or ``torch.float16`` to run this network, whatever the rest of the model
            computes in, under autocast of that type: parameters stay float32, and so do the maps that come out, except
            within an autocast of the caller's, which would cast them back. None does as the caller does.
    """

    compute_dtype: torch.dtype | None = None

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __call__(self, x: Tensor, *args, **kwargs):
        if self.compute_dtype is None:
            return super().__call__(x, *args, **kwargs)
        device_type = x.device.type
        with torch.autocast(device_type, dtype=self.compute_dtype):
            features = super().__call__(x, *args, **kwargs)
        if torch.is_autocast_enabled(device_type):
            return features
        return {name: feature.float() for name, feature in features.items()}

    @abstractmethod
    def forward(self, x):
        """Images (N, 3, H, W) to ``{name: (N, C, H / stride, W / stride)}``."""

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this in height and width; 0 asks for nothing."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """More wishes on the padding, as :meth:`ImageList.from_tensors` reads them."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map by its name."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
