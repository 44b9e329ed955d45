"""What each augmentation may choose, how often, and that a seed decides all of it."""

import numpy as np
import pytest

from detlab.data import transforms as T

HEIGHT, WIDTH = 60, 90


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


BOXES = np.array([[10.0, 10.0, 30.0, 40.0], [50.0, 20.0, 85.0, 55.0]])
SEM_SEG = np.random.default_rng(1).integers(0, 4, (HEIGHT, WIDTH), dtype=np.uint8)

ALL = [
    T.FixedSizeCrop((50, 100)),
    T.MinIoURandomCrop(),
    T.RandomApply(T.RandomFlip(prob=1.0)),
    T.RandomBrightness(0.5, 1.5),
    T.RandomContrast(0.5, 1.5),
    T.RandomCrop("relative_range", (0.4, 0.6)),
    T.RandomCrop_CategoryAreaConstraint("absolute", (20, 30), 0.5, 0),
    T.RandomExtent((0.5, 1.5), (0.3, 0.2)),
    T.RandomFlip(),
    T.RandomLighting(25.0),
    T.RandomResize([(30, 40), (50, 60)]),
    T.RandomRotation([-30, 30], center=[[0.3, 0.3], [0.7, 0.7]], expand=False),
    T.RandomSaturation(0.5, 1.5),
    T.Resize((20, 30)),
    T.ResizeScale(0.5, 2.0, 60, 60),
    T.ResizeShortestEdge((30, 60), 80),
]


def draw(augmentation, image, boxes=None, sem_seg=None):
    """The augmented input and the transform."""
    inputs = T.AugInput(image.copy(), boxes=None if boxes is None else boxes.copy(), sem_seg=sem_seg)
    return inputs, augmentation(inputs)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_a_seed_decides_everything(augmentation, image):
    def run(seed):
        np.random.seed(seed)
        inputs, _ = draw(augmentation, image, BOXES, SEM_SEG)
        return inputs.image, inputs.boxes, inputs.sem_seg, np.random.rand()

    for seed in range(3):
        for one, other in zip(run(seed), run(seed)):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_the_transform_does_again_what_was_done(augmentation, image):
    for seed in range(5):
        np.random.seed(seed)
        inputs, transform = draw(augmentation, image, BOXES, SEM_SEG)
        np.testing.assert_array_equal(transform.apply_image(image.copy()), inputs.image)
        np.testing.assert_array_equal(transform.apply_segmentation(SEM_SEG), inputs.sem_seg)
        np.testing.assert_array_equal(transform.apply_box(BOXES.copy()), inputs.boxes)
        assert inputs.image.dtype == np.uint8
        assert inputs.image.shape[:2] == inputs.sem_seg.shape


# ---------------------------------------------------------------------------------------------------- flips and apply


def test_about_half_of_the_images_are_flipped(image):
    np.random.seed(0)
    flips = [isinstance(T.RandomFlip().get_transform(image), T.HFlipTransform) for _ in range(2000)]
    assert 0.45 < np.mean(flips) < 0.55


def test_a_vertical_flip_flips_vertically(image):
    inputs, _ = draw(T.RandomFlip(prob=1.0, horizontal=False, vertical=True), image)
    np.testing.assert_array_equal(inputs.image, image[::-1])


@pytest.mark.parametrize("both", [True, False])
def test_a_flip_has_one_direction(both):
    with pytest.raises(ValueError, match="one direction"):
        T.RandomFlip(horizontal=both, vertical=both)


@pytest.mark.parametrize("prob", [-0.1, 1.5])
def test_a_probability_lies_between_0_and_1(prob):
    for make in (lambda: T.RandomFlip(prob), lambda: T.RandomApply(T.RandomFlip(), prob)):
        with pytest.raises(ValueError, match=str(prob)):
            make()


def test_apply_applies_as_often_as_said(image):
    np.random.seed(0)
    augmentation = T.RandomApply(T.HFlipTransform(WIDTH), prob=0.3)
    applied = [isinstance(draw(augmentation, image)[1], T.HFlipTransform) for _ in range(2000)]
    assert 0.27 < np.mean(applied) < 0.33
    assert isinstance(T.RandomApply(T.RandomFlip(1.0), prob=1.0).get_transform(image), T.HFlipTransform)
    assert isinstance(T.RandomApply(T.RandomFlip(1.0), prob=0.0).get_transform(image), T.NoOpTransform)


# ---------------------------------------------------------------------------------------------------------- resizing


