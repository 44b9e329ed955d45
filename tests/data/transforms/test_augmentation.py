"""What augmentations are asked, what they change, and what is said when they are written wrongly."""

import pickle

import numpy as np
import pytest

from detlab.data import transforms as T


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


class Recorder(T.Augmentation):
    def get_transform(self, image, boxes, sem_seg):
        self.seen = (image, boxes, sem_seg)
        return T.HFlipTransform(image.shape[1])


def test_argument_names_choose_what_an_augmentation_sees(image):
    boxes, sem_seg = np.array([[1.0, 2.0, 5.0, 6.0]]), np.zeros((30, 40), dtype=np.uint8)
    recorder = Recorder()
    recorder(T.AugInput(image, boxes=boxes, sem_seg=sem_seg))
    assert [a is b for a, b in zip(recorder.seen, (image, boxes, sem_seg))] == [True] * 3


def test_a_single_argument_is_the_image_whatever_its_name(image):
    class Mine(T.Augmentation):
        def get_transform(self, img):
            assert img is image
            return T.NoOpTransform()

    Mine()(T.AugInput(image))


def test_input_args_may_be_set_by_hand(image):
    class Mine(T.Augmentation):
        input_args = ("image", "boxes")

        def get_transform(self, *args):
            assert args[0] is image and args[1] is None
            return T.NoOpTransform()

    Mine()(T.AugInput(image))


def test_everything_of_the_input_is_changed_together(image):
    boxes, sem_seg = np.array([[1.0, 2.0, 5.0, 6.0]]), np.arange(1200).reshape(30, 40)
    inputs = T.AugInput(image, boxes=boxes.copy(), sem_seg=sem_seg)
    transforms = inputs.apply_augmentations([T.RandomFlip(prob=1.0), T.CropTransform(10, 0, 30, 30)])
    np.testing.assert_array_equal(inputs.image, image[:, ::-1][:, 10:])
    np.testing.assert_array_equal(inputs.sem_seg, sem_seg[:, ::-1][:, 10:])
    np.testing.assert_allclose(inputs.boxes, [[25.0, 2.0, 29.0, 6.0]])
    np.testing.assert_allclose(transforms.apply_coords(np.array([[1.0, 2.0]])), [[29.0, 2.0]])


def test_an_input_may_carry_more_than_the_usual(image):
    class WithDepth(T.AugInput):
        def __init__(self, image, depth):
            super().__init__(image)
            self.depth = depth

        def transform(self, tfm):
            super().transform(tfm)
            self.depth = tfm.apply_segmentation(self.depth)

    class FlipByDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.HFlipTransform(image.shape[1]) if depth[0, 0] > 0 else T.NoOpTransform()

    depth = np.arange(1, 1201).reshape(30, 40)
    inputs = WithDepth(image, depth)
    FlipByDepth()(inputs)
    np.testing.assert_array_equal(inputs.depth, depth[:, ::-1])
    with pytest.raises(AttributeError, match=r"depth.*AugInput"):
        FlipByDepth()(T.AugInput(image))


def test_arguments_without_names_are_refused(image):
    class Mine(T.Augmentation):
        def get_transform(self, *args):
            return T.NoOpTransform()

    class Pair(T.Augmentation):
        def get_transform(self, image, **more):
            return T.NoOpTransform()

    for augmentation in (Mine(), Pair()):
        with pytest.raises(TypeError, match="name its arguments"):
            augmentation(T.AugInput(image))


def test_what_is_no_transform_is_refused(image):
    class Mine(T.Augmentation):
        def get_transform(self, image):
            return image

    with pytest.raises(TypeError, match=r"Mine.*NoOpTransform"):
        Mine()(T.AugInput(image))
    with pytest.raises(TypeError, match="'flip'"):
        T.AugmentationList(["flip"])


def test_an_augmentation_list_takes_augmentations_transforms_and_lists(image):
    augmentations = T.AugmentationList(
        [T.RandomFlip(prob=1.0), T.VFlipTransform(30), [T.Resize(20), T.NoOpTransform()]]
    )
    inputs = T.AugInput(image)
    transforms = augmentations(inputs)
    assert [type(t).__name__ for t in transforms.transforms] == [
        "HFlipTransform",
        "VFlipTransform",
        "ResizeTransform",
        "NoOpTransform",
    ]
    np.testing.assert_array_equal(transforms.apply_image(image), inputs.image)


def test_later_augmentations_see_what_earlier_ones_made(image):
    inputs = T.AugInput(image)
    transforms = inputs.apply_augmentations([T.Resize((60, 20)), T.RandomCrop("relative", (0.5, 0.5))])
    crop = transforms.transforms[1]
    assert (crop.h, crop.w) == (30, 10)


@pytest.mark.parametrize("apply", [T.apply_augmentations, T.apply_transform_gens])
def test_augmentations_apply_to_arrays_and_to_inputs(image, apply):
    changed, transforms = apply([T.RandomFlip(prob=1.0)], image)
    np.testing.assert_array_equal(changed, image[:, ::-1])
    assert isinstance(transforms, T.TransformList)
    inputs = T.StandardAugInput(image)
    same, _ = apply([T.RandomFlip(prob=1.0)], inputs)
    assert same is inputs
    np.testing.assert_array_equal(inputs.image, image[:, ::-1])


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ([[1, 2]], TypeError),
        (np.zeros((4, 4, 3), dtype=np.int64), TypeError),
        (np.zeros((4, 4, 3), dtype=bool), TypeError),
        (np.zeros((1, 4, 4, 3), dtype=np.uint8), ValueError),
        (np.zeros(4, dtype=np.uint8), ValueError),
    ],
)
def test_what_is_no_image_is_refused(image, error):
    with pytest.raises(error, match="an image"):
        T.AugInput(image)


def test_an_augmentation_shows_the_arguments_that_were_given():
    assert repr(T.RandomFlip()) == "RandomFlip()"
    assert str(T.RandomFlip(prob=0.25, horizontal=False, vertical=True)) == (
        "RandomFlip(prob=0.25, horizontal=False, vertical=True)"
    )
    assert repr(T.AugmentationList([T.RandomBrightness(0.5, 2)])) == (
        "AugmentationList([RandomBrightness(intensity_min=0.5, intensity_max=2)])"
    )


def test_init_keeps_the_arguments_of_a_constructor():
    class Mine(T.TransformGen):
        def __init__(self, size, mode="a"):
            super().__init__()
            self._init(locals())

        def get_transform(self, image):
            return T.NoOpTransform()

    mine = Mine(3)
    assert (mine.size, mine.mode) == (3, "a")
    assert repr(mine) == "Mine(size=3)"


def test_rand_range_draws_between_its_bounds():
    augmentation = T.Augmentation()
    assert 0 <= augmentation._rand_range() < 1
    assert 0 <= augmentation._rand_range(0.5) < 0.5
    drawn = augmentation._rand_range(2, 3, size=(4, 5))
    assert drawn.shape == (4, 5) and drawn.min() >= 2 and drawn.max() < 3


def test_augmentations_travel_to_workers(image):
    augmentations = T.AugmentationList(
        [T.RandomFlip(), T.ResizeShortestEdge((20, 30), 50, "choice"), T.NoOpTransform()]
    )
    augmentations(T.AugInput(image))
    copy = pickle.loads(pickle.dumps(augmentations))
    assert repr(copy) == repr(augmentations)
    copy(T.AugInput(image))


def test_the_base_class_says_what_is_to_be_defined(image):
    with pytest.raises(NotImplementedError, match="get_transform"):
        T.Augmentation().get_transform(image)
