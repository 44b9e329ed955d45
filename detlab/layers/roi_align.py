"""Average features under each region, sampled bilinearly (He et al., Mask R-CNN, 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from detlab.layers import _ops

__all__ = ["ROIAlign"]


class ROIAlign(nn.Module):
    """Pools regions of a feature map to one size.

    Args:
        output_size: (height, width) of a pooled region, or one number for both.
        spatial_scale: cells of the map per pixel of the boxes, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 lets it grow with the region, ``ceil(size / output_size)``.
        aligned: shift by half a cell, so that the center of cell (0, 0) lies at (0.5, 0.5). Without it (the form
            of the paper's first code) each region sits half a cell off, and is at least one cell in size.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pools.

        Args:
            input: (N, C, H, W).
            rois: (R, 5), each the index of the image in the batch and x1 y1 x2 y2 in pixels.

        Returns:
            (R, C, height, width).
        """
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(f"regions are (R, 5): image index, x1, y1, x2, y2; got {tuple(rois.shape)}")
        return _ops.roi_align(
            input,
            rois.to(input.dtype),
            as_pair(self.output_size),
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """One number stands for both sides."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
