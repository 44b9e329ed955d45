"""How samples come from data workers: small tensors inside the message, large ones through shared memory.

Torch sends every tensor through a piece of shared memory of its own, a file descriptor each, which both processes open,
map and close. That pays for an image; for the boxes and classes of a sample it takes twenty times as long as their few
bytes. So what is small among the fields of ``Instances`` travels as numpy arrays within the message. Only transfers
between processes are concerned: copies, and what is saved to files, are as ever.
"""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks
from detlab.structures.rotated_boxes import RotatedBoxes

__all__ = ["MAX_BYTES_IN_MESSAGE", "send_small_fields_in_messages"]

MAX_BYTES_IN_MESSAGE = 1 << 16

_CONTAINERS = (Boxes, RotatedBoxes, Keypoints, BitMasks)

# Of these numpy knows the same type.
_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
                     torch.uint8, torch.bool})  # fmt: skip


class _Packed(NamedTuple):
    """A field on its way."""

    kind: type | None  # the container, None for a tensor
    values: np.ndarray

    def unpack(self) -> Any:
        tensor = torch.from_numpy(self.values)
        return tensor if self.kind is None else self.kind(tensor)


def _pack(value: Any) -> Any:
    kind = type(value) if type(value) in _CONTAINERS else None
    tensor = value if kind is None else value.tensor
    return _Packed(kind, tensor.numpy()) if _is_small(tensor) else value


def _is_small(tensor: Any) -> bool:
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return False
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or tensor.dtype not in _DTYPES:
        return False
    return tensor.numel() * tensor.element_size() <= MAX_BYTES_IN_MESSAGE


def _rebuild(image_size: tuple[int, int], fields: dict[str, Any]) -> Instances:
    instances = Instances(image_size)
    for name, value in fields.items():
        instances.set(name, value.unpack() if isinstance(value, _Packed) else value)
    return instances


def _reduce(instances: Instances) -> tuple[Any, ...]:
    fields = {name: _pack(value) for name, value in instances.get_fields().items()}
    return _rebuild, (instances.image_size, fields)


def send_small_fields_in_messages() -> None:
    """Let the small fields of ``Instances`` travel so from here on, between this process and others."""
    # Exactly this class: a subclass may carry more than fields.
    ForkingPickler.register(Instances, _reduce)
