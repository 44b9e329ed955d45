"""Shapes and texts drawn on a picture, and the choice of colours, sizes and places for them.

Colours are what matplotlib takes: a name, or (r, g, b) within 0 and 1.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.utils._canvas import VisImage
from detlab.utils._generic_mask import Part

Color = Any

SMALLEST_LINE = 1.0
LABEL_MARGIN = 2.0


def rgb_of(color: Color) -> tuple[float, float, float]:
    """(r, g, b) within 0 and 1."""
    from matplotlib.colors import to_rgb

    return to_rgb(tuple(color) if isinstance(color, np.ndarray) else color)


def readable(color: Color) -> tuple[float, float, float]:
    """The same hue, light enough to be read on black."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*rgb_of(color))
    return colorsys.hls_to_rgb(hue, max(lightness, 0.72), saturation)


def jittered(color: Color, generator: np.random.Generator) -> tuple[float, ...]:
    """A colour nearby, so that neighbours of one class can be told apart."""
    shift = generator.uniform(-1, 1, 3)
    return tuple(np.clip(np.array(rgb_of(color)) + 0.25 * shift / max(float(np.linalg.norm(shift)), 1e-6), 0, 1))


def draw_text(
    output: VisImage,
    text: str,
    position: Sequence[float],
    *,
    font_size: float,
    color: Color,
    horizontal_alignment: str = "center",
    vertical_alignment: str = "top",
    rotation: float = 0,
) -> None:
    """Writes on a dark plate; ``font_size`` in pixels of the image, ``rotation`` in degrees, counter-clockwise."""
    output.ax.text(
        position[0],
        position[1],
        text,
        size=font_size * output.scale * 72 / output.fig.get_dpi(),
        family="sans-serif",
        color=readable(color),
        bbox={"facecolor": "black", "alpha": 0.7, "pad": 0.7, "edgecolor": "none"},
        horizontalalignment=horizontal_alignment,
        verticalalignment=vertical_alignment,
        rotation=rotation,
        zorder=10,
        clip_on=True,
    )


def draw_rectangle(
    output: VisImage, box_xyxy: Sequence[float], *, color: Color, width: float, alpha: float, style: Any
) -> None:
    """An outline; ``width`` in pixels of the image."""
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box_xyxy
    shape = Rectangle(
        (x0, y0),
        x1 - x0,
        y1 - y0,
        fill=False,
        edgecolor=color,
        linewidth=_points(output, width),
        alpha=alpha,
        linestyle=style,
    )
    output.ax.add_patch(shape)


def draw_line(
    output: VisImage, xs: Sequence[float], ys: Sequence[float], *, color: Color, width: float, style: Any
) -> None:
    """A line through points; ``width`` in pixels of the image."""
    from matplotlib.lines import Line2D

    output.ax.add_line(Line2D(xs, ys, linewidth=_points(output, width), color=color, linestyle=style))


def draw_disc(output: VisImage, center: Sequence[float], *, radius: float, color: Color) -> None:
    """A filled circle; ``radius`` in pixels of the image."""
    from matplotlib.patches import Circle

    output.ax.add_patch(Circle((center[0], center[1]), radius=radius, fill=True, color=color))


def draw_parts(
    output: VisImage, parts: Iterable[Part], *, color: Color, edge_color: Color | None, alpha: float, width: float
) -> None:
    """Fills outlines, holes spared; no edges where ``edge_color`` is None."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    for part in parts:
        # The closing point is one more: matplotlib takes the last for the place to return to.
        rings = [np.concatenate([ring, ring[:1]]) for ring in (part.outline, *part.holes)]
        shape = PathPatch(
            Path.make_compound_path(*(Path(ring, closed=True) for ring in rings)),
            facecolor=to_rgba(rgb_of(color), alpha),
            edgecolor="none" if edge_color is None else to_rgba(rgb_of(edge_color), 1.0),
            linewidth=_points(output, width),
        )
        output.ax.add_patch(shape)


def draw_soft_mask(output: VisImage, soft_mask: np.ndarray, *, color: Color, alpha: float) -> None:
    """Lays a colour over the picture, the thicker the closer the (H, W) mask is to 1."""
    pixels = np.empty((*soft_mask.shape, 4), dtype=float)
    pixels[:, :, :3] = rgb_of(color)
    pixels[:, :, 3] = np.clip(soft_mask, 0, 1) * alpha
    output.show(pixels)


def _points(output: VisImage, pixels: float) -> float:
    return max(pixels, SMALLEST_LINE) * output.scale * 72 / output.fig.get_dpi()


class LabelPlace(NamedTuple):
    """Where the label of a box goes."""

    position: tuple[float, float]
    vertical_alignment: str


def label_place(box_xyxy: Sequence[float], font_size: float, image_height: float) -> LabelPlace:
    """Inside the upper left corner; a box too low for that has its label above, or below at the image's upper rim."""
    x0, y0, _, y1 = box_xyxy
    line_height = 1.4 * font_size
    if y1 - y0 >= 2.5 * line_height:
        return LabelPlace((x0 + LABEL_MARGIN, y0 + LABEL_MARGIN), "top")
    if y0 >= line_height:
        return LabelPlace((x0, y0 - 1), "bottom")
    return LabelPlace((x0, min(y1 + 1, image_height - line_height)), "top")


def rotated_corners(cx: float, cy: float, width: float, height: float, angle: float) -> np.ndarray:
    """(4, 2) corners of a box turned counter-clockwise by ``angle`` degrees: upper left, and on clockwise."""
    radians = np.deg2rad(angle)
    along = np.array([np.cos(radians), -np.sin(radians)]) * width / 2
    down = np.array([np.sin(radians), np.cos(radians)]) * height / 2
    center = np.array([cx, cy])
    return np.stack([center - along - down, center + along - down, center + along + down, center - along + down])
