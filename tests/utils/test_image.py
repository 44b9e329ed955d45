"""Images are read upright, in the colours asked for; bad files are named."""

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.utils.image import convert_image_to_rgb, convert_PIL_to_numpy, read_image


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path, pixels):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def test_the_common_formats(png, pixels):
    assert np.array_equal(read_image(png), pixels)
    assert np.array_equal(read_image(png, "RGB"), pixels)
    assert np.array_equal(read_image(png, "BGR"), pixels[:, :, ::-1])
    grey = read_image(png, "L")
    assert grey.shape == (5, 7, 1) and grey.dtype == np.uint8


@pytest.mark.parametrize("format", [None, "RGB", "BGR", "L", "YUV-BT.601"])
def test_what_is_read_may_be_written_to(png, format):
    assert read_image(png, format).flags.writeable


def test_yuv_follows_bt601(png, pixels):
    yuv = read_image(png, "YUV-BT.601")
    luma = pixels / 255.0 @ np.array([0.299, 0.587, 0.114])
    assert np.allclose(yuv[..., 0], luma)
    assert np.abs(convert_image_to_rgb(yuv, "YUV-BT.601").astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("format", ["RGB", "BGR", None])
def test_drawing_gets_rgb_back(png, pixels, format):
    read = read_image(png, format)
    assert np.array_equal(convert_image_to_rgb(read, format), pixels)
    assert np.array_equal(convert_image_to_rgb(torch.from_numpy(read).float(), format), pixels)


def test_grey_images_are_drawn_in_three_channels(png):
    grey = read_image(png, "L")
    assert np.array_equal(convert_image_to_rgb(grey, "L"), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_every_mode_of_a_file_becomes_bgr(tmp_path, pixels, mode):
    path = tmp_path / "image.tiff"
    Image.fromarray(pixels).convert(mode).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
    assert np.array_equal(read_image(str(path), "BGR"), expected)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_orientation_is_undone(tmp_path, pixels, orientation):
    # What a camera stores so that a viewer that follows the tag shows `pixels`.
    stored = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }.get(orientation, lambda a: a)(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(read_image(str(path), "RGB"), pixels)


def test_a_missing_file_is_named_with_the_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg.*DETLAB_DATASETS"):
        read_image(str(tmp_path / "nowhere.jpg"))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"half\.{suffix}.*damaged.*again"):
        read_image(str(path))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.jpg.*not an image"):
        read_image(str(path))


def test_an_unknown_format_is_named(pixels):
    with pytest.raises(ValueError, match="'BRG'"):
        convert_PIL_to_numpy(Image.fromarray(pixels), "BRG")
