#!/usr/bin/env python
"""Train or evaluate a model that a Python config describes.

    python tools/lazyconfig_train_net.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.py \
        dataloader.train.total_batch_size=8 optimizer.lr=0.01

A config has these nodes: ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` (with ``train``, ``test`` and
``evaluator``), and ``train``, whose keys stand with their explanations in configs/common/train.py.

A config in yaml, such as the config.yaml that a run saves, is data: it may name parts of detlab, layers and optimizers
of torch, and what the modules given to --import define or register.
"""

from detlab.utils.threads import wait_asleep

wait_asleep()

import os

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.config.instantiate import instantiate
from detlab.config.lazy import LazyConfig
from detlab.data.stream import random_state_of
from detlab.engine import hooks
from detlab.engine.defaults import create_ddp_model, default_argument_parser, default_setup, default_writers
from detlab.engine.launch import launch_from_args
from detlab.engine.train_loop import AMPTrainer, SimpleTrainer
from detlab.evaluation.evaluator import inference_on_dataset
from detlab.evaluation.testing import print_csv_format
from detlab.modeling.meta_arch.build import instantiate_model
from detlab.utils import comm
from detlab.utils.user_modules import import_user_modules

NODES = ("model", "optimizer", "lr_multiplier", "dataloader", "train")


def read_config(args):
    """The config with its overrides, after the user's modules are loaded."""
    import_user_modules(args.imports)
    if not args.config_file:
        raise ValueError("there is no config: name a Python config with --config-file")
    cfg = LazyConfig.load(args.config_file)
    missing = [name for name in NODES if name not in cfg]
    if missing and any(name.isupper() for name in cfg):
        raise ValueError(f"{args.config_file} has settings for tools/train_net.py, which takes it; this tool does not")
    if missing:
        raise ValueError(f"{args.config_file} has no {', '.join(missing)}; a config here has {', '.join(NODES)}")
    return LazyConfig.apply_overrides(cfg, args.opts)


def evaluate(cfg, model):
    """Results on the test set, or None for a config without an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return None
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def check_test_side(cfg):
    """Builds what the evaluation will need and drops it, before training rather than after."""
    if "evaluator" in cfg.dataloader:
        with random_state_of(0, 0):
            instantiate(cfg.dataloader.test)
            instantiate(cfg.dataloader.evaluator)


def build_trainer(cfg, model):
    """The trainer, not yet with hooks."""
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer_class = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = trainer_class(create_ddp_model(model, **cfg.train.ddp), loader, optimizer)
    # For registered hooks that look into the config.
    trainer.cfg = cfg
    return trainer


def build_hooks(cfg, model, trainer, checkpointer):
    """The hooks, in the order in which they run."""
    is_main = comm.is_main_process()
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        *hooks.registered_hooks(hooks.HOOK_REGISTRY, trainer),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
        hooks.EvalHook(
            cfg.train.eval_period,
            lambda: evaluate(cfg, model),
            record_file=os.path.join(cfg.train.output_dir, hooks.LAST_EVALUATION),
        ),
        *hooks.registered_hooks(hooks.EVALUATION_HOOK_REGISTRY, trainer),
        hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period)
        if is_main
        else None,
    ]


def train(cfg, model, resume):
    """All iterations of the schedule, or those that are left of it."""
    trainer = build_trainer(cfg, model)
    checkpointer = DetectionCheckpointer(trainer.model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(build_hooks(cfg, model, trainer, checkpointer))
    resume = resume and checkpointer.has_checkpoint()
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    check_test_side(cfg)
    trainer.train(trainer.iter + 1 if resume else 0, cfg.train.max_iter)


def main(args):
    """What every process runs."""
    cfg = read_config(args)
    default_setup(cfg, args)
    model = instantiate_model(cfg)
    if not args.eval_only:
        return train(cfg, model, args.resume)
    DetectionCheckpointer(model, cfg.train.output_dir).resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    return evaluate(cfg, model)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch_from_args(main, arguments, device=read_config(arguments).train.device)
