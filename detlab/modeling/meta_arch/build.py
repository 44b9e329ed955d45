"""The registry of whole models."""

import torch
from torch import nn

from detlab.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "build_model"]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """Modules ``(cfg)`` called with a list of inputs, one dict an image: in training they
return losses by name, in inference a list of results."""


def build_model(cfg) -> nn.Module:
    """The model that ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``, without ``cfg.MODEL.WEIGHTS``.

    Raises:
        ValueError: if the device is a GPU and there is none.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}' but torch finds no GPU; set MODEL.DEVICE cpu")
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(device)
