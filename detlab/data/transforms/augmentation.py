"""Augmentations choose at random what to do with a sample; the transforms they return do it.

An augmentation looks at what it asks for by the argument names of its ``get_transform`` (the image, the boxes, ...),
draws from numpy's global random numbers, and returns a transform, which draws nothing and can be applied again to
whatever else belongs to the sample::

    class CutRight(Augmentation):  # some of what lies to the right of all objects
        def get_transform(self, image, boxes):
            height, width = image.shape[:2]
            kept_width = np.random.randint(boxes[:, 2].max(), width) + 1
            return CropTransform(0, 0, kept_width, height)

    inputs = AugInput(image, boxes=boxes)
    transform = CutRight()(inputs)                  # inputs.image and inputs.boxes are changed now
    points = transform.apply_coords(points)         # and so is this
"""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


class Augmentation:
    """Chooses a transform for a sample.

    A subclass defines ``get_transform``; the names of its arguments are the attributes of the :class:`AugInput` that it
    is called with. A single argument gets the image, whatever its name.

    Attributes:
        input_args: names of the attributes to ask for; None until they are read off ``get_transform``.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keeps the arguments of a constructor as attributes: ``self._init(locals())`` in its first line."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Chooses a transform. Does not change what it is given.

        Args:
            *args: what the subclass names: ``image`` (H, W, C), ``boxes`` (N, 4) xyxy, ``sem_seg`` (H, W), or other
                attributes of the input. What the sample does not have is None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define get_transform")

    def __call__(self, aug_input: AugInput) -> Transform:
        """Chooses a transform, applies it to ``aug_input`` in place, and returns it.

        Raises:
            AttributeError: ``get_transform`` asks for something that the input does not have.
            TypeError: ``get_transform`` did not return a transform, or does not name its arguments.
        """
        transform = self.get_transform(*self._arguments_from(aug_input))
        if not isinstance(transform, Transform):
            raise TypeError(
                f"{type(self).__name__}.get_transform must return a Transform or TransformList (NoOpTransform() for "
                f"none); got {transform!r}"
            )
        aug_input.transform(transform)
        return transform

    def _arguments_from(self, aug_input: AugInput) -> list[Any]:
        if self.input_args is None:
            self.input_args = _argument_names(self)
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self).__name__}.get_transform asks for {missing}, which {type(aug_input).__name__} does not "
                f"have; it has {sorted(vars(aug_input))}"
            )
        return [getattr(aug_input, name) for name in self.input_args]

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform numbers in [low, high), or in [0, low) if only one bound is given."""
        if high is None:
            low, high = 0.0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """The constructor's call, without what was left at its default."""
        given = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if hasattr(self, name) and repr(getattr(self, name)) != repr(parameter.default):
                given.append(f"{name}={pprint.pformat(getattr(self, name))}")
        return f"{type(self).__name__}({', '.join(given)})"

    __str__ = __repr__


def _argument_names(augmentation: Augmentation) -> tuple[str, ...]:
    parameters = list(inspect.signature(augmentation.get_transform).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise TypeError(
            f"{type(augmentation).__name__}.get_transform must name its arguments, like (self, image, boxes); it has "
            f"{[str(p) for p in parameters]}"
        )
    return ("image",) if len(parameters) == 1 else tuple(p.name for p in parameters)


TransformGen = Augmentation


class AugmentationList(Augmentation):
    """Augmentations one after the other; each sees what the earlier ones made.

    Args:
        augs: augmentations, transforms (which always do the same), or lists of them.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform | Sequence]) -> None:
        self.augs = [_as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: AugInput) -> TransformList:
        """Applies all of them to ``aug_input`` in place; returns what they did."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList([{', '.join(map(repr, self.augs))}])"

    __str__ = __repr__


class _Fixed(Augmentation):
    """Always chooses the same transform."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _as_augmentation(aug: Any) -> Augmentation:
    if isinstance(aug, Augmentation):
        return aug
    if isinstance(aug, Transform):
        return _Fixed(aug)
    if isinstance(aug, (list, tuple)):
        return AugmentationList(aug)
    raise TypeError(f"an augmentation, a transform or a list of them is needed; got {aug!r}")


class AugInput:
    """What augmentations change together: an image and what is drawn on it.

    A subclass may carry more: give it attributes, and a ``transform`` that changes them.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating in [0, 1] or [0, 255].
        boxes: (N, 4) xyxy in pixels, floating.
        sem_seg: (H, W) integer labels.

    Raises:
        TypeError: the image is not an array of one of these dtypes.
        ValueError: the image has another number of dimensions.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Changes all attributes in place; an array may be replaced or written to."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Applies augmentations in place, one after the other; returns what they did."""
        return AugmentationList(augmentations)(self)


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a numpy array (H, W, C); got {type(image).__name__}")
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise TypeError(f"an image holds uint8 in [0, 255] or floating values; got {image.dtype}: convert it first")
    if image.ndim not in (2, 3):
        raise ValueError(f"an image has the shape (H, W) or (H, W, C); got {image.shape}")


StandardAugInput = AugInput


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Applies augmentations to an image, or to an input that carries more.

    Args:
        augmentations: applied one after the other.
        inputs: an image array, or an :class:`AugInput`, which is changed in place.

    Returns:
        What was given, changed, and the transforms that did it.
    """
    aug_input = AugInput(inputs) if isinstance(inputs, np.ndarray) else inputs
    transforms = aug_input.apply_augmentations(augmentations)
    return (aug_input.image if isinstance(inputs, np.ndarray) else inputs), transforms


apply_transform_gens = apply_augmentations
