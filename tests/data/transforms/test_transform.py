"""Each transform against a slow plain version, and against itself: the image, the points and the labels must agree."""

import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from detlab.data import transforms as T
from detlab.data.transforms.transform import HFlip_rotated_box, Resize_rotated_box

HEIGHT, WIDTH = 40, 60

GEOMETRIC = {
    "resize_up": T.ResizeTransform(HEIGHT, WIDTH, 100, 90),
    "resize_down": T.ResizeTransform(HEIGHT, WIDTH, 24, 30),
    "extent": T.ExtentTransform((5.5, -3.0, 70.0, 36.25), (80, 100)),
    "rotate": T.RotationTransform(HEIGHT, WIDTH, 33.0),
    "rotate_quarter": T.RotationTransform(HEIGHT, WIDTH, 90),
    "rotate_in_place": T.RotationTransform(HEIGHT, WIDTH, -20.0, expand=False, center=(20.0, 25.0)),
    "hflip": T.HFlipTransform(WIDTH),
    "vflip": T.VFlipTransform(HEIGHT),
    "crop": T.CropTransform(10, 5, 45, 30, WIDTH, HEIGHT),
    "pad": T.PadTransform(3, 4, 5, 6, WIDTH, HEIGHT),
    "list": T.TransformList(
        [T.CropTransform(10, 5, 45, 30), T.ResizeTransform(30, 45, 60, 81), T.HFlipTransform(81), T.NoOpTransform()]
    ),
}


