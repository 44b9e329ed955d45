"""How new layers are initialised."""

from typing import Protocol

from torch import Tensor, nn

__all__ = ["he_normal_fan_out", "normal_init", "xavier_uniform_fan_in"]


class Layer(Protocol):
    """What has a weight and perhaps a bias: a convolution or a linear layer."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...


def _zero_bias(module: Layer) -> None:
    if isinstance(module.bias, Tensor):
        nn.init.zeros_(module.bias)


def he_normal_fan_out(module: Layer) -> None:
    """Normal with variance 2 / fan-out (He et al. 2015), zero bias: for layers in front of a ReLU."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(module)


def xavier_uniform_fan_in(module: Layer) -> None:
    """Uniform in +- sqrt(3 / fan-in), zero bias: what Caffe2 calls Xavier."""
    nn.init.kaiming_uniform_(module.weight, a=1)
    _zero_bias(module)


def normal_init(module: Layer, std: float, bias: float = 0.0) -> None:
    """Normal weights with deviation ``std``, constant bias: for the last layer of a predictor."""
    nn.init.normal_(module.weight, std=std)
    if isinstance(module.bias, Tensor):
        nn.init.constant_(module.bias, bias)
