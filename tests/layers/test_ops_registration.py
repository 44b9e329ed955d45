"""The operators as PyTorch sees them: schemas, shape rules, gradients, what they refuse, compiling and exporting.

Shapes: N images, C channels, R regions, B boxes.
"""

import math

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from detlab.layers import _ops


def features(requires_grad=False, channels_last=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, size, size + 2, generator=generator).to(dtype) for size in (10, 5)]
    if channels_last:
        maps = [x.to(memory_format=torch.channels_last) for x in maps]
    return [x.requires_grad_(requires_grad) for x in maps]


def rois(count=3):
    return torch.tensor([[0.0, 1, 2, 9, 8], [1, 0, 0, 11, 9], [0, 3, 3, 5, 20]])[:count]


def rotated_rois(count=2):
    return torch.tensor([[0.0, 5, 5, 6, 4, 30], [1, 4, 6, 3, 8, -75]])[:count]


def boxes(*shape, sides=4):
    low = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(1)) * 10
    return torch.cat([low, low + 4, torch.zeros(*shape, sides - 4)], dim=-1)


def scores(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def classes(*shape):
    return torch.randint(3, shape, generator=torch.Generator().manual_seed(3))


def polygons():
    """A triangle and a square of one object, nothing of the next, a triangle of the last: corners and offsets."""
    corners = [[1.0, 1], [9, 2], [3, 8], [4, 4], [8, 4], [8, 8], [4, 8], [0, 0], [5, 0], [0, 5]]
    return torch.tensor(corners, dtype=torch.float64), torch.tensor([0, 3, 7, 10]), torch.tensor([0, 2, 2, 3])


def valid(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4)) > 0.3


def bitmaps(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5)) > 0.5


POOLING = ([3, 2], [0.5, 0.25], 2, True)
ONE_LEVEL = ([3, 2], [0.5], 0, False)
ROTATED = ([3, 2], 0.5, 2)
LEVELS = torch.tensor([0, 1, 0])
SAMPLES = {
    "roi_align_levels": [
        (features(requires_grad=True), rois(), LEVELS, *POOLING),
        (features(requires_grad=True, channels_last=True), rois(), LEVELS, *POOLING),
        (features(requires_grad=True)[:1], rois(), None, *ONE_LEVEL),
        (features(dtype=torch.float16), rois().half(), LEVELS, *POOLING),
        (features(requires_grad=True), rois(0), LEVELS[:0], *POOLING),
    ],
    "roi_align_levels_backward": [
        (torch.randn(3, 5, 3, 2), features(), rois(), LEVELS, *POOLING, False),
        (torch.randn(3, 5, 3, 2), features(channels_last=True), rois(), LEVELS, *POOLING, True),
        (torch.randn(0, 5, 3, 2), features(), rois(0), LEVELS[:0], *POOLING, False),
    ],
    "roi_align_rotated": [
        (features(requires_grad=True)[0], rotated_rois(), *ROTATED),
        (features(channels_last=True, dtype=torch.float64)[0].requires_grad_(), rotated_rois(), *ROTATED),
        (features(requires_grad=True)[0], rotated_rois(0), *ROTATED),
    ],
    "roi_align_rotated_backward": [
        (torch.randn(2, 5, 3, 2), features()[0], rotated_rois(), *ROTATED, False),
        (torch.randn(2, 5, 3, 2), features(channels_last=True)[0], rotated_rois(), *ROTATED, True),
        (torch.randn(0, 5, 3, 2), features()[0], rotated_rois(0), *ROTATED, False),
    ],
    "nms": [
        (boxes(9), scores(9), None, 0.5),
        (boxes(9).double(), scores(9), classes(9), 0.5),
        (boxes(0), scores(0), classes(0), 0.5),
    ],
    "nms_rotated": [
        (boxes(9, sides=5), scores(9), None, 0.5),
        (boxes(9, sides=5), scores(9), classes(9), 0.5),
        (boxes(0, sides=5), scores(0), None, 0.5),
    ],
    "nms_fixed": [
        (boxes(2, 9), scores(2, 9), classes(2, 9), 0.5, 4),
        (boxes(2, 9).half(), scores(2, 9), classes(2, 9), 0.5, 20),
        (boxes(2, 0), scores(2, 0), classes(2, 0), 0.5, 4),
        (boxes(2, 9, sides=5), scores(2, 9), classes(2, 9), 0.5, 4),
    ],
    "box_iou_rotated": [
        (boxes(4, sides=5), boxes(7, sides=5)),
        (boxes(4, sides=5).half(), boxes(7, sides=5).half()),
        (boxes(4, sides=5).double(), boxes(0, sides=5).double()),
    ],
    "paste_masks": [
        (torch.rand(3, 7, 7), boxes(3), 12, 15, 0.5),
        (torch.rand(3, 7, 7).half(), boxes(3).half(), 12, 15, -1.0),
        (torch.rand(0, 7, 7), boxes(0), 12, 15, 0.5),
    ],
    "match_boxes": [
        (boxes(2, 4), valid(2, 4), boxes(2, 9)),
        (boxes(2, 4, sides=5).double(), valid(2, 4), boxes(1, 9, sides=5).double()),
        (boxes(2, 0).half(), valid(2, 0), boxes(1, 0).half()),
    ],
    "mask_targets_from_polygons": [
        (*polygons(), torch.tensor([0, 2, -1]), boxes(3), 6),
        (*polygons(), torch.tensor([1, 9, 2]), boxes(3).double(), 70),
        (*polygons(), torch.tensor([], dtype=torch.int64), boxes(0), 6),
    ],
    "mask_targets_from_bitmaps": [
        (bitmaps(4, 12, 15), torch.tensor([0, 3, -1]), boxes(3), 6),
        (bitmaps(4, 12, 15).to(torch.uint8), torch.tensor([0, 9, 2]), boxes(3).double(), 6),
        (bitmaps(0, 0, 0), torch.tensor([-1, 0, 2]), boxes(3), 6),
    ],
}


