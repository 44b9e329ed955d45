"""Normalisation layers by name: frozen, plain, synchronised, by group, by channel.

Shapes: N images, C channels, H x W cells, W' ranks (processes).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.layers.memo import Memo
from detlab.utils.comm import get_world_size

__all__ = [
    "CycleBatchNormList",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "NaiveSyncBatchNorm",
    "SyncBatchNorm",
    "fold_frozen_norm",
    "get_norm",
]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants.

    All four vectors are buffers, so no optimizer touches them and a checkpoint fills them under the names that
    ``BatchNorm2d`` uses. A fresh layer is the identity.

    Args:
        num_features: C.
        eps: added to the variance before the root.
    """

    # Checkpoints below version 2 hold the affine pair only: the statistics had been folded into it.
    _version = 3
    _FIRST_VERSION_WITH_STATISTICS = 2

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name, value in self._identity().items():
            self.register_buffer(name, value)
        self._affine_map = Memo()

    def _identity(self) -> dict[str, Tensor]:
        size = self.num_features
        return {
            "weight": torch.ones(size),
            "bias": torch.zeros(size),
            "running_mean": torch.zeros(size),
            "running_var": torch.ones(size) - self.eps,
        }

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer as ``y = x * scale + shift``; each (C,), in the buffers' dtype.

        Computed when a buffer has changed (see :class:`Memo` for what counts as a change), so do not write into them.
        """
        scale, shift = self._affine_map.get(self.constants, self._compute_scale_and_shift, self.eps)
        return scale, shift

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """The buffers, each (C,), of which scale and shift are made."""
        return self.weight, self.bias, self.running_mean, self.running_var

    def _compute_scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, torch.addcmul(self.bias, self.running_mean, scale, value=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` (N, C, ...) and keeps its dtype."""
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        scale, shift = (v.to(x.dtype).view(per_channel) for v in self.scale_and_shift())
        return torch.addcmul(shift, x, scale)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        # A live BatchNorm counts its batches; that means nothing to a frozen one.
        state_dict.pop(prefix + "num_batches_tracked", None)
        if (local_metadata.get("version") or 0) < self._FIRST_VERSION_WITH_STATISTICS:
            identity = self._identity()
            for name in ("running_mean", "running_var"):
                state_dict.setdefault(prefix + name, identity[name].to(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replaces each (synchronised) ``BatchNorm2d`` inside ``module`` by a frozen one with the same values.

        Returns:
            ``module`` itself, changed in place; or the new layer, when ``module`` is a batch norm.
        """
        return _replace_modules(module, (nn.BatchNorm2d, nn.SyncBatchNorm), cls._from_live)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """The way back: frozen layers become ``BatchNorm2d`` that train, starting from the frozen values.

        Returns:
            ``module`` itself, changed in place; or the new layer, when ``module`` is a frozen norm.
        """
        return _replace_modules(module, (FrozenBatchNorm2d,), _to_live)

    @classmethod
    def _from_live(cls, live: Any) -> FrozenBatchNorm2d:
        frozen = cls(live.num_features, live.eps)
        _copy_shared_tensors(live, frozen)
        return frozen


def _to_live(frozen: Any) -> nn.Module:
    live = nn.BatchNorm2d(frozen.num_features, frozen.eps)
    _copy_shared_tensors(frozen, live)
    return live


def _copy_shared_tensors(source: nn.Module, target: nn.Module) -> None:
    """Gives ``target`` the values, device, dtype and mode of ``source``, where the latter has them."""
    target.train(source.training)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(source, name, None)
        if value is not None:
            getattr(target, name).data = value.detach().clone()


def _replace_modules(
    root: nn.Module, kinds: tuple[type[nn.Module], ...], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Swaps every submodule of one of ``kinds`` for ``make(submodule)``, depth first."""
    if isinstance(root, kinds):
        return make(root)
    for name, child in root.named_children():
        replacement = _replace_modules(child, kinds, make)
        if replacement is not child:
            setattr(root, name, replacement)
    return root


def fold_frozen_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm: FrozenBatchNorm2d,
    memo: Memo | None = None,
    constant_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The convolution that does the work of ``norm(conv(x))`` in one pass over the map.

    Args:
        weight: (C, ...) of the convolution.
        bias: (C,) of the convolution, or None.
        memo: keeps the results while nothing has changed and no gradient is asked for.
        constant_dtype: of results that are kept; None leaves the weight's.

    Returns:
        Weight and bias of the folded convolution; gradients reach ``weight`` and ``bias``.
    """

    def fold() -> tuple[Tensor, Tensor]:
        scale, shift = norm.scale_and_shift()
        folded_weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        folded_bias = shift if bias is None else torch.addcmul(shift, bias, scale)
        if constant_dtype is None or folded_weight.requires_grad:
            return folded_weight, folded_bias
        return folded_weight.to(constant_dtype), folded_bias.to(constant_dtype)

    if memo is None:
        return fold()
    sources = (weight, *norm.constants) if bias is None else (weight, bias, *norm.constants)
    folded_weight, folded_bias = memo.get(sources, fold, (constant_dtype, norm.eps))
    return folded_weight, folded_bias


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is an all-reduce: each rank's input adds to every rank's output."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Statistics(NamedTuple):
    """Over the data of all ranks."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,), biased
    total_weight: Tensor  # scalar; 0 where no rank held data


def _statistics_over_ranks(x: Tensor, weight: float) -> _Statistics:
    """Statistics of (N, C, H, W) maps, in which each rank counts as much as its ``weight``, 0 for no data."""
    cells = max(x.numel() // x.shape[1], 1)
    moments = torch.cat([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3))]) * (weight / cells)
    total = _SumOverRanks.apply(torch.cat([moments, moments.new_tensor([weight])]))
    total_weight = total[-1].detach()
    mean, mean_square = (total[:-1] / torch.where(total_weight > 0, total_weight, 1.0)).chunk(2)
    return _Statistics(mean, mean_square - mean * mean, total_weight)


def _normalize(x: Tensor, stats: _Statistics, norm: nn.SyncBatchNorm | nn.BatchNorm2d) -> Tensor:
    scale = torch.rsqrt(stats.var + norm.eps)
    shift = -stats.mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))


