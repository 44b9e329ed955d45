import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from detlab.export.onnx import OPSET, onnx_translations
from detlab.layers import _ops

IMAGES, BOXES, REGIONS = Dim("images"), Dim("boxes"), Dim("regions")


class Operator(nn.Module):
    """An operator as a model, with its settings fixed."""

    def __init__(self, operator, *settings):
        super().__init__()
        self.operator, self.settings = operator, settings

    def forward(self, *tensors):
        return self.operator(*tensors, *self.settings)


def in_onnx_runtime(model, tensors, shapes):
    """The function that ONNX Runtime makes of a model."""
    program = torch.export.export(model, tensors, dynamic_shapes={"tensors": shapes}, strict=False)
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, opset_version=OPSET, custom_translation_table=onnx_translations()
    )
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    names = [x.name for x in session.get_inputs()]
    return lambda *inputs: session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})


def suppression(iou_threshold, max_output):
    tensors = (torch.rand(2, 6, 4), torch.rand(2, 6), torch.zeros(2, 6, dtype=torch.int64))
    model = Operator(torch.ops.detlab.nms_fixed, iou_threshold, max_output)
    return in_onnx_runtime(model, tensors, ({0: IMAGES, 1: BOXES},) * 3)


@pytest.fixture(scope="module")
def keep_twenty():
    return suppression(0.7, 20)


