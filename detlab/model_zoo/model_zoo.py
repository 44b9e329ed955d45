"""The configs that come with the package, and models made from them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.config.config import CfgNode, get_cfg
from detlab.config.lazy import LazyConfig
from detlab.model_zoo.checkpoints import CHECKPOINT_SUFFIXES, URL_PREFIX
from detlab.modeling.meta_arch.build import build_model, instantiate_model

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

CONFIG_EXTENSIONS = (".yaml", ".py")


def get_config_file(config_path: str) -> str:
    """The full path of a config of the zoo.

    Args:
        config_path: relative to ``configs/``, such as ``"COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"``.

    Raises:
        RuntimeError: if there is none of this name; the nearest known ones are named.
    """
    root = _config_root()
    path = root / config_path
    if path.suffix not in CONFIG_EXTENSIONS or not path.is_file():
        known = [file.relative_to(root).as_posix() for file in _config_files(root)]
        raise RuntimeError(f"the model zoo has no config {config_path!r}{_nearest(config_path, known)}")
    return str(path)


def get_checkpoint_url(config_path: str) -> str:
    """Where the trained weights of a config of the zoo lie.

    Args:
        config_path: as in ``get_config_file``.

    Raises:
        RuntimeError: if there are no trained weights for it; the nearest configs that have some are named.
    """
    stem = config_path
    for extension in CONFIG_EXTENSIONS:
        stem = stem.removesuffix(extension)
    if stem not in CHECKPOINT_SUFFIXES:
        known = _nearest(stem, CHECKPOINT_SUFFIXES)
        raise RuntimeError(f"the model zoo has no trained weights for {config_path!r}{known}")
    return f"{URL_PREFIX}{stem}/{CHECKPOINT_SUFFIXES[stem]}"


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """A config of the zoo: a ``CfgNode`` from yaml, a ``DictConfig`` from a Python config.

    Args:
        config_path: as in ``get_config_file``.
        trained: points the initial weights at the zoo's trained ones. Otherwise they stay as the config says, mostly a
            backbone trained on ImageNet.

    Raises:
        RuntimeError: if there is no such config, or no trained weights for it.
    """
    config_file = get_config_file(config_path)
    if config_file.endswith(".py"):
        lazy = LazyConfig.load(config_file)
        if trained:
            lazy.train.init_checkpoint = get_checkpoint_url(config_path)
        return lazy
    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> torch.nn.Module:
    """A model of the zoo, with its initial or its trained weights, in training mode.

    Args:
        config_path: as in ``get_config_file``.
        trained: as in ``get_config``.
        device: where the model lives; by default where the config says, or on the CPU if CUDA is not there.

    Raises:
        RuntimeError: as ``get_config``.
    """
    cfg: Any = get_config(config_path, trained)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = _pick_device(device, cfg.MODEL.DEVICE)
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        train = cfg.get("train", {})
        model = instantiate_model(cfg, _pick_device(device, train.get("device", "cuda")))
        weights = train.get("init_checkpoint", "")
    DetectionCheckpointer(model).load(weights)
    return model


def _config_root() -> Path:
    """The folder of configs: beside the code in an installed package, at the top of a source checkout."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "configs", package.parents[1] / "configs"
    return installed if installed.is_dir() else checkout


def _config_files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.suffix in CONFIG_EXTENSIONS)


def _nearest(asked: str, known: Iterable[str]) -> str:
    names = difflib.get_close_matches(asked, known, n=3, cutoff=0.3)
    return f"; nearest are {', '.join(names)}" if names else "; its folder configs/ was not installed"


def _pick_device(asked: str | None, configured: str) -> str:
    if asked is not None:
        return asked
    return "cpu" if configured.startswith("cuda") and not torch.cuda.is_available() else configured
