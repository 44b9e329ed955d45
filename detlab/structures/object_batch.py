"""The objects of a batch of images in tensors of one size: what the stages of a model hand to each other.

Shapes: N images, P places for the objects of each image, of which some are valid, G places for ground truth.

The arithmetic of a model must not depend on how many objects there are: on a GPU the host would wait for every such
number. So a batch has the same number of places for each image, and ``valid`` says which of them are taken. Code that
wants the objects of one image indexes the batch, as if it were a list of :class:`Instances`; only then is it made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances, select_entries
from detlab.structures.keypoints import Keypoints
from detlab.structures.mask_table import MaskTable
from detlab.structures.rotated_boxes import RotatedBoxes

__all__ = [
    "ImageSizes",
    "LooseField",
    "NotedList",
    "ObjectBatch",
    "PartsOnDemand",
    "StepNotes",
    "as_batch",
    "as_list",
    "assign",
    "batch_on_device",
    "gather_places",
    "notes_of",
    "padded",
    "takes_padded",
    "valid_parts",
    "with_notes",
]

# (height, width) of N images: known on the host, or a (N, 2) tensor in a compiled or exported model.
ImageSizes = Sequence[tuple[int, int]] | Tensor

# Containers that are a tensor (N, ...) and a meaning; any other field that is no tensor stays as it is.
_CONTAINERS = (Boxes, RotatedBoxes, Keypoints)

Method = TypeVar("Method", bound=Callable)


def padded(method: Method) -> Method:
    """Marks a method as one that takes :class:`ObjectBatch` and, with it, one row of its tensors for each place.

    A method that overrides it and is not marked gets what a list of ``Instances`` would give: the batch may be
    indexed, and tensors have a row for each valid object only, which on a GPU costs a wait.
    """
    method._takes_padded = True  # type: ignore[attr-defined]
    return method


def takes_padded(method: Callable) -> bool:
    """Whether a method, or the ``forward`` of a module, is marked by :func:`padded`."""
    if isinstance(method, torch.nn.Module):
        method = type(method).forward
    return getattr(method, "_takes_padded", False)


class StepNotes:
    """What the stages of one step say beside their results; all batches made from one another share it.

    Attributes:
        measured: statistics by name, 0-dim tensors or numbers.
        normalizers: what was exchanged between the ranks of the numbers that sums of losses are divided by.
        pictures: (C, H, W) images by name; None unless somebody wants to see them.
    """

    def __init__(self) -> None:
        self.measured: dict[str, Any] = {}
        self.normalizers: dict[str, Any] = {}
        self.pictures: dict[str, Tensor] | None = None


class NotedList(list[Instances]):
    """A list of ``Instances`` that takes the notes of its step along.

    Args:
        instances: of N images.
        notes: of the step.
    """

    def __init__(self, instances: Iterable[Instances], notes: StepNotes) -> None:
        super().__init__(instances)
        self.notes = notes


class LooseField:
    """A field without a tensor form: of each image something that can be indexed, such as masks.

    Args:
        values: of N images.
        rows: (N, P) int64, the entries that places stand for; None: place p is entry p.

    Attributes:
        device: where values that have a method ``to`` shall be when they are handed out; None where they are.
        shared: what was made of the values, for all fields that share them.
    """

    def __init__(self, values: list[Any], rows: Tensor | None = None) -> None:
        self.values = values
        self.rows = rows
        self.device: torch.device | None = None
        self.shared: dict[str, Any] = {}

    def at(self, rows: Tensor) -> LooseField:
        """The same values, of which places stand for the entries ``rows`` (N, P)."""
        field = LooseField(self.values, rows)
        field.device, field.shared = self.device, self.shared
        return field

    def to(self, device: torch.device) -> LooseField:
        """The field on another device; values are moved when somebody asks for them."""
        field = LooseField(self.values, None if self.rows is None else self.rows.to(device))
        field.device = device
        return field

    def rows_of(self, valid: Tensor) -> Tensor:
        """(N, P) int64: the entries of places ``valid`` (N, P)."""
        if self.rows is not None:
            return self.rows
        return torch.arange(valid.shape[1], device=valid.device).expand_as(valid)

    def entries(self, i: int, positions: slice | Tensor) -> Any:
        """Those of image ``i`` at the given places; waits for the device."""
        return select_entries(self._value(i), positions if self.rows is None else self.rows[i][positions])

    def _value(self, i: int) -> Any:
        """That of image ``i``, on the device; moved once."""
        if self.device is None or not hasattr(self.values[i], "to"):
            return self.values[i]
        moved = self.shared.setdefault("moved", {})
        if i not in moved:
            moved[i] = self.values[i].to(self.device)
        return moved[i]

    def table(self, device: torch.device) -> MaskTable:
        """The values, which are masks, as one table; made once. An image without them has no masks in it."""
        if "table" not in self.shared:
            none = next(value for value in self.values if value is not None)[:0]
            self.shared["table"] = MaskTable([none if own is None else own for own in self.values], device)
        return self.shared["table"]


class ObjectBatch(Sequence[Instances]):
    """Fields (N, P, ...) of the objects of N images; a sequence of N :class:`Instances`.

    An element is made when it is asked for, which waits for a GPU. It may then be changed: a batch whose elements were
    handed out is told anew from them by :func:`as_batch`, with which every stage begins.

    Places may also stand for objects of another batch, as proposals do for ground truth: fields that this batch has
    not are then looked up there, so that large ones are never copied.

    Args:
        image_sizes: see :data:`ImageSizes`.
        valid: (N, P) bool, which places are taken.
        fields: tensors (N, P, ...) by name; what they hold at places that are not valid is of no meaning.
        kinds: of fields that are handed out in a container its type, such as ``Boxes``.
        counts: the number of valid places of each image, where the host knows it; these are then the first.
        notes: of the step, see :class:`StepNotes`.

    Attributes:
        layout: how rows of flat tensors belong to places, once a head was run on them.
        num_leading: all objects that are no background lie within so many first places; None if that is not known.
    """

    def __init__(
        self,
        image_sizes: ImageSizes,
        valid: Tensor,
        fields: Mapping[str, Tensor] | None = None,
        kinds: Mapping[str, type] | None = None,
        *,
        counts: Sequence[int] | None = None,
        notes: StepNotes | None = None,
    ) -> None:
        self.image_sizes = image_sizes
        self.valid = valid
        self.counts = counts
        self.notes = StepNotes() if notes is None else notes
        self.layout: Any = None
        self.num_leading: int | None = None
        self._fields: dict[str, Tensor] = dict(fields or {})
        self._kinds: dict[str, type] = dict(kinds or {})
        self._late: dict[str, Callable[[], Tensor]] = {}
        self._loose: dict[str, LooseField] = {}
        self._absent: dict[str, frozenset[int]] = {}  # images that lack a field which others have
        self._objects: ObjectBatch | None = None
        self._rows: Tensor | None = None  # (N, P) int64 places of `_objects`
        self._positions: list[slice | Tensor] | None = None
        self._elements: dict[int, Instances] = {}

    # ---------------------------------------------------------------------------------------------------- fields

    @property
    def num_images(self) -> int:
        """N."""
        return self.valid.shape[0]

    @property
    def num_places(self) -> int:
        """P."""
        return self.valid.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.valid.device

    def has(self, name: str) -> bool:
        """Whether there is a field of that name, here or in the objects that places stand for."""
        own = name in self.names
        return own or (self._objects is not None and self._is_referred(name) and self._objects.has(name))

    @property
    def names(self) -> list[str]:
        """The names of the batch's own fields."""
        return [*self._fields, *self._late, *self._loose]

    def tensor(self, name: str) -> Tensor:
        """A field as (N, P, ...).

        Raises:
            KeyError: there is none, or none that is a tensor.
        """
        if name in self._late:
            self._fields[name] = self._late.pop(name)()
        if name in self._fields:
            return self._fields[name]
        if self._objects is not None and self._rows is not None and self._is_referred(name):
            return gather_places(self._objects.tensor(name), self._rows)
        known = ", ".join(self.names) or "none"
        raise KeyError(f"the batch has no tensor field '{name}'; known fields: {known}")

    def loose(self, name: str) -> LooseField | None:
        """A field that is no tensor, with the entries that the places of this batch stand for; None without it."""
        if name in self._loose:
            return self._loose[name]
        found = self._objects.loose(name) if self._objects is not None and self._is_referred(name) else None
        if found is None or self._rows is None:
            return found
        return found.at(self._rows if found.rows is None else gather_places(found.rows, self._rows))

    def set(self, name: str, value: Tensor, kind: type | None = None) -> None:
        """Add or replace a field.

        Args:
            name: of the field.
            value: (N, P, ...).
            kind: the container it is handed out in; None for a tensor.
        """
        self._forget(name)
        self._fields[name] = value
        if kind is not None:
            self._kinds[name] = kind

    def set_late(self, name: str, compute: Callable[[], Tensor], kind: type | None = None) -> None:
        """Add or replace a field that is made only when somebody asks for it or for an element.

        Args:
            name: of the field.
            compute: gives (N, P, ...), perhaps by waiting for the device.
            kind: see :meth:`set`.
        """
        self._forget(name)
        self._late[name] = compute
        if kind is not None:
            self._kinds[name] = kind

    def _forget(self, name: str) -> None:
        """Make room for a new field; elements do not have it yet."""
        for known in (self._fields, self._kinds, self._late, self._loose, self._absent):
            known.pop(name, None)  # type: ignore[attr-defined]
        self._elements = {}

    def _make_late_fields(self) -> None:
        for name in list(self._late):
            self.tensor(name)

    def kind(self, name: str) -> type | None:
        """The container that a field is handed out in; None for a tensor."""
        if name in self._fields or self._objects is None:
            return self._kinds.get(name)
        return self._objects.kind(name)

    def refer_to(self, objects: ObjectBatch, rows: Tensor) -> None:
        """Let places stand for objects, whose fields ``gt_...`` are then fields of this batch.

        Args:
            objects: of the same images.
            rows: (N, P) int64 places of ``objects``.
        """
        self._objects, self._rows = objects, rows

    @staticmethod
    def _is_referred(name: str) -> bool:
        return name.startswith("gt_")

    def to(self, device: torch.device) -> ObjectBatch:
        """The batch on another device."""
        self._make_late_fields()
        moved = move_together({**self._fields, "": self.valid}, device)
        valid = moved.pop("")
        batch = ObjectBatch(self.image_sizes, valid, moved, self._kinds, counts=self.counts, notes=self.notes)
        batch._loose, batch._absent = {name: field.to(device) for name, field in self._loose.items()}, self._absent
        batch.num_leading = self.num_leading
        if self._objects is not None and self._rows is not None:
            batch.refer_to(self._objects.to(device), self._rows.to(device))
        return batch

    def require(self, name: str) -> None:
        """Refuse objects that lack a field which those of another image have; as far as the host knows, without a wait.

        Raises:
            ValueError: says which field and image.
        """
        holder = self if name in self.names or self._objects is None else self._objects
        lacking = [i for i in sorted(holder._absent.get(name, ())) if holder.counts is not None and holder.counts[i]]
        if lacking:
            raise ValueError(
                f"image {lacking[0]} of the batch has objects without the field '{name}', which those of other images "
                "have; give the objects of all images the same fields"
            )

    def of_tensors_alone(self, image_sizes: Tensor) -> ObjectBatch:
        """The same batch without numbers on the host, which a compiled model would be specialised for.

        Args:
            image_sizes: (N, 2), height and width.
        """
        batch = ObjectBatch(image_sizes, self.valid, self._fields, self._kinds)
        batch._loose = self._loose
        return batch

    # --------------------------------------------------------------------------------------------- other places

    def take(self, places: Tensor, valid: Tensor) -> ObjectBatch:
        """The objects at (N, Q) ``places``, of which ``valid`` (N, Q) are taken."""
        return self._derive(valid, lambda x: gather_places(x, places), places)

    def first(self, count: int) -> ObjectBatch:
        """The first ``count`` places of every image."""
        if count >= self.num_places:
            return self
        places = torch.arange(count, device=self.device).expand(self.num_images, -1)
        derived = self._derive(self.valid[:, :count], lambda x: x[:, :count], places)
        derived.counts = None if self.counts is None else [min(c, count) for c in self.counts]
        return derived

    def where(self, mask: Tensor) -> ObjectBatch:
        """The same places, of which only those of ``mask`` (N, P) stay valid."""
        return self._derive(self.valid & mask, lambda x: x, None)

    def _derive(self, valid: Tensor, select: Callable[[Tensor], Tensor], places: Tensor | None) -> ObjectBatch:
        self._make_late_fields()
        fields = {name: select(value) for name, value in self._fields.items()}
        derived = ObjectBatch(self.image_sizes, valid, fields, self._kinds, notes=self.notes)
        derived._absent = self._absent
        derived.num_leading = self.num_leading if places is None else None
        for name, field in self._loose.items():
            rows = places if field.rows is None else select(field.rows)
            derived._loose[name] = field if rows is None else field.at(rows)
        if self._objects is not None and self._rows is not None:
            derived.refer_to(self._objects, select(self._rows))
        return derived

    def join(self, other: ObjectBatch) -> ObjectBatch:
        """The places of this batch followed by those of another one, with the fields of this one.

        Raises:
            ValueError: the other batch lacks a field of this one.
        """
        missing = [name for name in self.names if name not in other._fields]
        if missing or self._loose:
            raise ValueError(
                f"proposals have the fields {missing or [*self._loose]}, which what is to be added to them lacks"
            )
        fields = {n: torch.cat((x, other._fields[n].to(x.dtype)), dim=1) for n, x in self._fields.items()}
        valid = torch.cat((self.valid, other.valid), dim=1)
        return ObjectBatch(self.image_sizes, valid, fields, self._kinds, notes=self.notes)

    # ------------------------------------------------------------------------------------------------- elements

    def __len__(self) -> int:
        return self.valid.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """The :class:`Instances` of one image, or of a slice of them a list; waits for the device."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        if i not in self._elements:
            self._elements[i] = self._make_element(i)
        return self._elements[i]

    def __setitem__(self, index: int, instances: Instances) -> None:
        self._elements[range(len(self))[index]] = instances

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Iterable[Instances]) -> list[Instances]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Instances]) -> list[Instances]:
        return [*other, *self]

    def __getattr__(self, name: str) -> Any:
        if name in ("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"):
            raise AttributeError(f"a batch of images has no '{name}'; make a list of it first: list(proposals)")
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __repr__(self) -> str:
        return f"ObjectBatch(num_images={self.num_images}, num_places={self.num_places}, fields={self.names})"

    @property
    def was_handed_out(self) -> bool:
        """Whether somebody holds an element, and may have changed it."""
        return len(self._elements) > 0

    def _make_element(self, i: int) -> Instances:
        self._make_late_fields()
        positions = self.positions()[i]
        element = Instances(self._image_size(i))
        for name, value in self._fields.items():
            if i not in self._absent.get(name, ()):
                element.set(name, _wrap(value[i][positions], self._kinds.get(name)))
        for name, field in self._loose.items():
            if i not in self._absent.get(name, ()):
                element.set(name, field.entries(i, positions))
        if self._objects is not None and self._rows is not None:
            self._objects._add_objects(element, i, self._rows[i][positions])
        return element

    def _add_objects(self, element: Instances, i: int, rows: Tensor) -> None:
        """Give an element of another batch the fields of these rows of image ``i``, if it has objects."""
        positions = self.positions()[i]
        if isinstance(positions, slice) and positions.stop == 0:
            return
        lacking = {name for name, images in self._absent.items() if i in images}
        wanted = [name for name in self.names if self._is_referred(name) and name not in lacking]
        for name in [name for name in wanted if not element.has(name)]:
            if name in self._fields:
                element.set(name, _wrap(self._fields[name][i][rows], self._kinds.get(name)))
            else:
                element.set(name, self._loose[name].entries(i, rows))

    def _image_size(self, i: int) -> tuple[int, int]:
        if isinstance(self.image_sizes, Tensor):
            height, width = self.image_sizes[i].tolist()
            return int(height), int(width)
        return self.image_sizes[i]

    def positions(self) -> list[slice | Tensor]:
        """Of each image, where its valid places are; waits for the device the first time, unless the host knows."""
        if self._positions is None:
            if self.counts is not None:
                self._positions = [slice(0, count) for count in self.counts]
            else:
                self._positions = [self._position(own) for own in self.valid.cpu().numpy()]
        return self._positions

    def _position(self, valid: np.ndarray) -> slice | Tensor:
        count = int(valid.sum())
        if valid[:count].all():
            return slice(0, count)
        return torch.from_numpy(np.flatnonzero(valid)).to(self.device)


def move_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors on the CPU as views of one buffer on a device, filled by one asynchronous copy from pinned memory."""
    if any(x.device.type != "cpu" for x in tensors.values()):
        return {name: x.to(device, non_blocking=True) for name, x in tensors.items()}
    sizes = [-(-x.numel() * x.element_size() // 16) * 16 for x in tensors.values()]  # a view needs an aligned start
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    starts = np.cumsum([0, *sizes]).tolist()
    places = {name: (start, x) for start, (name, x) in zip(starts, tensors.items())}
    for start, x in places.values():
        _part(buffer, start, x).copy_(x)
    there = buffer.to(device, non_blocking=True)
    return {name: _part(there, start, x) for name, (start, x) in places.items()}


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """What lies in the bytes from ``start`` on, of the shape and dtype of ``like``."""
    return buffer[start : start + like.numel() * like.element_size()].view(like.dtype).view(like.shape)


def _wrap(value: Tensor, kind: type | None) -> Any:
    return value if kind is None else kind(value)


def gather_places(values: Tensor, places: Tensor) -> Tensor:
    """Of ``values`` (N, P, ...) those at ``places`` (N, Q) int64, as (N, Q, ...)."""
    index = places.view(*places.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def assign(
    instances: Sequence[Instances],
    batch: ObjectBatch,
    name: str,
    values: Tensor | Callable[[], Tensor],
    kind: type | None = None,
) -> None:
    """Give objects a field, in place.

    Args:
        instances: the objects as they came.
        batch: :func:`as_batch` of them.
        name: of the field.
        values: (N, P, ...) for the places of the batch, or what gives them when they are needed.
        kind: see :meth:`ObjectBatch.set`.
    """
    if instances is batch:
        if isinstance(values, Tensor):
            batch.set(name, values, kind)
        else:
            batch.set_late(name, values, kind)
        return
    for own, part in zip(instances, valid_parts(values if isinstance(values, Tensor) else values(), batch)):
        own.set(name, _wrap(part, kind))


def valid_parts(values: Tensor, batch: ObjectBatch) -> list[Tensor]:
    """``values`` (N, P, ...) of the places of a batch as N tensors of the valid ones; waits for the device."""
    return [own[positions] for own, positions in zip(values, batch.positions())]


class PartsOnDemand(Sequence[Tensor]):
    """:func:`valid_parts` that waits for the device only when somebody asks for one.

    Attributes:
        values: (N, P, ...).
    """

    def __init__(self, values: Tensor, batch: ObjectBatch) -> None:
        self.values = values
        self._batch = batch

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        """The valid ones of an image, or of a slice of them a list."""
        if isinstance(index, slice):
            return valid_parts(self.values, self._batch)[index]
        i = range(len(self))[index]
        return self.values[i][self._batch.positions()[i]]


# ------------------------------------------------------------------------------------------------- from instances


def as_batch(instances: Sequence[Instances]) -> ObjectBatch:
    """The batch that a stage works on.

    Args:
        instances: a batch, returned itself unless elements of it were handed out; or N :class:`Instances`.
    """
    if isinstance(instances, ObjectBatch) and not instances.was_handed_out:
        return instances
    batch = _pad(list(instances))
    batch.notes = notes_of(instances)
    return batch


def as_list(instances: Sequence[Instances]) -> NotedList:
    """A list of the objects of each image, for a part that was written for lists; waits for the device."""
    return NotedList(instances, notes_of(instances))


def batch_on_device(instances: Sequence[Instances], device: torch.device) -> ObjectBatch:
    """Objects that come from a loader, padded and moved.

    Fields on the CPU are padded there and go in one copy, asynchronously; the masks of objects are laid out for the
    device, once.

    Args:
        instances: of N images.
        device: where the model is.
    """
    batch = as_batch(instances)
    return batch if batch.device == device else batch.to(device)


def notes_of(instances: Sequence[Instances]) -> StepNotes:
    """The notes that came with objects; empty ones for a list that has none."""
    return instances.notes if isinstance(instances, ObjectBatch | NotedList) else StepNotes()


def with_notes(instances: Sequence[Instances], notes: StepNotes) -> Sequence[Instances]:
    """The same objects, to which these notes belong."""
    if not isinstance(instances, ObjectBatch | NotedList):
        return NotedList(instances, notes)
    instances.notes = notes
    return instances


def _pad(instances: list[Instances]) -> ObjectBatch:
    counts = [len(own) for own in instances]
    names = list(dict.fromkeys(name for own in instances for name in own.get_fields()))
    fields, kinds, loose, absent = {}, {}, {}, {}
    for name in names:
        values = [own.get(name) if own.has(name) else None for own in instances]
        absent[name] = frozenset(i for i, value in enumerate(values) if value is None)
        tensors = [_tensor_of(value) for value in values]
        if not _stackable(values, tensors):
            loose[name] = LooseField(values)
            continue
        fields[name] = _stack(_of_one_dtype([t for t in tensors if t is not None]), tensors, counts)
        kinds[name] = next(type(v) for v in values if v is not None)
    device = next((x.device for x in fields.values()), torch.device("cpu"))
    num_places = max(1, *counts) if counts else 1
    valid = torch.from_numpy(np.arange(num_places) < np.asarray(counts).reshape(-1, 1)).to(device, non_blocking=True)
    containers = {name: kind for name, kind in kinds.items() if issubclass(kind, _CONTAINERS)}
    batch = ObjectBatch([own.image_size for own in instances], valid, fields, containers, counts=counts)
    batch._loose = loose
    batch._absent = {name: images for name, images in absent.items() if images}
    return batch


def _tensor_of(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return value.tensor if isinstance(value, _CONTAINERS) else None


def _stackable(values: list[Any], tensors: list[Tensor | None]) -> bool:
    """Whether all values of a field, where there are any, are tensors that differ in length alone."""
    there = [t for v, t in zip(values, tensors) if v is not None]
    if not there or any(t is None or t.dim() == 0 for t in there):
        return False
    found = cast(list[Tensor], there)
    kinds = {type(v) for v in values if v is not None}
    return len(kinds) == 1 and len({(t.shape[1:], t.device) for t in found}) == 1


def _of_one_dtype(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors in the type that holds the numbers of all."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return [t.to(dtype) for t in tensors]


def _stack(there: list[Tensor], tensors: list[Tensor | None], counts: list[int]) -> Tensor:
    """(N, max(P, 1), ...), the tensors that are there and zeros where there is nothing."""
    like, values = there[0], iter(there)
    rows = [like.new_zeros((c, *like.shape[1:])) if t is None else next(values) for t, c in zip(tensors, counts)]
    stacked = pad_sequence(rows, batch_first=True)
    return stacked if stacked.shape[1] > 0 else stacked.new_zeros((len(rows), 1, *like.shape[1:]))
