"""Valid rows in, padded places out: the one place where a model may look at how many objects there are.

Shapes: N images, P places of each, R rows of a flat tensor.

A head works on flat tensors, a row for each region. On a GPU, and in a compiled or exported model, every place is a
row: the host does not wait, and the shape is known. Eagerly on a CPU lengths are free to know and computing the padding
costs real time, so only the valid places are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from detlab.structures.instances import Instances
from detlab.structures.object_batch import ObjectBatch, as_batch, as_list

__all__ = ["Rows", "by_group", "lay_out", "lengths_are_free", "pack", "rows_of", "unpad_for"]


class Rows:
    """Which places of a batch are the rows of flat tensors.

    Args:
        valid: (N, P) bool.
        index: (R,) int64, for each row its place, counted through all images; None if every place is a row.
    """

    def __init__(self, valid: Tensor, index: Tensor | None) -> None:
        self.valid = valid
        self.index = index

    @property
    def counts(self) -> Tensor:
        """(R,) bool: which rows are objects and not padding."""
        flat = self.valid.flatten()
        return flat if self.index is None else flat[self.index]

    def take(self, places: Tensor) -> Tensor:
        """(N, P, ...) -> (R, ...)."""
        flat = places.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def put(self, rows: Tensor) -> Tensor:
        """(R, ...) -> (N, P, ...), zeros where there is no row."""
        if self.index is None:
            return rows.unflatten(0, self.valid.shape)
        flat = rows.new_zeros((self.valid.numel(), *rows.shape[1:]))
        return flat.index_copy(0, self.index, rows).unflatten(0, self.valid.shape)

    def rois(self, boxes: Tensor) -> Tensor:
        """Boxes (N, P, D) as what poolers take: (R, 1 + D), the index of the image in front."""
        num_images, num_places, _ = boxes.shape
        images = torch.arange(num_images, dtype=boxes.dtype, device=boxes.device)
        return self.take(torch.cat((images[:, None, None].expand(-1, num_places, -1), boxes), dim=-1))


def lengths_are_free(tensor: Tensor) -> bool:
    """Whether looking at values costs nothing: eagerly, on a CPU."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def lay_out(batch: ObjectBatch, head: nn.Module | None, must_be_exact: bool = False) -> Rows:
    """Choose the rows of flat tensors for a head that is about to be run on a batch.

    Args:
        batch: its layout is what was chosen, until another head is run on it.
        head: what will be run. Batch statistics must not see padding, so a head that computes them gets the valid
            places only, even where that means a wait.
        must_be_exact: ask for the valid places only, for parts that know nothing of padding.
    """
    batch.layout = _choose_rows(batch, must_be_exact or (head is not None and _computes_batch_statistics(head)))
    return batch.layout


def rows_of(instances: Sequence[Instances]) -> Rows:
    """The rows that flat tensors of these objects have.

    Of a list of ``Instances`` they are its objects, one image after another; of a batch what :func:`lay_out` chose for
    the head that was run on it. Where nothing was chosen, somebody made the rows who knows of objects alone.
    """
    batch = as_batch(instances)
    return lay_out(batch, None, must_be_exact=True) if batch.layout is None else batch.layout


def _choose_rows(batch: ObjectBatch, must_be_exact: bool) -> Rows:
    if batch.counts is not None:
        return Rows(batch.valid, _index_of_counts(batch.counts, batch.valid))
    if must_be_exact or lengths_are_free(batch.valid):
        return Rows(batch.valid, batch.valid.flatten().nonzero().squeeze(1))
    return Rows(batch.valid, None)


def _index_of_counts(counts: Sequence[int], valid: Tensor) -> Tensor | None:
    """The places of objects of which the host knows how many there are."""
    num_places = valid.shape[1]
    if all(count == num_places for count in counts):
        return None
    places = [np.arange(count) + i * num_places for i, count in enumerate(counts)]
    return torch.from_numpy(np.concatenate(places)).to(valid.device, non_blocking=True)


def _computes_batch_statistics(head: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in head.modules())


def pack(mask: Tensor, *places: Tensor) -> tuple[Tensor, ...]:
    """The rows of dense predictions that a loss has to see.

    Args:
        mask: (N, P) bool, those that count.
        places: tensors (N, P, ...).

    Returns:
        The tensors as (R, ...), and before them which rows count, (R,) bool: all, where lengths are free.
    """
    if lengths_are_free(mask):
        index = mask.flatten().nonzero().squeeze(1)
        rows = [x.flatten(0, 1)[index] for x in places]
        return torch.ones_like(index, dtype=torch.bool), *rows
    return mask.flatten(), *[x.flatten(0, 1) for x in places]


def by_group(groups: Tensor, functions: Sequence[Callable[[Tensor], Tensor]], rows: Tensor) -> Tensor:
    """Every row through the function of its group.

    Args:
        groups: (R,) int64, the number of each row's function.
        functions: from (r, ...) to (r, ...), row by row.
        rows: (R, ...).
    """
    if not lengths_are_free(rows):
        results = torch.stack([function(rows) for function in functions], dim=1)
        return results[torch.arange(rows.shape[0], device=rows.device), groups]
    order = groups.argsort(stable=True)
    parts = rows[order].split(groups.bincount(minlength=len(functions)).tolist())
    results = torch.cat([function(part) for function, part in zip(functions, parts)])
    return torch.zeros_like(results).index_copy(0, order, results)


def unpad_for(takes_places: bool, instances: Sequence[Instances]) -> Sequence[Instances]:
    """The objects as a part takes them: as a batch, or as a list, whose flat tensors have no padding."""
    return as_batch(instances) if takes_places else as_list(instances)
