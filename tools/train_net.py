#!/usr/bin/env python
"""Train or evaluate a model that a yaml config describes.

    python tools/train_net.py --config-file configs/quick_start/shapes_mask_rcnn.yaml
    python tools/train_net.py --config-file cfg.yaml --eval-only MODEL.WEIGHTS output/model_final.pth

Code of your own (data sets, models, hooks) comes in through ``--import``; see ``--help``. To change more than that,
derive from ``DefaultTrainer`` and use it as ``Trainer`` in a copy of this file.
"""

from detlab.utils.threads import wait_asleep

wait_asleep()

from detlab.engine.defaults import (
    DefaultTrainer,
    config_from_args,
    default_argument_parser,
    default_setup,
    evaluate_only,
)
from detlab.engine.launch import launch_from_args

Trainer = DefaultTrainer


def main(args):
    """What every process runs; gives the results of the evaluation."""
    cfg = config_from_args(args)
    default_setup(cfg, args)
    if args.eval_only:
        return evaluate_only(cfg, args.resume, Trainer)
    trainer = Trainer(cfg)
    trainer.resume_or_load(args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch_from_args(main, arguments, device=config_from_args(arguments).MODEL.DEVICE)
