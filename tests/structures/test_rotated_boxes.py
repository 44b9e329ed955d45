"""Rotated boxes."""

import math

import pytest
import torch

from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.rotated_boxes import RotatedBoxes
from detlab.structures.rotated_boxes import pairwise_iou as pairwise_iou_rotated


def corners(box):
    """The corners of one rotated box as points in the image (y down, angle counter-clockwise)."""
    cx, cy, w, h, angle = box
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    points = []
    for u, v in ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)):
        points.append((cx + c * u + s * v, cy - s * u + c * v))
    return torch.tensor(points)


def test_is_a_kind_of_boxes_with_five_numbers():
    boxes = RotatedBoxes([[1, 2, 3, 4, 5]])
    assert isinstance(boxes, Boxes)
    assert boxes.area().tolist() == [12]
    assert boxes.get_centers().tolist() == [[1, 2]]
    assert RotatedBoxes([]).tensor.shape == (0, 5)
    with pytest.raises(ValueError, match=r"RotatedBoxes need a tensor \(N, 5\): center x.*got \(2, 4\)"):
        RotatedBoxes(torch.zeros(2, 4))


def test_members_return_rotated_boxes():
    boxes = RotatedBoxes(torch.rand(3, 5))
    for made in (boxes.clone(), boxes.to("cpu"), boxes[0], boxes[1:], RotatedBoxes.cat([boxes, boxes])):
        assert type(made) is RotatedBoxes
    assert len(RotatedBoxes.cat([])) == 0
    assert [tuple(b.shape) for b in boxes] == [(5,)] * 3


def test_angles_are_brought_into_one_turn():
    boxes = RotatedBoxes([[0, 0, 1, 1, angle] for angle in (-180, 180, 270, -270, 540, 10)])
    boxes.normalize_angles()
    assert boxes.tensor[:, 4].tolist() == [-180, -180, -90, 90, -180, 10]


def test_clip_cuts_upright_boxes_only():
    boxes = RotatedBoxes([[0, 5, 10, 4, 0.5], [0, 5, 10, 4, 45], [5, 5, 2, 2, 360]])
    boxes.clip((10, 20))
    torch.testing.assert_close(boxes.tensor, torch.tensor([[2.5, 5, 5, 4, 0.5], [0, 5, 10, 4, 45], [5, 5, 2, 2, 0]]))


def test_clip_never_lets_a_box_grow():
    boxes = RotatedBoxes(torch.rand(500, 5) * torch.tensor([100.0, 100, 60, 60, 0]))
    before = boxes.tensor.clone()
    boxes.clip((100, 100))
    assert (boxes.tensor[:, 2:4] <= before[:, 2:4]).all()


def test_clip_leaves_no_size_to_a_box_outside():
    boxes = RotatedBoxes([[-50.0, 5, 10, 4, 0]])
    boxes.clip((10, 20))
    assert not boxes.nonempty().item()


def test_nonempty_and_inside():
    boxes = RotatedBoxes([[5, 5, 2, 2, 30], [5, 5, 0, 2, 30], [-1, 5, 2, 2, 0], [5, 10, 2, 2, 0]])
    assert boxes.nonempty().tolist() == [True, False, True, True]
    assert boxes.inside_box((10, 20)).tolist() == [True, True, False, False]
    assert boxes.inside_box((10, 20), boundary_threshold=1).tolist() == [True] * 4


@pytest.mark.parametrize("angle", [0.0, 30.0, -75.0, 90.0, 160.0])
def test_equal_scales_move_the_corners_with_the_image(angle):
    boxes = RotatedBoxes([[10.0, 7.0, 6.0, 3.0, angle]])
    expected = corners(boxes.tensor[0].tolist()) * 1.7
    boxes.scale(1.7, 1.7)
    torch.testing.assert_close(corners(boxes.tensor[0].tolist()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("angle", [0.0, 90.0, -90.0, 180.0])
def test_unequal_scales_are_exact_for_quarter_turns(angle):
    boxes = RotatedBoxes([[10.0, 7.0, 6.0, 3.0, angle]])
    expected = corners(boxes.tensor[0].tolist()) * torch.tensor([2.0, 0.5])
    boxes.scale(2.0, 0.5)
    torch.testing.assert_close(corners(boxes.tensor[0].tolist()), expected, atol=1e-4, rtol=1e-4)


def test_unequal_scales_keep_the_lengths_of_both_axes():
    boxes = RotatedBoxes([[0.0, 0.0, 6.0, 3.0, 30.0]])
    moved = corners(boxes.tensor[0].tolist()) * torch.tensor([2.0, 0.5])
    boxes.scale(2.0, 0.5)
    torch.testing.assert_close(boxes.tensor[0, 2], (moved[1] - moved[0]).norm())
    torch.testing.assert_close(boxes.tensor[0, 3], (moved[2] - moved[1]).norm())


def test_unturned_boxes_overlap_as_upright_ones():
    low = torch.rand(6, 2) * 10
    upright = torch.cat([low, low + 1 + torch.rand(6, 2) * 8], dim=1)
    center, size = (upright[:, :2] + upright[:, 2:]) / 2, upright[:, 2:] - upright[:, :2]
    rotated = RotatedBoxes(torch.cat([center, size, torch.zeros(6, 1)], dim=1))
    torch.testing.assert_close(
        pairwise_iou_rotated(rotated, rotated), pairwise_iou(Boxes(upright), Boxes(upright)), atol=1e-4, rtol=1e-4
    )


def test_overlap_with_no_boxes_is_an_empty_table():
    assert pairwise_iou_rotated(RotatedBoxes([]), RotatedBoxes(torch.rand(2, 5))).shape == (0, 2)
