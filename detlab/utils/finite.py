"""Whether a model's numbers are numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["names_not_finite"]


def names_not_finite(model: nn.Module) -> list[str]:
    """The parameters and statistics of normalisation that hold an infinity or no number; waits for the device once."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            tensors.update(module.named_buffers(prefix))
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not tensors:
        return []
    are_finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()]).tolist()
    return [name for name, is_finite in zip(tensors, are_finite) if not is_finite]
