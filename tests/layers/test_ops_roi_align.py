"""Pooling of upright regions from feature levels, on every backend.

Shapes: N images, C channels, L levels, R regions, h x w bins of a region.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detlab.layers import _ops
from tests.layers import plain_ops
from tests.layers.pooling import LAYOUTS, REAL_TYPES, SCALES, assert_near, feature_maps, strided, tolerance

# Corners in eighths of a pixel: every precision sees the same regions, and rounds the number of samples up alike.
CORNERS = [
    [3.125, 2.5, 17.25, 12.875],
    [0.0, 0.0, 24.0, 20.0],
    [10.5, 1.0, 13.0, 19.375],
    [-6.0, -5.25, 9.0, 7.0],
    [15.0, 11.125, 31.5, 29.0],
    [7.75, 7.0, 8.0, 7.125],
]


def regions(corners=CORNERS, images=2, dtype=torch.float32):
    """(R, 5), the images in turn."""
    return torch.tensor([[r % images, *box] for r, box in enumerate(corners)], dtype=dtype).reshape(-1, 5)


def mixed_levels(count, num_levels=3):
    return torch.arange(count).mul(3).div(2, rounding_mode="floor").remainder(num_levels)


def settings(output_size=(3, 5), sampling_ratio=2, aligned=True, scales=SCALES):
    return output_size, scales, sampling_ratio, aligned


def check_forward(ops, features, rois, levels, *arguments):
    pooled = ops.roi_align_levels(features, rois, levels, *arguments)
    assert pooled.dtype == features[0].dtype
    magnitude = plain_ops.roi_align_levels([x.abs() for x in features], rois, levels, *arguments).abs()
    expected = plain_ops.roi_align_levels(features, rois, levels, *arguments)
    assert_near(pooled, expected, tolerance(magnitude, features, rois))
    return pooled


def plain_grads(grad, features, rois, levels, *arguments):
    leaves = [x.double().requires_grad_() for x in features]
    pooled = plain_ops.roi_align_levels(leaves, rois, levels, *arguments)
    grads = torch.autograd.grad(pooled, leaves, grad.double(), allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves)]


def check_backward(ops, features, rois, levels, *arguments, deterministic=False):
    shape = (len(rois), features[0].shape[1], *arguments[0])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(features[0].dtype)
    grads = ops.roi_align_levels_backward(grad, features, rois, levels, *arguments, deterministic)
    expected = plain_grads(grad, features, rois, levels, *arguments)
    magnitudes = plain_grads(grad.abs(), features, rois, levels, *arguments)
    assert len(grads) == len(features)
    for actual, wanted, magnitude, feature in zip(grads, expected, magnitudes, features):
        assert actual.dtype == feature.dtype
        assert actual.stride() == torch.empty_like(feature).stride()
        assert_near(actual, wanted, tolerance(magnitude, features, rois))
    return grads


def check(ops, features, rois, levels, *arguments):
    check_forward(ops, features, rois, levels, *arguments)
    check_backward(ops, features, rois, levels, *arguments)
    check_backward(ops, features, rois, levels, *arguments, deterministic=True)


def test_reference_averages_samples_read_one_by_one():
    feature = torch.arange(12.0).reshape(1, 1, 3, 4) ** 2
    pooled = plain_ops.roi_align_levels([feature], torch.tensor([[0.0, 1, 1, 5, 3]]), None, (1, 2), [0.5], 2, True)
    # One row and two columns of bins; samples at y 0.25 and 0.75, x 0.25, 0.75 and 1.25, 1.75.
    y_pairs = [((0, 0.75), (1, 0.25)), ((0, 0.25), (1, 0.75))]
    x_pairs = [[((0, 0.75), (1, 0.25)), ((0, 0.25), (1, 0.75))], [((1, 0.75), (2, 0.25)), ((1, 0.25), (2, 0.75))]]
    for j in range(2):
        samples = [
            sum(wy * wx * feature[0, 0, y, x].item() for y, wy in ys for x, wx in xs)
            for ys in y_pairs
            for xs in x_pairs[j]
        ]
        assert pooled[0, 0, 0, j].item() == pytest.approx(sum(samples) / 4)


@pytest.mark.parametrize(
    ("output_size", "sampling_ratio", "aligned"),
    [
        ((1, 1), 0, True),
        ((7, 7), 0, True),
        ((3, 5), 0, False),
        ((14, 14), 0, False),
        ((7, 7), 1, True),
        ((3, 5), 1, False),
        ((7, 7), 2, True),
        ((14, 14), 2, True),
        ((1, 1), 2, False),
        ((3, 5), 3, True),
        ((7, 7), 3, False),
        ((3, 5), -1, True),
    ],
)
def test_every_bin_averages_its_samples(ops, output_size, sampling_ratio, aligned):
    rois = regions()
    check(ops, feature_maps(), rois, mixed_levels(len(rois)), *settings(output_size, sampling_ratio, aligned))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_one_level_needs_no_list_of_levels(ops, sampling_ratio):
    rois = regions()
    arguments = settings((7, 7), sampling_ratio, scales=[0.5])
    check(ops, feature_maps(num_levels=1), rois, None, *arguments)
    check(ops, feature_maps(num_levels=1), rois, torch.zeros(len(rois), dtype=torch.int64), *arguments)


def test_levels_without_regions_get_a_gradient_of_zeros(ops):
    rois = regions()
    grads = check_backward(ops, feature_maps(), rois, torch.ones(len(rois), dtype=torch.int64), *settings())
    assert grads[0].count_nonzero() == grads[2].count_nonzero() == 0


@pytest.mark.parametrize("dtype", REAL_TYPES)
@pytest.mark.parametrize("rois_dtype", REAL_TYPES)
def test_every_pair_of_types(ops, dtype, rois_dtype):
    rois = regions(dtype=rois_dtype)
    check(ops, feature_maps(dtype), rois, mixed_levels(len(rois)), *settings(sampling_ratio=0))


@pytest.mark.parametrize("channels", [1, 3, 17, 64, 65])
def test_any_number_of_channels(ops, channels):
    rois = regions()
    features = feature_maps(channels=channels, num_levels=2)
    arguments = settings((2, 2), scales=SCALES[:2])
    levels = mixed_levels(len(rois), 2)
    check(ops, features, rois, levels, *arguments)
    check(ops, [x.to(memory_format=torch.channels_last) for x in features], rois, levels, *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 16])
def test_any_layout_in_memory(ops, layout, channels):
    rois = regions()
    features = [LAYOUTS[layout](x) for x in feature_maps(channels=channels)]
    check(ops, features, rois, mixed_levels(len(rois)), *settings())


def test_levels_of_different_layouts(ops):
    rois = regions()
    first, second, third = feature_maps(channels=16)
    features = [first.to(memory_format=torch.channels_last), second, strided(third)]
    check(ops, features, rois, mixed_levels(len(rois)), *settings())


def test_result_has_the_memory_format_of_the_map_but_on_a_cpu(ops):
    rois = regions()
    features = [x.to(memory_format=torch.channels_last) for x in feature_maps(channels=16)]
    pooled = ops.roi_align_levels(features, rois, mixed_levels(len(rois)), *settings())
    on_cpu = ops.name in ("cpu", "plain")
    assert pooled.is_contiguous(memory_format=torch.contiguous_format if on_cpu else torch.channels_last)
    grads = [
        ops.roi_align_levels_backward(grad, features, rois, mixed_levels(len(rois)), *settings(), True)
        for grad in (pooled, pooled.contiguous())
    ]
    for first, second in zip(*grads):
        assert torch.equal(first, second)
    plain = ops.roi_align_levels([x.contiguous() for x in features], rois, mixed_levels(len(rois)), *settings())
    assert plain.is_contiguous()
    assert torch.equal(plain, pooled)


@pytest.mark.parametrize("ops", ["cpu", "emulated", "cuda"], indirect=True)
@pytest.mark.parametrize("size", [(30000, 2), (3, 40000), (300, 1)])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 300])
def test_map_of_any_size(ops, size, sampling_ratio):
    """However many samples a bin has, which no memory of a block would hold."""
    height, width = size
    feature = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    corners = [[0.0, 0.0, width, height], [width / 3 - 1, height / 3 - 1, width / 2, height / 2]]
    rois = regions(corners, images=1, dtype=torch.float64)
    check(ops, [feature], rois, None, *settings((2, 1), sampling_ratio, scales=[1.0]))


@pytest.mark.parametrize("ops", ["emulated"], indirect=True)
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradient_in_half_precision_is_cleared_and_converted_once(ops, deterministic):
    rois, features = regions(), feature_maps(torch.float16)
    grad = torch.ones(len(rois), 5, 3, 5, dtype=torch.float16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.roi_align_levels_backward(grad, features, rois, mixed_levels(len(rois)), *settings(), deterministic)
    calls = {event.key: event.count for event in profile.key_averages()}
    # Of rois, which have the type already, nothing; of the levels' sums one each.
    expected = 0 if deterministic else len(features)
    assert calls.get("aten::zero_", 0) == expected
    assert calls.get("aten::copy_", 0) == expected


def test_arguments_that_are_not_contiguous(ops):
    rois = regions().repeat_interleave(2, dim=0)[::2].t().contiguous().t()
    levels = mixed_levels(len(rois)).repeat_interleave(3)[::3]
    features = feature_maps()
    check(ops, features, rois, levels, *settings())
    grad = torch.tensor(0.5).expand(len(rois), 5, 3, 5)
    grads = ops.roi_align_levels_backward(grad, features, rois, levels, *settings(), False)
    dense = ops.roi_align_levels_backward(grad.contiguous(), features, rois, levels, *settings(), False)
    for actual, expected in zip(grads, dense):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("channels", [32, 21])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_small_regions_far_apart_on_a_large_map(ops, channels, memory_format, dtype):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(1, channels, 60, 70, generator=generator).to(dtype).to(memory_format=memory_format)
    rois = regions([[1.5, 2.0, 4.0, 5.0], [62.0, 52.25, 69.0, 58.0], [0.0, 55.0, 3.0, 60.0]], images=1)
    check(ops, [feature], rois, None, *settings((2, 3), scales=[1.0]))


ODD_CORNERS = {
    "outside": [[100.0, 100.0, 120.0, 130.0], [-50.0, -40.0, -20.0, -30.0], [5.0, -90.0, 12.0, -60.0]],
    "partly outside": [[-10.0, 3.0, 5.0, 40.0], [18.0, -3.0, 33.0, 8.0], [-20.0, -20.0, 44.0, 40.0]],
    "on the border": [[-0.5, -0.5, 0.5, 0.5], [22.5, 18.5, 24.5, 20.5], [0.0, 0.0, 0.0, 20.0]],
    "without area": [[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 9.0, 5.0], [7.0, 7.0, 7.0, 7.0]],
    "turned inside out": [[15.0, 3.0, 5.0, 13.0], [3.0, 15.0, 13.0, 5.0], [20.0, 18.0, 2.0, 1.0]],
}


@pytest.mark.parametrize("corners", ODD_CORNERS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_regions_at_odd_places(ops, corners, sampling_ratio, aligned):
    rois = regions(ODD_CORNERS[corners])
    arguments = settings((3, 4), sampling_ratio, aligned)
    check(ops, feature_maps(torch.float64), rois.double(), mixed_levels(len(rois)), *arguments)
    check(ops, feature_maps(), rois, mixed_levels(len(rois)), *arguments)


@pytest.mark.parametrize("ops", ["cpu", "emulated", "cuda"], indirect=True)
@pytest.mark.parametrize("sampling_ratio", [0, 3])
def test_region_larger_than_any_image_costs_no_more_than_the_map(ops, sampling_ratio):
    rois = regions([[-1e6, 3.0, 1e6, 12.0], [-524288.0, -524288.0, 524288.0, 524288.0], [2.0, 1.0, 1e6, 1e6]]).double()
    features = feature_maps(torch.float64)
    check(ops, features, rois, mixed_levels(len(rois)), *settings((2, 3), sampling_ratio))


@pytest.mark.parametrize("ops", ["cpu", "emulated", "cuda"], indirect=True)
def test_samples_far_from_the_map_are_not_even_looked_at(ops):
    """Some 600 million a cell apart in each bin and axis; those on the map lie in the middle bin."""
    rois = regions([[-(2.0**31), -(2.0**31), 2.0**31, 2.0**31]], images=1, dtype=torch.float64)
    feature = torch.ones(1, 1, 10, 12, dtype=torch.float64)
    pooled = ops.roi_align_levels([feature], rois, None, *settings((7, 7), 0, scales=[1.0]))[0, 0]
    # The map reaches one cell beyond the centers of its outer cells.
    assert pooled[3, 3].item() * (2**32 / 7) ** 2 == pytest.approx(11 * 13, rel=0.1)
    pooled[3, 3] = 0
    assert pooled.count_nonzero() == 0


def check_no_gradient_from(index, ops, features, rois, levels):
    """The gradient of the maps is the one without that region, in both forms of the backward."""
    others = torch.arange(len(rois)) != index
    grad = torch.randn(len(rois), 5, 3, 5)
    for deterministic in (False, True):
        grads = ops.roi_align_levels_backward(grad, features, rois, levels, *settings(), deterministic)
        fewer = ops.roi_align_levels_backward(
            grad[others], features, rois[others], levels[others], *settings(), deterministic
        )
        for actual, expected in zip(grads, fewer):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
@pytest.mark.parametrize("aligned", [True, False])
def test_region_that_is_not_finite_gives_nan_and_no_gradient(ops, value, column, aligned):
    rois = regions()
    rois[1, column] = value
    levels, features = mixed_levels(len(rois)), feature_maps()
    pooled = check_forward(ops, features, rois, levels, *settings(sampling_ratio=0, aligned=aligned))
    assert pooled[1].isnan().all()
    assert pooled[[0, *range(2, len(rois))]].isfinite().all()
    check_no_gradient_from(1, ops, features, rois, levels)


def test_region_that_is_not_finite_gives_nan_whatever_its_level(ops):
    """A pooler finds no level for it."""
    rois = regions()
    rois[:3, 1:] = torch.tensor([[math.nan] * 4, [0.0, 0.0, math.inf, 9.0], [1.0, -math.inf, 2.0, 3.0]])
    levels = mixed_levels(len(rois))
    levels[:4] = torch.tensor([-1, torch.iinfo(torch.int64).min, 3, 3])
    pooled = ops.roi_align_levels(feature_maps(), rois, levels, *settings())
    assert pooled[:3].isnan().all()
    assert pooled[3].count_nonzero() == 0
    assert pooled[4:].isfinite().all()


def test_unknown_level_reads_nothing(ops):
    rois = regions()
    levels = mixed_levels(len(rois))
    levels[:2] = torch.tensor([-1, 3])
    pooled = check_forward(ops, feature_maps(), rois, levels, *settings())
    assert pooled[:2].count_nonzero() == 0
    check_backward(ops, feature_maps(), rois, levels, *settings())


@pytest.mark.parametrize("image", [-1.0, 2.0, math.nan, math.inf, 1e30])
def test_region_of_an_image_that_does_not_exist_gives_nan_and_no_gradient(ops, image):
    """On every device: to refuse it would mean to wait for a GPU."""
    rois = regions()
    rois[2, 0] = image
    features, levels = feature_maps(), mixed_levels(len(rois))
    pooled = ops.roi_align_levels(features, rois, levels, *settings())
    assert pooled[2].isnan().all()
    assert pooled[[0, 1, *range(3, len(rois))]].isfinite().all()
    check_no_gradient_from(2, ops, features, rois, levels)


@pytest.mark.parametrize(("images", "channels"), [(2, 5), (0, 5), (2, 0), (0, 0)])
def test_no_regions_give_an_empty_result_and_a_gradient_of_zeros(ops, images, channels):
    features = feature_maps(channels=channels, images=images)
    rois, levels = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    pooled = ops.roi_align_levels(features, rois, levels, *settings())
    assert pooled.shape == (0, channels, 3, 5)
    for deterministic in (False, True):
        grads = ops.roi_align_levels_backward(pooled, features, rois, levels, *settings(), deterministic)
        assert [g.shape for g in grads] == [x.shape for x in features]
        assert all(g.count_nonzero() == 0 for g in grads)


def test_no_channels_give_an_empty_result(ops):
    rois, features = regions(), feature_maps(channels=0)
    pooled = ops.roi_align_levels(features, rois, mixed_levels(len(rois)), *settings())
    assert pooled.shape == (len(rois), 0, 3, 5)
    grads = ops.roi_align_levels_backward(pooled, features, rois, mixed_levels(len(rois)), *settings(), False)
    assert [g.shape for g in grads] == [x.shape for x in features]


def test_no_regions_need_no_cells(ops):
    features = [torch.zeros(2, 3, 0, 4)]
    assert ops.roi_align_levels(features, torch.zeros(0, 5), None, *settings(scales=[1.0])).shape == (0, 3, 3, 5)


@pytest.mark.parametrize("ops", ["cpu", "plain", "cuda"], indirect=True)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_results_of_several_megabytes(ops, memory_format):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(1, 128, 96, 90, generator=generator).to(memory_format=memory_format)
    low = torch.rand(12, 2, generator=generator).mul(300).round()
    rois = torch.cat([torch.zeros(12, 1), low, low + torch.rand(12, 2, generator=generator).mul(64).round()], dim=1)
    check(ops, [feature], rois, None, *settings((28, 28), scales=[0.25]))


def test_deterministic_backward_gives_the_same_bits_again(ops):
    generator = torch.Generator().manual_seed(2)
    rois = regions(CORNERS * 3)
    features, levels = feature_maps(channels=9), mixed_levels(len(rois))
    grad = torch.randn(len(rois), 9, 7, 7, generator=generator)
    runs = [ops.roi_align_levels_backward(grad, features, rois, levels, *settings((7, 7)), True) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradient_equals_finite_differences(device, sampling_ratio, aligned):
    features = [x.to(device).requires_grad_() for x in feature_maps(torch.float64, channels=2, num_levels=2)]
    rois = regions(CORNERS[:4], dtype=torch.float64).to(device)
    levels = mixed_levels(len(rois), 2).to(device)

    def pool(*maps):
        return _ops.roi_align_levels(maps, rois, levels, (2, 3), SCALES[:2], sampling_ratio, aligned)

    assert torch.autograd.gradcheck(pool, features, nondet_tol=1e-12 if device == "cuda" else 0.0)


def test_gradients_of_a_map_used_twice_add_up(device):
    feature = feature_maps(num_levels=1)[0].to(device).requires_grad_()
    rois, levels = regions().to(device), mixed_levels(len(CORNERS), 2).to(device)
    _ops.roi_align_levels([feature, feature], rois, levels, (3, 3), [0.5, 0.5], 2, True).sum().backward()
    (expected,) = torch.autograd.grad(_ops.roi_align(feature, rois, (3, 3), 0.5, 2, True).sum(), feature)
    torch.testing.assert_close(feature.grad, expected)


def test_only_maps_that_ask_get_a_gradient(device):
    first, second = (x.to(device) for x in feature_maps(num_levels=2))
    second.requires_grad_()
    rois, levels = regions().to(device), mixed_levels(len(CORNERS), 2).to(device)
    pooled = _ops.roi_align_levels([first, second], rois, levels, (3, 3), SCALES[:2], 2, True)
    pooled.sum().backward()
    assert first.grad is None
    assert second.grad.count_nonzero() > 0


class SeenOperators(TorchDispatchMode):
    """Notes the last argument of each call of an operator of detlab."""

    def __init__(self):
        super().__init__()
        self.last_arguments = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "detlab":
            self.last_arguments[func._opname] = args[-1]
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False])
def deterministic_algorithms(request):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(before)


def test_backward_asks_for_the_deterministic_form_as_torch_is_set(device, deterministic_algorithms):
    feature = feature_maps(num_levels=1)[0].to(device).requires_grad_()
    upright = regions().to(device)
    rotated = torch.tensor([[0.0, 9.0, 8.0, 6.0, 5.0, 30.0]], device=device)
    with SeenOperators() as seen:
        _ops.roi_align(feature, upright, (2, 2), 0.5, 2, True).sum().backward()
        _ops.roi_align_rotated(feature, rotated, (2, 2), 0.5, 2).sum().backward()
    assert seen.last_arguments["roi_align_levels_backward"] is deterministic_algorithms
    assert seen.last_arguments["roi_align_rotated_backward"] is deterministic_algorithms