def test_one_number_is_a_square(image):
    assert draw(T.Resize(25), image)[0].image.shape == (25, 25, 3)


def test_random_resize_takes_each_size(image):
    np.random.seed(0)
    sizes = {draw(T.RandomResize([(30, 40), (50, 60)]), image)[0].image.shape[:2] for _ in range(30)}
    assert sizes == {(30, 40), (50, 60)}


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 640), 800, 1333, (625, 1333)),
        ((640, 300), 800, 1333, (1333, 625)),
        ((500, 500), 333, 1333, (333, 333)),
        ((100, 1000), 600, 100, (10, 100)),
        ((20000, 3), 800, 1333, (1333, 1)),
        ((3, 20000), 800, 1333, (1, 1333)),
    ],
)
def test_the_shortest_edge_decides_unless_the_longest_is_too_long(size, short, longest, expected):
    assert T.ResizeShortestEdge.get_output_shape(*size, short, longest) == expected


@pytest.mark.parametrize("size", [(20000, 3), (3, 20000), (1, 1)])
@pytest.mark.parametrize("augmentation", [T.ResizeShortestEdge(80, 133), T.RandomExtent((0.1, 0.3), (0.2, 0.2))])
def test_no_edge_of_a_narrow_image_gets_lost(size, augmentation):
    np.random.seed(0)
    inputs, _ = draw(augmentation, np.full((*size, 3), 7, dtype=np.uint8), np.array([[0.0, 0, 1, 1]]))
    assert min(inputs.image.shape) >= 1


def test_a_range_has_both_its_ends_and_a_choice_only_its_members(image):
    np.random.seed(0)
    in_range = {draw(T.ResizeShortestEdge((30, 33)), image)[0].image.shape[0] for _ in range(100)}
    chosen = {draw(T.ResizeShortestEdge((30, 33), sample_style="choice"), image)[0].image.shape[0] for _ in range(100)}
    assert in_range == {30, 31, 32, 33}
    assert chosen == {30, 33}


@pytest.mark.parametrize(("lengths", "longest"), [((), 100), ((-5,), 100), ((30, -1), 100), (30, 0), (30, -4)])
def test_lengths_that_no_image_can_have_are_refused_before_there_is_one(lengths, longest):
    with pytest.raises(ValueError, match=r"INPUT\.MIN_SIZE.*INPUT\.MAX_SIZE.*got"):
        T.ResizeShortestEdge(lengths, longest, "choice")


def test_a_shortest_edge_of_zero_changes_nothing(image):
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


@pytest.mark.parametrize("edges", [(800,), (640, 800, 900), (800, 640)])
def test_a_range_needs_two_ends(edges):
    with pytest.raises(ValueError, match=r"INPUT\.MIN_SIZE_TRAIN_SAMPLING"):
        T.ResizeShortestEdge(edges, sample_style="range")
    T.ResizeShortestEdge(edges, sample_style="choice")


def test_unknown_styles_are_refused():
    with pytest.raises(ValueError, match="'any'"):
        T.ResizeShortestEdge(800, sample_style="any")
    with pytest.raises(ValueError, match="'any'"):
        T.RandomRotation(10, sample_style="any")


def test_resize_scale_fits_the_image_into_the_scaled_target(image):
    for seed in range(50):
        np.random.seed(seed)
        height, width = draw(T.ResizeScale(0.1, 2.0, 100, 120), image)[0].image.shape[:2]
        np.random.seed(seed)
        scale = np.random.uniform(0.1, 2.0)
        factor = min(100 * scale / HEIGHT, 120 * scale / WIDTH)
        assert (height, width) == (round(HEIGHT * factor), round(WIDTH * factor))


# ------------------------------------------------------------------------------------------------- turns and extents


def test_rotations_stay_in_their_range(image):
    np.random.seed(0)
    augmentation = T.RandomRotation([10, 20], center=[[0.25, 0.5], [0.75, 0.5]], expand=False)
    drawn = [augmentation.get_transform(image) for _ in range(100)]
    angles, centers = np.array([t.angle for t in drawn]), np.array([t.center for t in drawn])
    assert angles.min() >= 10 and angles.max() <= 20 and np.ptp(angles) > 8
    assert centers[:, 0].min() >= 0.25 * WIDTH and centers[:, 0].max() <= 0.75 * WIDTH
    np.testing.assert_allclose(centers[:, 1], HEIGHT / 2)


