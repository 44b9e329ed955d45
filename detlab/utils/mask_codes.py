"""Masks in COCO's codes: the one door to the decoder and the rasteriser of the COCO tools.

Those are C without checks. Run lengths that do not fill the image make them read and write outside of it, or wait for
an end that never comes; a corner at infinity or far away costs gigabytes, or the process. Everything here is checked
first, and every use of ``pycocotools.mask`` in this package goes through here.

Shapes: N objects, H x W the image. An RLE is ``{"size": [H, W], "counts": ...}``: the lengths of runs outside and
inside the object in turn, column by column, starting outside, as a list or compressed in a text or bytes. A polygon is
a flat array x0 y0 x1 y1 ... in pixels.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detlab.utils._polygon_fill import runs_between, runs_of_polygons

__all__ = [
    "Polygons",
    "Rle",
    "check_corners",
    "checked_objects",
    "checked_polygons",
    "checked_rle",
    "decode_rle",
    "draw_polygons",
    "encode_bitmap",
    "encode_runs",
    "find_bad_code",
    "polygons_to_rle",
    "rle_area",
    "with_bounded_outlines",
]

# Their compiled code predates the copy argument of numpy 2, which says so at every decoding.
warnings.filterwarnings(
    "ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning, r"pycocotools\.mask"
)

Rle = dict[str, Any]
Polygons = list[np.ndarray]

# 16384 x 16384. A code of a few bytes unfolds to one byte for each pixel; Pillow refuses images of 2/3 of this size.
MAX_MASK_PIXELS = 1 << 28
# No image reaches that far; beyond it a coordinate is not a place but a damaged number.
MAX_COORDINATE = 1e9
# No outline needs so many corners, which may each cost a walk across the image.
MAX_CORNERS = 1 << 16
# What images are resized by moves corners further out, and what crops stretch still further, up to where float64 stops
# counting fifths of a pixel.
MAX_MOVED_COORDINATE = 1e12
MAX_DRAWN_COORDINATE = 1e15
# In pixels. The COCO tools spend 80 bytes and 50 ns on each pixel of an outline's length.
LONG_OUTLINE = 1 << 16
LONG_IN_ALL = 1 << 20
# They unite polygons one by one, each time over all runs there are.
MANY_POLYGONS = 64
# 7 groups of 5 bits hold more than any run of MAX_MASK_PIXELS.
MAX_GROUPS = 7


# ---------------------------------------------------------------------------------------------------------- run lengths


def checked_rle(rle: Any, size_hw: Sequence[int] | None = None, where: str = "") -> Rle:
    """Makes sure that an RLE can be decoded, and compresses its counts.

    Args:
        rle: compressed or not.
        size_hw: the image's; None if it is not known.
        where: what an error begins with, such as the file and the annotation.

    Returns:
        A new dictionary, compressed: ``counts`` are those given if they were compressed, else bytes.

    Raises:
        ValueError: it is no RLE; its size is not that of the image, or beyond reason; its counts cannot be read, or do
            not add up to the size.
    """
    try:
        return _checked_rle(rle, size_hw)
    except ValueError as error:
        raise ValueError(f"{_lead(where)}{error}") from None


def _checked_rle(rle: Any, size_hw: Sequence[int] | None) -> Rle:
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"an RLE is {{'size': [height, width], 'counts': ...}}; got {_shorten(rle)}")
    height, width = _checked_size(rle["size"], size_hw)
    counts = rle["counts"]
    is_compressed = isinstance(counts, (str, bytes))
    runs = _runs_of_code(counts) if is_compressed else _runs_of_list(counts)
    if runs.size and runs.min() < 0:
        raise ValueError(f"an RLE has a run of {runs.min()} pixels in its counts {_shorten(counts)}")
    # Floats do not overflow, and these are exact far beyond any size that is allowed.
    total = runs.sum(dtype=np.float64)
    if total != height * width:
        raise ValueError(
            f"the counts {_shorten(counts)} of an RLE add up to {total:.0f} pixels, but its size {[height, width]} has "
            f"{height * width}; write the mask anew, with the height and width of its image"
        )
    # The overlap of two codes ends too early where both have an empty run.
    if not (runs[1:] > 0).all():
        return encode_runs([runs_between(np.cumsum(runs[:-1]), height * width)], height, width)[0]
    return dict(rle) if is_compressed else encode_runs([runs], height, width)[0]


def _checked_size(size: Any, size_hw: Sequence[int] | None) -> tuple[int, int]:
    values = size.tolist() if isinstance(size, np.ndarray) else size
    is_pair = isinstance(values, (list, tuple)) and len(values) == 2
    if not is_pair or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v > 0 for v in values):
        raise ValueError(f"the size of an RLE is [height, width], two positive whole numbers; got {_shorten(size)}")
    height, width = int(values[0]), int(values[1])
    if size_hw is not None and (height, width) != tuple(size_hw):
        raise ValueError(f"an RLE has size {(height, width)} (height, width), but its image {tuple(size_hw)}")
    _check_canvas(height, width)
    return height, width


def _check_canvas(height: int, width: int) -> None:
    if height * width > MAX_MASK_PIXELS:
        raise ValueError(
            f"a mask of height and width {[height, width]} has more than {MAX_MASK_PIXELS} pixels; correct its size, "
            "or cut the image into tiles"
        )


def _runs_of_list(counts: Any) -> np.ndarray:
    if isinstance(counts, (list, tuple, np.ndarray)):
        try:
            runs = np.asarray(counts)
        except (ValueError, OverflowError):
            runs = np.zeros(0)
        if runs.ndim == 1 and runs.dtype.kind in "iu":
            return runs.astype(np.int64, copy=False)
    raise ValueError(
        f"the counts of an RLE are a list of whole numbers, or their compressed form as text; got {_shorten(counts)}"
    )


def _runs_of_code(code: str | bytes) -> np.ndarray:
    """(R,) int64 of a compressed code.

    Each number is written in groups of 5 bits, low ones first, as characters from 48 on; 32 is set in all but its last,
    where 16 is the sign. From the fourth on they are differences to the number two before.
    """
    # What is not ASCII becomes bytes that no group has.
    data = code.encode("utf-8", "surrogatepass") if isinstance(code, str) else code
    groups = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((groups & 32) == 0)
    if groups.size and (groups.min() < 0 or groups.max() > 63 or not ends.size or ends[-1] != groups.size - 1):
        raise ValueError(f"the counts {_shorten(code)} of an RLE are not in COCO's compressed form, or cut off")
    if not groups.size:
        return groups
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_GROUPS:
        raise ValueError(f"the counts {_shorten(code)} of an RLE hold a number that no image needs")
    places = 5 * (np.arange(groups.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((groups & 31) << places, starts)
    runs -= ((groups[ends] & 16) > 0) * (1 << 5 * lengths)
    np.cumsum(runs[1::2], out=runs[1::2])
    np.cumsum(runs[2::2], out=runs[2::2])
    return runs


def find_bad_code(codes: Sequence[str]) -> int | None:
    """One of N compressed codes that cannot be read: empty, not in COCO's characters, cut off, or without end.

    They are looked through as text, which takes a fraction of the time of reading them from a file; whether their runs
    fill the image only decoding tells.
    """
    if not codes:
        return None
    lengths = np.fromiter(map(len, codes), dtype=np.int64, count=len(codes))
    text = "".join(codes)
    if not text.isascii():
        return next(i for i, code in enumerate(codes) if not code.isascii())
    groups = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    ends = np.cumsum(lengths) - 1
    is_wrong = (groups < 48) | (groups > 111)
    goes_on = groups >= 80
    is_wrong[ends[lengths > 0]] |= goes_on[ends[lengths > 0]]
    in_a_row = goes_on.copy()
    for shift in range(1, MAX_GROUPS):
        in_a_row[shift:] &= goes_on[:-shift]
    in_a_row[: MAX_GROUPS - 1] = False
    is_wrong |= in_a_row
    is_bad = lengths == 0
    is_bad[np.searchsorted(ends, np.flatnonzero(is_wrong))] = True
    return int(is_bad.argmax()) if is_bad.any() else None


def encode_runs(runs: Sequence[Sequence[int] | np.ndarray], height: int, width: int) -> list[Rle]:
    """Compresses N lists of run lengths that fill an image, which the caller makes sure of."""
    from pycocotools import mask as coco_mask

    if not len(runs):
        return []
    listed = [own.tolist() if isinstance(own, np.ndarray) else own for own in runs]
    return coco_mask.frPyObjects([{"size": [height, width], "counts": own} for own in listed], height, width)


def encode_bitmap(bitmap: np.ndarray) -> Rle:
    """The RLE of an (H, W) bitmap; what is not 0 is inside."""
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(bitmap != 0, dtype=np.uint8))


def decode_rle(rle: Any, size_hw: Sequence[int] | None = None, where: str = "") -> np.ndarray:
    """The (H, W) uint8 bitmap of an RLE, 0 or 1; see :func:`checked_rle` for the arguments and errors."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(checked_rle(rle, size_hw, where))


