"""What most training and inference programs need: arguments, set-up, a trainer made from a config, a predictor.

A shop window, where programs look for these names; they are made in the files that are named here. Anything can be
left out and done by hand; ``tools/plain_train_net.py`` shows how little that is.
"""

from detlab.engine.command_line import config_from_args, default_argument_parser
from detlab.engine.predictor import DefaultPredictor
from detlab.engine.setup import create_ddp_model, default_setup, default_writers
from detlab.engine.trainer import DefaultTrainer, evaluate_only

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
