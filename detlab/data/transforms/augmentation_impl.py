"""The augmentations: each chooses, with numpy's global random numbers, one of the transforms.

Shapes: images are (H, W) or (H, W, C) arrays, boxes (N, 4) xyxy in pixels, sizes (height, width) unless said otherwise.
Interpolation has Pillow's numbers (0 nearest, 2 bilinear, 3 bicubic), except for rotations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from detlab.data.transforms.augmentation import AugInput, Augmentation, _as_augmentation
from detlab.data.transforms.transform import BILINEAR, ExtentTransform, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


class RandomApply(Augmentation):
    """Applies an augmentation to some samples and leaves the others alone.

    Args:
        tfm_or_aug: an augmentation, or a transform.
        prob: how often, in [0, 1].

    Raises:
        ValueError: ``prob`` is no probability.
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        self.aug = _as_augmentation(tfm_or_aug)
        self.tfm_or_aug = tfm_or_aug
        self.prob = _checked_probability(prob)

    def get_transform(self, *args: Any) -> Transform:
        """What the augmentation chooses for these arguments, or nothing."""
        return self.aug.get_transform(*args) if self._wins() else NoOpTransform()

    def __call__(self, aug_input: AugInput) -> Transform:
        """Calls the augmentation, or does nothing."""
        return self.aug(aug_input) if self._wins() else NoOpTransform()

    def _wins(self) -> bool:
        return self._rand_range() < self.prob


def _checked_probability(prob: float) -> float:
    if not 0.0 <= prob <= 1.0:
        raise ValueError(f"a probability lies in [0, 1]; got {prob}")
    return prob


class RandomFlip(Augmentation):
    """Mirrors some samples.

    Args:
        prob: how often.
        horizontal: swap left and right.
        vertical: swap top and bottom.

    Raises:
        ValueError: not exactly one of the two directions is chosen.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError(
                f"RandomFlip mirrors in one direction; got horizontal={horizontal}, vertical={vertical}. Use two of "
                "them for both"
            )
        self.prob = _checked_probability(prob)
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """A mirror image, or nothing."""
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


# ---------------------------------------------------------------------------------------------------------- resizing


def _resize(image: np.ndarray, size_hw: tuple[int, int], interp: int) -> ResizeTransform:
    height, width = image.shape[:2]
    return ResizeTransform(height, width, *size_hw, interp)


class Resize(Augmentation):
    """Resizes to one size.

    Args:
        shape: (height, width), or one number for a square.
        interp: Pillow's number of the interpolation.
    """

    def __init__(self, shape: int | Sequence[int], interp: int = BILINEAR) -> None:
        height, width = (shape, shape) if isinstance(shape, int) else shape
        self.shape = (height, width)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resizing to the one size."""
        return _resize(image, self.shape, self.interp)


class RandomResize(Augmentation):
    """Resizes to one of several sizes.

    Args:
        shape_list: sizes (height, width) to choose from.
        interp: Pillow's number of the interpolation.
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = BILINEAR) -> None:
        self.shape_list = shape_list
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resizing to one of the sizes, all equally likely."""
        height, width = self.shape_list[np.random.randint(len(self.shape_list))]
        return _resize(image, (height, width), self.interp)


