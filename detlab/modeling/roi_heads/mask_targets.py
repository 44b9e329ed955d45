"""What a mask head should predict.

Shapes: N images, P places, R rows of the batch, M x M the masks' resolution.
"""

import torch
from torch import Tensor

from detlab.modeling.packing import Rows
from detlab.structures.object_batch import ObjectBatch

__all__ = ["mask_targets"]


def mask_targets(batch: ObjectBatch, rows: Rows, mask_size: int) -> Tensor:
    """The mask of the object that each row belongs to, cropped to its proposal: (R, M, M) bool.

    Args:
        batch: with ``proposal_boxes`` and ``gt_masks``; without the latter all masks are empty.
        rows: of the batch.
        mask_size: M.
    """
    boxes = rows.take(batch.tensor("proposal_boxes"))
    batch.require("gt_masks")
    found = batch.loose("gt_masks")
    if found is None:
        return boxes.new_zeros((len(boxes), mask_size, mask_size), dtype=torch.bool)
    places = torch.arange(batch.num_images, device=boxes.device)[:, None].expand_as(batch.valid)
    object_rows = rows.take(found.rows_of(batch.valid))
    return found.table(boxes.device).crop(rows.take(places), object_rows, rows.counts, boxes, mask_size)
