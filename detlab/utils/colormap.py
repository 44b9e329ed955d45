"""Colours that are easy to tell apart, for drawing objects and classes."""

from __future__ import annotations

import functools
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

NUM_COLORS = 80

# Oklab (Ottosson 2020): linear sRGB to cone responses, and their cube roots to lightness and two opponent colours.
LINEAR_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LMS_ROOTS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def colormap(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """A fixed table of colours, each as far as possible from those before it.

    Args:
        rgb: the order of the channels; BGR otherwise.
        maximum: of the values: 255 or 1.

    Returns:
        (80, 3) float32 in ``[0, maximum]``.
    """
    _check_maximum(maximum)
    table = _palette() * maximum
    return table if rgb else table[:, ::-1].copy()


def random_color(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """One of the table's colours, drawn by :mod:`random`.

    Args:
        rgb: the order of the channels; BGR otherwise.
        maximum: of the values: 255 or 1.

    Returns:
        (3,) float32 in ``[0, maximum]``.
    """
    return random.choice(colormap(rgb, maximum))


def random_colors(N: int, rgb: bool = False, maximum: float = 255) -> list[np.ndarray]:
    """``N`` different colours of the table, drawn by :mod:`random`; more than it holds repeat.

    Args:
        N: how many.
        rgb: the order of the channels; BGR otherwise.
        maximum: of the values: 255 or 1.

    Returns:
        ``N`` arrays (3,) float32 in ``[0, maximum]``.
    """
    table = colormap(rgb, maximum)
    rounds, rest = divmod(N, NUM_COLORS)
    picks = [*range(NUM_COLORS)] * rounds + random.sample(range(NUM_COLORS), rest)
    random.shuffle(picks)
    return [table[i] for i in picks]


def _check_maximum(maximum: float) -> None:
    if maximum not in (1, 255):
        raise ValueError(f"maximum={maximum}: colours go up to 255 or to 1")


@functools.cache
def _palette() -> np.ndarray:
    """(80, 3) sRGB in [0, 1], chosen greedily: each next colour has the greatest distance to the nearest one taken."""
    levels = np.linspace(0, 1, 11)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    oklab = _to_oklab(candidates)
    chroma = np.hypot(oklab[:, 1], oklab[:, 2])
    # Near black, near white and greys are lost on photographs.
    visible = (oklab[:, 0] > 0.35) & (oklab[:, 0] < 0.95) & (chroma > 0.06)
    candidates, oklab = candidates[visible], oklab[visible]
    picks = [int(np.argmax(np.hypot(oklab[:, 1], oklab[:, 2])))]
    distance = np.full(len(candidates), np.inf)
    while len(picks) < NUM_COLORS:
        distance = np.minimum(distance, np.linalg.norm(oklab - oklab[picks[-1]], axis=1))
        picks.append(int(np.argmax(distance)))
    return candidates[picks].astype(np.float32)


def _to_oklab(srgb: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB in [0, 1] to (N, 3) Oklab, where distances are about as large as they look."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ LINEAR_RGB_TO_LMS.T) @ LMS_ROOTS_TO_OKLAB.T
