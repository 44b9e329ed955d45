"""Reading images and changing their colours.

Shapes: H x W pixels, C colours, as numpy arrays (H, W, C). Formats are Pillow's modes and two more: ``"BGR"``, uint8 in
[0, 255], and ``"YUV-BT.601"``, float with Y in [0, 1].
"""

from __future__ import annotations

import contextlib
import errno
import functools
import warnings
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from detlab.utils.file_io import open_bytes

__all__ = ["convert_PIL_to_numpy", "convert_image_to_rgb", "read_image", "read_label_map"]

YUV_FORMAT = "YUV-BT.601"

# ITU-R BT.601 for values in [0, 1]: rows are Y, U, V in terms of R, G, B, and the way back.
RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

# Of one number for each pixel, not cut off at 255.
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
DEEP_MODES = (*SIXTEEN_BIT_MODES, "I", "F")
LABEL_MODES = ("L", "P", "I", *SIXTEEN_BIT_MODES)
# Pillow has read 16 bits of these as 32.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")

# Pixels, as data sets hold them. Pillow goes by a file's content, whatever its name, and knows formats that draw, or
# that run a program (for EPS, Ghostscript): a data set from elsewhere shall not choose among those.
RASTER_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "MPO", "AVIF")
LENGTH_OF_SIGNATURE = 16

# Pillow warns of each image from half the size on at which it refuses; in a dataset of large images that is too often.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What opening a name says that no file can have: through a file, too long, through links in a circle.
NO_FILE = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
LONGEST_SHOWN = 200

