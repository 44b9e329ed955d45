"""ROIAlign for rotated regions."""

from __future__ import annotations

from torch import Tensor, nn

from detlab.layers import _ops
from detlab.layers.roi_align import as_pair

__all__ = ["ROIAlignRotated", "roi_align_rotated"]


def roi_align_rotated(
    input: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """The operator behind ``ROIAlignRotated``; its arguments are described there."""
    if rois.dim() != 2 or rois.shape[1] != 6:
        raise ValueError(f"rotated regions are (R, 6): image index, cx, cy, w, h, angle; got {tuple(rois.shape)}")
    return _ops.roi_align_rotated(input, rois.to(input.dtype), as_pair(output_size), spatial_scale, sampling_ratio)


class ROIAlignRotated(nn.Module):
    """Pools rotated regions of a feature map to one size; always aligned as ``ROIAlign(aligned=True)`` is.

    Args:
        output_size: (height, width) of a pooled region, or one number for both.
        spatial_scale: cells of the map per pixel of the boxes, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 lets it grow with the region, ``ceil(size / output_size)``.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pools.

        Args:
            input: (N, C, H, W).
            rois: (R, 6), each the index of the image in the batch, center x y, width and height in pixels, and the
                angle in degrees, counter-clockwise.

        Returns:
            (R, C, height, width).
        """
        return roi_align_rotated(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
        )
