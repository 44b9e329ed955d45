"""Box formats, the container, and the overlap family."""

import json

import numpy as np
import pytest
import torch

from detlab.structures.boxes import (
    Boxes,
    BoxMode,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)


def random_boxes(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 10
    return torch.cat([low, low + torch.rand(*shape, 2, generator=generator, dtype=dtype) * 8], dim=-1)


MODES = [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS]


class TestBoxMode:
    def test_numbers_are_those_written_in_files(self):
        names = ["XYXY_ABS", "XYWH_ABS", "XYXY_REL", "XYWH_REL", "XYWHA_ABS"]
        assert {mode.name: mode.value for mode in BoxMode} == {name: i for i, name in enumerate(names)}
        assert json.dumps(BoxMode.XYWH_ABS) == "1"

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_one_box_keeps_its_type_and_whole_numbers(self, kind):
        corners = BoxMode.convert(kind([5, 5, 10, 10]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert corners == kind([5, 5, 15, 15])
        assert type(corners) is kind
        assert all(isinstance(v, int) for v in corners)
        assert BoxMode.convert(corners, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) == kind([5, 5, 10, 10])

    @pytest.mark.parametrize("make", [torch.tensor, np.array, list], ids=["tensor", "array", "list"])
    @pytest.mark.parametrize("source", MODES)
    @pytest.mark.parametrize("target", MODES)
    def test_all_kinds_of_input_agree(self, make, source, target):
        values = [50.0, 40.0, 30.0, 20.0] if source == BoxMode.XYWH_ABS else [50.0, 40.0, 80.0, 60.0]
        values += [30.0] if source == BoxMode.XYWHA_ABS else []
        expected = BoxMode.convert(tuple(values), source, target)
        got = BoxMode.convert(make(values), source, target)
        np.testing.assert_allclose(torch.as_tensor(got).numpy(), expected, rtol=1e-6)

    def test_many_boxes_convert_at_once_and_keep_their_dtype(self):
        for dtype in (torch.float64, torch.float32, torch.int64):
            boxes = (random_boxes(7) * 10).to(dtype)
            sizes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            assert sizes.dtype == dtype
            torch.testing.assert_close(BoxMode.convert(sizes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), boxes)
        assert BoxMode.convert(np.zeros((3, 5), np.float32), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS).dtype == np.float32
        assert BoxMode.convert(torch.zeros(0, 4), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).shape == (0, 4)

    def test_the_input_is_not_changed(self):
        box = np.array([1.0, 2.0, 3.0, 4.0])
        BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert box.tolist() == [1, 2, 3, 4]

    def test_a_rotated_box_becomes_the_box_around_it(self):
        square = [50.0, 50.0, 30.0, 20.0]
        around = BoxMode.convert([*square, 90.0], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        assert around == pytest.approx([40, 35, 60, 65])
        tilted = BoxMode.convert([0.0, 0.0, 2.0, 2.0, -45.0], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        assert tilted == pytest.approx([-(2**0.5), -(2**0.5), 2**0.5, 2**0.5])

    def test_an_upright_box_becomes_a_rotated_one_without_angle(self):
        assert BoxMode.convert([5, 6, 10, 20], BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS) == [10, 16, 10, 20, 0]

    def test_numbers_stand_for_modes(self):
        assert BoxMode.convert([1, 1, 2, 2], 1, 0) == [1, 1, 3, 3]
        with pytest.raises(ValueError, match="9 is not a valid BoxMode"):
            BoxMode.convert([1, 1, 2, 2], 9, 0)

    def test_relative_boxes_are_refused_with_the_cure(self):
        with pytest.raises(ValueError, match=r"XYXY_REL to XYXY_ABS.*multiplied by the width and height"):
            BoxMode.convert([0.1, 0.1, 0.2, 0.2], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)

    @pytest.mark.parametrize("box", [[1, 2, 3], torch.zeros(2, 5), np.zeros(3)])
    def test_a_wrong_number_of_values_is_refused(self, box):
        with pytest.raises(ValueError, match="XYXY_ABS has 4 numbers; got"):
            BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)

    def test_something_else_is_refused(self):
        with pytest.raises(ValueError, match="got str"):
            BoxMode.convert("1234", BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


class TestBoxes:
    def test_accepts_lists_arrays_and_tensors(self):
        for made in (Boxes([[1, 2, 3, 4]]), Boxes(np.array([[1, 2, 3, 4]])), Boxes(torch.tensor([[1, 2, 3, 4]]))):
            assert made.tensor.dtype == torch.float32
            assert made.tensor.tolist() == [[1, 2, 3, 4]]
        assert Boxes(torch.zeros(1, 4, dtype=torch.float64)).tensor.dtype == torch.float64

    def test_nothing_of_any_shape_is_no_boxes(self):
        for nothing in ([], torch.zeros(0), torch.zeros(0, 4), np.zeros((0, 4))):
            assert Boxes(nothing).tensor.shape == (0, 4)

    def test_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"Boxes need a tensor \(N, 4\): x1, y1, x2, y2; got \(3, 5\)"):
            Boxes(torch.zeros(3, 5))
        with pytest.raises(ValueError, match=r"got \(4,\)"):
            Boxes([1.0, 2.0, 3.0, 4.0])

    def test_clip_cuts_at_the_border_without_touching_the_source(self):
        source = torch.tensor([[-5.0, -1.0, 30.0, 8.0], [3.0, 3.0, 4.0, 60.0]])
        boxes = Boxes(source)
        boxes.clip((10, 20))
        assert boxes.tensor.tolist() == [[0, 0, 20, 8], [3, 3, 4, 10]]
        assert source[0, 0] == -5

    def test_nonempty_needs_both_sides_above_the_threshold(self):
        boxes = Boxes([[0, 0, 2, 2], [0, 0, 0, 2], [3, 0, 1, 2], [0, 0, 2, 0.5], [0, 0, float("nan"), 1]])
        assert boxes.nonempty().tolist() == [True, False, False, True, False]
        assert boxes.nonempty(threshold=1.0).tolist() == [True, False, False, False, False]

    def test_inside_box_allows_a_margin(self):
        boxes = Boxes([[0, 0, 5, 5], [-2, 0, 5, 5], [0, 0, 21, 5]])
        assert boxes.inside_box((10, 20)).tolist() == [True, False, False]
        assert boxes.inside_box((10, 20), boundary_threshold=2).tolist() == [True, True, True]

    def test_area_centers_and_scale(self):
        boxes = Boxes([[1, 2, 5, 4]])
        assert boxes.area().tolist() == [8]
        assert boxes.get_centers().tolist() == [[3, 3]]
        boxes.scale(2, 10)
        assert boxes.tensor.tolist() == [[2, 20, 10, 40]]

    def test_index_by_int_slice_mask_and_positions(self):
        boxes = Boxes(random_boxes(4))
        assert torch.equal(boxes[1].tensor, boxes.tensor[1:2])
        assert torch.equal(boxes[-1].tensor, boxes.tensor[3:])
        assert len(boxes[1:]) == 3
        assert len(boxes[torch.tensor([True, False, False, True])]) == 2
        assert torch.equal(boxes[torch.tensor([2, 0])].tensor, boxes.tensor[[2, 0]])
        with pytest.raises(IndexError, match="along one dimension"):
            boxes[:, 0]

    def test_iterates_over_single_boxes(self):
        boxes = Boxes(random_boxes(3))
        assert [tuple(b.shape) for b in boxes] == [(4,)] * 3
        assert len(boxes) == 3

    def test_cat_joins_in_order_and_of_nothing_is_empty(self):
        a, b = Boxes(random_boxes(2)), Boxes(random_boxes(3, seed=1))
        assert torch.equal(Boxes.cat([a, b]).tensor, torch.cat([a.tensor, b.tensor]))
        assert len(Boxes.cat([])) == 0
        copy = Boxes.cat([a])
        copy.tensor.zero_()
        assert a.tensor.abs().sum() > 0
        with pytest.raises(ValueError, match="list of Boxes; got Boxes"):
            Boxes.cat(a)

    def test_clone_shares_no_memory_and_to_keeps_the_values(self):
        boxes = Boxes(random_boxes(2))
        copy = boxes.clone()
        copy.tensor.zero_()
        assert boxes.tensor.abs().sum() > 0
        assert torch.equal(boxes.to("cpu").tensor, boxes.tensor)
        assert boxes.device == torch.device("cpu")
        assert "Boxes(tensor" in repr(boxes)

    def test_export_follows_a_chain_of_operations(self):
        class Chain(torch.nn.Module):
            def forward(self, x):
                boxes = Boxes(x)
                boxes.clip((10, 12))
                return boxes.area() * boxes.nonempty() + boxes.get_centers().sum(1)

        rows = torch.export.Dim("rows", min=2, max=1000)
        program = torch.export.export(Chain(), (random_boxes(5),), dynamic_shapes=({0: rows},), strict=False)
        other = random_boxes(9, seed=3)
        torch.testing.assert_close(program.module()(other), Chain()(other))


def overlaps(a, b):
    """Intersection, union and second area of a pair, in Python numbers."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height, area_a + area_b - width * height, area_b


class TestOverlap:
    def test_the_pairwise_family_equals_plain_loops(self):
        a, b = Boxes(random_boxes(6)), Boxes(random_boxes(9, seed=1))
        table = torch.tensor([[overlaps(p, q) for q in b.tensor.tolist()] for p in a.tensor.tolist()])
        shared, union, second = table.unbind(-1)
        torch.testing.assert_close(pairwise_intersection(a, b), shared)
        torch.testing.assert_close(pairwise_iou(a, b), shared / union)
        torch.testing.assert_close(pairwise_ioa(a, b), shared / second)
        torch.testing.assert_close(matched_pairwise_iou(a, b[:6]), (shared / union).diagonal())

    def test_no_boxes_give_an_empty_table(self):
        assert pairwise_iou(Boxes([]), Boxes(random_boxes(3))).shape == (0, 3)
        assert pairwise_ioa(Boxes(random_boxes(3)), Boxes([])).shape == (3, 0)

    def test_matched_sets_must_be_of_one_size(self):
        with pytest.raises(ValueError, match="got 2 and 3 boxes"):
            matched_pairwise_iou(Boxes(random_boxes(2)), Boxes(random_boxes(3)))

    def test_point_distances_are_measured_from_each_side(self):
        distances = pairwise_point_box_distance(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Boxes([[1, 1, 10, 6]]))
        assert distances.tolist() == [[[2, 3, 7, 2]], [[-1, -1, 10, 6]]]
