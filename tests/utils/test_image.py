"""Images are read upright, in the colours asked for; bad files are named."""

import os
import random
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from detlab.utils.image import convert_image_to_rgb, convert_PIL_to_numpy, read_image, read_label_map
from tests.fuzz import mutate_bytes
from tests.limits import run_limited


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


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(ran) print\n%%EOF\n"


def test_no_program_is_started_for_an_image_whatever_its_name(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: started.append(args))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args))
    path = tmp_path / "image.jpg"
    path.write_bytes(EPS)
    with pytest.raises(ValueError, match=r"image\.jpg' holds EPS, which is not an image that is read here \(JPEG, PNG"):
        read_image(str(path), "BGR")
    assert not started


@pytest.mark.parametrize("content", [b"\xd7\xcd\xc6\x9a" + bytes(100), b"8BPS" + bytes(100), b"SIMPLE  =" + b" " * 100])
def test_formats_other_than_those_of_pixels_are_not_opened(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image\.png' holds (WMF|PSD|FITS), which is not"):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tiff", "webp", "ppm", "pgm", "jp2", "mpo"])
def test_the_formats_of_the_worlds_data_sets_are_read(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("L" if suffix == "pgm" else "RGB", (20, 10)).save(path)
    assert read_image(str(path), "BGR").shape == (10, 20, 3)


def test_a_name_longer_than_any_file_has_is_one_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; check 'file_name'") as caught:
        read_image(str(tmp_path / ("a" * 5000)))
    assert len(str(caught.value)) < 500


def test_an_unknown_format_is_named(pixels):
    with pytest.raises(ValueError, match="'BRG'"):
        convert_PIL_to_numpy(Image.fromarray(pixels), "BRG")


# ----------------------------------------------------------------------------------------------- more than eight bits


@pytest.fixture
def deep():
    numbers = np.random.default_rng(0).integers(0, 65536, (5, 7), dtype=np.uint16)
    numbers[0, :3] = 0, 255, 65535
    return numbers


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_the_high_ones_in_eight(tmp_path, deep, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(deep).save(path)
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(read_image(str(path), "BGR"), expected)
    assert np.array_equal(read_image(str(path), "RGB"), expected)
    assert np.array_equal(read_image(str(path), "L"), expected[:, :, :1])
    assert read_image(str(path), "YUV-BT.601")[0, 2, 0] == pytest.approx(1)


def test_sixteen_bits_are_scaled_as_pillow_scales_those_of_colours(tmp_path, deep):
    cv2 = pytest.importorskip("cv2")
    Image.fromarray(deep).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "colour.png"), np.repeat(deep[:, :, None], 3, axis=2))
    grey, colour = (read_image(str(tmp_path / f"{name}.png"), "RGB") for name in ("grey", "colour"))
    assert np.array_equal(grey, colour)


def test_sixteen_bits_stand_upright_and_are_scaled_alike(tmp_path, deep):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(deep).copy()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(str(tmp_path / "turned.png"), "L")[:, :, 0], deep >> 8)


def test_png_files_that_pillow_opens_with_32_bits_have_16(deep):
    image = Image.fromarray(deep.astype(np.int32))
    image.format = "PNG"
    assert np.array_equal(convert_PIL_to_numpy(image, "L")[:, :, 0], deep >> 8)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_without_a_format_all_bits_are_kept(tmp_path, deep, dtype):
    path = tmp_path / "deep.tiff"
    Image.fromarray(deep.astype(dtype)).save(path)
    read = read_image(str(path))
    assert read.dtype == dtype
    assert np.array_equal(read, deep)


@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "YUV-BT.601"])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_of_no_known_range_are_refused_with_the_cure(tmp_path, deep, dtype, format):
    path = tmp_path / "deep.tiff"
    Image.fromarray(deep.astype(dtype)).save(path)
    with pytest.raises(
        ValueError, match=r"deep\.tiff.*from 0(\.0)? to 65535(\.0)?\).*convert the file to 8 or 16 bits"
    ):
        read_image(str(path), format)


def test_formats_of_many_bits_can_be_asked_for(tmp_path, png, pixels):
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(read_image(png, "F"), np.asarray(Image.fromarray(pixels).convert("F")))
    assert np.array_equal(read_image(png, "I"), grey)


