import math

import pytest
import torch

from detlab.layers.roi_align import ROIAlign
from detlab.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detlab.structures.boxes import Boxes
from detlab.structures.rotated_boxes import RotatedBoxes

SCALES = (1 / 4, 1 / 8, 1 / 16)


def make_boxes(count, side=200.0):
    low = torch.rand(count, 2) * side / 2
    return Boxes(torch.cat((low, low + 2 + torch.rand(count, 2) * side / 2), dim=1))


def make_features():
    return [torch.randn(2, 3, round(256 * s), round(320 * s), requires_grad=True) for s in SCALES]


def test_levels_follow_equation_1_of_the_paper():
    sides = [10, 111, 112, 223, 224, 447, 448, 3000]
    boxes = Boxes(torch.tensor([[0.0, 0.0, s, s] for s in sides]))
    levels = assign_boxes_to_levels([boxes], 2, 5, 224, 4)
    expected = [min(max(math.floor(4 + math.log2(s / 224) + 1e-9), 2), 5) - 2 for s in sides]
    assert levels.tolist() == expected


def test_pooler_format_puts_the_image_in_front():
    boxes = [make_boxes(2), make_boxes(0), make_boxes(1)]
    rois = convert_boxes_to_pooler_format(boxes)
    assert rois[:, 0].tolist() == [0, 0, 2]
    assert torch.equal(rois[:, 1:], torch.cat([b.tensor for b in boxes]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2", "ROIAlignRotated"])
def test_box_that_is_not_finite_gives_nan(pooler_type, value):
    rotated = pooler_type == "ROIAlignRotated"
    boxes = [make_boxes(4).tensor, make_boxes(3).tensor]
    boxes = [torch.cat((b, torch.full((len(b), 1), 30.0)), dim=1) for b in boxes] if rotated else boxes
    boxes[1][0, 2] = value
    make = RotatedBoxes if rotated else Boxes
    pooled = ROIPooler(3, SCALES, 0, pooler_type)(make_features(), [make(b) for b in boxes])
    assert pooled[4].isnan().all()
    assert pooled[[0, 1, 2, 3, 5, 6]].isfinite().all()


def test_pooling_equals_one_box_at_a_time_from_its_level_with_gradients():
    features, boxes = make_features(), [make_boxes(6, 250), make_boxes(3, 60)]
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2", canonical_box_size=60, canonical_level=3)
    pooled = pooler(features, boxes)
    levels = assign_boxes_to_levels(boxes, 2, 4, 60, 3).tolist()
    assert len(set(levels)) > 1
    rois = convert_boxes_to_pooler_format(boxes)
    one_by_one = torch.cat(
        [ROIAlign(7, SCALES[level], 0, aligned=True)(features[level], roi[None]) for level, roi in zip(levels, rois)]
    )
    assert torch.allclose(pooled, one_by_one, atol=1e-5)
    weights = torch.randn_like(pooled)
    fast = torch.autograd.grad((pooled * weights).sum(), features, allow_unused=True)
    slow = torch.autograd.grad((one_by_one * weights).sum(), features, allow_unused=True)
    for a, b in zip(fast, slow):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, atol=1e-4)


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2", "ROIPool"])
def test_no_boxes_give_no_rows_that_still_reach_the_features(pooler_type):
    features = make_features()
    pooled = ROIPooler(7, SCALES, 2, pooler_type)(features, [make_boxes(0), make_boxes(0)])
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


def test_rotated_boxes_without_rotation_pool_as_upright_ones():
    features, boxes = make_features(), [make_boxes(4), make_boxes(2)]
    rotated = [
        RotatedBoxes(torch.cat((b.get_centers(), b.tensor[:, 2:] - b.tensor[:, :2], torch.zeros(len(b), 1)), dim=1))
        for b in boxes
    ]
    upright = ROIPooler(5, SCALES, 2, "ROIAlignV2")(features, boxes)
    assert torch.allclose(ROIPooler(5, SCALES, 2, "ROIAlignRotated")(features, rotated), upright, atol=1e-4)


def test_wrong_use_is_refused_in_words():
    with pytest.raises(ValueError, match="power of 1/2"):
        ROIPooler(7, [0.3], 0, "ROIAlign")
    with pytest.raises(ValueError, match="halve"):
        ROIPooler(7, [0.25, 0.0625], 0, "ROIAlign")
    with pytest.raises(ValueError, match="'Nope' is unknown"):
        ROIPooler(7, [0.25], 0, "Nope")
    pooler = ROIPooler(7, SCALES, 0, "ROIAlign")
    with pytest.raises(ValueError, match="3 scales but was given 1"):
        pooler(make_features()[:1], [make_boxes(1), make_boxes(1)])
    with pytest.raises(ValueError, match="boxes of 1 images came with features of 2"):
        pooler(make_features(), [make_boxes(1)])
