"""What comes first in every training and inference process, and what most of them build next: writers, the wrapper
of a distributed run.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import logging
import os
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detlab.checkpoint.detection_checkpoint import LAST_CHECKPOINT
from detlab.config.config import CfgNode
from detlab.config.constraints import LIMITS, check_config
from detlab.config.lazy import LazyConfig
from detlab.config.yaml_files import load_yaml
from detlab.engine import hooks
from detlab.engine.run_lock import lock_output_dir, user_of_output_dir
from detlab.utils import comm
from detlab.utils.collect_env import collect_env_info
from detlab.utils.devices import device_kind
from detlab.utils.env import seed_all_rng
from detlab.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detlab.utils.file_io import PathManager, check_replaceable, write_atomically
from detlab.utils.logger import setup_logger
from detlab.utils.optional import available
from detlab.utils.user_modules import import_user_modules

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["create_ddp_model", "default_setup", "default_writers", "without_ddp"]

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"


def default_setup(cfg: CfgNode | DictConfig, args: argparse.Namespace) -> None:
    """What comes first in every process: modules of the user's, output directory, logs, seeds.

    The log begins with the environment and the config; the config is also saved as ``config.yaml`` in the output
    directory. An evaluation does not replace the one of the training; a training keeps one that differs as
    ``config_1.yaml``, ``config_2.yaml`` ...

    Args:
        cfg: a yaml config, or a Python one with a ``train`` section. A relative output directory in it is made
            absolute when all this is done, even if it is frozen: what comes later writes to the same place, wherever
            the program goes. The saved config keeps what was given, and so can be used elsewhere.
        args: of the command line; what is missing in it counts as not given.

    Raises:
        OSError: nothing can be written to the output directory.
        OutputDirInUseError: another process trains into the output directory. From here on to the end of
            ``DefaultTrainer.train``, or of this process, no other can.
        ValueError: the config has values that its keys may not hold or that contradict each other, wants a GPU and
            there is none, or names a device that torch does not know; or there are folders in the output directory
            where files will be written.
    """
    import_user_modules(getattr(args, "imports", []))
    is_training = not getattr(args, "eval_only", False)
    if isinstance(cfg, CfgNode):
        check_config(cfg, training=is_training)
    _check_device(cfg)
    output_dir = _setting(cfg, "OUTPUT_DIR", "train.output_dir", "")
    rank = comm.get_rank()
    if output_dir and comm.is_main_process():
        _make_writable(output_dir)
        for name in _FILES_OF_TRAINING if is_training else _FILES_OF_EVALUATION:
            check_replaceable(os.path.join(output_dir, name))
    comm.synchronize()
    if is_training:
        # Before the files of a run that is going on are written to.
        lock_output_dir(output_dir)
    for name in ("fvcore", "detlab"):
        setup_logger(output_dir or None, distributed_rank=rank, name=name)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    if comm.is_main_process():
        if not is_training and output_dir and (user := user_of_output_dir(output_dir)):
            logger.warning(f"{output_dir} is in use by {user}; both will write to its log.txt and inference folder")
        _log_environment(cfg, args, output_dir)
    seed = _setting(cfg, "SEED", "train.seed", -1)
    seed_all_rng(None if seed < 0 else seed + rank)
    # Evaluation sees images of many sizes, and timing kernels for each takes longer than it saves.
    if is_training:
        torch.backends.cudnn.benchmark = _setting(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", False)
    _set_matmul_precision(cfg)
    if output_dir and "://" not in output_dir:
        _set_output_dir(cfg, os.path.abspath(output_dir))


def _set_output_dir(cfg: CfgNode | DictConfig, output_dir: str) -> None:
    if isinstance(cfg, CfgNode):
        is_frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.OUTPUT_DIR = output_dir
        if is_frozen:
            cfg.freeze()
        return
    from omegaconf import read_write

    with read_write(cfg.train):
        cfg.train.output_dir = output_dir


def _setting(cfg: CfgNode | DictConfig, yaml_key: str, lazy_key: str, default: Any) -> Any:
    """A setting by the name it has in either kind of config."""
    if isinstance(cfg, CfgNode):
        return cfg.get(yaml_key, default)
    from omegaconf import OmegaConf

    value = OmegaConf.select(cfg, lazy_key)
    return default if value is None else value


def _check_device(cfg: CfgNode | DictConfig) -> None:
    device = cfg.MODEL.DEVICE if isinstance(cfg, CfgNode) else _setting(cfg, "", "train.device", "cpu")
    name, cure = ("MODEL.DEVICE", "MODEL.DEVICE cpu")
    if not isinstance(cfg, CfgNode):
        name, cure = ("train.device", "train.device=cpu")
    if device_kind(device, name) == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} is {device!r} but torch finds no GPU; to run on the CPU, add {cure} to the command")


# What is written into the output directory, by the main process.
_FILES_OF_EVALUATION = (CONFIG_FILE, "log.txt")
_FILES_OF_TRAINING = (
    *_FILES_OF_EVALUATION,
    METRICS_FILE,
    LAST_CHECKPOINT,
    hooks.LAST_EVALUATION,
    "model_final.pth",
)


def _make_writable(output_dir: str) -> None:
    """Make a directory, and make sure before anything is computed that files can be written to it."""
    try:
        PathManager.mkdirs(output_dir)
        if "://" not in output_dir:
            tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise OSError(
            f"cannot write to the output directory {output_dir!r} ({error}); set OUTPUT_DIR to a directory that you "
            "may write to and whose disk has room"
        ) from error


def _log_environment(cfg: CfgNode | DictConfig, args: argparse.Namespace, output_dir: str) -> None:
    logger.info("Environment info:\n" + collect_env_info())
    logger.info(f"Command line arguments: {args}")
    text = cfg.dump() if isinstance(cfg, CfgNode) else LazyConfig.to_py(cfg)
    logger.info(f"Running with full config:\n{text}")
    if not output_dir:
        return
    path = os.path.join(output_dir, CONFIG_FILE)
    if getattr(args, "eval_only", False) and PathManager.isfile(path):
        return
    _save_config(cfg, path)


def _save_config(cfg: CfgNode | DictConfig, path: str) -> None:
    """Write the config; an earlier one that differs is kept beside it."""
    kept = _keep_earlier(path) if PathManager.isfile(path) else None
    if isinstance(cfg, CfgNode):
        with write_atomically(path, "w") as file:
            file.write(cfg.dump())
    else:
        LazyConfig.save(cfg, path)
    logger.info(f"Full config saved to {path}")
    if kept is None:
        return
    earlier = _read_bytes(kept)
    if earlier == _read_bytes(path):
        PathManager.rm(kept)
        return
    try:
        load_yaml(earlier.decode("utf-8"), path)
    except ValueError as error:
        logger.warning(f"The one that was there is damaged ({error}); nothing needs it, and it is kept as {kept}")
    else:
        logger.info(f"The one that was there differs; it is kept as {kept}")


def _keep_earlier(path: str) -> str:
    """Copy a config before it is replaced, so that a run which is killed meanwhile has lost nothing.

    As bytes: nothing is read from it, and one that is damaged is no reason to stop.
    """
    content = _read_bytes(path)
    kept = _free_path(os.path.dirname(path))
    with write_atomically(kept) as file:
        file.write(content)
    return kept


def _read_bytes(path: str) -> bytes:
    with PathManager.open(path, "rb") as file:
        return file.read()


def _free_path(output_dir: str) -> str:
    """The first of ``config_1.yaml``, ``config_2.yaml`` ... that is not there."""
    paths = (os.path.join(output_dir, f"config_{number}.yaml") for number in itertools.count(1))
    return next(path for path in paths if not PathManager.isfile(path))


def _set_matmul_precision(cfg: CfgNode | DictConfig) -> None:
    precision = _setting(cfg, "FLOAT32_PRECISION", "train.float32_precision", "")
    limit = LIMITS["FLOAT32_PRECISION"]
    if not limit.accepts(precision):
        name = "FLOAT32_PRECISION" if isinstance(cfg, CfgNode) else "train.float32_precision"
        raise ValueError(f"{name} must be {limit.describe()}, got {precision!r}")
    if precision:
        torch.set_float32_matmul_precision(precision)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the console, to ``metrics.json``, and to TensorBoard where it is installed.

    Args:
        output_dir: for the files.
        max_iter: iterations of the run, to estimate the time left.

    Raises:
        ValueError: ``output_dir`` is empty.
    """
    if not output_dir:
        raise ValueError(
            "OUTPUT_DIR is empty, so a training has nowhere to leave checkpoints and metrics; set it to a directory "
            "(in Python configs train.output_dir)"
        )
    PathManager.mkdirs(output_dir)
    writers: list[EventWriter] = [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, METRICS_FILE)),
    ]
    if available("tensorboard"):
        writers.append(TensorboardXWriter(output_dir))
    return writers


# Torch renames `broadcast_buffers`, and warns where the old name is used.
_BUFFERS_ARGUMENT = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap a model for a distributed run; with one process, give it back as it is.

    Args:
        model: on the device that this process uses.
        fp16_compression: exchange gradients in half precision.
        kwargs: for ``DistributedDataParallel``.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and next(model.parameters()).device.type == "cuda":
        kwargs["device_ids"] = [torch.cuda.current_device()]
    if "broadcast_buffers" in kwargs and _BUFFERS_ARGUMENT != "broadcast_buffers":
        kwargs[_BUFFERS_ARGUMENT] = kwargs.pop("broadcast_buffers")
    wrapped = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        wrapped.register_comm_hook(state=None, hook=fp16_compress_hook)
    return wrapped


def without_ddp(model: nn.Module) -> nn.Module:
    """The model that :func:`create_ddp_model` was given."""
    return model.module if isinstance(model, DistributedDataParallel) else model
