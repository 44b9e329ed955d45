"""What the tests of pooling share: feature maps, their layouts in memory, and how near a result must be.

Shapes: N images, C channels, R regions.
"""

import math

import torch

SCALES = [0.5, 0.25, 0.125]
REAL_TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def feature_maps(dtype=torch.float32, channels=5, num_levels=3, images=2):
    """Levels of images of 24 x 20 pixels (width x height)."""
    generator = torch.Generator().manual_seed(channels)
    sizes = [(math.ceil(20 * scale), math.ceil(24 * scale)) for scale in SCALES[:num_levels]]
    return [torch.randn(images, channels, h, w, generator=generator, dtype=torch.float64).to(dtype) for h, w in sizes]


def tolerance(magnitude, features, rois):
    """Rounding of the values, and of positions on the map, which move weights between neighbours."""
    magnitude = magnitude.nan_to_num(0.0)
    largest = magnitude.max() if magnitude.numel() else 0.0
    corners = (rois[:, 1:5].double() * SCALES[0]).abs()
    extent = max(*(max(x.shape[2:]) for x in features), corners[corners.isfinite()].max().item())
    exact = torch.float64 if rois.dtype == torch.float64 and features[0].dtype == torch.float64 else torch.float32
    values = magnitude * torch.finfo(features[0].dtype).eps * 2
    return values + largest * torch.finfo(exact).eps * 4 * extent + 1e-300


def assert_near(actual, expected, bound):
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    difference = (actual.double() - expected).abs().nan_to_num(0.0)
    worst = (difference / bound).max().item() if difference.numel() else 0.0
    assert worst <= 1, f"{worst} times the tolerance"


def strided(x):
    """Every second row and column of a larger map."""
    n, c, h, w = x.shape
    large = torch.full((n, c, 2 * h, 2 * w), math.nan, dtype=x.dtype)
    large[:, :, ::2, ::2] = x
    return large[:, :, ::2, ::2]


def sliced(x):
    """A window of a larger map, some of its channels."""
    n, c, h, w = x.shape
    large = torch.full((n, c + 3, h + 2, w + 3), math.nan, dtype=x.dtype)
    large[:, 1:-2, 1:-1, 2:-1] = x
    return large[:, 1:-2, 1:-1, 2:-1]


def transposed(x):
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded over images": lambda x: x[:1].expand(2, -1, -1, -1),
    "expanded over channels": lambda x: x[:, :1].expand(-1, 16, -1, -1),
    "one value": lambda x: x[:1, :1, :1, :1].expand(2, 16, *x.shape[2:]),
    "strided": strided,
    "sliced": sliced,
    "sliced, channels last": lambda x: sliced(x.to(memory_format=torch.channels_last)),
    "transposed": transposed,
}