def test_every_operator_has_samples():
    assert set(SAMPLES) == set(_ops.SCHEMAS)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_schema_shape_rule_and_gradient_agree_with_the_kernel(name, device):
    operator = getattr(torch.ops.detlab, name).default
    for sample in SAMPLES[name]:
        torch.library.opcheck(operator, moved(sample, device))


def moved(value, device):
    return tree_map_only(torch.Tensor, lambda x: x.detach().to(device).requires_grad_(x.requires_grad), value)


OF_KNOWN_SIZE = [name for name in _ops.SCHEMAS if name not in ("nms", "nms_rotated")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OF_KNOWN_SIZE)
def test_shape_rule_knows_types_and_strides(name, dtype):
    """On the device ``meta`` there is nothing but the rule."""
    operator = getattr(torch.ops.detlab, name)
    sample = tree_map_only(
        torch.Tensor, lambda x: x.detach().to(dtype) if x.is_floating_point() else x, SAMPLES[name][0]
    )
    for actual, rule in zip(as_list(operator(*sample)), as_list(operator(*moved(sample, "meta")))):
        assert (actual.shape, actual.dtype, actual.stride()) == (rule.shape, rule.dtype, rule.stride())


def as_list(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def replaced(sample, place, value):
    return (*sample[:place], value, *sample[place + 1 :])


def bad_calls():
    """Operator, arguments, and what is wrong with them."""
    pooling, backward = SAMPLES["roi_align_levels"][0], SAMPLES["roi_align_levels_backward"][0]
    one_level = SAMPLES["roi_align_levels"][2]
    rotated, rotated_backward = SAMPLES["roi_align_rotated"][0], SAMPLES["roi_align_rotated_backward"][0]
    suppression, rotated_suppression = SAMPLES["nms"][1], SAMPLES["nms_rotated"][1]
    fixed, iou, paste = SAMPLES["nms_fixed"][0], SAMPLES["box_iou_rotated"][0], SAMPLES["paste_masks"][0]
    match, draw, cut = (
        SAMPLES[name][0] for name in ("match_boxes", "mask_targets_from_polygons", "mask_targets_from_bitmaps")
    )
    corners, starts, firsts = polygons()
    for name, sample, place, values in [
        (
            "roi_align_levels",
            pooling,
            0,
            [[], features()[:1], [x[0] for x in features()], [x.int() for x in features()]],
        ),
        ("roi_align_levels", pooling, 0, [[features()[0], features()[1][:, :4]], [features()[0], features()[1][:1]]]),
        ("roi_align_levels", pooling, 0, [[features()[0], features()[1].double()], [torch.zeros(()), torch.zeros(())]]),
        ("roi_align_levels", pooling, 0, [[torch.zeros(2, 5, 0, 4), features()[1]], [torch.zeros(0, 5, 4, 4)] * 2]),
        ("roi_align_levels", pooling, 1, [rois()[:, :4], rois()[0], rois().long(), rotated_rois(), rois()[None]]),
        ("roi_align_levels", pooling, 2, [None, LEVELS[:2], LEVELS.float(), LEVELS.int(), LEVELS[None]]),
        ("roi_align_levels", pooling, 3, [[3], [3, 2, 1], [0, 2], [3, -2], []]),
        ("roi_align_levels", pooling, 4, [[0.5], [0.5, 0.25, 0.1], []]),
        ("roi_align_levels", one_level, 2, [LEVELS[:2]]),
        ("roi_align_levels_backward", backward, 0, [torch.zeros(2, 5, 3, 2), torch.zeros(3, 4, 3, 2), torch.zeros(3)]),
        ("roi_align_levels_backward", backward, 0, [torch.zeros(3, 5, 2, 3), torch.zeros(3, 5, 3, 2).long()]),
        ("roi_align_levels_backward", backward, 1, [[], features()[:1], [x.int() for x in features()]]),
        ("roi_align_levels_backward", backward, 2, [rois()[:, :4], rois().long(), rois()[:2]]),
        ("roi_align_levels_backward", backward, 3, [None, LEVELS[:2], LEVELS.int()]),
        ("roi_align_rotated", rotated, 0, [features()[0][0], features()[0].int(), torch.zeros(2, 5, 0, 4)]),
        ("roi_align_rotated", rotated, 1, [rotated_rois()[:, :5], rotated_rois()[0], rotated_rois().long()]),
        ("roi_align_rotated", rotated, 2, [[3], [0, 2], [3, -2]]),
        ("roi_align_rotated_backward", rotated_backward, 0, [torch.zeros(1, 5, 3, 2), torch.zeros(2, 5, 3, 2).int()]),
        ("roi_align_rotated_backward", rotated_backward, 1, [features()[0][0], features()[0].int()]),
        ("roi_align_rotated_backward", rotated_backward, 2, [rotated_rois()[:, :5], rotated_rois()[:1]]),
        ("nms", suppression, 0, [boxes(8), boxes(9, sides=5), boxes(9)[0], boxes(9).long(), boxes(9)[None]]),
        ("nms", suppression, 1, [scores(8), scores(9, 1), scores(9).long(), torch.tensor(1.0)]),
        ("nms", suppression, 2, [classes(8), classes(9).float(), classes(9).int(), classes(9, 1)]),
        ("nms_rotated", rotated_suppression, 0, [boxes(9), boxes(8, sides=5), boxes(9, sides=5).long()]),
        ("nms_rotated", rotated_suppression, 1, [scores(8), scores(9).long()]),
        ("nms_rotated", rotated_suppression, 2, [classes(8), classes(9).int()]),
        ("nms_fixed", fixed, 0, [boxes(9), boxes(2, 8), boxes(2, 9, sides=6), boxes(2, 9).long(), boxes(3, 9)]),
        ("nms_fixed", fixed, 1, [scores(9), scores(2, 8), scores(2, 9).long()]),
        ("nms_fixed", fixed, 2, [classes(9), classes(2, 8), classes(2, 9).int()]),
        ("nms_fixed", fixed, 4, [-1]),
        ("box_iou_rotated", iou, 0, [boxes(4), boxes(4, sides=5)[0], boxes(4, sides=5).long()]),
        ("box_iou_rotated", iou, 1, [boxes(4), boxes(4, sides=5)[0], boxes(4, sides=5).long()]),
        (
            "paste_masks",
            paste,
            0,
            [torch.rand(2, 7, 7), torch.rand(7, 7), torch.ones(3, 7, 7).int(), torch.rand(3, 0, 0)],
        ),
        ("paste_masks", paste, 1, [boxes(2), boxes(3, sides=5), boxes(3)[0], boxes(3).long()]),
        ("paste_masks", paste, 2, [-1]),
        ("paste_masks", paste, 3, [-1]),
        ("match_boxes", match, 0, [boxes(4), boxes(2, 5), boxes(2, 4, sides=5), boxes(2, 4).long(), boxes(3, 4)]),
        ("match_boxes", match, 0, [boxes(2, 4).double(), boxes(2, 4)[..., :3]]),
        ("match_boxes", match, 1, [valid(4), valid(2, 5), valid(2, 4).float(), valid(1, 4)]),
        (
            "match_boxes",
            match,
            2,
            [boxes(9), boxes(2, 9, sides=5), boxes(3, 9), boxes(2, 9).long(), boxes(2, 9).half()],
        ),
        ("mask_targets_from_polygons", draw, 0, [corners[:, :1], corners[0], corners.long()]),
        ("mask_targets_from_polygons", draw, 1, [starts[:0], starts.int(), starts.float(), starts[None]]),
        ("mask_targets_from_polygons", draw, 2, [firsts[:0], firsts.int(), firsts.float(), firsts[None]]),
        ("mask_targets_from_polygons", draw, 3, [LEVELS[:2], LEVELS.int(), LEVELS[None]]),
        ("mask_targets_from_polygons", draw, 4, [boxes(2), boxes(3, sides=5), boxes(3).long()]),
        ("mask_targets_from_polygons", draw, 5, [0, -1, (1 << 14) + 1]),
        ("mask_targets_from_bitmaps", cut, 0, [bitmaps(4, 12), bitmaps(4, 12, 15).float(), bitmaps(4, 0, 15)]),
        ("mask_targets_from_bitmaps", cut, 1, [LEVELS[:2], LEVELS.int(), LEVELS[None]]),
        ("mask_targets_from_bitmaps", cut, 2, [boxes(2), boxes(3, sides=5), boxes(3).long()]),
        ("mask_targets_from_bitmaps", cut, 3, [0, -1, (1 << 14) + 1]),
    ]:
        for value in values:
            yield name, replaced(sample, place, value)


@pytest.mark.parametrize("ops", ["cpu", "emulated", "cuda"], indirect=True)
def test_direct_calls_with_arguments_that_do_not_fit_are_refused(ops):
    """The checks keep kernels from memory that is not theirs."""
    for name, arguments in bad_calls():
        with torch.no_grad(), pytest.raises(RuntimeError):
            getattr(ops, name)(*arguments)
            pytest.fail(f"{name} took {arguments}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_direct_calls_with_tensors_on_two_devices_are_refused(name):
    sample = moved(SAMPLES[name][0], "cuda")
    for place, entry in enumerate(sample):
        if isinstance(entry, torch.Tensor):
            with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
                getattr(torch.ops.detlab, name)(*replaced(sample, place, entry.cpu()))


FEATURE = features()[0]
BAD_PUBLIC_CALLS = [
    # function, arguments, error, message
    (
        _ops.roi_align,
        (FEATURE[0], rois(), (3, 3), 0.5, 2, True),
        ValueError,
        r"'features'.*\(N, C, H, W\).*\(5, 10, 12\)",
    ),
    (_ops.roi_align, (FEATURE, rois()[:, :4], (3, 3), 0.5, 2, True), ValueError, r"'rois'.*\(R, 5\), got \(3, 4\)"),
    (_ops.roi_align, (FEATURE, rois(), (3,), 0.5, 2, True), ValueError, r"output_size.*got \(3,\)"),
    (_ops.roi_align, (FEATURE, rois(), (3, 0), 0.5, 2, True), ValueError, r"output_size.*got \(3, 0\)"),
    (_ops.roi_align, (FEATURE.int(), rois(), (3, 3), 0.5, 2, True), TypeError, r"'features'.*int32.*\.float\(\)"),
    (_ops.roi_align, (FEATURE, rois().long(), (3, 3), 0.5, 2, True), TypeError, r"'rois'.*int64.*\.float\(\)"),
    (_ops.roi_align, (FEATURE, rois().to("meta"), (3, 3), 0.5, 2, True), ValueError, "'rois' is on meta.*cpu"),
    (_ops.roi_align, (FEATURE[:, :, :0], rois(), (3, 3), 0.5, 2, True), ValueError, r"no cells.*\(2, 5, 0, 12\)"),
    (_ops.roi_align_levels, ([], rois(), None, (3, 3), [], 2, True), ValueError, "0 feature levels"),
    (_ops.roi_align_levels, (features(), rois(), LEVELS, (3, 3), [0.5], 2, True), ValueError, "2 feature.*1 scales"),
    (_ops.roi_align_levels, (features(), rois(), None, (3, 3), [1, 1], 2, True), ValueError, "need 'levels'"),
    (
        _ops.roi_align_levels,
        (features(), rois(), LEVELS[:2], (3, 3), [1, 1], 2, True),
        ValueError,
        r"'levels'.*\(3\), got \(2,\)",
    ),
    (_ops.roi_align_levels, (features(), rois(), LEVELS.int(), (3, 3), [1, 1], 2, True), TypeError, "int32.*long"),
    (_ops.roi_align_levels, (features(), rois(), LEVELS.to("meta"), (3, 3), [1, 1], 2, True), ValueError, "meta"),
    (
        _ops.roi_align_levels,
        ([FEATURE, FEATURE[:, :4]], rois(), LEVELS, (3, 3), [1, 1], 2, True),
        ValueError,
        r"'features'.*\(2, 5, H, W\), got \(2, 4, 10, 12\)",
    ),
    (
        _ops.roi_align_levels,
        ([FEATURE, FEATURE[:1]], rois(), LEVELS, (3, 3), [1, 1], 2, True),
        ValueError,
        r"'features'.*\(2, 5, H, W\), got \(1, 5, 10, 12\)",
    ),
    (
        _ops.roi_align_levels,
        ([FEATURE, FEATURE.double()], rois(), LEVELS, (3, 3), [1, 1], 2, True),
        TypeError,
        "mixes.*float64.*float32",
    ),
    (_ops.roi_align_rotated, (FEATURE, rois(), (3, 3), 0.5, 2), ValueError, r"'rois'.*\(R, 6\), got \(3, 5\)"),
    (_ops.roi_align_rotated, (FEATURE[0], rotated_rois(), (3, 3), 0.5, 2), ValueError, r"'input'.*\(N, C, H, W\)"),
    (_ops.roi_align_rotated, (FEATURE.int(), rotated_rois(), (3, 3), 0.5, 2), TypeError, "'input'.*int32"),
    (_ops.roi_align_rotated, (FEATURE[:, :, :0], rotated_rois(), (3, 3), 0.5, 2), ValueError, "no cells"),
    (_ops.roi_align_rotated, (FEATURE, rotated_rois(), (-1, 3), 0.5, 2), ValueError, r"output_size.*\(-1, 3\)"),
    (_ops.roi_align_rotated, (FEATURE, rotated_rois().to("meta"), (3, 3), 0.5, 2), ValueError, "meta"),
    (_ops.nms, (boxes(9, sides=5), scores(9), 0.5), ValueError, r"'boxes'.*\(B, 4\), got \(9, 5\)"),
    (_ops.nms, (boxes(9), scores(8), 0.5), ValueError, r"'scores'.*\(9\), got \(8,\)"),
    (_ops.nms, (boxes(9).long(), scores(9), 0.5), TypeError, "'boxes'.*int64"),
    (_ops.nms, (boxes(9), scores(9).to("meta"), 0.5), ValueError, "'scores' is on meta"),
    (_ops.batched_nms, (boxes(9), scores(9), classes(8), 0.5), ValueError, r"'idxs'.*\(9\), got \(8,\)"),
    (_ops.batched_nms, (boxes(9), scores(9), classes(9).float(), 0.5), TypeError, "'idxs'.*int64, got.*float32.*long"),
    (_ops.nms_rotated, (boxes(9), scores(9), 0.5), ValueError, r"'boxes'.*\(B, 5\), got \(9, 4\)"),
    (_ops.batched_nms_rotated, (boxes(9, sides=5), scores(9), classes(8), 0.5), ValueError, "'idxs'"),
    (_ops.nms_fixed, (boxes(9), scores(9), classes(9), 0.5, 4), ValueError, r"'boxes'.*\(N, B, 4\).*, got \(9, 4\)"),
    (_ops.nms_fixed, (boxes(2, 9), scores(2, 8), classes(2, 9), 0.5, 4), ValueError, r"'scores'.*\(2, 9\)"),
    (_ops.nms_fixed, (boxes(2, 9), scores(2, 9), classes(2, 9).int(), 0.5, 4), TypeError, "'classes'.*int32"),
    (_ops.nms_fixed, (boxes(2, 9), scores(2, 9), classes(2, 9), 0.5, -1), ValueError, "max_output.*-1"),
    (_ops.box_iou_rotated, (boxes(4), boxes(4)), ValueError, r"'boxes1'.*\(N, 5\), got \(4, 4\)"),
    (_ops.box_iou_rotated, (boxes(4, sides=5), boxes(4, sides=5).double()), TypeError, "mixes.*float64"),
    (_ops.paste_masks, (torch.rand(3, 7, 7), boxes(2), (4, 5), 0.5), ValueError, r"'boxes'.*\(3, 4\), got \(2, 4\)"),
    (_ops.paste_masks, (torch.rand(7, 7), boxes(2), (4, 5), 0.5), ValueError, r"'masks'.*got \(7, 7\)"),
    (_ops.paste_masks, (torch.ones(3, 7, 7).bool(), boxes(3), (4, 5), 0.5), TypeError, "'masks'.*bool"),
    (_ops.paste_masks, (torch.rand(3, 7, 7), boxes(3), (-4, 5), 0.5), ValueError, r"image_size.*\(-4, 5\)"),
    (_ops.paste_masks, (torch.rand(3, 0, 0), boxes(3), (4, 5), 0.5), ValueError, r"no cells.*\(3, 0, 0\)"),
    (_ops.match_boxes, (boxes(4), valid(4), boxes(9)), ValueError, r"'objects'.*\(N, G, 5\) if rotated, got \(4, 4\)"),
    (_ops.match_boxes, (boxes(2, 4)[..., :3], valid(2, 4), boxes(1, 9)), ValueError, r"if rotated, got \(2, 4, 3\)"),
    (_ops.match_boxes, (boxes(2, 4), valid(2, 5), boxes(1, 9)), ValueError, r"'object_valid'.*\(2, 4\), got \(2, 5\)"),
    (_ops.match_boxes, (boxes(2, 4), valid(2, 4).float(), boxes(1, 9)), TypeError, r"bool, got.*float32.*\.bool\(\)"),
    (_ops.match_boxes, (boxes(2, 4), valid(2, 4).to("meta"), boxes(1, 9)), ValueError, "'object_valid' is on meta"),
    (_ops.match_boxes, (boxes(2, 4), valid(2, 4), boxes(1, 9, sides=5)), ValueError, r"'boxes'.*\(N or 1, B, 4\)"),
    (_ops.match_boxes, (boxes(2, 4), valid(2, 4), boxes(3, 9)), ValueError, "of 3 images but 'objects' of 2"),
    (_ops.match_boxes, (boxes(2, 4), valid(2, 4), boxes(1, 9).double()), TypeError, "mixes.*float64"),
    (
        _ops.mask_targets_from_polygons,
        (polygons()[0], LEVELS[:0], LEVELS, LEVELS, boxes(3), 6),
        ValueError,
        "'polygon_offsets'.*begin with a 0",
    ),
    (_ops.mask_targets_from_polygons, (*polygons(), LEVELS[:2], boxes(3), 6), ValueError, r"'rows'.*\(3\), got \(2,\)"),
    (_ops.mask_targets_from_polygons, (*polygons(), LEVELS, boxes(3).to("meta"), 6), ValueError, "'boxes' is on meta"),
    (_ops.mask_targets_from_polygons, (*polygons(), LEVELS, boxes(3), 0), ValueError, r"1\.\.16384, got 0"),
    (_ops.mask_targets_from_bitmaps, (bitmaps(4, 12), LEVELS, boxes(3), 6), ValueError, r"\(O, H, W\), got \(4, 12\)"),
    (_ops.mask_targets_from_bitmaps, (boxes(4, 9), LEVELS, boxes(3), 6), TypeError, r"bool or uint8, got.*\.bool\(\)"),
    (_ops.mask_targets_from_bitmaps, (bitmaps(4, 0, 9), LEVELS, boxes(3), 6), ValueError, r"no cells.*\(4, 0, 9\)"),
    (_ops.mask_targets_from_bitmaps, (bitmaps(4, 9, 9), LEVELS.int(), boxes(3), 6), TypeError, "'rows'.*int32"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), BAD_PUBLIC_CALLS)
def test_public_functions_name_the_value_and_the_cure(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


class EveryOperator(nn.Module):
    """Through the public functions, with results of known size except for the last."""

    def __init__(self, with_nms):
        super().__init__()
        self.with_nms = with_nms

    def forward(self, fine, coarse, regions, levels, turned, candidates, confidence, labels):
        pooled = _ops.roi_align_levels([fine, coarse], regions, levels, (3, 2), [0.5, 0.25], 0, True)
        single = _ops.roi_align(fine, regions, (2, 2), 0.5, 2, False)
        rotated = _ops.roi_align_rotated(fine, turned, (2, 2), 0.5, 2)
        indices, counts = _ops.nms_fixed(candidates, confidence, labels, 0.5, 6)
        ious = _ops.box_iou_rotated(turned[:, 1:], turned[:, 1:])
        pasted = _ops.paste_masks(pooled[:, 0, :2].sigmoid(), regions[:, 1:], (9, 11), 0.5)
        matches = _ops.match_boxes(candidates, labels > 0, candidates + 1)
        drawn = _ops.mask_targets_from_polygons(*polygons(), levels, regions[:, 1:], 5)
        cut = _ops.mask_targets_from_bitmaps(fine[0] > 0, levels, regions[:, 1:], 5)
        results = [pooled, single, rotated, indices, counts, ious, pasted, *matches, drawn, cut]
        if self.with_nms:
            results.append(_ops.nms(candidates[0], confidence[0], 0.5))
            results.append(_ops.batched_nms(candidates[0], confidence[0], labels[0], 0.5))
            results.append(_ops.nms_rotated(turned[:, 1:], turned[:, 1], 0.1))
        return tuple(results)


def module_inputs(requires_grad=False):
    fine, coarse = features(requires_grad)
    return fine, coarse, rois(), LEVELS, rotated_rois(), boxes(2, 9), scores(2, 9), classes(2, 9)


@pytest.mark.parametrize("with_nms", [False, True])
def test_compiles_without_a_break_and_gives_the_same(with_nms):
    module = EveryOperator(with_nms)
    eager_inputs, compiled_inputs = module_inputs(requires_grad=True), module_inputs(requires_grad=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        actual = compiled(*compiled_inputs)
    expected = module(*eager_inputs)
    torch.testing.assert_close(actual, expected)
    for results in (actual, expected):
        sum(result.pow(2).sum() for result in results[:3]).backward()
    for compiled_input, eager_input in zip(compiled_inputs[:2], eager_inputs[:2]):
        torch.testing.assert_close(compiled_input.grad, eager_input.grad)


def test_exports_with_batch_and_boxes_of_any_number():
    module, inputs = EveryOperator(with_nms=True), module_inputs()
    images, regions, turned, candidates = (torch.export.Dim(name) for name in ("n", "r", "t", "b"))
    shapes = ({0: images}, {0: images}, {0: regions}, {0: regions}, {0: turned})
    pairs = {0: images, 1: candidates}
    exported = torch.export.export(module, inputs, dynamic_shapes=(*shapes, pairs, pairs, pairs)).module()
    torch.testing.assert_close(exported(*inputs), module(*inputs))
    larger = (
        *[torch.cat([x, x]) for x in inputs[:2]],
        *[torch.cat([x, x, x]) for x in inputs[2:5]],
        *[torch.cat([x, x]) for x in (boxes(2, 30), scores(2, 30), classes(2, 30))],
    )
    torch.testing.assert_close(exported(*larger), module(*larger))


def test_second_derivatives_equal_finite_differences():
    fine, coarse = features(dtype=torch.float64)
    maps = [x[:, :2].contiguous().requires_grad_() for x in (fine, coarse)]

    def pool(*maps):
        return _ops.roi_align_levels(maps, rois().double(), LEVELS, (2, 2), [0.5, 0.25], 2, True).pow(3)

    def pool_rotated(x):
        return _ops.roi_align_rotated(x, rotated_rois().double(), (2, 2), 0.5, 2).pow(3)

    assert torch.autograd.gradgradcheck(pool, maps)
    assert torch.autograd.gradgradcheck(pool_rotated, maps[:1])


def test_regions_ask_for_no_gradient():
    regions = rois().requires_grad_()
    feature = features(requires_grad=True)[0]
    _ops.roi_align(feature, regions, (2, 2), 0.5, 2, True).sum().backward()
    assert regions.grad is None
    assert math.isfinite(feature.grad.sum())