def test_rotations_choose_among_angles(image):
    np.random.seed(0)
    augmentation = T.RandomRotation([0, 90, 180], sample_style="choice")
    kinds = {getattr(augmentation.get_transform(image), "angle", 0) for _ in range(50)}
    assert kinds == {0, 90, 180}
    assert T.RandomRotation(15).get_transform(image).angle == 15


def test_an_extent_keeps_the_scale_and_stays_near_the_center(image):
    np.random.seed(0)
    for _ in range(100):
        transform = T.RandomExtent((0.5, 1.5), (0.4, 0.2)).get_transform(image)
        x0, y0, x1, y1 = transform.src_rect
        assert 0.5 * WIDTH <= x1 - x0 <= 1.5 * WIDTH
        assert (x1 - x0) / WIDTH == pytest.approx((y1 - y0) / HEIGHT)
        assert abs((x0 + x1) / 2 - WIDTH / 2) <= 0.2 * WIDTH + 1e-9
        assert abs((y0 + y1) / 2 - HEIGHT / 2) <= 0.1 * HEIGHT + 1e-9
        assert transform.output_size == (int(y1 - y0), int(x1 - x0))


# ------------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize(
    ("kind", "size", "smallest", "largest"),
    [
        ("relative", (0.5, 0.3), (30, 27), (30, 27)),
        ("relative_range", (0.5, 0.3), (30, 27), (60, 90)),
        ("absolute", (20, 30), (20, 30), (20, 30)),
        ("absolute", (200, 30), (60, 30), (60, 30)),
        ("absolute_range", (20, 70), (20, 20), (60, 70)),
    ],
)
def test_crops_have_sizes_of_their_type_and_lie_in_the_image(image, kind, size, smallest, largest):
    np.random.seed(0)
    drawn = [T.RandomCrop(kind, size).get_transform(image) for _ in range(300)]
    sizes = np.array([(t.h, t.w) for t in drawn])
    assert (sizes.min(axis=0) >= smallest).all() and (sizes.max(axis=0) <= largest).all()
    assert (sizes.max(axis=0) - sizes.min(axis=0) >= 0.8 * (np.array(largest) - smallest)).all()
    for crop in drawn:
        assert crop.x0 >= 0 and crop.y0 >= 0 and crop.x0 + crop.w <= WIDTH and crop.y0 + crop.h <= HEIGHT
        assert (crop.orig_w, crop.orig_h) == (WIDTH, HEIGHT)


def test_crops_reach_every_side_of_the_image(image):
    np.random.seed(0)
    drawn = [T.RandomCrop("absolute", (55, 85)).get_transform(image) for _ in range(300)]
    assert {t.y0 for t in drawn} == set(range(6)) and {t.x0 for t in drawn} == set(range(6))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("any", (1, 1)),
        ("relative", (0.0, 0.5)),
        ("relative_range", (0.5, 1.5)),
        ("absolute", (0, 10)),
        ("absolute_range", (20, 10)),
        ("absolute", (10, 10, 10)),
    ],
)
def test_impossible_crops_are_refused(kind, size):
    with pytest.raises(ValueError, match=r"INPUT\.CROP"):
        T.RandomCrop(kind, size)


def test_a_crop_looks_for_a_place_with_more_than_one_category(image):
    sem_seg = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    sem_seg[:, WIDTH // 2 :] = 1
    augmentation = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), single_category_max_area=0.8)
    np.random.seed(0)
    mixed = 0
    for _ in range(100):
        inputs, _ = draw(augmentation, image, sem_seg=sem_seg)
        share = inputs.sem_seg.mean()
        mixed += 0.2 < share < 0.8
    assert mixed > 65  # 17 % of all places are mixed; of ten tries at least one is in 84 %


def test_ignored_pixels_do_not_count_as_a_category(image):
    augmentation = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), 0.9, ignored_category=255)
    labels = np.full((20, 20), 255)
    labels[:, :3] = 1
    assert not augmentation._is_mixed(labels)
    labels[:5, :3] = 2
    assert augmentation._is_mixed(labels)


def test_a_bounded_category_needs_labels(image):
    with pytest.raises(ValueError, match="sem_seg is None"):
        draw(T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), 0.5), image)
    draw(T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20)), image)


