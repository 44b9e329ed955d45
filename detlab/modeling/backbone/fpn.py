"""Feature pyramid network (Lin et al. 2017)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from detlab.layers.batch_norm import get_norm
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import Conv2d
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import BACKBONE_REGISTRY
from detlab.modeling.backbone.resnet import build_resnet_backbone
from detlab.modeling.feature_shapes import select_features
from detlab.modeling.weight_init import xavier_uniform_fan_in

__all__ = [
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
]


def _exponents_of_strides(strides: list[int]) -> list[int]:
    """log2 of the strides, which must double from map to map."""
    exponents = [int(math.log2(s)) for s in strides]
    if strides != [strides[0] * 2**i for i in range(len(strides))]:
        raise ValueError(f"FPN needs feature maps whose strides double, got {strides}")
    return exponents


def _select_bottom_up(bottom_up: Backbone, in_features) -> dict:
    return select_features(bottom_up.output_shape(), in_features, "MODEL.FPN.IN_FEATURES", "the bottom-up backbone")


def _pyramid_conv(in_channels: int, out_channels: int, kernel_size: int, norm) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )
    xavier_uniform_fan_in(conv)
    return conv


class FPN(Backbone):
    """Feature maps ``p2``, ``p3``, ... of equal channels, each fused with the coarser ones above it.

    Args:
        bottom_up: the backbone that gives the maps ``in_features``.
        in_features: names in order of rising stride, each twice the one before.
        out_channels: C of every output map.
        norm: a name or callable that :func:`get_norm` knows; "" gives the convolutions biases instead.
        top_block: makes coarser maps: a module with ``num_levels`` and ``in_feature`` (``p5`` of the pyramid or
            ``res5`` of the backbone, say) that maps that feature to a list.
        fuse_type: ``sum`` or ``avg`` of the lateral and the upsampled map.
        square_pad: images are to be padded to a square of this side; 0 does not ask for that.

    Raises:
        ValueError: for maps that the backbone does not give, strides that do not double, or an unknown ``fuse_type``.
    """

    def __init__(
        self, bottom_up, in_features, out_channels, norm="", top_block=None, fuse_type="sum", square_pad=0
    ) -> None:
        super().__init__()
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"FPN fuses by 'sum' or 'avg', got '{fuse_type}'")
        shapes = _select_bottom_up(bottom_up, in_features)
        exponents = _exponents_of_strides([shape.stride for shape in shapes.values()])
        for exponent, name in zip(exponents, in_features):
            self.add_module(f"fpn_lateral{exponent}", _pyramid_conv(shapes[name].channels, out_channels, 1, norm))
            self.add_module(f"fpn_output{exponent}", _pyramid_conv(out_channels, out_channels, 3, norm))
        self.bottom_up = bottom_up
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self._exponents = exponents
        self._fuse_factor = 0.5 if fuse_type == "avg" else 1.0
        self._square_pad = square_pad
        self._size_divisibility = 2 ** exponents[-1]
        num_extra = 0 if top_block is None else top_block.num_levels
        all_exponents = exponents + [exponents[-1] + i + 1 for i in range(num_extra)]
        self._out_features = [f"p{e}" for e in all_exponents]
        self._out_feature_strides = {f"p{e}": 2**e for e in all_exponents}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to ``{"p2": (N, C, H / 4, W / 4), ...}``."""
        bottom_up = self.bottom_up(x)
        outputs: dict[str, Tensor] = {}
        fused = None
        for exponent, name in zip(reversed(self._exponents), reversed(self.in_features)):
            fused = self._fuse(getattr(self, f"fpn_lateral{exponent}")(bottom_up[name]), fused)
            outputs[f"p{exponent}"] = getattr(self, f"fpn_output{exponent}")(fused)
        if self.top_block is not None:
            top_input = bottom_up.get(self.top_block.in_feature)
            top_input = outputs[self.top_block.in_feature] if top_input is None else top_input
            outputs |= zip(self._out_features[len(self._exponents) :], self.top_block(top_input))
        return {name: outputs[name] for name in self._out_features}

    def _fuse(self, lateral: Tensor, coarser: Tensor | None) -> Tensor:
        if coarser is None:
            return lateral
        fused = lateral + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
        return fused if self._fuse_factor == 1.0 else fused * self._fuse_factor


class LastLevelMaxPool(nn.Module):
    """One more level as every second cell of the coarsest, ``p6`` of ``p5``.

    Args:
        in_feature: the name of the coarsest level.
    """

    def __init__(self, in_feature="p5") -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """``p6`` and ``p7`` by strided convolutions (RetinaNet, Lin et al. 2017).

    Args:
        in_channels: C of the input map.
        out_channels: C of both outputs.
        in_feature: the name of the input map.
    """

    def __init__(self, in_channels, out_channels, in_feature="res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = Conv2d(out_channels, out_channels, 3, 2, 1)
        xavier_uniform_fan_in(self.p6)
        xavier_uniform_fan_in(self.p7)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn_from_config(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """A ResNet with a pyramid and one level above it: ``p6`` on top of ``res5``'s ``p5``."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    strides = [shape.stride for shape in _select_bottom_up(bottom_up, cfg.MODEL.FPN.IN_FEATURES).values()]
    coarsest = f"p{_exponents_of_strides(strides)[-1]}"
    return _fpn_from_config(cfg, bottom_up, LastLevelMaxPool(in_feature=coarsest))


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """A ResNet with RetinaNet's pyramid up to ``p7``."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    # p6 and p7 are made of the last stage, whatever the pyramid takes.
    giver = "the bottom-up backbone (MODEL.RESNETS.OUT_FEATURES)"
    top = select_features(bottom_up.output_shape(), ["res5"], "the top of RetinaNet's pyramid", giver)
    channels = top["res5"].channels
    return _fpn_from_config(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
