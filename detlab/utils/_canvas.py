"""A picture to draw on: a matplotlib figure of exactly one picture's pixels, without a window and without pyplot."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from detlab.utils.optional import require


class VisImage:
    """An image and what is drawn over it.

    Coordinates are pixels of the image, (0, 0) the outer corner of the first one; whatever the scale.

    Attributes:
        img: (H, W, 3) RGB.
        fig, canvas, ax: the matplotlib figure, its raster, and the axes to draw in.

    Args:
        img: (H, W, 3), RGB, uint8 or float in ``[0, 255]``.
        scale: size of the result relative to the image.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        require("matplotlib", "draw", "drawing")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = Figure(frameon=False)
        self.canvas = FigureCanvasAgg(self.fig)
        # A hundredth of a pixel more keeps the division by dots per inch from rounding down to a pixel less.
        size = np.array([self.width, self.height]) * scale + 1e-2
        self.fig.set_size_inches(*(size / self.fig.get_dpi()))
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Puts another image of the same size beneath what is drawn.

        Args:
            img: (H, W, 3), RGB, uint8 or float in ``[0, 255]``.
        """
        self.show(np.clip(img, 0, 255).astype(np.uint8))

    def show(self, pixels: np.ndarray) -> Any:
        """Lays (H, W, 3) or, half transparent, (H, W, 4) pixels over the picture; returns matplotlib's image."""
        return self.ax.imshow(pixels, extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str | os.PathLike[str]) -> None:
        """Writes the picture in the format of the file's suffix.

        Args:
            filepath: in a directory that exists.
        """
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """The picture as (H * scale, W * scale, 3) uint8, RGB."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[:, :, :3].copy()