@pytest.mark.parametrize("size", [(40, 50), (100, 50), (40, 120), (100, 120), (60, 90)])
def test_a_fixed_size_crop_gives_that_size(image, size):
    for seed in range(5):
        np.random.seed(seed)
        inputs, transform = draw(T.FixedSizeCrop(size, pad_value=7, seg_pad_value=9), image, sem_seg=SEM_SEG)
        assert inputs.image.shape == (*size, 3) and inputs.sem_seg.shape == size
        assert (inputs.image[HEIGHT:] == 7).all() and (inputs.image[:, WIDTH:] == 7).all()
        assert (inputs.sem_seg[HEIGHT:] == 9).all()
        crop = transform.transforms[0]
        kept = image[crop.y0 : crop.y0 + size[0], crop.x0 : crop.x0 + size[1]]
        np.testing.assert_array_equal(inputs.image[: kept.shape[0], : kept.shape[1]], kept)
        points = np.array([[crop.x0 + 3.0, crop.y0 + 4.0]])
        np.testing.assert_allclose(transform.apply_coords(points), [[3.0, 4.0]])


def test_a_fixed_size_crop_without_padding_leaves_small_images_smaller(image):
    assert draw(T.FixedSizeCrop((40, 120), pad=False), image)[0].image.shape == (40, WIDTH, 3)


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return both / (sum(areas) - both)


def test_min_iou_crops_overlap_every_box_and_hold_a_center(image):
    np.random.seed(0)
    augmentation = T.MinIoURandomCrop(min_ious=(0.3,))
    augmentation.sample_mode = (0.3,)
    crops = [t for t in (augmentation.get_transform(image, BOXES[:1]) for _ in range(50)) if hasattr(t, "x0")]
    assert len(crops) > 30
    for crop in crops:
        rect = (crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h)
        assert iou(rect, BOXES[0]) >= 0.3
        assert rect[0] < 20 < rect[2] and rect[1] < 25 < rect[3]
        assert rect[2] <= WIDTH and rect[3] <= HEIGHT
        assert 0.45 <= crop.h / crop.w <= 2.2  # sides were cut to whole pixels


def test_min_iou_crops_leave_the_image_alone_where_nothing_fits(image):
    augmentation = T.MinIoURandomCrop(min_ious=(0.99,), mode_trials=3, crop_trials=3)
    augmentation.sample_mode = (0.99,)
    assert isinstance(augmentation.get_transform(image, BOXES), T.NoOpTransform)
    assert isinstance(augmentation.get_transform(image, None), T.NoOpTransform)


def test_min_iou_crops_take_images_without_boxes(image):
    np.random.seed(1)
    kinds = {type(T.MinIoURandomCrop().get_transform(image, np.zeros((0, 4)))).__name__ for _ in range(30)}
    assert kinds == {"CropTransform", "NoOpTransform"}


# ------------------------------------------------------------------------------------------------------------ colour


def test_part_1_changes_no_color_and_part_0_leaves_what_fills_up(image):
    floating = image.astype(np.float32)
    for kind in (T.RandomContrast, T.RandomBrightness, T.RandomSaturation):
        np.testing.assert_allclose(draw(kind(1, 1), floating)[0].image, floating, atol=1e-3)
    np.testing.assert_allclose(draw(T.RandomContrast(0, 0), floating)[0].image, floating.mean(), rtol=1e-5)
    np.testing.assert_array_equal(draw(T.RandomBrightness(0, 0), floating)[0].image, 0)
    grey = floating @ [0.299, 0.587, 0.114]
    without_color = draw(T.RandomSaturation(0, 0), floating)[0].image
    for channel in range(3):
        np.testing.assert_allclose(without_color[:, :, channel], grey, rtol=1e-5)


def test_uint8_colors_are_clipped(image):
    bright = draw(T.RandomBrightness(3, 3), image)[0].image
    assert bright.dtype == np.uint8
    np.testing.assert_array_equal(bright, np.minimum(image.astype(int) * 3, 255))


def test_lighting_adds_one_color_along_the_main_axes(image):
    floating = image.astype(np.float64)
    np.random.seed(0)
    shift = draw(T.RandomLighting(0.5), floating)[0].image - floating
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:1, :1], shift.shape), atol=1e-9)
    np.random.seed(0)
    np.testing.assert_array_equal(draw(T.RandomLighting(0), floating)[0].image, floating)


@pytest.mark.parametrize("augmentation", [T.RandomSaturation(0, 1), T.RandomLighting(1.0)], ids=str)
def test_color_axes_need_three_colors(image, augmentation):
    with pytest.raises(ValueError, match=r"\(60, 90, 1\)"):
        augmentation.get_transform(image[:, :, :1])
