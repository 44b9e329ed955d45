"""Fixed-size features of boxes of any size.

Shapes: N images, L feature levels, C channels, R boxes of the whole batch, h x w the output size.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detlab.layers import _ops
from detlab.modeling.packing import by_group
from detlab.structures.boxes import Boxes
from detlab.structures.object_batch import padded

__all__ = ["ROIPooler", "assign_boxes_to_levels", "convert_boxes_to_pooler_format", "levels_of_areas"]

POOLER_TYPES = ("ROIAlign", "ROIAlignV2", "ROIAlignRotated", "ROIPool")


def levels_of_areas(
    areas: Tensor, min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> Tensor:
    """The feature level of boxes of these areas, counted from ``min_level``, int64 of the same shape.

    ``floor(canonical_level + log2(sqrt(area) / canonical_box_size))``, FPN (Lin et al. 2017) equation 1, kept within
    the levels there are.
    """
    relative_size = areas.sqrt() / canonical_box_size
    levels = torch.floor(canonical_level + torch.log2(relative_size + 1e-8))
    return levels.clamp(min=min_level, max=max_level).to(torch.int64) - min_level


def assign_boxes_to_levels(
    box_lists: list[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> Tensor:
    """:func:`levels_of_areas` of the boxes of all images, (R,)."""
    areas = torch.cat([boxes.area() for boxes in box_lists])
    return levels_of_areas(areas, min_level, max_level, canonical_box_size, canonical_level)


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> Tensor:
    """The boxes of all images with their image's index in front: (R, 5), or (R, 6) for rotated boxes."""
    boxes = torch.cat([b.tensor for b in box_lists])
    counts = torch.tensor([len(b) for b in box_lists], device=boxes.device)
    images = torch.repeat_interleave(
        torch.arange(len(box_lists), dtype=boxes.dtype, device=boxes.device), counts, output_size=len(boxes)
    )
    return torch.cat((images[:, None], boxes), dim=1)


def _level_of_scale(scale: float) -> int:
    level = -math.log2(scale)
    if not math.isclose(level, round(level)):
        raise ValueError(f"a pooler's scale must be a power of 1/2, got {scale}")
    return round(level)


class ROIPooler(nn.Module):
    """Pools each box from the feature level that fits its size.

    Args:
        output_size: h, or (h, w).
        scales: of each level, its size relative to the image; powers of 1/2, each half of the one before.
        sampling_ratio: samples per bin and direction of ROIAlign; 0 takes about one per feature cell.
        pooler_type: ``ROIAlignV2`` (pixel-aligned), ``ROIAlign``, ``ROIPool`` or ``ROIAlignRotated``.
        canonical_box_size: the side, in pixels, of a box that belongs to ``canonical_level``.
        canonical_level: the exponent of that level's stride; 4 is stride 16.

    Raises:
        ValueError: for an unknown type, or scales that are not successive powers of 1/2.
    """

    def __init__(
        self,
        output_size,
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        if pooler_type not in POOLER_TYPES:
            raise ValueError(f"pooler type '{pooler_type}' is unknown; use one of {', '.join(POOLER_TYPES)}")
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size must be positive, got {canonical_box_size}")
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        if len(self.output_size) != 2:
            raise ValueError(f"output_size is a height and a width, got {output_size}")
        levels = [_level_of_scale(scale) for scale in scales]
        self.min_level, self.max_level = levels[0], levels[-1]
        if levels != list(range(self.min_level, self.max_level + 1)):
            raise ValueError(f"a pooler's scales must halve from level to level, got {list(scales)}")
        self.scales = list(scales)
        self.sampling_ratio = sampling_ratio
        self.pooler_type = pooler_type
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def extra_repr(self) -> str:
        scales = ", ".join(f"1/{round(1 / s)}" for s in self.scales)
        return f"{self.pooler_type}, output_size={self.output_size}, scales=({scales})"

    @padded
    def forward(self, x: list[Tensor], box_lists: list[Boxes] | Tensor) -> Tensor:
        """Pool the boxes of all images.

        Args:
            x: one feature map (N, C, Hl, Wl) for each scale.
            box_lists: N :class:`Boxes` or :class:`RotatedBoxes`, in pixels of the image; or regions as
                :func:`convert_boxes_to_pooler_format` makes them of such.

        Returns:
            (R, C, h, w), image by image.

        Raises:
            ValueError: if the numbers of maps or of images do not fit, or these are not the boxes of the pooler's type.
        """
        if len(x) != len(self.scales):
            raise ValueError(f"the pooler has {len(self.scales)} scales but was given {len(x)} feature maps")
        if isinstance(box_lists, Tensor):
            return self.pool(x, box_lists)
        if len(box_lists) != x[0].shape[0]:
            raise ValueError(f"boxes of {len(box_lists)} images came with features of {x[0].shape[0]}")
        return self.pool(x, convert_boxes_to_pooler_format(box_lists))

    def pool(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Pool ``rois`` (R, 5) [image, xyxy], or (R, 6) rotated, from ``features`` (N, C, Hl, Wl) -> (R, C, h, w)."""
        is_rotated = self.pooler_type == "ROIAlignRotated"
        if rois.shape[1] != (6 if is_rotated else 5):
            kind = "axis-aligned" if is_rotated else "rotated"
            raise ValueError(f"{self.pooler_type} cannot pool {kind} boxes; set POOLER_TYPE to the one that can")
        rois = rois.to(features[0].dtype) if self.pooler_type == "ROIPool" else rois
        levels = self._levels_of(rois)
        if self.pooler_type in ("ROIAlign", "ROIAlignV2"):
            return _ops.roi_align_levels(
                features, rois, levels, self.output_size, self.scales, self.sampling_ratio,
                self.pooler_type == "ROIAlignV2",
            )  # fmt: skip
        if len(features) == 1:
            return self._pool_one_level(features[0], rois, self.scales[0])
        pools = [partial(self._pool_one_level, f, scale=scale) for f, scale in zip(features, self.scales)]
        pooled = by_group(levels.clamp(0, len(features) - 1), pools, rois)
        # A box that is not finite has no level: its result is NaN, as where pooling looks at it.
        return pooled.masked_fill(~rois.isfinite().all(dim=1)[:, None, None, None], math.nan)

    def _levels_of(self, rois: Tensor) -> Tensor:
        if self.pooler_type == "ROIAlignRotated":
            areas = rois[:, 3] * rois[:, 4]
        else:
            areas = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        return levels_of_areas(areas, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level)

    def _pool_one_level(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        if self.pooler_type == "ROIAlignRotated":
            return _ops.roi_align_rotated(feature, rois, self.output_size, scale, self.sampling_ratio)
        from torchvision.ops import roi_pool

        return roi_pool(feature, rois, self.output_size, scale)