def candidates(num_images, num_boxes, num_classes=4, seed=0):
    """Boxes that overlap much; scores on a coarse grid, so that many are equal, and a fifth of them none."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_images, num_boxes, 2, generator=random) * 500
    size = torch.rand(num_images, num_boxes, 2, generator=random) * 60 + 200
    scores = (torch.rand(num_images, num_boxes, generator=random) * 10).round() / 10
    scores[torch.rand(num_images, num_boxes, generator=random) < 0.2] = -torch.inf
    classes = torch.randint(0, num_classes, (num_images, num_boxes), generator=random)
    return torch.cat((corner, corner + size), dim=-1), scores, classes


def assert_keeps_the_same(suppress, boxes, scores, classes, iou_threshold=0.7, max_output=20):
    indices, counts = _ops.nms_fixed(boxes, scores, classes, iou_threshold, max_output)
    own_indices, own_counts = suppress(boxes, scores, classes)
    np.testing.assert_array_equal(own_counts, counts.numpy())
    np.testing.assert_array_equal(own_indices, indices.numpy())
    return counts


@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("num_boxes", [1, 7, 400, 3000])
def test_suppression_keeps_the_same_boxes_in_the_same_order(num_images, num_boxes, keep_twenty):
    assert_keeps_the_same(keep_twenty, *candidates(num_images, num_boxes, seed=num_boxes))


def test_suppression_drops_some_and_keeps_others(keep_twenty):
    boxes, scores, classes = candidates(1, 12)
    boxes[0, 6:] = boxes[0, :6] + 1.0
    classes[0, 6:] = classes[0, :6]
    counts = assert_keeps_the_same(keep_twenty, boxes, scores.clamp(min=0), classes)
    assert 6 <= counts.item() < 12


def test_of_equal_scores_the_first_box_is_kept(keep_twenty):
    boxes, _, classes = candidates(2, 500, num_classes=2)
    assert_keeps_the_same(keep_twenty, boxes, torch.ones(2, 500), classes)


def test_more_survivors_than_places_are_cut_off(keep_twenty):
    boxes = torch.arange(100.0)[None, :, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    counts = assert_keeps_the_same(keep_twenty, boxes, torch.rand(1, 100), torch.zeros(1, 100, dtype=torch.int64))
    assert counts.item() == 20


def test_an_image_without_candidates_gives_none(keep_twenty):
    boxes, scores, classes = candidates(3, 50)
    scores[1] = -torch.inf
    counts = assert_keeps_the_same(keep_twenty, boxes, scores, classes)
    assert counts[1] == 0 and counts[0] > 0 and counts[2] > 0


def test_no_candidates_and_no_boxes_give_none(keep_twenty):
    boxes, scores, classes = candidates(2, 30)
    assert_keeps_the_same(keep_twenty, boxes, torch.full_like(scores, -torch.inf), classes)
    assert_keeps_the_same(keep_twenty, boxes[:, :0], scores[:, :0], classes[:, :0])


def test_a_score_that_is_not_a_number_is_none(keep_twenty):
    boxes, scores, classes = candidates(2, 30)
    scores[:, ::3] = torch.nan
    assert_keeps_the_same(keep_twenty, boxes, scores, classes)


def test_boxes_without_area_stay(keep_twenty):
    boxes, scores, classes = candidates(1, 30)
    boxes[:, ::2, 2:] = boxes[:, ::2, :2]
    boxes[:, 4] = boxes[:, 2]
    assert_keeps_the_same(keep_twenty, boxes, scores, classes)


def test_a_thousand_classes_and_large_coordinates_change_no_overlap(keep_twenty):
    boxes, scores, classes = candidates(1, 400, num_classes=1000)
    assert_keeps_the_same(keep_twenty, boxes + 8191.3, scores, classes)


@pytest.mark.parametrize(("iou_threshold", "max_output"), [(0.3, 5), (0.0, 3), (1.5, 700)])
def test_suppression_at_other_thresholds_and_sizes(iou_threshold, max_output):
    suppress = suppression(iou_threshold, max_output)
    assert_keeps_the_same(suppress, *candidates(2, 600), iou_threshold, max_output)


def test_an_overlap_that_rounding_lifts_above_the_threshold_is_above_it():
    # The IoU of the two is 0.3 in single precision, above 0.3 itself by its rounding.
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0], [20.0, 0.0, 30.0, 1.0]]])
    scores, classes = torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3, dtype=torch.int64)
    counts = assert_keeps_the_same(suppression(0.3, 20), boxes, scores, classes, 0.3)
    assert counts.item() == 2


def test_a_negative_threshold_is_refused():
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"iou_threshold is -0\.5; use 0"):
        suppression(-0.5, 20)


# --------------------------------------------------------------------------------------------------------- ROI align

SCALES = [0.25, 0.125, 0.0625]


def maps(num_images, num_levels=3, height=64, width=96, channels=3):
    random = torch.Generator().manual_seed(height)
    shapes = [(num_images, channels, height >> level, width >> level) for level in range(num_levels)]
    return [torch.randn(shape, generator=random) for shape in shapes]


def regions(count, num_images, height=256, width=384, num_levels=3):
    """Boxes that also leave the image, and the level of each."""
    random = torch.Generator().manual_seed(count)
    image = torch.randint(0, num_images, (count, 1), generator=random).float()
    corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) - 30
    size = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    levels = torch.randint(0, num_levels, (count,), generator=random)
    return torch.cat((image, corner, corner + size), dim=1), levels


def pooling(sampling_ratio, aligned, num_levels=3):
    class Pooling(nn.Module):
        def forward(self, *tensors):
            *features, rois, levels = tensors
            scales = SCALES[:num_levels]
            return torch.ops.detlab.roi_align_levels(features, rois, levels, [7, 5], scales, sampling_ratio, aligned)

    sides = [(Dim(f"h{level}"), Dim(f"w{level}")) for level in range(num_levels)]
    shapes = tuple({0: IMAGES, 2: h, 3: w} for h, w in sides) + ({0: REGIONS}, {0: REGIONS})
    tensors = (*maps(2, num_levels), *regions(9, 2, num_levels=num_levels))
    return in_onnx_runtime(Pooling(), tensors, shapes)


def assert_pools_the_same(pool, features, rois, levels, sampling_ratio, aligned):
    wanted = _ops.roi_align_levels(features, rois, levels, (7, 5), SCALES[: len(features)], sampling_ratio, aligned)
    (found,) = pool(*features, rois, levels)
    assert found.shape == wanted.shape
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(0, True), (2, True), (0, False), (3, False)])
def test_each_region_is_pooled_from_its_level(sampling_ratio, aligned):
    pool = pooling(sampling_ratio, aligned)
    for num_images, count, height in ((2, 40, 64), (1, 5, 32), (3, 0, 64)):
        rois, levels = regions(count, num_images)
        assert_pools_the_same(pool, maps(num_images, height=height), rois, levels, sampling_ratio, aligned)


def test_levels_that_no_region_reads_and_regions_without_area_are_pooled_the_same():
    pool = pooling(0, True)
    rois, levels = regions(12, 2)
    rois[::3, 3:] = rois[::3, 1:3]
    for level in range(3):
        assert_pools_the_same(pool, maps(2), rois, torch.full_like(levels, level), 0, True)


def test_a_single_level_is_one_roi_align():
    pool = pooling(0, True, num_levels=1)
    assert_pools_the_same(pool, maps(2, 1), *regions(20, 2, num_levels=1), 0, True)


def test_a_region_far_larger_than_the_map_takes_as_many_samples_as_here():
    pool = pooling(0, True)
    rois = torch.tensor([[0.0, -100.0, -50.0, 700.0, 500.0], [1.0, 3.1, 4.2, 3.9, 4.4]])
    assert_pools_the_same(pool, maps(2), rois, torch.tensor([0, 2]), 0, True)
