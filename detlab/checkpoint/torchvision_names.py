"""Weights of torchvision's ResNets under the names used here.

torchvision's models expect RGB images divided by 255 and then by the standard deviations of ImageNet, and stride in the
3x3 convolution. A config that starts from them says so:

.. code-block:: yaml

    INPUT: {FORMAT: RGB}
    MODEL:
      PIXEL_MEAN: [123.675, 116.280, 103.530]
      PIXEL_STD: [58.395, 57.120, 57.375]
      RESNETS: {STRIDE_IN_1X1: False}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["are_torchvision_resnet_names", "convert_torchvision_resnet_names"]

# Tried in order; each matches a whole name.
RULES = [
    (r"conv1\.(\w+)", r"stem.conv1.\1"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"fc\.(\w+)", r"linear.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)", r"res{stage}.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"res{stage}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)", r"res{stage}.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"res{stage}.\2.shortcut.norm.\3"),
]
TYPICAL_NAMES = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.downsample.0.weight"}


def are_torchvision_resnet_names(names: Iterable[str]) -> bool:
    """Whether these are the weights of a ResNet (18 to 152, ResNeXt, Wide ResNet) of torchvision."""
    return set(names) >= TYPICAL_NAMES


def convert_torchvision_resnet_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights under the names of :class:`detlab.modeling.backbone.resnet.ResNet`.

    ``layer1.0.bn2.weight`` becomes ``res2.0.conv2.norm.weight``. Names that no rule knows are kept.
    """
    return {_convert(name): value for name, value in weights.items()}


def _convert(name: str) -> str:
    for pattern, replacement in RULES:
        match = re.fullmatch(pattern, name)
        if match:
            # The first of torchvision's layers has stride 4, which is called stage 2 here.
            stage = int(match.group(1)) + 1 if "{stage}" in replacement else 0
            return match.expand(replacement).replace("{stage}", str(stage))
    return name