class ResizeShortestEdge(Augmentation):
    """Resizes with the aspect ratio kept: the shorter edge to a chosen length, unless the longer one gets too long.

    Args:
        short_edge_length: lengths to choose from; for ``"range"`` the smallest and largest. One number is itself.
        max_size: bound on the longer edge.
        sample_style: ``"choice"`` among the lengths, or ``"range"`` for any between the two, both included.
        interp: Pillow's number of the interpolation.

    Raises:
        ValueError: another style, a range without two ends, or lengths that no image can have.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f"sample_style is 'range' or 'choice'; got {sample_style!r}")
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if len(short_edge_length) == 0 or min(short_edge_length) < 0 or max_size < 1:
            raise ValueError(
                "ResizeShortestEdge takes lengths from 0 (no resizing) on, one at least, and a max_size from 1 on "
                f"(INPUT.MIN_SIZE_*, INPUT.MAX_SIZE_*); got {short_edge_length} and {max_size}"
            )
        if self.is_range and (len(short_edge_length) != 2 or short_edge_length[0] > short_edge_length[1]):
            raise ValueError(
                f"sample_style 'range' takes the smallest and the largest length; got {short_edge_length}. To choose "
                "among them use 'choice' (INPUT.MIN_SIZE_TRAIN_SAMPLING)"
            )
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resizing; nothing if the chosen length is 0."""
        length = self._choose_length()
        if length == 0:
            return NoOpTransform()
        height, width = image.shape[:2]
        return _resize(image, self.get_output_shape(height, width, length, self.max_size), self.interp)

    def _choose_length(self) -> int:
        if self.is_range:
            return np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        return int(np.random.choice(self.short_edge_length))

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The (height, width), at least 1, that an image of height ``oldh`` and width ``oldw`` gets."""
        factor = short_edge_length / min(oldh, oldw)
        # The shorter edge is set, not computed: a product could fall on either side of the half.
        height, width = (short_edge_length, factor * oldw) if oldh < oldw else (factor * oldh, short_edge_length)
        if max(height, width) > max_size:
            shrink = max_size / max(height, width)
            height, width = height * shrink, width * shrink
        return max(int(height + 0.5), 1), max(int(width + 0.5), 1)


class ResizeScale(Augmentation):
    """Resizes, with the aspect ratio kept, so that the image just fits into a target of random scale.

    With a crop or padding to the target's size behind it this is large-scale jitter (Ghiasi et al. 2021, "Simple
    copy-paste is a strong data augmentation method").

    Args:
        min_scale: smallest factor on the target.
        max_scale: largest factor on the target.
        target_height: of the target at factor 1.
        target_width: of the target at factor 1.
        interp: Pillow's number of the interpolation.
    """

    def __init__(
        self, min_scale: float, max_scale: float, target_height: int, target_width: int, interp: int = BILINEAR
    ) -> None:
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_height = target_height
        self.target_width = target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resizing by a factor that is uniform in the range."""
        scale = np.random.uniform(self.min_scale, self.max_scale)
        size = np.array(image.shape[:2])
        target = np.array([self.target_height, self.target_width])
        factor = (target * scale / size).min()
        height, width = np.round(size * factor).astype(int).tolist()
        return _resize(image, (max(height, 1), max(width, 1)), self.interp)


# ---------------------------------------------------------------------------------------------------- turn and extent


class RandomRotation(Augmentation):
    """Turns the image about a random point by a random angle, counter-clockwise.

    Args:
        angle: degrees: the ends of a range, or values to choose from. One number is itself.
        expand: make the result large enough for all of the image; the center then has no effect.
        center: the point to turn about, (x, y) as fractions of width and height: the two corners of a range, or points
            to choose from. None is the image's center.
        sample_style: ``"range"`` or ``"choice"``, for angle and center.
        interp: OpenCV's number of the interpolation; None means bilinear.

    Raises:
        ValueError: another style, or a range without two ends.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f"sample_style is 'range' or 'choice'; got {sample_style!r}")
        self.is_range = sample_style == "range"
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else angle
        is_one_point = center is not None and isinstance(center[0], (int, float))
        self.center = (center, center) if is_one_point else center
        for name, ends in (("angle", self.angle), ("center", self.center)):
            if self.is_range and ends is not None and len(ends) != 2:
                raise ValueError(f"sample_style 'range' takes two ends; got {name}={ends}")
        self.expand = expand
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A rotation; nothing for whole turns."""
        height, width = image.shape[:2]
        angle = float(self._draw(self.angle))
        center = None
        if self.center is not None:
            x, y = self._draw(self.center)
            center = (float(x * width), float(y * height))
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(height, width, angle, expand=self.expand, center=center, interp=self.interp)

    def _draw(self, options: Sequence) -> Any:
        if self.is_range:
            return np.random.uniform(options[0], options[1])
        return options[np.random.randint(len(options))]


