"""Polygons of a batch in one piece of memory."""

import numpy as np
import pytest
import torch

from detlab.structures.masks import PolygonMasks
from detlab.structures.packed_polygons import PackedPolygons

SQUARE = np.array([2.0, 2, 8, 2, 8, 8, 2, 8])
TRIANGLE = np.array([10.0, 1, 15, 9, 10, 9])
FIRST, SECOND, NONE = PolygonMasks([[SQUARE, TRIANGLE], []]), PolygonMasks([[TRIANGLE]]), PolygonMasks([])
BOXES = torch.tensor([[0.0, 0, 16, 10], [1.0, 1, 9, 9], [9.0, 0, 16, 10], [2.0, 1, 15, 8]])


def test_masks_are_packed_object_by_object():
    packed = PackedPolygons.from_polygons(FIRST)
    assert len(packed) == 2
    assert packed.coords.tolist() == np.concatenate([SQUARE, TRIANGLE]).reshape(-1, 2).tolist()
    assert packed.polygon_offsets.tolist() == [0, 4, 7]
    assert packed.object_offsets.tolist() == [0, 2, 2]
    assert "num_objects=2, num_corners=7" in repr(packed)
    assert len(PackedPolygons.from_polygons(NONE)) == 0


def test_crops_equal_those_of_the_masks_and_places_without_object_are_empty():
    rows = torch.tensor([0, -1, 0, 1])
    crops = PackedPolygons.from_polygons(FIRST).crop_and_resize(rows, BOXES, 28)
    expected = FIRST[[0, 1, 0, 1]].crop_and_resize(BOXES, 28)
    assert torch.equal(crops[[0, 2, 3]], expected[[0, 2, 3]])
    assert not crops[1].any()
    assert crops[0].any()


def test_a_batch_numbers_its_objects_through():
    batch = PackedPolygons.cat([PackedPolygons.from_polygons(masks) for masks in (FIRST, NONE, SECOND)])
    together = PackedPolygons.from_polygons(PolygonMasks.cat([FIRST, NONE, SECOND]))
    for name in ("coords", "polygon_offsets", "object_offsets"):
        assert torch.equal(getattr(batch, name), getattr(together, name))
    crops = batch.crop_and_resize(torch.tensor([2, 0, 2, 1]), BOXES, 14)
    assert torch.equal(crops[::2], SECOND.crop_and_resize(BOXES[::2], 14, rows=torch.tensor([0, 0])))
    assert torch.equal(crops[1::2], FIRST.crop_and_resize(BOXES[1::2], 14))
    assert len(PackedPolygons.cat([])) == 0


def test_everything_lies_in_one_piece_of_memory_that_is_copied_once():
    packed = PackedPolygons.from_polygons(FIRST)
    parts = (packed.coords, packed.polygon_offsets, packed.object_offsets)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    moved = packed.to("meta")
    assert moved.device.type == moved.coords.device.type == moved.object_offsets.device.type == "meta"
    assert (moved.coords.shape, len(moved)) == (packed.coords.shape, 2)
    assert moved.crop_and_resize(torch.zeros(4, dtype=torch.int64, device="meta"), BOXES.to("meta"), 9).is_meta
    assert torch.equal(packed.to("cpu").coords, packed.coords)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_pinned_polygons_are_cropped_on_a_gpu():
    packed = PackedPolygons.from_polygons(FIRST)
    rows = torch.tensor([0, -1, 0, 1])
    moved = packed.pin_memory().to("cuda", non_blocking=True)
    crops = moved.crop_and_resize(rows.cuda(), BOXES.cuda(), 28)
    assert torch.equal(crops.cpu(), packed.crop_and_resize(rows, BOXES, 28))


def test_what_is_not_packed_polygons_is_refused():
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(V, 2\) float64; got \(3, 2\) torch.float32"):
        PackedPolygons(torch.zeros(3, 2), zero, zero)
    with pytest.raises(ValueError, match=r"polygon_offsets .* the first 0; got \(0,\) torch.int64"):
        PackedPolygons(torch.zeros(0, 2, dtype=torch.float64), zero[:0], zero)
    with pytest.raises(ValueError, match=r"object_offsets .* got \(1,\) torch.int32"):
        PackedPolygons(torch.zeros(0, 2, dtype=torch.float64), zero, zero.int())
