"""What most training and inference programs need: arguments, set-up, a trainer made from a config, a predictor.

Anything here can be left out and done by hand; ``tools/plain_train_net.py`` shows how little that is.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import logging
import os
import re
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detlab.checkpoint.detection_checkpoint import LAST_CHECKPOINT, DetectionCheckpointer
from detlab.config.config import CfgNode, get_cfg
from detlab.config.constraints import LIMITS, check_config
from detlab.config.lazy import LazyConfig
from detlab.config.yaml_files import load_yaml
from detlab.data.build import build_detection_test_loader, build_detection_train_loader
from detlab.data.catalog import MetadataCatalog
from detlab.data.transforms.augmentation_impl import ResizeShortestEdge
from detlab.engine import hooks
from detlab.engine.command_line import SettingsParser
from detlab.engine.config_changes import (
    apply_solver_changes,
    changed_settings,
    changes_results,
    group_settings,
    log_changes,
    naming_changes,
    refuse_changes,
    set_rates,
)
from detlab.engine.run_lock import hold_output_dir, lock_output_dir, user_of_output_dir
from detlab.engine.test_plan import (
    NO_EVALUATOR,
    check_test_side,
    config_for_evaluation,
    warn_of_weights_that_are_not_finite,
)
from detlab.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detlab.engine.train_plan import check_train_side
from detlab.evaluation.build import build_evaluator
from detlab.evaluation.evaluator import DatasetEvaluator, inference_on_dataset
from detlab.evaluation.testing import print_csv_format, verify_results
from detlab.modeling.meta_arch.build import build_model
from detlab.solver.build import build_lr_scheduler, build_optimizer
from detlab.solver.lr_scheduler import LRMultiplier
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

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "config_from_args",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "evaluate_only",
]

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"

# --------------------------------------------------------------------------------------------- start of a program

_EXAMPLES = """examples:
  one GPU, or the CPU with MODEL.DEVICE cpu
      $ {program} --config-file cfg.yaml
  change settings
      $ {program} --config-file cfg.yaml SOLVER.BASE_LR 0.01 MODEL.WEIGHTS model.pth
  go on with a run that was stopped
      $ {program} --config-file cfg.yaml --resume
  your own datasets, models and hooks
      $ {program} --import my_project.py --config-file cfg.yaml
  eight GPUs
      $ {program} --num-gpus 8 --config-file cfg.yaml
  two machines
      machine0$ {program} --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://machine0:29500 ...
      machine1$ {program} --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://machine0:29500 ...
  under torchrun, which says the number of processes itself
      $ torchrun --nproc-per-node 8 {program} --config-file cfg.yaml
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of the training tools: flags and settings, in any order.

    Args:
        epilog: shown at the end of the help, in place of examples.
    """
    parser = SettingsParser(
        epilog=epilog or _EXAMPLES.format(program=os.path.basename(sys.argv[0])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        settings_help="settings to change: 'KEY VALUE' pairs, for Python configs 'path.key=value'",
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config to start from")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="do not train, evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python code to load before the config is read, in every process; may be given several times",
    )
    parser.add_argument(
        "--num-gpus", type=_from(0), default=1, help="processes on each machine, one for each GPU; 0 is one on the CPU"
    )
    parser.add_argument("--num-machines", type=_from(1), default=1)
    parser.add_argument("--machine-rank", type=_from(0), default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="where the processes meet, tcp://host:port; 'auto' takes a free port of this machine",
    )
    return parser


def _from(lowest: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``lowest`` on."""

    def read(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number from {lowest} on, got {text!r}")
        return int(text)

    return read


def config_from_args(args: argparse.Namespace) -> CfgNode:
    """The frozen config that the arguments of :func:`default_argument_parser` describe.

    Loads the modules of ``--import`` first, so that what they register is there.
    """
    import_user_modules(args.imports)
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


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


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


# -------------------------------------------------------------------------------------------------------- training


class DefaultTrainer(TrainerBase):
    """Training as a config describes it.

    Override the ``build_*`` methods to change a part. A hook is added by ``register_hooks``, in ``build_hooks``, or
    from outside through ``detlab.engine.hooks.HOOK_REGISTRY``.

    Args:
        cfg: a frozen copy is kept as ``self.cfg``; the one given is not changed.

    Attributes:
        cfg: the config in use, scaled to the number of processes (see :meth:`auto_scale_workers`).
        checkpointer: saves and loads the model and the state of this trainer.
        scheduler: of the learning rate.
        start_iter, max_iter: the iterations to run; hooks may change ``max_iter``, see :class:`TrainerBase`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logger.isEnabledFor(logging.INFO):
            setup_logger()
        check_config(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size()).clone()
        cfg.freeze()
        check_train_side(cfg, type(self), DefaultTrainer)
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = self._build_step(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A proxy, so that the trainer is freed when its owner drops it.
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._last_eval_results: Mapping[str, Any] | None = None
        # Of those that the run left before it was resumed.
        self._results_are_of_config = True
        self.register_hooks(self.build_hooks())

    def _build_step(self, model: nn.Module, data_loader: Iterable[Any], optimizer: torch.optim.Optimizer):
        """The object whose ``run_step`` is a step of this trainer."""
        if self.cfg.SOLVER.AMP.ENABLED:
            step: SimpleTrainer = AMPTrainer(model, data_loader, optimizer, precision=_amp_precision(self.cfg))
        else:
            step = SimpleTrainer(model, data_loader, optimizer)
        own = weakref.proxy(self)
        step.register_hooks([hooks.CallbackHook(after_backward=lambda _: own.after_backward())])
        return step

    @property
    def model(self) -> nn.Module:
        """The model that is trained, wrapped in a distributed run."""
        return self._trainer.model

    @property
    def data_loader(self) -> Iterable[Any]:
        """Where the batches come from."""
        return self._trainer.data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What changes the weights."""
        return self._trainer.optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, if ``resume`` and there is one; else load the weights.

        In the first case everything comes from the checkpoint: weights, optimizer, iteration, random seeds, position
        in the data. Of the settings, those in use count where they differ from the ones saved, the learning rate and
        its schedule among them, and the log lists them; but the seed stays the saved one. In the second case, only the
        weights of ``MODEL.WEIGHTS`` are loaded.

        Raises:
            ValueError: the state in the checkpoint cannot be that of this config: the optimizer is another one, or
                parameters have other shapes.
        """
        resumes = resume and self.checkpointer.has_checkpoint()
        if resume and not resumes:
            self._refuse_to_replace_checkpoints()
        if not resume and self.checkpointer.has_checkpoint():
            logger.warning(
                f"{self.cfg.OUTPUT_DIR} has checkpoints of an earlier run, which this one will replace; "
                "to go on with that run instead, add --resume"
            )
        # Loading the state of the trainer sets the iteration that was done when it was saved.
        self.iter = -1
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resumes and self.iter < 0:
            logger.warning("the last checkpoint holds no state of a trainer: its weights are used from iteration 0 on")
        self.start_iter = self.iter + 1 if resumes else 0

    def _refuse_to_replace_checkpoints(self) -> None:
        """A run that is to go on, and cannot tell from where, must not begin anew over what it had saved."""
        if not PathManager.isdir(self.cfg.OUTPUT_DIR):
            return
        names = sorted(os.path.basename(path) for path in self.checkpointer.get_all_checkpoint_files())
        names = [name for name in names if re.fullmatch(r"model_(\d+|final)\.pth", name)]
        if names:
            raise FileNotFoundError(
                f"{self.cfg.OUTPUT_DIR} has checkpoints ({', '.join(names[-5:])}) but no last_checkpoint, so there "
                "is no telling from which to go on: write the name of one into it, or start without --resume"
            )

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks, in the order in which they run; each stands where it does for a reason."""
        cfg = self.cfg
        is_main = comm.is_main_process()
        # No cycle, so that whoever drops the trainer frees its model and its data workers.
        own = weakref.proxy(self)
        return [
            # First, so that it measures steps and not hooks.
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            # Before checkpoints and evaluations, which are to see true statistics.
            self._build_precise_bn() if cfg.TEST.PRECISE_BN.ENABLED else None,
            # The user's; before checkpoints, which save their states.
            *hooks.registered_hooks(hooks.HOOK_REGISTRY, self),
            # Before the evaluation: should that fail, the checkpoint is there.
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if is_main else None,
            hooks.EvalHook(
                cfg.TEST.EVAL_PERIOD,
                lambda: own._test_and_remember(),
                record_file=self._evaluation_record(),
                accept_known=lambda results: own._remember_if_valid(results),
            ),
            *hooks.registered_hooks(hooks.EVALUATION_HOOK_REGISTRY, self),
            # Last, so that what the others have put is written in the same iteration.
            hooks.PeriodicWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def _build_precise_bn(self) -> HookBase:
        # Workers of a second loader would hold memory all through training for a few batches now and then.
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.freeze()
        num_batches = cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), num_batches)

    def _evaluation_record(self) -> str | None:
        return os.path.join(self.cfg.OUTPUT_DIR, hooks.LAST_EVALUATION) if self.cfg.OUTPUT_DIR else None

    def _test_and_remember(self) -> Mapping[str, Any] | None:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _remember_if_valid(self, results: Mapping[str, Any]) -> bool:
        """Take the results of an evaluation before this run was resumed, if they are those of this config."""
        if not self._results_are_of_config:
            return False
        self._last_eval_results = results if comm.is_main_process() else None
        return True

    def build_writers(self) -> list[EventWriter]:
        """What the metrics are written to; see :func:`default_writers`."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Mapping[str, Any] | None:  # type: ignore[override]
        """Run all iterations, after a look at what the evaluation will need.

        Called again, it runs from ``start_iter`` to ``max_iter`` once more, with the weights and the optimizer as they
        are; both may be set before. A schedule whose rates follow from the iteration begins again as well.

        Returns:
            On the main process the results of the last evaluation, if there was one.

        Raises:
            OutputDirInUseError: another process trains into ``OUTPUT_DIR``.
            Exception: before the first iteration, whatever an evaluation would raise for want of a data set, a file,
                an evaluator or a valid setting; see :func:`detlab.engine.test_plan.check_test_side`.
            SystemExit: results are not as ``TEST.EXPECTED_RESULTS`` says, or a signal ended training, see
                :meth:`TrainerBase.train`.
        """
        with hold_output_dir(self.cfg.OUTPUT_DIR):
            _check_test_side(self.cfg, type(self))
            super().train(self.start_iter, self.max_iter)
        if not comm.is_main_process():
            return None
        if len(self.cfg.TEST.EXPECTED_RESULTS):
            verify_results(self.cfg, self._last_eval_results or {})
        return self._last_eval_results

    def _begin_elsewhere(self, start_iter: int) -> None:
        self._trainer._begin_elsewhere(start_iter)
        if isinstance(self.scheduler, LRMultiplier):
            self.scheduler.last_epoch = start_iter
            set_rates(self.optimizer, self.scheduler)

    def before_step(self) -> None:
        """Tell the inner trainer the iteration, also for a ``run_step`` of one's own; then call the hooks."""
        self._trainer.iter, self._trainer.max_iter = self.iter, self.max_iter
        super().before_step()

    def run_step(self) -> None:
        """A step of the inner :class:`SimpleTrainer` or :class:`AMPTrainer`."""
        self._trainer.run_step()

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """That of the inner trainer, for a ``run_step`` of one's own; see :meth:`SimpleTrainer._write_metrics`."""
        self._trainer._write_metrics(loss_dict, data_time, prefix, iter)

    def after_train(self) -> None:
        """Write the metrics that are left, then call the hooks."""
        try:
            if self.iter >= self.max_iter:
                self.flush_metrics()
        finally:
            super().after_train()

    def flush_metrics(self) -> None:
        """Write what the inner trainer has kept back of the metrics; all ranks must call it."""
        self._trainer.flush_metrics()

    def state_dict(self) -> dict[str, Any]:
        """The base's, with that of the inner trainer, and the text of the config."""
        state = super().state_dict()
        inner = {**self._trainer.state_dict(), "iteration": state["iteration"]}
        return {**state, "_trainer": inner, "config": self.cfg.dump()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; see :meth:`resume_or_load` for what counts if the config has changed."""
        changes = changed_settings(state_dict["config"], self.cfg) if "config" in state_dict else []
        # First, so that whoever is refused can see why.
        log_changes(changes, self.scheduler, state_dict["iteration"] + 1)
        refuse_changes(changes)
        built = group_settings(self.optimizer)
        with naming_changes(changes):
            self._trainer.load_state_dict(state_dict["_trainer"])
        super().load_state_dict(state_dict)
        apply_solver_changes(changes, built, self.optimizer, self.scheduler)
        self._results_are_of_config = not changes_results(changes)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, on its device."""
        model = build_model(cfg)
        if comm.is_main_process():
            logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See ``detlab.solver.build_optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """See ``detlab.solver.build_lr_scheduler``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """An endless iterable of batches; see ``detlab.data.build_detection_train_loader``."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """An iterable over the batches of a data set; see ``detlab.data.build_detection_test_loader``."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | list[DatasetEvaluator] | None:
        """The evaluator that fits the kind of the data set; see ``detlab.evaluation.build.build_evaluator``."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate on each of ``cfg.DATASETS.TEST``; all ranks must call it.

        Args:
            cfg: the config.
            model: as ``build_model`` gives it, perhaps wrapped for a distributed run.
            evaluators: one for each data set; by default they are built. A data set for which ``build_evaluator``
                raises ``NotImplementedError`` is left out, with a warning.

        Returns:
            On the main process: task -> metric -> number, for several data sets in a dict under their names.
        """
        names = cfg.DATASETS.TEST
        if evaluators is not None:
            evaluators = [evaluators] if isinstance(evaluators, DatasetEvaluator) else list(evaluators)
            if len(evaluators) != len(names):
                raise ValueError(
                    f"{len(evaluators)} evaluators for the {len(names)} data sets of DATASETS.TEST {names}"
                )
        warn_of_weights_that_are_not_finite(model)
        results: dict[str, Any] = {}
        for position, name in enumerate(names):
            loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = evaluators[position] if evaluators is not None else cls.build_evaluator(cfg, name)
            except NotImplementedError:
                logger.warning(NO_EVALUATOR.format(cls.__name__, name))
                results[name] = {}
                continue
            results[name] = inference_on_dataset(_without_ddp(model), loader, evaluator)
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """The config for another number of processes than ``SOLVER.REFERENCE_WORLD_SIZE``, which it was made for.

        Batch size and learning rate grow with the number of processes; the lengths and periods of the schedule
        shrink, so that as many images are seen (Goyal et al. 2017, "Accurate, Large Minibatch SGD").

        Args:
            cfg: given back itself if nothing changes: the reference is 0, or equals ``num_workers``.
            num_workers: processes in this run.

        Returns:
            A frozen config whose ``REFERENCE_WORLD_SIZE`` is ``num_workers``, so that scaling twice does nothing.

        Raises:
            ValueError: the batch cannot be divided among the reference's processes.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is not a multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}; set one of them so that it is"
            )
        factor = num_workers / reference
        cfg = cfg.clone()
        cfg.defrost()
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = solver.IMS_PER_BATCH // reference * num_workers
        solver.BASE_LR *= factor
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / factor)
        solver.STEPS = tuple(round(step / factor) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / factor)
        solver.REFERENCE_WORLD_SIZE = num_workers
        cfg.freeze()
        logger.info(
            f"Config scaled from {reference} to {num_workers} processes: batch size {solver.IMS_PER_BATCH}, "
            f"learning rate {solver.BASE_LR}, max_iter {solver.MAX_ITER}, warm-up {solver.WARMUP_ITERS}, "
            f"steps {solver.STEPS}"
        )
        return cfg


def _amp_precision(cfg: CfgNode) -> torch.dtype:
    """Of a config that was checked."""
    name = cfg.SOLVER.AMP.PRECISION or ("bfloat16" if torch.device(cfg.MODEL.DEVICE).type == "cpu" else "float16")
    return getattr(torch, name)


def _check_test_side(cfg: CfgNode, trainer_class: type[DefaultTrainer]) -> None:
    is_overridden = getattr(trainer_class.test, "__func__", None) is not DefaultTrainer.test.__func__  # type: ignore[attr-defined]
    check_test_side(cfg, trainer_class, is_overridden)


def evaluate_only(cfg: CfgNode, resume: bool = False, trainer_class: type[DefaultTrainer] = DefaultTrainer):
    """Evaluate ``MODEL.WEIGHTS``, or the last checkpoint of ``OUTPUT_DIR`` if ``resume``, without training.

    Files of results go to ``OUTPUT_DIR/inference``; if a training has left those of its own evaluation there, to
    ``OUTPUT_DIR/eval_<name of the weights>/inference``.

    Returns:
        The results, see :meth:`DefaultTrainer.test`.

    Raises:
        ValueError: ``DATASETS.TEST`` is empty.
        SystemExit: results are not as ``TEST.EXPECTED_RESULTS`` says.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("there is nothing to evaluate on: DATASETS.TEST is empty; name a registered data set in it")
    _check_test_side(cfg, trainer_class)
    model = trainer_class.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        logger.warning(
            "evaluating random weights: MODEL.WEIGHTS is empty; set it to a checkpoint, or add --resume to take the "
            f"last one of {cfg.OUTPUT_DIR}"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    weights = (checkpointer.get_checkpoint_file() if resume else "") or cfg.MODEL.WEIGHTS
    results = trainer_class.test(config_for_evaluation(cfg, weights), model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


# ------------------------------------------------------------------------------------------------------- inference


class DefaultPredictor:
    """Detection in one image at a time, as a config describes it, with ``MODEL.WEIGHTS`` loaded.

    For many images, or for speed, call the model with batches instead.

    Args:
        cfg: kept as a frozen copy.

    Attributes:
        metadata: of the first data set of ``DATASETS.TEST``, for drawing; only there if that is not empty.

    Example::

        predictor = DefaultPredictor(cfg)
        outputs = predictor(cv2.imread("image.jpg"))
    """

    def __init__(self, cfg: CfgNode) -> None:
        check_config(cfg, training=False)
        self.cfg = cfg.clone()
        self.cfg.freeze()
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"DefaultPredictor handles INPUT.FORMAT 'RGB' and 'BGR', got {cfg.INPUT.FORMAT!r}")
        self.input_format = cfg.INPUT.FORMAT
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Detect.

        Args:
            original_image: (H, W, 3) array of BGR pixels, as ``cv2.imread`` gives them.

        Returns:
            The model's outputs for this image, such as ``{"instances": Instances}``, in the image's coordinates.

        Raises:
            TypeError: no array was given.
            ValueError: an array of another shape.
        """
        if not isinstance(original_image, np.ndarray):
            raise TypeError(
                f"DefaultPredictor needs an (H, W, 3) numpy array, got {type(original_image).__name__}"
                + (" (cv2.imread gives None for a file that it cannot read)" if original_image is None else "")
            )
        if original_image.ndim != 3 or original_image.shape[2] != 3 or 0 in original_image.shape:
            raise ValueError(f"DefaultPredictor needs an (H, W, 3) BGR image, got shape {original_image.shape}")
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        resized = self.aug.get_transform(image).apply_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
        with torch.no_grad():
            return self.model([{"image": pixels, "height": height, "width": width}])[0]