class RandomExtent(Augmentation):
    """Cuts a rectangle of random size and place out of the image, with 0 where it reaches past it.

    Args:
        scale_range: ends of the factor on the image's size.
        shift_range: (x, y) how far the rectangle's center may be from the image's, as fractions of width and height,
            both sides together.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        self.scale_range = scale_range
        self.shift_range = shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        """A rectangle as an extent, which keeps the scale of the pixels."""
        height, width = image.shape[:2]
        image_wh = np.array([width, height])
        half = image_wh * np.random.uniform(*self.scale_range) / 2
        middle = image_wh * (0.5 + np.array(self.shift_range) * (np.random.rand(2) - 0.5))
        x0, y0, x1, y1 = np.concatenate([middle - half, middle + half]).tolist()
        return ExtentTransform((x0, y0, x1, y1), output_size=(max(int(y1 - y0), 1), max(int(x1 - x0), 1)))


# ------------------------------------------------------------------------------------------------------------- crops


def _random_corner(image_size: tuple[int, int], crop_size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of a crop that lies in the image, all places equally likely."""
    (height, width), (crop_height, crop_width) = image_size, crop_size
    if crop_height > height or crop_width > width:
        raise ValueError(
            f"a crop of height and width {crop_size} does not fit into an image of {image_size}; choose a smaller "
            "crop (INPUT.CROP.SIZE), or resize first"
        )
    return np.random.randint(height - crop_height + 1), np.random.randint(width - crop_width + 1)


class RandomCrop(Augmentation):
    """Cuts a rectangle out of the image.

    Args:
        crop_type: what ``crop_size`` means. ``"relative"``: fractions of height and width. ``"relative_range"``: the
            smallest such fractions, the largest are 1. ``"absolute"``: pixels. ``"absolute_range"``: the smallest and
            largest number of pixels, for height and width alike. Pixels stop at the image's size.
        crop_size: two numbers.

    Raises:
        ValueError: another type, or numbers it cannot have.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        _check_crop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """A crop that lies in the image."""
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        top, left = _random_corner((height, width), (crop_height, crop_width))
        return CropTransform(left, top, crop_width, crop_height, width, height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width, in pixels, of a crop of an image of this (height, width); random for ranges."""
        height, width = image_size
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(int(first), height), min(int(second), width)
        if self.crop_type == "absolute_range":
            sides = [np.random.randint(min(side, int(first)), min(side, int(second)) + 1) for side in image_size]
            return sides[0], sides[1]
        if self.crop_type == "relative_range":
            smallest = np.array([first, second], dtype=np.float32)
            first, second = smallest + np.random.rand(2) * (1 - smallest)
        return max(int(height * first + 0.5), 1), max(int(width * second + 0.5), 1)


