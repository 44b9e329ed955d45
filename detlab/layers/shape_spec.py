"""What one part of a model tells the next about a feature map, before there is one."""

from dataclasses import dataclass

__all__ = ["ShapeSpec"]


@dataclass
class ShapeSpec:
    """The shape of a feature map as far as it is known when the model is built; None where it is not.

    Attributes:
        channels: number of channels.
        height: rows, or None when it varies with the image.
        width: columns, or None when it varies with the image.
        stride: image pixels per cell of the map.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