class TestLabelMaps:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
    def test_integers_are_kept(self, tmp_path, dtype):
        labels = np.array([[0, 1, 200], [255, 7, np.iinfo(dtype).max]]).astype(dtype)
        Image.fromarray(labels).save(tmp_path / "labels.tiff")
        read = read_label_map(str(tmp_path / "labels.tiff"))
        assert read.dtype == dtype
        assert np.array_equal(read, labels)

    def test_a_palette_gives_the_places_in_it(self, tmp_path):
        labels = np.array([[0, 1, 2], [3, 2, 1]], dtype=np.uint8)
        image = Image.fromarray(labels)
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.save(tmp_path / "labels.png")
        assert np.array_equal(read_label_map(str(tmp_path / "labels.png")), labels)

    def test_one_bit_gives_0_and_1(self, tmp_path):
        labels = np.array([[True, False, True]])
        Image.fromarray(labels).save(tmp_path / "labels.png")
        assert read_label_map(str(tmp_path / "labels.png")).tolist() == [[1, 0, 1]]

    def test_grey_in_three_channels_gives_the_brightness(self, tmp_path):
        labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
        Image.fromarray(np.repeat(labels[:, :, None], 3, axis=2)).save(tmp_path / "labels.png")
        assert np.array_equal(read_label_map(str(tmp_path / "labels.png")), labels)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LAB", "CMYK", "LA"])
    def test_colours_are_refused_with_the_name_of_the_file(self, tmp_path, mode):
        path = tmp_path / "labels.tiff"
        color = {"LA": (1, 255), "RGB": (1, 2, 2), "LAB": (1, 2, 3)}.get(mode, (1, 2, 3, 4))
        Image.new(mode, (3, 2), color).save(path)
        with pytest.raises(ValueError, match=rf"labels\.tiff' holds colours \(mode '{mode}'\)"):
            read_label_map(str(path))

    def test_floats_are_refused(self, tmp_path):
        Image.fromarray(np.zeros((2, 3), np.float32)).save(tmp_path / "labels.tiff")
        with pytest.raises(ValueError, match=r"labels\.tiff.*floating numbers"):
            read_label_map(str(tmp_path / "labels.tiff"))


# -------------------------------------------------------------------------------------------- what is no ordinary file


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = str(tmp_path / "image.png")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        path = tempfile.mktemp(dir="/tmp")  # the name of a socket must be short
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(path)
    elif kind == "folder":
        os.mkdir(path)
    else:
        path = "/dev/zero"
    outcome = run_limited(read_image, path, seconds=10)
    assert outcome.error == f"ValueError: the image {path} is no file but a folder, pipe or device"
    if kind == "socket":
        bound.close()
        os.unlink(path)


def test_a_path_through_a_file_is_one_that_does_not_exist(png):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(f"{png}/image.png")


def test_more_pixels_than_pillow_decodes_are_called_that(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (100, 50)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"large\.png.*5000 pixels.*PIL\.Image\.MAX_IMAGE_PIXELS") as caught:
        read_image(str(path))
    assert "damaged" not in str(caught.value)


def test_an_image_of_half_as_many_pixels_is_read_without_a_warning(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (100, 50)).save(path)
    code = (
        "from PIL import Image; from detlab.utils.image import read_image; Image.MAX_IMAGE_PIXELS = 3000; "
        f"assert read_image({str(path)!r}).shape == (50, 100)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""


@pytest.mark.parametrize("size", [(20000, 3), (3, 20000)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_of_a_few_pixels_width_is_read(tmp_path, size, suffix):
    path = tmp_path / f"narrow.{suffix}"
    Image.new("RGB", size, (10, 10, 10)).save(path)
    assert np.array_equal(read_image(str(path), "BGR"), np.full((*size[::-1], 3), 10))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "bmp", "gif", "webp", "ppm"])
def test_damaged_bytes_give_an_image_or_a_sentence(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()

    def read_many():
        rng = random.Random(0)
        for _ in range(300):
            path.write_bytes(mutate_bytes(whole, rng))
            try:
                read_image(str(path), "BGR")
            except ValueError as error:
                assert path.name in str(error)

    assert run_limited(read_many, seconds=60, more_bytes=1 << 30).error == ""
