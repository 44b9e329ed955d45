"""The registry of whole models."""

import torch
from torch import nn

from detlab.config.instantiate import instantiate
from detlab.modeling.backbone.backbone import Backbone
from detlab.utils.devices import device_kind
from detlab.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "build_model", "instantiate_model", "place_model"]

_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

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
    return place_model(
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg),
        device,
        layout=cfg.MODEL.LAYOUT,
        backbone_dtype=cfg.MODEL.BACKBONE.DTYPE,
        amp=cfg.SOLVER.AMP.ENABLED,
    )


def instantiate_model(cfg, device: torch.device | str | None = None) -> nn.Module:
    """The model of a Python config, placed as its ``train`` node says, without ``train.init_checkpoint``.

    Args:
        cfg: with the node ``model`` and, where its keys differ from those of configs/common/train.py, ``train``.
        device: where the model lives; None leaves that to ``train.device``.
    """
    train = cfg.get("train", {})
    return place_model(
        instantiate(cfg.model),
        device or train.get("device", "cuda"),
        layout=train.get("layout", "auto"),
        backbone_dtype=train.get("backbone_dtype", ""),
        amp=train.get("amp", {}).get("enabled", False),
    )


def place_model(
    model: nn.Module,
    device: torch.device | str,
    layout: str = "auto",
    backbone_dtype: str = "",
    amp: bool = False,
) -> nn.Module:
    """Move a model to a device, its convolutions in the memory layout and precision wanted there.

    Feature maps follow the weights, and neither convolutions nor region pooling have to reorder them. Shapes and names
    stay as they are, and so do the values but for ``backbone_dtype``.

    Args:
        model: changed in place.
        device: where it shall live.
        layout: of 4-dimensional weights: ``channels_last``, ``contiguous``, or ``auto``: channels-last on a CPU, and on
            a GPU where it computes in half precision, as its matrix units take that without reordering.
        backbone_dtype: ``bfloat16`` or ``float16``, see :class:`Backbone`; "" as the rest of the model.
        amp: whether the model trains in mixed precision.

    Returns:
        ``model``.

    Raises:
        ValueError: for another layout or type, or a type for a model without a backbone.
    """
    if layout not in ("auto", *_LAYOUTS):
        raise ValueError(f"MODEL.LAYOUT must be 'auto', 'channels_last' or 'contiguous', got {layout!r}")
    if backbone_dtype:
        _set_backbone_dtype(model, backbone_dtype)
    model = model.to(device)
    if layout == "auto":
        kind = torch.device(device).type
        is_channels_last = kind == "cpu" or (kind == "cuda" and (amp or bool(backbone_dtype)))
        layout = "channels_last" if is_channels_last else "contiguous"
    return model.to(memory_format=_LAYOUTS[layout])


def _set_backbone_dtype(model: nn.Module, dtype: str) -> None:
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(f"MODEL.BACKBONE.DTYPE must be '', 'bfloat16' or 'float16', got {dtype!r}")
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"MODEL.BACKBONE.DTYPE is {dtype!r}, but {type(model).__name__} has no attribute 'backbone' that is a "
            "Backbone; leave the setting empty"
        )
    backbone.compute_dtype = getattr(torch, dtype)