def _check_crop(crop_type: str, crop_size: Sequence[float]) -> None:
    known = ("relative_range", "relative", "absolute", "absolute_range")
    if crop_type not in known:
        raise ValueError(f"crop_type (INPUT.CROP.TYPE) is one of {', '.join(known)}; got {crop_type!r}")
    if len(crop_size) != 2:
        raise ValueError(f"crop_size (INPUT.CROP.SIZE) is two numbers; got {crop_size}")
    if crop_type.startswith("relative") and not all(0 < part <= 1 for part in crop_size):
        raise ValueError(f"crop_size (INPUT.CROP.SIZE) of type {crop_type!r} is fractions in (0, 1]; got {crop_size}")
    if crop_type.startswith("absolute") and not all(side >= 1 for side in crop_size):
        raise ValueError(f"crop_size (INPUT.CROP.SIZE) of type {crop_type!r} is in pixels, at least 1; got {crop_size}")
    if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
        raise ValueError(
            f"crop_size (INPUT.CROP.SIZE) of type 'absolute_range' is the smallest, then the largest; got {crop_size}"
        )


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """Like :class:`RandomCrop`, but looks for a crop that is not mostly of one category.

    After ten crops in vain the last one is taken.

    Args:
        crop_type: see :class:`RandomCrop`.
        crop_size: see :class:`RandomCrop`.
        single_category_max_area: largest part of the labelled pixels that one category may cover.
        ignored_category: label of pixels that do not count.
    """

    NUM_TRIALS = 10

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> Transform:
        """A crop; ``sem_seg`` are (H, W) labels.

        Raises:
            ValueError: an area is to be bounded but there are no labels.
        """
        crop = self.crop_aug.get_transform(image)
        if self.single_category_max_area >= 1.0:
            return crop
        if sem_seg is None:
            raise ValueError("single_category_max_area below 1 needs the labels of the pixels, but sem_seg is None")
        for _ in range(self.NUM_TRIALS - 1):
            if self._is_mixed(crop.apply_segmentation(sem_seg)):
                break
            crop = self.crop_aug.get_transform(image)
        return crop

    def _is_mixed(self, labels: np.ndarray) -> bool:
        categories, counts = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            counts = counts[categories != self.ignored_category]
        return len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area


class FixedSizeCrop(Augmentation):
    """Brings every image to one size: a random crop where it is larger, padding at the right and bottom elsewhere.

    Args:
        crop_size: (height, width) of the result.
        pad: whether smaller images are padded; otherwise they stay smaller.
        pad_value: of the image's padding.
        seg_pad_value: of the labels' padding.
    """

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        """A crop, and with ``pad`` a padding behind it."""
        height, width = image.shape[:2]
        kept_height, kept_width = min(height, self.crop_size[0]), min(width, self.crop_size[1])
        top, left = _random_corner((height, width), (kept_height, kept_width))
        steps: list[Transform] = [CropTransform(left, top, kept_width, kept_height, width, height)]
        if self.pad:
            missing_height, missing_width = self.crop_size[0] - kept_height, self.crop_size[1] - kept_width
            steps.append(
                PadTransform(
                    0,
                    0,
                    missing_width,
                    missing_height,
                    kept_width,
                    kept_height,
                    pad_value=self.pad_value,
                    seg_pad_value=self.seg_pad_value,
                )
            )
        return TransformList(steps)


