"""The block that heads are stacked from."""

from torch import nn

from detlab.layers.batch_norm import get_norm
from detlab.layers.wrappers import Conv2d
from detlab.modeling.weight_init import he_normal_fan_out

__all__ = ["conv3x3_relu"]


def conv3x3_relu(in_channels: int, out_channels: int, norm) -> Conv2d:
    """A size-keeping 3x3 convolution, its norm and a ReLU; it has a bias where it has no norm.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        norm: a name or callable that :func:`get_norm` knows; "" or None for none.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(inplace=True),
    )
    he_normal_fan_out(conv)
    return conv
