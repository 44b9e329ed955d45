"""Residual networks (He et al. 2016; ResNeXt, Xie et al. 2017; deformable stages, Dai et al. 2017, Zhu et al. 2019)."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.layers.batch_norm import get_norm
from detlab.layers.blocks import CNNBlockBase
from detlab.layers.deform_conv import DeformConv, ModulatedDeformConv
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import Conv2d
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import BACKBONE_REGISTRY
from detlab.modeling.weight_init import he_normal_fan_out, normal_init

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

ResNetBlockBase = CNNBlockBase

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, norm, *, stride=1, dilation=1, groups=1, activation=None
) -> Conv2d:
    """A size-keeping convolution without bias, followed by its norm and activation."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    he_normal_fan_out(conv)
    return conv


def _shortcut(in_channels: int, out_channels: int, stride: int, norm) -> Conv2d | None:
    """The projection beside a block that changes the number of channels, or None."""
    return None if in_channels == out_channels else _conv_norm(in_channels, out_channels, 1, norm, stride=stride)


def _residual_sum(block, x: Tensor, residual: Tensor) -> Tensor:
    return F.relu_(residual + (x if block.shortcut is None else block.shortcut(x)))


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions, as in ResNet-18 and 34.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        stride: of the first convolution.
        norm: a name or callable that :func:`get_norm` knows.
    """

    def __init__(self, in_channels, out_channels, *, stride=1, norm="BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv_norm(in_channels, out_channels, 3, norm, stride=stride, activation=F.relu_)
        self.conv2 = _conv_norm(out_channels, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        return _residual_sum(self, x, self.conv2(self.conv1(x)))


class BottleneckBlock(CNNBlockBase):
    """1x1 down, 3x3, 1x1 up, as in ResNet-50, 101, 152 and ResNeXt.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        bottleneck_channels: C of the 3x3 convolution.
        stride: of the block.
        num_groups: groups of the 3x3 convolution.
        norm: a name or callable that :func:`get_norm` knows.
        stride_in_1x1: stride in the first 1x1 convolution (MSRA's models) rather than the 3x3 (torchvision's).
        dilation: of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        *,
        bottleneck_channels,
        stride=1,
        num_groups=1,
        norm="BN",
        stride_in_1x1=False,
        dilation=1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv_norm(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1, activation=F.relu_)
        self.conv2 = _conv_norm(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride_3x3,
            dilation=dilation,
            groups=num_groups,
            activation=F.relu_,
        )
        self.conv3 = _conv_norm(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        return _residual_sum(self, x, self.conv3(self.conv2(self.conv1(x))))


class DeformBottleneckBlock(CNNBlockBase):
    """A bottleneck whose 3x3 convolution samples at learned offsets.

    Args:
        deform_modulated: also learn a weight for each sample (Deformable ConvNets v2).
        deform_num_groups: groups of channels with offsets of their own.

    The other arguments are those of :class:`BottleneckBlock`.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        *,
        bottleneck_channels,
        stride=1,
        num_groups=1,
        norm="BN",
        stride_in_1x1=False,
        dilation=1,
        deform_modulated=False,
        deform_num_groups=1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.deform_modulated = deform_modulated
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv_norm(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1, activation=F.relu_)
        geometry = {"kernel_size": 3, "stride": stride_3x3, "padding": dilation, "dilation": dilation}
        values_per_sample = 3 if deform_modulated else 2
        self.conv2_offset = Conv2d(bottleneck_channels, values_per_sample * 9 * deform_num_groups, **geometry)
        normal_init(self.conv2_offset, std=0.0)
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            bottleneck_channels,
            bottleneck_channels,
            **geometry,
            bias=False,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
            activation=F.relu_,
        )
        he_normal_fan_out(self.conv2)
        self.conv3 = _conv_norm(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        return _residual_sum(self, x, self.conv3(self._sample(self.conv1(x))))

    def _sample(self, x: Tensor) -> Tensor:
        """The 3x3 convolution: of its offset maps the last third, if modulated, are the samples' weights."""
        values = self.conv2_offset(x)
        if not self.deform_modulated:
            return self.conv2(x, values)
        offset_x, offset_y, weight = values.chunk(3, dim=1)
        return self.conv2(x, torch.cat((offset_x, offset_y), dim=1), weight.sigmoid())


class BasicStem(CNNBlockBase):
    """7x7 convolution of stride 2, then 3x3 max pooling of stride 2.

    Args:
        in_channels: of the image.
        out_channels: of the stem.
        norm: a name or callable that :func:`get_norm` knows.
    """

    def __init__(self, in_channels=3, out_channels=64, norm="BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv_norm(in_channels, out_channels, 7, norm, stride=2, activation=F.relu_)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages of residual blocks, named ``stem``, ``res2``, ``res3``, ...

    Args:
        stem: from the image to the first stage's input.
        stages: lists of blocks, as :meth:`make_stage` makes them.
        num_classes: adds a classifier named ``linear`` on the average of the last stage.
        out_features: names of what :meth:`forward` returns; by default the last stage, or ``linear``.
        freeze_at: see :meth:`freeze`.

    Raises:
        ValueError: if ``out_features`` asks for what is not there.
    """

    def __init__(self, stem, stages, num_classes=None, out_features=None, freeze_at=0) -> None:
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        self.stage_names = [f"res{i}" for i in range(2, 2 + len(stages))]
        if out_features is None:
            out_features = ["linear" if num_classes is not None else self.stage_names[-1]]
        known = ["stem", *self.stage_names, *(["linear"] if num_classes is not None else [])]
        if not out_features or not set(out_features) <= set(known):
            raise ValueError(f"out_features {list(out_features)} must name some of {known}")
        self._out_features = list(out_features)
        self._out_feature_channels = {"stem": stem.out_channels}
        self._out_feature_strides = {"stem": stem.stride}

        wanted = [i for i, name in enumerate(self.stage_names) if name in self._out_features]
        num_stages = len(stages) if "linear" in self._out_features else max(wanted, default=-1) + 1
        self.stage_names = self.stage_names[:num_stages]
        stride, channels = stem.stride, stem.out_channels
        for name, blocks in zip(self.stage_names, stages):
            self.add_module(name, nn.Sequential(*blocks))
            stride *= int(np.prod([block.stride for block in blocks]))
            channels = blocks[-1].out_channels
            self._out_feature_channels[name] = channels
            self._out_feature_strides[name] = stride
        if num_classes is not None:
            self.linear = nn.Linear(channels, num_classes)
            normal_init(self.linear, std=0.01)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to the maps named in ``out_features``; ``linear`` is (N, num_classes)."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes images (N, C, H, W), got a tensor of shape {tuple(x.shape)}")
        outputs = {"stem": self.stem(x)}
        last = outputs["stem"]
        for name in self.stage_names:
            last = outputs[name] = getattr(self, name)(last)
        if self.num_classes is not None and "linear" in self._out_features:
            outputs["linear"] = self.linear(last.mean(dim=(2, 3)))
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
            if name != "linear"
        }

    def freeze(self, freeze_at=0) -> nn.Module:
        """Fix the first parts: 1 the stem, 2 also ``res2``, and so on; 0 nothing. Returns the network itself."""
        if freeze_at >= 1:
            self.stem.freeze()
        for number, name in enumerate(self.stage_names, start=2):
            if freeze_at >= number:
                for block in getattr(self, name):
                    block.freeze()
        return self

    @staticmethod
    def make_stage(block_class, num_blocks, *, in_channels, out_channels, **kwargs) -> list[nn.Module]:
        """The blocks of one stage.

        Args:
            block_class: called as ``block_class(in_channels, out_channels, **kwargs)``.
            num_blocks: how many.
            in_channels: of the first block.
            out_channels: of every block.
            kwargs: for every block; ``NAME_per_block`` holds a list with the value of ``NAME`` of each block.

        Raises:
            ValueError: if a list has not one value a block, or a name comes in both forms.
        """
        suffix = "_per_block"
        per_block = {k[: -len(suffix)]: v for k, v in kwargs.items() if k.endswith(suffix)}
        common = {k: v for k, v in kwargs.items() if not k.endswith(suffix)}
        for name, values in per_block.items():
            if name in common:
                raise ValueError(f"give either {name} or {name}_per_block, not both")
            if len(values) != num_blocks:
                raise ValueError(f"{name}_per_block has {len(values)} values for {num_blocks} blocks")
        blocks = []
        for i in range(num_blocks):
            own = {name: values[i] for name, values in per_block.items()}
            blocks.append(block_class(in_channels if i == 0 else out_channels, out_channels, **common, **own))
        return blocks

    @staticmethod
    def make_default_stages(depth, block_class=None, **kwargs) -> list[list[nn.Module]]:
        """The four stages of the ResNet of this depth.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: by default :class:`BasicBlock` up to 34, else :class:`BottleneckBlock`.
            kwargs: for :meth:`make_stage`, other than the strides and channels.
        """
        num_blocks = _blocks_of_depth(depth)
        block_class = block_class or (BasicBlock if depth < 50 else BottleneckBlock)
        widths = (64, 64, 128, 256, 512) if depth < 50 else (64, 256, 512, 1024, 2048)
        stages = []
        for i, (in_channels, out_channels) in enumerate(pairwise(widths)):
            own = {} if depth < 50 else {"bottleneck_channels": out_channels // 4}
            strides = [1 if i == 0 else 2] + [1] * (num_blocks[i] - 1)
            stages.append(
                ResNet.make_stage(
                    block_class=block_class,
                    num_blocks=num_blocks[i],
                    stride_per_block=strides,
                    in_channels=in_channels,
                    out_channels=out_channels,
                    **{**own, **kwargs},
                )
            )
        return stages


def make_stage(*args, **kwargs) -> list[nn.Module]:
    """Another name of :meth:`ResNet.make_stage`."""
    return ResNet.make_stage(*args, **kwargs)


def _blocks_of_depth(depth: int) -> tuple[int, ...]:
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"there is no ResNet of depth {depth}; the depths are {sorted(BLOCKS_PER_STAGE)}")
    return BLOCKS_PER_STAGE[depth]


class _StagePlan(NamedTuple):
    """Geometry of one stage that a config leaves implicit."""

    out_channels: int
    bottleneck_channels: int
    stride: int
    dilation: int


def _plan_stages(settings, num_stages: int) -> list[_StagePlan]:
    """Channels double from stage to stage; a dilated ``res5`` keeps its input's resolution."""
    plans = []
    for i in range(num_stages):
        dilation = settings.RES5_DILATION if i == 3 else 1
        stride = 1 if i == 0 or (i == 3 and dilation == 2) else 2
        width = settings.NUM_GROUPS * settings.WIDTH_PER_GROUP * 2**i
        plans.append(_StagePlan(settings.RES2_OUT_CHANNELS * 2**i, width, stride, dilation))
    return plans


def _check_resnet_settings(settings) -> None:
    if settings.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {settings.RES5_DILATION}")
    if settings.DEPTH not in (18, 34):
        return
    fixed = {
        "RES2_OUT_CHANNELS": (settings.RES2_OUT_CHANNELS, 64),
        "NUM_GROUPS": (settings.NUM_GROUPS, 1),
        "RES5_DILATION": (settings.RES5_DILATION, 1),
    }
    for name, (value, wanted) in fixed.items():
        if value != wanted:
            raise ValueError(f"ResNet-{settings.DEPTH} needs MODEL.RESNETS.{name} {wanted}, got {value}")
    if any(settings.DEFORM_ON_PER_STAGE):
        raise ValueError(f"ResNet-{settings.DEPTH} has no deformable blocks; set MODEL.RESNETS.DEFORM_ON_PER_STAGE off")


def _block_arguments(settings, plan: _StagePlan, deformable: bool) -> dict:
    """The block class of a stage and what it takes beyond channels and strides."""
    if settings.DEPTH in (18, 34):
        return {"block_class": BasicBlock}
    arguments = {
        "block_class": BottleneckBlock,
        "bottleneck_channels": plan.bottleneck_channels,
        "stride_in_1x1": settings.STRIDE_IN_1X1,
        "dilation": plan.dilation,
        "num_groups": settings.NUM_GROUPS,
    }
    if deformable:
        arguments |= {
            "block_class": DeformBottleneckBlock,
            "deform_modulated": settings.DEFORM_MODULATED,
            "deform_num_groups": settings.DEFORM_NUM_GROUPS,
        }
    return arguments


def stages_from_config(settings, num_stages: int) -> list[list[nn.Module]]:
    """The first ``num_stages`` stages that ``cfg.MODEL.RESNETS`` describes."""
    _check_resnet_settings(settings)
    num_blocks = _blocks_of_depth(settings.DEPTH)
    stages = []
    in_channels = settings.STEM_OUT_CHANNELS
    for i, plan in enumerate(_plan_stages(settings, num_stages)):
        stages.append(
            ResNet.make_stage(
                num_blocks=num_blocks[i],
                stride_per_block=[plan.stride] + [1] * (num_blocks[i] - 1),
                in_channels=in_channels,
                out_channels=plan.out_channels,
                norm=settings.NORM,
                **_block_arguments(settings, plan, settings.DEFORM_ON_PER_STAGE[i]),
            )
        )
        in_channels = plan.out_channels
    return stages


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape) -> ResNet:
    """The ResNet that ``cfg.MODEL.RESNETS`` describes, frozen up to ``cfg.MODEL.BACKBONE.FREEZE_AT``."""
    settings = cfg.MODEL.RESNETS
    stem = BasicStem(in_channels=input_shape.channels, out_channels=settings.STEM_OUT_CHANNELS, norm=settings.NORM)
    numbers = {"res2": 1, "res3": 2, "res4": 3, "res5": 4}
    num_stages = max((numbers.get(name, 0) for name in settings.OUT_FEATURES), default=0)
    stages = stages_from_config(settings, num_stages)
    return ResNet(stem, stages, out_features=settings.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