def rle_area(rle: Any, where: str = "") -> int:
    """How many pixels an RLE covers; see :func:`checked_rle` for the errors."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(checked_rle(rle, where=where)))


# ------------------------------------------------------------------------------------------------------------- polygons


def checked_polygons(polygons: Any, where: str = "") -> Polygons:
    """Makes sure that polygons of one object can be drawn; for those of many objects see :func:`checked_objects`.

    Args:
        polygons: a list; each is x0, y0, x1, y1, ... or (P, 2), in any container.
        where: what an error begins with, such as the file and the annotation.

    Returns:
        Each as a flat float64 array.

    Raises:
        ValueError: it is no list; or a polygon is not of numbers, has fewer than 3 corners or half of one, or a
            coordinate that is not finite or beyond 1e9; or they have more than 65536 corners together.
    """
    return checked_objects([polygons], lambda _: where)[0]


def checked_objects(objects: Sequence[Any], name: Callable[[int], str], *, are_moved: bool = False) -> list[Polygons]:
    """The polygons of N objects as :func:`checked_polygons` returns them, all coordinates looked at in one pass.

    Args:
        objects: each as :func:`checked_polygons` takes it.
        name: what an error about an object begins with, by its index.
        are_moved: transforms may have been here since the check of what a file says: they scale coordinates, which may
            then be up to 1e12, and cuts add corners, of which there may be any number.

    Raises:
        ValueError: as of :func:`checked_polygons`.
    """
    arrays = [_as_polygons(polygons, name, i) for i, polygons in enumerate(objects)]
    limit = MAX_MOVED_COORDINATE if are_moved else MAX_COORDINATE
    if not _are_within([polygon for own in arrays for polygon in own], limit):
        for i, own in enumerate(arrays):
            _refuse_beyond(limit, own, name(i))
    if not are_moved and sum(polygon.size for own in arrays for polygon in own) > 2 * MAX_CORNERS:
        for i, own in enumerate(arrays):
            check_corners(sum(polygon.size for polygon in own) // 2, name(i))
    return arrays


def check_corners(count: int, where: str = "") -> None:
    """Refuses more corners of one object than ``MAX_CORNERS``.

    Raises:
        ValueError: there are more.
    """
    if count > MAX_CORNERS:
        raise ValueError(
            f"{_lead(where)}the polygons of an object have {count} corners together, more than {MAX_CORNERS}; simplify "
            "the outline, or write the mask as an RLE"
        )


def _as_polygons(polygons: Any, name: Callable[[int], str], index: int) -> Polygons:
    if not isinstance(polygons, (list, tuple)):
        raise ValueError(
            f"{_lead(name(index))}an object needs a list of polygons [[x0, y0, x1, y1, ...], ...]; "
            f"got {_shorten(polygons)}"
        )
    try:
        return [_as_polygon(polygon) for polygon in polygons]
    except ValueError as error:
        raise ValueError(f"{_lead(name(index))}{error}") from None


def _as_polygon(polygon: Any) -> np.ndarray:
    values = polygon.detach().cpu() if isinstance(polygon, torch.Tensor) else polygon
    try:
        values = np.asarray(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a polygon holds numbers x0, y0, x1, y1, ...; got {_shorten(polygon)}") from None
    if values.size < 6 or values.size % 2:
        raise ValueError(
            f"a polygon has {values.size} values, but needs x and y of at least 3 corners: {_shorten(polygon)}"
        )
    return values.reshape(-1)


def _are_within(polygons: Sequence[np.ndarray], limit: float) -> bool:
    """Whether all coordinates are finite, and not beyond a limit in size."""
    return not polygons or bool(np.abs(np.concatenate(polygons)).max() <= limit)


def _refuse_beyond(limit: float, polygons: Sequence[np.ndarray], where: str = "") -> None:
    for polygon in polygons:
        wrong = np.flatnonzero(~(np.abs(polygon) <= limit))
        if len(wrong):
            raise ValueError(
                f"{_lead(where)}a polygon has {'xy'[wrong[0] % 2]} = {polygon[wrong[0]]} at its corner "
                f"{wrong[0] // 2}; coordinates are finite, in pixels, and not beyond {limit:g}"
            )


def draw_polygons(objects: Sequence[Polygons], height: int, width: int) -> np.ndarray:
    """Fills polygons as the COCO tools do, all of them in three calls.

    Args:
        objects: N; each is the union of its polygons, or empty without any.
        height: H.
        width: W.

    Returns:
        (N, H, W) bool.

    Raises:
        ValueError: a coordinate is not finite, or beyond 1e15 in size.
    """
    from pycocotools import mask as coco_mask

    visible = [i for i, polygons in enumerate(objects) if len(polygons) > 0]
    bitmaps = np.zeros((len(objects), height, width), dtype=bool)
    if visible:
        codes = _codes_of_objects([objects[i] for i in visible], height, width)
        bitmaps[visible] = coco_mask.decode(codes).transpose(2, 0, 1)
    return bitmaps


def polygons_to_rle(polygons: Any, height: int, width: int, where: str = "") -> Rle:
    """The RLE of the union of polygons, of which there is at least one; see :func:`checked_polygons` for the errors."""
    return _codes_of_objects([checked_polygons(polygons, where)], height, width)[0]


def with_bounded_outlines(segmentation: Any, height: int, width: int, where: str = "") -> Any:
    """A segmentation that other code may draw with the COCO tools: as it is, or as an RLE if its outline is too long.

    Raises:
        ValueError: it is neither a list of polygons nor an RLE that can be drawn.
    """
    if not isinstance(segmentation, (list, tuple)):
        return checked_rle(segmentation, (height, width), where)
    polygons = checked_polygons(segmentation, where)
    return segmentation if _is_short(polygons) else _codes_of_objects([polygons], height, width)[0]


def _codes_of_objects(objects: Sequence[Polygons], height: int, width: int) -> list[Rle]:
    """One RLE for each object, which has polygons; rare ones are filled by other means, which give the same."""
    _check_canvas(height, width)
    polygons = [polygon for own in objects for polygon in own]
    if max(map(len, objects)) <= MANY_POLYGONS and _reach(polygons) <= LONG_IN_ALL:
        return _codes_by_coco(objects, height, width)
    _refuse_beyond(MAX_DRAWN_COORDINATE, polygons)
    return [
        _codes_by_coco([own], height, width)[0]
        if _is_short(own)
        else encode_runs([runs_of_polygons(own, height, width)], height, width)[0]
        for own in objects
    ]


def _codes_by_coco(objects: Sequence[Polygons], height: int, width: int) -> list[Rle]:
    from pycocotools import mask as coco_mask

    pieces = iter(coco_mask.frPyObjects([polygon for own in objects for polygon in own], height, width))
    parts = [[next(pieces) for _ in own] for own in objects]
    return [own[0] if len(own) == 1 else coco_mask.merge(own) for own in parts]


def _is_short(polygons: Polygons) -> bool:
    """Whether the COCO tools are quick with an object's polygons."""
    return len(polygons) <= MANY_POLYGONS and _reach(polygons) <= LONG_OUTLINE


def _reach(polygons: Sequence[np.ndarray]) -> float:
    """How far it is from the origin through all corners in turn, along x and y, in pixels.

    No coordinate is larger, and no outline is longer than twice that. NaN or infinite if a coordinate is.
    """
    values = np.concatenate([(0.0, 0.0), *polygons])
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(values[2:] - values[:-2]).sum())


# ------------------------------------------------------------------------------------------------------------- messages

# Values as errors show them: of megabytes, only the beginning.
_shortener = reprlib.Repr()
_shortener.maxlist = _shortener.maxtuple = 8
_shortener.maxstring = _shortener.maxother = 80
_shorten = _shortener.repr


def _lead(where: str) -> str:
    return f"{where}: " if where else ""
