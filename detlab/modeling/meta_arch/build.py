"""The registry of whole models."""

import torch
from torch import nn

from detlab.utils.devices import device_kind
from detlab.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "build_model", "place_model"]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """Modules ``(cfg)`` called with a list of inputs, one dict an image: in training they
return losses by name, in inference a list of results."""
META_ARCH_REGISTRY.expect(RetinaNet="the dense detector of RetinaNet", PanopticFPN="Panoptic FPN, things and stuff")


def build_model(cfg) -> nn.Module:
    """The model that ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``, without ``cfg.MODEL.WEIGHTS``.

    Raises:
        ValueError: if the device is a GPU and there is none, or none that torch knows.
    """
    device = cfg.MODEL.DEVICE
    if device_kind(device) == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {device!r} but torch finds no GPU; set MODEL.DEVICE cpu")
    return place_model(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg), device)


def place_model(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a model to a device, its convolutions in the memory layout that is fastest there.

    On the CPU that is channels last: feature maps follow the weights, and neither convolutions nor region pooling have
    to reorder them. Shapes, names and values stay as they are.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if torch.device(device).type == "cpu" else model
