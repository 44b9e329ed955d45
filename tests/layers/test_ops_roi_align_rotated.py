"""Pooling of rotated regions on every backend.

Shapes: N images, C channels, R regions, h x w bins of a region.
"""

import math

import pytest
import torch

from detlab.layers import _ops
from tests.layers import plain_ops
from tests.layers.pooling import LAYOUTS, REAL_TYPES, assert_near, feature_maps, tolerance

# Center x y, width, height, angle; sizes whose bins are far from a whole number of cells.
REGIONS = [
    [12.3, 9.7, 10.6, 6.3, 30.0],
    [3.1, 4.2, 14.1, 9.3, -100.0],
    [20.2, 16.6, 9.2, 13.4, 271.5],
    [11.0, 11.0, 30.3, 26.9, 45.0],
    [9.9, 10.1, 0.7, 0.6, 12.0],
    [12.0, 10.0, 12.6, 8.7, 0.0],
]


def regions(rows=REGIONS, images=2, dtype=torch.float32):
    return torch.tensor([[r % images, *row] for r, row in enumerate(rows)], dtype=dtype)


def check_forward(ops, input, rois, *arguments):
    pooled = ops.roi_align_rotated(input, rois, *arguments)
    assert pooled.dtype == input.dtype
    magnitude = plain_ops.roi_align_rotated(input.abs(), rois, *arguments)
    assert_near(pooled, plain_ops.roi_align_rotated(input, rois, *arguments), tolerance(magnitude, [input], rois))
    return pooled


def plain_grad(grad, input, rois, *arguments):
    leaf = input.double().requires_grad_()
    return torch.autograd.grad(plain_ops.roi_align_rotated(leaf, rois, *arguments), leaf, grad.double())[0]


def check_backward(ops, input, rois, *arguments, deterministic):
    shape = (len(rois), input.shape[1], *arguments[0])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(input.dtype)
    result = ops.roi_align_rotated_backward(grad, input, rois, *arguments, deterministic)
    assert result.dtype == input.dtype
    assert result.stride() == torch.empty_like(input).stride()
    magnitude = plain_grad(grad.abs(), input, rois, *arguments)
    assert_near(result, plain_grad(grad, input, rois, *arguments), tolerance(magnitude, [input], rois))


def check(ops, input, rois, *arguments):
    check_forward(ops, input, rois, *arguments)
    check_backward(ops, input, rois, *arguments, deterministic=False)
    check_backward(ops, input, rois, *arguments, deterministic=True)


@pytest.mark.parametrize(
    ("output_size", "sampling_ratio"),
    [((1, 1), 0), ((7, 7), 0), ((3, 5), 0), ((3, 5), 1), ((7, 7), 2), ((14, 14), 2), ((2, 3), 3), ((2, 3), -1)],
)
def test_every_bin_averages_its_samples(ops, output_size, sampling_ratio):
    check(ops, feature_maps(num_levels=1)[0], regions(), output_size, 0.5, sampling_ratio)


@pytest.mark.parametrize("dtype", REAL_TYPES)
@pytest.mark.parametrize("rois_dtype", REAL_TYPES)
def test_every_pair_of_types(ops, dtype, rois_dtype):
    check(ops, feature_maps(dtype, num_levels=1)[0], regions(dtype=rois_dtype), (2, 3), 0.5, 2)


@pytest.mark.parametrize("channels", [1, 3, 17, 64, 65])
def test_any_number_of_channels(ops, channels):
    feature = feature_maps(channels=channels, num_levels=1)[0]
    check(ops, feature, regions(), (2, 2), 0.5, 2)
    check(ops, feature.to(memory_format=torch.channels_last), regions(), (2, 2), 0.5, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 16])
def test_any_layout_in_memory(ops, layout, channels):
    check(ops, LAYOUTS[layout](feature_maps(channels=channels, num_levels=1)[0]), regions(), (2, 3), 0.5, 2)


