"""What is known about the objects of one image: named fields of one length.

Shapes: N objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Instances"]


class Instances:
    """N objects of one image. A field is anything with a length and an index: tensor, ``Boxes``, masks, list.

    Fields are attributes: ``labels.gt_boxes = Boxes(...)`` adds one, ``labels.gt_boxes`` reads it, and
    ``labels[keep]`` gives the same fields for some of the objects. Names that begin with ``_`` are no fields.

    Args:
        image_size: (height, width) of the image.
        **kwargs: fields to begin with.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Runs only where normal lookup fails; `_fields` itself is missing while an object is being unpickled.
        fields = self.__dict__.get("_fields")
        if fields is None or name not in fields:
            raise AttributeError(_no_such_field(name, fields or {}))
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Adds or replaces a field.

        Raises:
            ValueError: if its length is not that of the other fields.
        """
        if name == "image_size":
            raise AttributeError("image_size is fixed; make new Instances for another size")
        others = [known for known in self._fields if known != name]
        if others:
            length, expected = len(value), len(self._fields[others[0]])
            if length != expected:
                raise ValueError(
                    f"field '{name}' has {length} entries, but these Instances hold {expected} objects "
                    f"(fields: {', '.join(others)}); every field needs one entry for each object"
                )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._fields

    def get(self, name: str) -> Any:
        """The field of that name.

        Raises:
            KeyError: if there is none.
        """
        if name not in self._fields:
            raise KeyError(_no_such_field(name, self._fields))
        return self._fields[name]

    def remove(self, name: str) -> None:
        """Takes a field away.

        Raises:
            KeyError: if there is none.
        """
        if name not in self._fields:
            raise KeyError(_no_such_field(name, self._fields))
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name: the dictionary itself, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New ``Instances`` with each field moved by its own ``to``; fields without one are kept as they are."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved._fields[name] = value.to(*args, **kwargs) if hasattr(value, "to") else value
        return moved

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """Some of the objects, with all fields.

        Args:
            item: an int (one object stays a set of one), slice, list or tensor of indices, or bool tensor (N,).

        Raises:
            IndexError: if an int is out of range.
        """
        if isinstance(item, int | np.integer):
            item = self._slice_of_one(int(item))
        chosen = Instances(self._image_size)
        for name, value in self._fields.items():
            chosen._fields[name] = select_entries(value, item)
        return chosen

    def _slice_of_one(self, index: int) -> slice:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index {index} is out of range for {count} objects")
        index %= count
        return slice(index, index + 1)

    def __len__(self) -> int:
        return next((len(value) for value in self._fields.values()), 0)

    def __iter__(self) -> Iterator[Instances]:
        """One object after the other, each as ``Instances`` of length 1."""
        return (self[i] for i in range(len(self)))

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """The objects of several ``Instances`` of one image, in order.

        Args:
            instance_lists: at least one; all with the same image size and fields. A single one is returned itself.

        Raises:
            ValueError: for an empty list, or sizes, fields or field types that differ.
        """
        if not instance_lists or not all(isinstance(i, Instances) for i in instance_lists):
            raise ValueError("cat takes a list of at least one Instances; with none, the image size is not known")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        _check_alike(instance_lists)
        joined = Instances(first._image_size)
        for name in first._fields:
            joined.set(name, _concatenate(name, [i._fields[name] for i in instance_lists]))
        return joined

    def __repr__(self) -> str:
        height, width = self._image_size
        lines = [f"  {name}={value!r}," for name, value in self._fields.items()]
        body = "\n".join(["", *lines, ""]) if lines else ""
        return f"Instances(num_instances={len(self)}, image_height={height}, image_width={width}, fields=[{body}])"


def _no_such_field(name: str, fields: dict[str, Any]) -> str:
    return f"Instances have no field '{name}'; known fields: {', '.join(fields) or 'none'}"


def select_entries(value: Any, item: Any) -> Any:
    """Some of the entries of a field: what :meth:`Instances.__getitem__` does to each."""
    if isinstance(value, np.ndarray) and isinstance(item, Tensor):
        return value[item.cpu().numpy()]  # an array takes a tensor of one index for a number
    if not isinstance(value, list | tuple) or isinstance(item, slice):
        return value[item]
    # Sequences of Python know ints and slices only; an array of positions also settles bool masks and negatives.
    index = item.cpu().numpy() if isinstance(item, Tensor) else np.asarray(item, dtype=int if len(item) == 0 else None)
    return type(value)(value[i] for i in np.arange(len(value))[index])


def _check_alike(instance_lists: Sequence[Instances]) -> None:
    first = instance_lists[0]
    for other in instance_lists[1:]:
        if tuple(other._image_size) != tuple(first._image_size):
            raise ValueError(
                f"Instances of images of size {first._image_size} and {other._image_size} cannot be joined"
            )
        differing = set(first._fields) ^ set(other._fields)
        if differing:
            raise ValueError(f"Instances to join need the same fields; not in all of them: {sorted(differing)}")


def _concatenate(name: str, values: list[Any]) -> Any:
    kind = type(values[0])
    if isinstance(values[0], Tensor):
        return torch.cat(values, dim=0)
    if isinstance(values[0], list | tuple):
        return kind(itertools.chain(*values))
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values, axis=0)
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"field '{name}' of type {kind.__name__} cannot be joined; give the type a static method 'cat'")