class MinIoURandomCrop(Augmentation):
    """Crops so that every object overlaps the crop by at least a random IoU (Liu et al. 2016, "SSD").

    Each time one bound is drawn from ``min_ious``, "no crop" and "no bound"; then crops are tried until one meets it
    and holds the center of an object.

    Args:
        min_ious: the bounds.
        min_crop_size: smallest sides of the crop, as a fraction of the image's.
        mode_trials: how many bounds to try before leaving the image alone.
        crop_trials: how many crops to try for a bound.
    """

    NO_CROP = 1
    NO_BOUND = 0

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self.min_ious = min_ious
        self.min_crop_size = min_crop_size
        self.mode_trials = mode_trials
        self.crop_trials = crop_trials
        self.sample_mode = (self.NO_CROP, *min_ious, self.NO_BOUND)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """A crop, or nothing; nothing if ``boxes`` (N, 4) is None."""
        if boxes is None:
            return NoOpTransform()
        height, width = image.shape[:2]
        for _ in range(self.mode_trials):
            bound = np.random.choice(self.sample_mode)
            if bound == self.NO_CROP:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                crop_xyxy = self._propose((height, width))
                if crop_xyxy is not None and _suits(crop_xyxy, boxes, bound):
                    left, top, right, bottom = crop_xyxy
                    return CropTransform(left, top, right - left, bottom - top, width, height)
        return NoOpTransform()

    def _propose(self, image_size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """A random crop xyxy, or None if it came out too slim (aspect ratio beyond 2) or empty."""
        height, width = image_size
        crop_width = np.random.uniform(self.min_crop_size * width, width)
        crop_height = np.random.uniform(self.min_crop_size * height, height)
        left = np.random.uniform(width - crop_width)
        top = np.random.uniform(height - crop_height)
        right, bottom = int(left + crop_width), int(top + crop_height)
        if not 0.5 <= crop_height / crop_width <= 2 or right <= int(left) or bottom <= int(top):
            return None
        return int(left), int(top), right, bottom


def _suits(crop_xyxy: tuple[int, int, int, int], boxes: np.ndarray, min_iou: float) -> bool:
    """Whether all boxes overlap the crop enough, and one has its center inside; true without boxes."""
    if len(boxes) == 0:
        return True
    crop = np.array(crop_xyxy, dtype=np.float64)
    overlap = (np.minimum(crop[2:], boxes[:, 2:]) - np.maximum(crop[:2], boxes[:, :2])).clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = (crop[2:] - crop[:2]).prod() + areas - overlap
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    has_center = ((centers > crop[:2]) & (centers < crop[2:])).all(axis=1).any()
    return bool((overlap >= min_iou * union).all() and has_center)


# ------------------------------------------------------------------------------------------------------------ colour

LUMA_RGB = (0.299, 0.587, 0.114)

# Principal components of the colours of ImageNet (Krizhevsky et al. 2012), for values in [0, 1], RGB; columns.
IMAGENET_COLOR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
IMAGENET_COLOR_VARIANCES = np.array([0.2175, 0.0188, 0.0045])


class _RandomBlend(Augmentation):
    """Keeps a random part of the image, which may exceed 1, and fills up from something else.

    Args:
        intensity_min: smallest part; below 1 weakens.
        intensity_max: largest part; above 1 strengthens.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        """A blend with a part that is uniform in the range."""
        part = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._other(image), src_weight=1 - part, dst_weight=part)

    def _other(self, image: np.ndarray) -> Any:
        """What fills up: a value, or an array that broadcasts to the image."""
        raise NotImplementedError


class RandomContrast(_RandomBlend):
    """Weakens or strengthens the contrast about the image's mean.

    Args:
        intensity_min: smallest part of the contrast to keep; 1 changes nothing, 0 is grey.
        intensity_max: largest.
    """

    def _other(self, image: np.ndarray) -> Any:
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Darkens or brightens.

    Args:
        intensity_min: smallest factor; 1 changes nothing, 0 is black.
        intensity_max: largest.
    """

    def _other(self, image: np.ndarray) -> Any:
        return 0


class RandomSaturation(_RandomBlend):
    """Weakens or strengthens the colours of an RGB image.

    Args:
        intensity_min: smallest part of the colours to keep; 1 changes nothing, 0 is grey.
        intensity_max: largest.
    """

    def _other(self, image: np.ndarray) -> Any:
        _check_has_three_colors(self, image)
        return image.dot(np.array(LUMA_RGB))[:, :, None]


class RandomLighting(Augmentation):
    """Shifts the colours of an RGB image along the principal components of ImageNet's.

    The shift is in the units of images in [0, 1]; for images in [0, 255] give a ``scale`` 255 times as large.

    Args:
        scale: standard deviation of the weights of the components; 0.1 in AlexNet, for images in [0, 1].
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        """A blend that adds one colour everywhere."""
        _check_has_three_colors(self, image)
        weights = np.random.normal(scale=self.scale, size=3)
        shift = IMAGENET_COLOR_AXES @ (weights * IMAGENET_COLOR_VARIANCES)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)


def _check_has_three_colors(augmentation: Augmentation, image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{augmentation} works on RGB images (H, W, 3); got an array of shape {image.shape}")