@torch.no_grad()
def _update_running(norm: nn.SyncBatchNorm | nn.BatchNorm2d, mean: Tensor, var: Tensor, any_data: Tensor) -> None:
    """Moves the running statistics towards ``mean`` and ``var``, unless no rank held data (``any_data`` is 0)."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    step = momentum * any_data.to(norm.running_mean)
    norm.running_mean.lerp_(mean.to(norm.running_mean), step)
    norm.running_var.lerp_(var.to(norm.running_var), step)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics over all ranks, by plain all-reduce; works on any backend.

    Args:
        stats_mode: ``""`` weighs each rank alike, right when all ranks hold the same amount of data and none is
            empty; ``"N"`` weighs by the number of images, and ranks may be empty.
        *args, **kwargs: as of ``nn.BatchNorm2d``.

    With one process, or in evaluation, it is ``nn.BatchNorm2d``. The running variance is the biased one.
    """

    def __init__(self, *args, stats_mode: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode '{stats_mode}' is unknown; use '' (ranks weigh alike) or 'N' (by images)")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``input`` (N, C, H, W).

        Raises:
            ValueError: for no images, where each rank must have some.
        """
        if not self.training or get_world_size() == 1:
            return super().forward(input)
        if self._stats_mode == "" and input.shape[0] == 0:
            raise ValueError(
                "a rank has no images to normalise; use norm 'naiveSyncBN_N', which weighs ranks by images"
            )
        x = input.float()
        stats = _statistics_over_ranks(x, 1.0 if self._stats_mode == "" else float(x.shape[0]))
        _update_running(self, stats.mean.detach(), stats.var.detach(), stats.total_weight.clamp(max=1.0))
        return _normalize(x, stats, self).to(input.dtype)


class SyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` that also trains on the CPU with several processes, to the same result."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``input`` (N, C, H, W)."""
        if input.device.type != "cpu" or not self.training or get_world_size() == 1:
            return super().forward(input)
        x = input.float()
        stats = _statistics_over_ranks(x, float(x.numel() // x.shape[1]))
        unbias = stats.total_weight / (stats.total_weight - 1).clamp(min=1.0)
        _update_running(self, stats.mean.detach(), stats.var.detach() * unbias, stats.total_weight.clamp(max=1.0))
        return _normalize(x, stats, self).to(input.dtype)


class CycleBatchNormList(nn.ModuleList):
    """Batch norms that take turns, one a call: statistics of their own, one affine pair for all.

    For a head shared between feature levels whose statistics differ: call it once a level, always in the same order.

    Args:
        length: number of norms, the period of the cycle.
        bn_class: the norm's class.
        **kwargs: of ``bn_class``; ``affine=False`` leaves the shared pair out.
    """

    def __init__(self, length: int, bn_class: type[nn.Module] = nn.BatchNorm2d, **kwargs) -> None:
        self._affine = kwargs.pop("affine", True)
        norms: list[Any] = [bn_class(**kwargs, affine=False) for _ in range(length)]
        super().__init__(norms)
        if self._affine:
            channels = norms[0].num_features
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        self._turn = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` (N, C, H, W) by the norm whose turn it is."""
        y = self[self._turn](x)
        self._turn = (self._turn + 1) % len(self)
        if self._affine:
            y = torch.addcmul(self.bias.view(1, -1, 1, 1), y, self.weight.view(1, -1, 1, 1))
        return y

    def extra_repr(self) -> str:
        return f"affine={self._affine}"


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of each cell of an (N, C, H, W) map.

    Args:
        normalized_shape: C.
        eps: added to the variance before the root.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        cells = x.permute(0, 2, 3, 1)
        return F.layer_norm(cells, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape[0]}, eps={self.eps}"


_NORM_MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Makes the normalisation layer that a config names.

    Args:
        norm: a name (BN, SyncBN, FrozenBN, GN of 32 groups, LN, nnSyncBN, naiveSyncBN, naiveSyncBN_N), or a
            callable that takes the number of channels; "" and None stand for no normalisation.
        out_channels: number of channels to normalise.

    Raises:
        ValueError: for a name that is not among these.
    """
    if not norm:
        return None
    if not isinstance(norm, str):
        return norm(out_channels)
    if norm not in _NORM_MAKERS:
        near = difflib.get_close_matches(norm, _NORM_MAKERS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"norm '{norm}' is unknown; {hint}Known: '', {', '.join(_NORM_MAKERS)}")
    return _NORM_MAKERS[norm](out_channels)
