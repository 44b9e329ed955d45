"""Reference boxes spread over feature maps.

Shapes: L feature levels, A anchors per cell, Hl x Wl cells of level l, Pl = Hl * Wl * A.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.structures.boxes import Boxes
from detlab.structures.rotated_boxes import RotatedBoxes
from detlab.utils.registry import Registry

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BufferList",
    "DefaultAnchorGenerator",
    "RotatedAnchorGenerator",
    "build_anchor_generator",
]

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = (
    "Modules ``(cfg, input_shapes)`` that turn feature maps into anchors, a list by level."
)


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """The module that ``cfg.MODEL.ANCHOR_GENERATOR.NAME`` names, for feature maps of ``input_shape``."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


class BufferList(nn.Module):
    """A list of tensors that moves with the module and stays out of its state dict."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for i, value in enumerate(buffers):
            self.register_buffer(str(i), value, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


def cell_centers(height: int, width: int, stride: int, offset: float, like: Tensor) -> Tensor:
    """(height * width, 2): x, y of every cell's anchor center, row by row, in pixels.

    ``offset`` is the center's place in its cell, in units of the stride.
    """
    xs = (torch.arange(width, dtype=torch.float32, device=like.device) + offset) * stride
    ys = (torch.arange(height, dtype=torch.float32, device=like.device) + offset) * stride
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack((grid_x.reshape(-1), grid_y.reshape(-1)), dim=1)


def _one_per_level(name: str, values: Sequence, num_levels: int, above: float = 0.0) -> list:
    """The values of each level, all above a bound: one entry serves all levels, a flat list of numbers is one entry."""
    key = f"anchor {name} (MODEL.ANCHOR_GENERATOR.{name.upper()})"
    per_level = [list(v) for v in values] if values and isinstance(values[0], Sequence) else [list(values)]
    if not all(per_level):
        raise ValueError(f"{key} must not be empty, nor hold an empty list; got {values}")
    if not all(above < value < math.inf for level in per_level for value in level):
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"{key} must be finite numbers{bound}; got {values}")
    if len(per_level) not in (1, num_levels):
        raise ValueError(
            f"{key} has {len(per_level)} lists for {num_levels} feature maps; give one list for each map that "
            f"IN_FEATURES names, or one for all; got {values}"
        )
    return per_level * num_levels if len(per_level) == 1 else per_level


def _grid_settings(cfg, input_shape: list[ShapeSpec]) -> dict:
    """The arguments that both generators take from a config."""
    settings = cfg.MODEL.ANCHOR_GENERATOR
    return {
        "sizes": settings.SIZES,
        "aspect_ratios": settings.ASPECT_RATIOS,
        "strides": [shape.stride for shape in input_shape],
        "offset": settings.OFFSET,
    }


class _GridAnchorGenerator(nn.Module):
    """Copies of a level's cell anchors at every cell of it; a subclass says what a cell's anchors are."""

    box_dim: int
    box_type: type

    def _set_up(self, cell_anchors: list[Tensor], strides: Sequence[int], offset: float) -> None:
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"the anchors' offset is a part of the stride in [0, 1), got {offset}")
        self.strides = list(strides)
        self.num_features = len(self.strides)
        self.offset = offset
        self.cell_anchors = BufferList(cell_anchors)

    @property
    def num_anchors(self) -> list[int]:
        """The number of anchors of one cell, for each level."""
        return [len(anchors) for anchors in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """Another name of :attr:`num_anchors`."""
        return self.num_anchors

    def anchors_of_maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (Pl, box_dim) tensor for each feature map (N, C, Hl, Wl), ordered by row, column, anchor."""
        return [
            self._anchors_of_map(feature, stride, cell)
            for feature, stride, cell in zip(features, self.strides, self.cell_anchors)
        ]

    def _anchors_of_map(self, feature: Tensor, stride: int, cell: Tensor) -> Tensor:
        height, width = feature.shape[-2:]
        centers = cell_centers(height, width, stride, self.offset, cell).to(cell.dtype)
        return (self._as_shift(centers)[:, None] + cell[None]).reshape(-1, self.box_dim)

    def _as_shift(self, centers: Tensor) -> Tensor:
        """What is added to a cell's anchors to move them to each of the centers (B, 2)."""
        raise NotImplementedError

    def forward(self, features: list[Tensor]) -> list:
        """Boxes of the type the subclass makes, one for each feature map; see :meth:`anchors_of_maps`."""
        return [self.box_type(anchors) for anchors in self.anchors_of_maps(features)]


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(_GridAnchorGenerator):
    """Axis-aligned anchors of every size with every aspect ratio (Faster R-CNN, section 3.1.1).

    Args:
        sizes: square roots of the areas in pixels: a list for each level, or one list for all.
        aspect_ratios: height / width, in the same form.
        strides: pixels per cell of each level.
        offset: where in its cell an anchor's center lies, in units of the stride, in [0, 1).
    """

    box_dim = 4
    box_type = Boxes

    @configurable
    def __init__(self, *, sizes, aspect_ratios, strides, offset=0.5) -> None:
        super().__init__()
        sizes = _one_per_level("sizes", sizes, len(strides))
        ratios = _one_per_level("aspect_ratios", aspect_ratios, len(strides))
        self._set_up([self.generate_cell_anchors(s, r) for s, r in zip(sizes, ratios)], strides, offset)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        return _grid_settings(cfg, input_shape)

    def generate_cell_anchors(self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) xyxy boxes about the origin; the ratio changes fastest."""
        halves = [
            (0.5 * size / math.sqrt(ratio), 0.5 * size * math.sqrt(ratio)) for size in sizes for ratio in aspect_ratios
        ]
        return torch.tensor([[-w, -h, w, h] for w, h in halves], dtype=torch.float32)

    def _as_shift(self, centers: Tensor) -> Tensor:
        return torch.cat((centers, centers), dim=1)


@ANCHOR_GENERATOR_REGISTRY.register()
class RotatedAnchorGenerator(_GridAnchorGenerator):
    """Anchors (cx, cy, w, h, angle) of every size with every aspect ratio at every angle.

    Args:
        sizes: see :class:`DefaultAnchorGenerator`.
        aspect_ratios: height / width before the rotation.
        strides: pixels per cell of each level.
        angles: degrees, counter-clockwise, in the same form as the sizes.
        offset: see :class:`DefaultAnchorGenerator`.
    """

    box_dim = 5
    box_type = RotatedBoxes

    @configurable
    def __init__(self, *, sizes, aspect_ratios, strides, angles, offset=0.5) -> None:
        super().__init__()
        sizes = _one_per_level("sizes", sizes, len(strides))
        ratios = _one_per_level("aspect_ratios", aspect_ratios, len(strides))
        angles = _one_per_level("angles", angles, len(strides), above=-math.inf)
        cells = [self.generate_cell_anchors(s, r, a) for s, r, a in zip(sizes, ratios, angles)]
        self._set_up(cells, strides, offset)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        return _grid_settings(cfg, input_shape) | {"angles": cfg.MODEL.ANCHOR_GENERATOR.ANGLES}

    def generate_cell_anchors(
        self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2), angles=(-90, -60, -30, 0, 30, 60, 90)
    ) -> Tensor:
        """(sizes * ratios * angles, 5) boxes about the origin; the angle changes fastest."""
        boxes = [
            [0.0, 0.0, size / math.sqrt(ratio), size * math.sqrt(ratio), angle]
            for size in sizes
            for ratio in aspect_ratios
            for angle in angles
        ]
        return torch.tensor(boxes, dtype=torch.float32)

    def _as_shift(self, centers: Tensor) -> Tensor:
        return torch.nn.functional.pad(centers, (0, 3))
