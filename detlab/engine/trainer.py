"""Training as a config describes it, and evaluation without training.

All of it can be done by hand; ``tools/plain_train_net.py`` shows how little that is.
"""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.config.config import CfgNode
from detlab.config.constraints import check_config
from detlab.data.build import build_detection_test_loader, build_detection_train_loader
from detlab.engine import hooks
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
from detlab.engine.inner_trainer import StepOfTrainer, seen_as_simple_trainer
from detlab.engine.run_lock import hold_output_dir
from detlab.engine.setup import create_ddp_model, default_writers, without_ddp
from detlab.engine.test_plan import (
    NO_EVALUATOR,
    check_test_side,
    config_for_evaluation,
    warn_of_weights_that_are_not_finite,
)
from detlab.engine.train_loop import HookBase, StepTrainer
from detlab.engine.train_plan import check_train_side
from detlab.engine.train_step import FullPrecision, MixedPrecision, TrainStep
from detlab.evaluation.build import build_evaluator
from detlab.evaluation.evaluator import DatasetEvaluator, inference_on_dataset
from detlab.evaluation.testing import print_csv_format, verify_results
from detlab.modeling.meta_arch.build import build_model
from detlab.solver.build import build_lr_scheduler, build_optimizer
from detlab.solver.lr_scheduler import LRMultiplier
from detlab.utils import comm
from detlab.utils.events import EventWriter
from detlab.utils.file_io import PathManager
from detlab.utils.logger import setup_logger

__all__ = ["DefaultTrainer", "evaluate_only"]

logger = logging.getLogger(__name__)


class DefaultTrainer(StepTrainer):
    """Training as a config describes it: the loop over a step that is built from the config.

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

    _last_eval_results: Mapping[str, Any] | None = None
    # Of those that the run left before it was resumed.
    _results_are_of_config = True

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
        arithmetic = MixedPrecision(model, _amp_precision(cfg)) if cfg.SOLVER.AMP.ENABLED else FullPrecision()
        self._one_step = TrainStep(model, data_loader, optimizer, arithmetic=arithmetic)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A proxy, so that the trainer is freed when its owner drops it.
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @property
    def _trainer(self) -> Any:
        """What runs the steps in the reference: this trainer as a :class:`SimpleTrainer`, or what was put there."""
        if not isinstance(self._one_step, StepOfTrainer):
            return seen_as_simple_trainer(self)
        self._one_step.tell(self.iter, self.max_iter)
        return self._one_step.trainer

    @_trainer.setter
    def _trainer(self, trainer: Any) -> None:
        if getattr(trainer, "__dict__", None) is not self.__dict__:
            self._one_step = StepOfTrainer(trainer, self._hooks)

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
        super()._begin_elsewhere(start_iter)
        if isinstance(self.scheduler, LRMultiplier):
            self.scheduler.last_epoch = start_iter
            set_rates(self.optimizer, self.scheduler)

    def state_dict(self) -> dict[str, Any]:
        """The base's, as ``_trainer`` that of the step, where the reference has it, and the text of the config."""
        state = super().state_dict()
        step = {**self._one_step.state_dict(), "iteration": state["iteration"]}
        return {**state, "_trainer": step, "config": self.cfg.dump()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; see :meth:`resume_or_load` for what counts if the config has changed."""
        changes = changed_settings(state_dict["config"], self.cfg) if "config" in state_dict else []
        # First, so that whoever is refused can see why.
        log_changes(changes, self.scheduler, state_dict["iteration"] + 1)
        refuse_changes(changes)
        built = group_settings(self.optimizer)
        with naming_changes(changes):
            self._one_step.load_state_dict(state_dict["_trainer"])
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
            results[name] = inference_on_dataset(without_ddp(model), loader, evaluator)
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
