"""Training and inference programs: the loop, its hooks, trainers made from configs, starting of processes."""

from detlab.engine import hooks
from detlab.engine.command_line import config_from_args, default_argument_parser
from detlab.engine.hooks import (
    EVALUATION_HOOK_REGISTRY,
    HOOK_REGISTRY,
    AutogradProfiler,
    BestCheckpointer,
    CallbackHook,
    EvalHook,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
    PreciseBN,
    TorchMemoryStats,
    TorchProfiler,
)
from detlab.engine.interruption import StoppedBySignal
from detlab.engine.launch import DEFAULT_TIMEOUT, launch
from detlab.engine.predictor import DefaultPredictor
from detlab.engine.run_lock import OutputDirInUseError
from detlab.engine.setup import create_ddp_model, default_setup, default_writers
from detlab.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detlab.engine.trainer import DefaultTrainer, evaluate_only

__all__ = [
    "DEFAULT_TIMEOUT",
    "EVALUATION_HOOK_REGISTRY",
    "HOOK_REGISTRY",
    "AMPTrainer",
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "DefaultPredictor",
    "DefaultTrainer",
    "EvalHook",
    "HookBase",
    "IterationTimer",
    "LRScheduler",
    "OutputDirInUseError",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "SimpleTrainer",
    "StoppedBySignal",
    "TorchMemoryStats",
    "TorchProfiler",
    "TrainerBase",
    "config_from_args",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "evaluate_only",
    "hooks",
    "launch",
]