EXIF_ORIENTATION_TAG = 0x0112
# EXIF orientation to the operation that sets the picture upright; 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Reads an image, upright by its EXIF orientation.

    Of 16 bits a format of 8 bits keeps the high ones, as Pillow does for colours: 65535 becomes 255.

    Args:
        file_name: path or address.
        format: a mode of Pillow, ``"BGR"`` or ``"YUV-BT.601"``; None keeps the file's own mode.

    Returns:
        (H, W, C) uint8, or float for ``"YUV-BT.601"``; C = 1 for ``"L"``. Without a format, what the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image of one of ``RASTER_FORMATS``, its end is missing, or it is larger than
            Pillow allows; it is a folder, pipe or device; the format is unknown, or of 8 bits while the file's numbers,
            of 32, say nothing about their range.
    """
    image = _load(file_name)
    try:
        return convert_PIL_to_numpy(image, format)
    except ValueError as error:
        raise ValueError(f"image {file_name!r}: {error}") from None


def read_label_map(file_name: str) -> np.ndarray:
    """Reads a map of labels with the numbers that the file holds: of 16 bits all, of a palette the places in it.

    Args:
        file_name: path or address.

    Returns:
        (H, W), of the integer type of the file. Of grey in several equal channels, one of them, uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as of :func:`read_image`, or the pixels are floating numbers or colours.
    """
    image = _load(file_name)
    if image.mode == "F":
        raise ValueError(f"the label map {file_name!r} holds floating numbers; labels are integers")
    pixels = np.array(image)
    if image.mode == "1":
        return pixels.astype(np.uint8)
    if image.mode in LABEL_MODES:
        return pixels
    if image.mode in ("RGB", "RGBA", "RGBX") and (pixels[:, :, :1] == pixels[:, :, 1:3]).all():
        return pixels[:, :, 0].copy()
    raise ValueError(
        f"the label map {file_name!r} holds colours (mode {image.mode!r}), which are no labels; write one number for "
        "each pixel, the index of its class"
    )


def _load(file_name: str) -> Image.Image:
    try:
        with open_bytes(file_name, "image") as file:
            return _upright(_decode(file, file_name))
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in NO_FILE:
            raise
        shown = repr(file_name if len(file_name) <= LONGEST_SHOWN else f"{file_name[:LONGEST_SHOWN]}...")
        raise FileNotFoundError(
            f"image {shown} does not exist; check 'file_name' of the dataset's records and the image directory "
            "it was registered with (built-in datasets lie below $DETLAB_DATASETS)"
        ) from None


def _decode(file: IO[Any], file_name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=_known_formats())
        image.load()
    except UnidentifiedImageError:
        file.seek(0)
        kind = _other_format(file.read(LENGTH_OF_SIGNATURE))
        what = f"holds {kind}, which is" if kind else "is"
        raise ValueError(
            f"{file_name!r} {what} not an image that is read here ({', '.join(RASTER_FORMATS)}); remove it, replace "
            "it, or convert it to PNG or JPEG"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {file_name!r} has more pixels than Pillow decodes ({error}); remove it, cut it into tiles, or, if "
            "you trust it, set PIL.Image.MAX_IMAGE_PIXELS to half the number of its pixels or more"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        # What Pillow's readers of the formats raise on wrong bytes is anything.
        raise ValueError(f"image {file_name!r} is damaged ({error}); download or copy it again") from error
    return image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of ``RASTER_FORMATS`` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in RASTER_FORMATS if name in Image.OPEN)


def _other_format(signature: bytes) -> str | None:
    """The format that a file's first bytes are of, which are looked at and no more."""
    for name, (_, accepts) in Image.OPEN.items():
        # What the readers of the formats make of too few bytes is anything.
        with contextlib.suppress(Exception):
            if name not in RASTER_FORMATS and accepts is not None and accepts(signature) is True:
                return name
    return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:
        # Metadata that cannot be parsed, which raises anything, says nothing about the picture.
        return image
    if orientation not in UPRIGHT:
        return image
    upright = image.transpose(UPRIGHT[orientation])
    upright.format = image.format
    return upright


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Turns a Pillow image into an array; see :func:`read_image` about 16 bits.

    Args:
        image: of any mode.
        format: a mode of Pillow, ``"BGR"`` or ``"YUV-BT.601"``; None keeps the image's mode.

    Returns:
        (H, W, C) uint8, or float for ``"YUV-BT.601"``; C = 1 for ``"L"``.

    Raises:
        ValueError: Pillow knows no such mode, or it is of 8 bits and the image of 32.
    """
    if format is None:
        return np.array(image)
    image = _to_mode(image, "RGB" if format in ("BGR", YUV_FORMAT) else format)
    if format == "BGR":
        # Pillow swaps the channels while it copies them out; a reversed view would slow every later copy down.
        pixels = np.frombuffer(image.tobytes("raw", "BGR"), dtype=np.uint8)
        return pixels.reshape(image.height, image.width, 3).copy()
    pixels = np.array(image)
    if format == YUV_FORMAT:
        return pixels / 255.0 @ RGB_TO_YUV.T
    return pixels[:, :, None] if format == "L" else pixels


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if mode not in DEEP_MODES:
        image = _to_eight_bits(image, mode)
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ValueError(f"cannot convert an image of mode {image.mode!r} to format {mode!r}: {error}") from None


def _to_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Numbers of more bits scaled down, which Pillow itself would cut off at 255."""
    if image.mode not in DEEP_MODES:
        return image
    numbers = np.asarray(image)
    if image.mode in SIXTEEN_BIT_MODES or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS):
        return Image.fromarray((numbers >> 8).astype(np.uint8))
    raise ValueError(
        f"an image of {numbers.dtype} (mode {image.mode!r}, here from {numbers.min()} to {numbers.max()}) does not say "
        f"which of its numbers is white, so it cannot become format {mode!r}; convert the file to 8 or 16 bits, or "
        "read it with format None and scale it in a mapper of your own"
    )


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str | None) -> np.ndarray:
    """Turns an image of some format into RGB for drawing.

    Args:
        image: (H, W, C) array or tensor in the range of its format.
        format: what :func:`read_image` was asked for; None means RGB.

    Returns:
        (H, W, 3) uint8.
    """
    pixels = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if format == YUV_FORMAT:
        return (pixels @ YUV_TO_RGB.T * 255.0).round().clip(0, 255).astype(np.uint8)
    pixels = pixels.astype(np.uint8, copy=False)
    if format == "BGR":
        return pixels[:, :, ::-1]
    if format in (None, "RGB"):
        return pixels
    height, width = pixels.shape[:2]
    picture = Image.frombytes(format, (width, height), np.ascontiguousarray(pixels).tobytes())
    return np.asarray(picture.convert("RGB"))
