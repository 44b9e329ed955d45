#!/usr/bin/env python
"""The training of tools/train_net.py without trainer and hooks, on one page.

It takes the same arguments and ends with the same weights, bit by bit. It is here to be read and to be changed: where
the hooks are in your way, start from this file. What it leaves out: mixed precision, precise batch-norm statistics,
scaling by SOLVER.REFERENCE_WORLD_SIZE, times of steps, the look at the test side before training, and with --resume
the comparison of the config with the one of the checkpoint and an evaluation that was killed.
"""

from detlab.utils.threads import wait_asleep

wait_asleep()

import logging
import math

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.data.build import build_detection_test_loader, build_detection_train_loader
from detlab.data.loader import endless_batches
from detlab.engine.defaults import (
    config_from_args,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detlab.engine.interruption import watching_for_stop
from detlab.engine.launch import launch_from_args
from detlab.engine.train_step import seed_step
from detlab.evaluation.build import build_evaluator
from detlab.evaluation.evaluator import inference_on_dataset
from detlab.evaluation.testing import print_csv_format
from detlab.modeling.meta_arch.build import build_model
from detlab.solver.build import build_lr_scheduler, build_optimizer
from detlab.utils import comm
from detlab.utils.events import EventStorage

logger = logging.getLogger("detlab.plain_train_net")


def evaluate(cfg, model):
    """Results on each data set of DATASETS.TEST."""
    results = {}
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(cfg, name)
        results[name] = inference_on_dataset(model, loader, build_evaluator(cfg, name))
        if comm.is_main_process():
            print_csv_format(results[name])
    return results


def train(cfg, model, resume):
    """All iterations of the schedule, or those that are left of it."""
    optimizer = build_optimizer(cfg, model)
    loader = build_detection_train_loader(cfg)
    wrapped = create_ddp_model(model, broadcast_buffers=False)
    scheduler = build_lr_scheduler(cfg, optimizer)
    states = {"optimizer": optimizer, "scheduler": scheduler, "data_loader": loader}
    checkpointer = DetectionCheckpointer(wrapped, cfg.OUTPUT_DIR, **states)
    resume = resume and checkpointer.has_checkpoint()
    saved = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    start = saved["iteration"] + 1 if resume else 0
    step_seed = saved["step_seed"] if resume else comm.shared_random_seed()
    max_iter = cfg.SOLVER.MAX_ITER
    writers = default_writers(cfg.OUTPUT_DIR, max_iter) if comm.is_main_process() else []

    wrapped.train()
    with EventStorage(start) as storage, watching_for_stop() as stop:
        for iteration, batch in zip(range(start, max_iter), endless_batches(loader, start)):
            storage.iter = iteration
            seed_step(step_seed, iteration)
            losses = wrapped(batch)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()

            of_ranks = comm.all_gather({name: loss.item() for name, loss in losses.items()})
            if not all(math.isfinite(value) for values in of_ranks for value in values.values()):
                names = [item["file_name"] for item in batch]
                raise FloatingPointError(f"losses in iteration {iteration}: {of_ranks}; images of this rank: {names}")
            for name in losses:
                storage.put_scalar(name, sum(values[name] for values in of_ranks) / len(of_ranks))
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            optimizer.step()
            scheduler.step()

            last = iteration + 1 == max_iter
            if last or (iteration + 1) % 20 == 0:
                for writer in writers:
                    writer.write()
            stop.ask_all()
            if last or stop.of_all or (iteration + 1) % cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                name = "model_final" if last else f"model_{iteration:07d}"
                checkpointer.save(name, iteration=iteration, step_seed=step_seed)
            if stop.of_all:
                comm.synchronize()  # rank 0 has to be done with saving before others end
                stop.check()
            if not last and cfg.TEST.EVAL_PERIOD > 0 and (iteration + 1) % cfg.TEST.EVAL_PERIOD == 0:
                evaluate(cfg, model)
    for writer in writers:
        writer.close()


def main(args):
    """What every process runs; gives the results of the evaluation."""
    cfg = config_from_args(args)
    default_setup(cfg, args)
    model = build_model(cfg)
    logger.info(f"Model:\n{model}")
    if args.eval_only:
        DetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    else:
        train(cfg, model, args.resume)
    return evaluate(cfg, model)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch_from_args(main, arguments, device=config_from_args(arguments).MODEL.DEVICE)