def test_result_has_the_memory_format_of_the_map_but_on_a_cpu(ops):
    rois, feature = regions(), feature_maps(channels=16, num_levels=1)[0]
    last = feature.to(memory_format=torch.channels_last)
    pooled = ops.roi_align_rotated(last, rois, (2, 3), 0.5, 2)
    on_cpu = ops.name in ("cpu", "plain")
    assert pooled.is_contiguous(memory_format=torch.contiguous_format if on_cpu else torch.channels_last)
    plain = ops.roi_align_rotated(feature, rois, (2, 3), 0.5, 2)
    assert plain.is_contiguous()
    assert torch.equal(plain, pooled)
    first, second = (
        ops.roi_align_rotated_backward(grad, last, rois, (2, 3), 0.5, 2, True) for grad in (pooled, pooled.contiguous())
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("ops", ["cpu", "emulated", "cuda"], indirect=True)
@pytest.mark.parametrize("sampling_ratio", [0, 1, 5])
def test_deterministic_backward_of_regions_that_span_many_tiles(ops, sampling_ratio):
    """And of more regions than a block looks at together."""
    feature = torch.randn(1, 3, 37, 50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    low = torch.tensor([-10.0, -10.0, -3.0, -3.0, -180.0])
    high = torch.tensor([60.0, 47.0, 40.0, 40.0, 180.0])
    rows = torch.cat(
        [(low + torch.rand(300, 5, generator=generator) * (high - low)), torch.tensor([[25, 18, 80, 70, 33.0]])]
    )
    rois = regions(rows.tolist(), images=1, dtype=torch.float64)
    grad = torch.randn(len(rois), 3, 2, 3, generator=generator, dtype=torch.float64)
    arguments = grad, feature, rois, (2, 3), 1.0, sampling_ratio
    expected = ops.roi_align_rotated_backward(*arguments, False)
    torch.testing.assert_close(ops.roi_align_rotated_backward(*arguments, True), expected)


@pytest.mark.parametrize("ops", ["emulated"], indirect=True)
def test_deterministic_backward_divides_a_map_among_blocks(ops):
    """A thread owns one cell in a few channels, not a whole map."""
    feature, rois = feature_maps(channels=20, num_levels=1)[0], regions()
    grad = torch.ones(len(rois), 20, 2, 3)
    before = ops.count["blocks"]()
    ops.roi_align_rotated_backward(grad, feature, rois, (2, 3), 0.5, 2, True)
    n, channels, height, width = feature.shape
    assert ops.count["blocks"]() - before == n * math.ceil(height / 16) * math.ceil(width / 16) * math.ceil(
        channels / 8
    )


def test_arguments_that_are_not_contiguous(ops):
    feature = feature_maps(num_levels=1)[0]
    rois = regions().repeat_interleave(2, dim=0)[::2].t().contiguous().t()
    check(ops, feature, rois, (2, 3), 0.5, 2)
    grad = torch.tensor(0.5).expand(len(rois), 5, 2, 3)
    torch.testing.assert_close(
        ops.roi_align_rotated_backward(grad, feature, rois, (2, 3), 0.5, 2, False),
        ops.roi_align_rotated_backward(grad.contiguous(), feature, rois, (2, 3), 0.5, 2, False),
    )


def test_region_without_turn_pools_as_an_upright_one(ops):
    feature = feature_maps(torch.float64, num_levels=1)[0]
    upright = torch.tensor([[0.0, 3.0, 2.0, 17.0, 13.0], [1.0, 5.0, 4.0, 9.5, 18.0]]).double()
    size, center = upright[:, 3:] - upright[:, 1:3], (upright[:, 3:] + upright[:, 1:3]) / 2
    turned = torch.cat([upright[:, :1], center, size, torch.zeros(2, 1)], dim=1)
    for sampling_ratio in (0, 2):
        torch.testing.assert_close(
            ops.roi_align_rotated(feature, turned, (3, 4), 0.5, sampling_ratio),
            ops.roi_align_levels([feature], upright, None, (3, 4), [0.5], sampling_ratio, True),
        )


def test_quarter_turn_turns_the_pooled_map(ops):
    feature = feature_maps(torch.float64, num_levels=1)[0]
    flat, turned = torch.tensor([[[0.0, 11, 9, 8, 8, 0]], [[0.0, 11, 9, 8, 8, 90]]]).double()
    torch.testing.assert_close(
        ops.roi_align_rotated(feature, turned, (4, 4), 0.5, 2),
        ops.roi_align_rotated(feature, flat, (4, 4), 0.5, 2).rot90(-1, dims=(2, 3)),
    )


ODD_REGIONS = {
    "outside": [[100.0, 100, 20, 10, 30], [-60.0, 5, 20, 10, 30], [5.0, -90, 10, 50, 5]],
    "partly outside": [[-1.0, 3, 15.3, 8.7, 40], [23.4, 19.1, 9.3, 11.7, -20], [12.0, 10.0, 80.3, 70.9, 10]],
    "without area": [[9.0, 8, 0, 5, 30], [9.0, 8, 5, 0, 30], [9.0, 8, 0, 0, 30]],
    "turned inside out": [[9.0, 8, -5.3, 5.1, 30], [9.0, 8, 5.3, -5.1, 30], [9.0, 8, -5.3, -5.1, 30]],
}


@pytest.mark.parametrize("rows", ODD_REGIONS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_regions_at_odd_places(ops, rows, sampling_ratio):
    rois, feature = regions(ODD_REGIONS[rows]), feature_maps(num_levels=1)[0]
    check(ops, feature, rois, (3, 2), 0.5, sampling_ratio)
    check(ops, feature.double(), rois.double(), (3, 2), 0.5, sampling_ratio)


@pytest.mark.parametrize("ops", ["cpu", "emulated", "cuda"], indirect=True)
def test_region_larger_than_any_image_costs_no_more_than_the_map(ops):
    """Its samples lie a cell apart; far from the map they are not even looked at."""
    feature = feature_maps(torch.float64, channels=1, num_levels=1)[0]
    rois = regions([[12.0, 9.0, 1000.3, 900.7, 30.0], [500.0, 400.0, 1e3, 1.1e3, 100.0]], dtype=torch.float64)
    check(ops, feature, rois, (1, 2), 0.5, 0)
    huge = regions([[12.0, 9.0, 3e7, 2e7, 30.0]], dtype=torch.float64)
    ones = torch.ones_like(feature)
    pooled = ops.roi_align_rotated(ones, huge, (1, 1), 0.5, 0)
    # A sample for each cell of the map, which reaches one cell beyond its outer centers.
    covered = (feature.shape[2] + 1) * (feature.shape[3] + 1)
    assert pooled.item() * 1.5e7 * 1e7 == pytest.approx(covered, rel=0.1)


def check_no_gradient_from(index, ops, feature, rois):
    """The gradient of the map is the one without that region, in both forms of the backward."""
    others = torch.arange(len(rois)) != index
    grad = torch.randn(len(rois), 5, 2, 3)
    for deterministic in (False, True):
        torch.testing.assert_close(
            ops.roi_align_rotated_backward(grad, feature, rois, (2, 3), 0.5, 2, deterministic),
            ops.roi_align_rotated_backward(grad[others], feature, rois[others], (2, 3), 0.5, 2, deterministic),
        )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [1, 2, 3, 4, 5])
def test_region_that_is_not_finite_gives_nan_and_no_gradient(ops, value, column):
    rois, feature = regions(), feature_maps(num_levels=1)[0]
    rois[1, column] = value
    pooled = check_forward(ops, feature, rois, (2, 3), 0.5, 0)
    assert pooled[1].isnan().all()
    check_no_gradient_from(1, ops, feature, rois)


@pytest.mark.parametrize("image", [-1.0, 2.0, math.nan, math.inf, 1e30])
def test_region_of_an_image_that_does_not_exist_gives_nan_and_no_gradient(ops, image):
    rois, feature = regions(), feature_maps(num_levels=1)[0]
    rois[2, 0] = image
    pooled = ops.roi_align_rotated(feature, rois, (2, 3), 0.5, 2)
    assert pooled[2].isnan().all()
    assert pooled[[0, 1, *range(3, len(rois))]].isfinite().all()
    check_no_gradient_from(2, ops, feature, rois)


@pytest.mark.parametrize(("images", "channels", "count"), [(2, 5, 0), (0, 5, 0), (2, 0, 3), (0, 0, 0)])
def test_nothing_to_pool(ops, images, channels, count):
    feature = feature_maps(channels=channels, num_levels=1, images=images)[0]
    pooled = ops.roi_align_rotated(feature, torch.zeros(count, 6), (2, 3), 0.5, 2)
    assert pooled.shape == (count, channels, 2, 3)
    for deterministic in (False, True):
        grad = ops.roi_align_rotated_backward(pooled, feature, torch.zeros(count, 6), (2, 3), 0.5, 2, deterministic)
        assert grad.shape == feature.shape
        assert grad.count_nonzero() == 0


def test_deterministic_backward_gives_the_same_bits_again(ops):
    feature, rois = feature_maps(channels=9, num_levels=1)[0], regions(REGIONS * 3)
    grad = torch.randn(len(rois), 9, 3, 3, generator=torch.Generator().manual_seed(2))
    first, second = (ops.roi_align_rotated_backward(grad, feature, rois, (3, 3), 0.5, 2, True) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_equals_finite_differences(device, sampling_ratio):
    feature = feature_maps(torch.float64, channels=2, num_levels=1)[0].to(device).requires_grad_()
    rois = regions(REGIONS[:4], dtype=torch.float64).to(device)

    def pool(x):
        return _ops.roi_align_rotated(x, rois, (2, 3), 0.5, sampling_ratio)

    assert torch.autograd.gradcheck(pool, feature, nondet_tol=1e-12 if device == "cuda" else 0.0)