@pytest.fixture
def random_image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def blob(x: float, y: float) -> np.ndarray:
    """A bright square of 9 x 9 pixels about a point."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[round(y - 4.5) : round(y + 4.5), round(x - 4.5) : round(x + 4.5)] = 255
    return image


def center_of_mass(image: np.ndarray) -> np.ndarray:
    weight = image.reshape(*image.shape[:2], -1).sum(axis=2).astype(float)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("transform", GEOMETRIC.values(), ids=GEOMETRIC)
@pytest.mark.parametrize("point", [(24.5, 20.5), (32.5, 15.5)], ids=["left", "right"])
def test_a_drawn_point_is_found_where_its_coordinates_go(transform, point):
    found = center_of_mass(transform.apply_image(blob(*point)))
    expected = transform.apply_coords(np.array([point]))[0]
    assert np.abs(found - expected).max() < 0.15


@pytest.mark.parametrize("transform", GEOMETRIC.values(), ids=GEOMETRIC)
def test_labels_move_with_the_image_and_are_never_mixed(transform):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[16:25, 20:29] = 200
    moved = transform.apply_segmentation(labels)
    assert moved.shape == transform.apply_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).shape[:2]
    assert set(np.unique(moved)) == {0, 200}
    expected = transform.apply_coords(np.array([[24.5, 20.5]]))[0]
    assert np.abs(center_of_mass(moved) - expected).max() < 0.6


@pytest.mark.parametrize("transform", GEOMETRIC.values(), ids=GEOMETRIC)
def test_a_box_is_the_smallest_one_around_its_moved_corners(transform):
    boxes = np.array([[12.0, 8.0, 30.0, 20.0], [20.0, 10.0, 21.0, 30.0]])
    for box, moved in zip(boxes, transform.apply_box(boxes.copy())):
        corners = transform.apply_coords(np.array([[box[i], box[j]] for i in (0, 2) for j in (1, 3)]))
        np.testing.assert_allclose(moved, [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-9)


@pytest.mark.parametrize("name", [n for n in GEOMETRIC if n not in ("extent", "rotate_in_place", "list")])
def test_the_inverse_takes_points_back(name):
    transform = GEOMETRIC[name]
    points = np.random.default_rng(0).uniform(0, 40, (20, 2))
    there_and_back = transform.inverse().apply_coords(transform.apply_coords(points.copy()))
    # Turning back starts from a whole number of pixels, hence half a pixel.
    np.testing.assert_allclose(there_and_back, points, atol=0.6 if name == "rotate" else 1e-9)


@pytest.mark.parametrize("name", ["rotate", "rotate_quarter"])
def test_turning_back_gives_the_size_of_the_image(name):
    transform = GEOMETRIC[name]
    turned = transform.apply_image(blob(24.5, 20.5))
    restored = transform.inverse().apply_image(turned)
    assert restored.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(center_of_mass(restored) - [24.5, 20.5]).max() < 0.6


@pytest.mark.parametrize("name", ["resize_up", "extent", "rotate", "hflip", "crop", "pad", "list"])
def test_no_points_stay_no_points(name):
    assert GEOMETRIC[name].apply_coords(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("transform", GEOMETRIC.values(), ids=GEOMETRIC)
def test_the_input_of_points_may_be_of_single_precision(transform):
    points = np.array([[3.0, 4.0], [20.0, 11.0]])
    single = transform.apply_coords(points.astype(np.float32))
    np.testing.assert_allclose(single, transform.apply_coords(points.copy()), rtol=1e-5, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- resize


def bilinear_by_hand(image: np.ndarray, new_h: int, new_w: int) -> np.ndarray:
    """Sampling between the centers of pixels, one pixel after the other."""
    height, width = image.shape
    result = np.zeros((new_h, new_w))
    for row in range(new_h):
        for column in range(new_w):
            y = min(max((row + 0.5) * height / new_h - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / new_w - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = y - top, x - left
            upper = image[top, left] * (1 - fx) + image[top, right] * fx
            lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
            result[row, column] = upper * (1 - fy) + lower * fy
    return result


def triangle_weights(length: int, new_length: int) -> np.ndarray:
    """(new, old): the triangle filter that widens when it shrinks, normalised, one weight after the other."""
    factor = length / new_length
    reach = max(factor, 1.0)
    weights = np.zeros((new_length, length))
    for i in range(new_length):
        center = (i + 0.5) * factor
        for j in range(length):
            weights[i, j] = max(0.0, 1 - abs(j + 0.5 - center) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("new_size", [(100, 90), (24, 30), (55, 20), (40, 33)], ids=str)
def test_uint8_images_are_resized_with_a_triangle_filter_to_within_rounding(random_image, new_size):
    resized = T.ResizeTransform(HEIGHT, WIDTH, *new_size).apply_image(random_image)
    rows, columns = triangle_weights(HEIGHT, new_size[0]), triangle_weights(WIDTH, new_size[1])
    expected = np.einsum("ri,ijc,sj->rsc", rows, random_image.astype(float), columns)
    assert resized.dtype == np.uint8
    assert np.abs(resized - expected).max() <= 1.01


def test_uint8_images_are_resized_by_pillow_to_the_bit(random_image):
    for interp in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        resized = T.ResizeTransform(HEIGHT, WIDTH, 71, 90, interp).apply_image(random_image)
        np.testing.assert_array_equal(resized, Image.fromarray(random_image).resize((90, 71), interp))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("new_size", [(100, 90), (24, 30)], ids=str)
def test_floating_images_are_sampled_between_pixels(random_image, dtype, new_size):
    image = random_image.astype(dtype)
    resized = T.ResizeTransform(HEIGHT, WIDTH, *new_size).apply_image(image)
    assert resized.dtype == dtype and resized.shape == (*new_size, 3)
    for channel in range(3):
        expected = bilinear_by_hand(image[:, :, channel], *new_size)
        np.testing.assert_allclose(resized[:, :, channel], expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float16, bool])
def test_other_dtypes_come_back_as_they_were(random_image, dtype):
    image = (random_image > 128) if dtype is bool else random_image.astype(dtype)
    resized = T.ResizeTransform(HEIGHT, WIDTH, 80, 90).apply_image(image)
    assert resized.dtype == dtype
    expected = bilinear_by_hand(image[:, :, 0].astype(float), 80, 90)
    assert np.abs(resized[:, :, 0].astype(float) - expected).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32, bool])
def test_nearest_takes_the_same_pixels_for_every_dtype(dtype):
    labels = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    for size in [(100, 90), (24, 30), (41, 59), (13, 17)]:
        transform = T.ResizeTransform(HEIGHT, WIDTH, *size)
        moved = transform.apply_segmentation(labels.astype(dtype))
        assert moved.dtype == dtype
        np.testing.assert_array_equal(moved.astype(np.uint8), transform.apply_segmentation(labels))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_each_channel_is_resized_by_itself(channels):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    transform = T.ResizeTransform(HEIGHT, WIDTH, 30, 90)
    resized = transform.apply_image(image)
    assert resized.shape == (30, 90, channels)
    for channel in range(channels):
        np.testing.assert_array_equal(resized[:, :, channel], transform.apply_image(image[:, :, channel]))


def test_views_and_read_only_images_are_resized_like_others(random_image):
    transform = T.ResizeTransform(HEIGHT, WIDTH, 30, 90)
    frozen = random_image.copy()
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(transform.apply_image(frozen), transform.apply_image(random_image))
        flipped, mirrored = random_image[:, ::-1], random_image[:, ::-1].copy()
        np.testing.assert_array_equal(transform.apply_image(flipped), transform.apply_image(mirrored))
        floating = frozen.astype(np.float32)
        floating.setflags(write=False)
        transform.apply_image(floating[:, ::-1])


def test_an_image_of_another_size_is_refused_with_both_sizes(random_image):
    with pytest.raises(ValueError, match=r"\(40, 61\).*\(40, 60, 3\)"):
        T.ResizeTransform(40, 61, 10, 10).apply_image(random_image)


def test_an_interpolation_that_torch_does_not_have_is_refused(random_image):
    with pytest.raises(ValueError, match="got 1"):
        T.ResizeTransform(HEIGHT, WIDTH, 10, 10, Image.Resampling.LANCZOS).apply_image(random_image.astype(np.float32))


# ------------------------------------------------------------------------------------------------------------- extent


def test_an_extent_of_whole_pixels_is_a_crop(random_image):
    transform = T.ExtentTransform((10, 5, 40, 30), (25, 30))
    np.testing.assert_array_equal(transform.apply_image(random_image), random_image[5:30, 10:40])


def test_an_extent_past_the_image_is_filled(random_image):
    transform = T.ExtentTransform((-10, -5, 50, 35), (40, 60), fill=7)
    cut = transform.apply_image(random_image)
    assert (cut[:5] == 7).all() and (cut[:, :10] == 7).all()
    np.testing.assert_array_equal(cut[5:, 10:], random_image[:35, :50])
    assert (transform.apply_image(random_image[:, :, :1])[:5] == 7).all()


def test_an_extent_refuses_floating_images(random_image):
    with pytest.raises(ValueError, match="float32"):
        T.ExtentTransform((0, 0, 5, 5), (5, 5)).apply_image(random_image.astype(np.float32))


# ----------------------------------------------------------------------------------------------------------- rotation


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3), (-90, 3)])
def test_quarter_turns_move_pixels_whole(random_image, angle, turns):
    turned = T.RotationTransform(HEIGHT, WIDTH, angle).apply_image(random_image)
    np.testing.assert_array_equal(turned, np.rot90(random_image, turns))


@pytest.mark.parametrize("angle", [0, 360, -720])
def test_whole_turns_change_nothing(random_image, angle):
    transform = T.RotationTransform(HEIGHT, WIDTH, angle)
    assert transform.apply_image(random_image) is random_image
    np.testing.assert_array_equal(transform.apply_coords(np.array([[3.0, 4.0]])), [[3.0, 4.0]])


def test_an_expanded_turn_holds_all_corners_of_the_image():
    for angle in range(0, 360, 7):
        transform = T.RotationTransform(HEIGHT, WIDTH, angle)
        corners = transform.apply_coords(np.array([[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT]], dtype=float))
        size = [transform.bound_w, transform.bound_h] if angle else [WIDTH, HEIGHT]
        # The size is rounded to whole pixels.
        assert corners.min() >= -0.51 and (corners <= np.array(size) + 0.51).all()


def test_the_rotation_matrix_is_that_of_the_definition():
    transform = T.RotationTransform(HEIGHT, WIDTH, 30.0, expand=False, center=(20.0, 10.0))
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    for x, y in [(0.0, 0.0), (20.0, 10.0), (33.0, 21.0)]:
        # On the screen y points down, so a counter-clockwise turn lowers y to the right of the center.
        expected = [20 + cos * (x - 20) + sin * (y - 10), 10 - sin * (x - 20) + cos * (y - 10)]
        np.testing.assert_allclose(transform.create_rotation_matrix() @ [x, y, 1], expected, atol=1e-12)


def test_a_turn_without_expansion_keeps_the_size_and_has_no_inverse(random_image):
    transform = T.RotationTransform(HEIGHT, WIDTH, 30.0, expand=False)
    assert transform.apply_image(random_image).shape == random_image.shape
    with pytest.raises(ValueError, match="expand=True"):
        transform.inverse()


@pytest.mark.parametrize("dtype", [bool, np.int32, np.int64, np.uint16, np.float32])
def test_labels_of_every_dtype_turn_alike(dtype):
    labels = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    transform = T.RotationTransform(HEIGHT, WIDTH, 33.0)
    turned = transform.apply_segmentation(labels.astype(dtype))
    assert turned.dtype == dtype
    np.testing.assert_array_equal(turned.astype(np.uint8), transform.apply_segmentation(labels))


def test_one_channel_stays_a_channel_when_turned(random_image):
    assert T.RotationTransform(HEIGHT, WIDTH, 90).apply_image(random_image[:, :, :1]).shape == (WIDTH, HEIGHT, 1)


# ------------------------------------------------------------------------------------------------------------- colour


def test_a_color_transform_changes_the_image_and_nothing_else(random_image):
    transform = T.ColorTransform(lambda image: 255 - image)
    np.testing.assert_array_equal(transform.apply_image(random_image), 255 - random_image)
    points, labels = np.ones((2, 2)), np.ones((4, 4))
    assert transform.apply_coords(points) is points
    assert transform.apply_segmentation(labels) is labels
    assert isinstance(transform.inverse(), T.NoOpTransform)


def test_a_pillow_color_transform_gets_a_pillow_image(random_image):
    changed = T.PILColorTransform(lambda image: ImageEnhance.Color(image).enhance(0.0)).apply_image(random_image)
    np.testing.assert_array_equal(changed, ImageEnhance.Color(Image.fromarray(random_image)).enhance(0.0))


@pytest.mark.parametrize("kind", [T.ColorTransform, T.PILColorTransform])
def test_a_color_transform_needs_a_function(kind):
    with pytest.raises(ValueError, match="3"):
        kind(3)


# ------------------------------------------------------------------------------------------------------ rotated boxes


def corners_of(rotated_box: np.ndarray) -> np.ndarray:
    """(4, 2), from the definition: width to the right, a positive angle turns counter-clockwise on the screen."""
    x, y, w, h, degrees = rotated_box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array(
        [[x + dx * cos + dy * sin, y - dx * sin + dy * cos] for dx in (-w / 2, w / 2) for dy in (-h / 2, h / 2)]
    )


def assert_same_corners(one: np.ndarray, other: np.ndarray) -> None:
    distance = np.linalg.norm(one[:, None] - other[None], axis=2)
    assert distance.min(axis=1).max() < 1e-6 and distance.min(axis=0).max() < 1e-6


@pytest.mark.parametrize("name", ["hflip", "vflip", "crop", "pad", "rotate", "rotate_in_place"])
def test_a_rotated_box_goes_where_its_corners_go(name):
    boxes = np.array([[20.0, 15.0, 10.0, 4.0, 30.0], [30.0, 20.0, 3.0, 9.0, -75.0], [25.0, 18.0, 6.0, 6.0, 200.0]])
    for before, after in zip(boxes, GEOMETRIC[name].apply_rotated_box(boxes.copy())):
        assert_same_corners(GEOMETRIC[name].apply_coords(corners_of(before)), corners_of(after))


def test_resizing_a_rotated_box_is_exact_for_equal_factors_and_right_angles():
    equal = T.ResizeTransform(HEIGHT, WIDTH, 2 * HEIGHT, 2 * WIDTH)
    unequal = T.ResizeTransform(HEIGHT, WIDTH, 3 * HEIGHT, 2 * WIDTH)
    for transform, angle in [(equal, 37.0), (equal, -120.0), (unequal, 0.0), (unequal, 90.0), (unequal, 180.0)]:
        box = np.array([[20.0, 15.0, 10.0, 4.0, angle]])
        assert_same_corners(transform.apply_coords(corners_of(box[0])), corners_of(transform.apply_rotated_box(box)[0]))


def test_resizing_a_rotated_box_unequally_keeps_its_side_lengths():
    transform = T.ResizeTransform(HEIGHT, WIDTH, 3 * HEIGHT, 2 * WIDTH)
    box = np.array([[20.0, 15.0, 10.0, 4.0, 35.0]])
    corners = transform.apply_coords(corners_of(box[0]))
    width, height = np.linalg.norm(corners[2] - corners[0]), np.linalg.norm(corners[1] - corners[0])
    np.testing.assert_allclose(transform.apply_rotated_box(box)[0, 2:4], [width, height])


def test_rotated_boxes_pass_through_a_list_of_transforms_and_stay_as_given():
    boxes = np.array([[20.0, 15.0, 10.0, 4.0, 30.0]])
    steps = [T.ResizeTransform(HEIGHT, WIDTH, 80, 120), T.HFlipTransform(120), T.ColorTransform(lambda image: image)]
    moved = T.TransformList(steps).apply_rotated_box(boxes)
    np.testing.assert_allclose(moved, [[80.0, 30.0, 20.0, 8.0, -30.0]])
    np.testing.assert_array_equal(boxes, [[20.0, 15.0, 10.0, 4.0, 30.0]])
    assert HFlip_rotated_box(steps[1], np.zeros((0, 5))).shape == (0, 5)
    assert Resize_rotated_box(steps[0], np.zeros((0, 5))).shape == (0, 5)


def test_transforms_do_not_import_what_they_may_not_need():
    import subprocess
    import sys

    code = "import sys, detlab.data.transforms; print([m for m in ('cv2', 'shapely', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_transforms_leave_the_random_state_alone(random_image):
    np.random.seed(3)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    for transform in GEOMETRIC.values():
        transform.apply_image(random_image)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
