"""What an evaluation will need, and where its results go, settled before anything is computed.

A typo in what concerns the evaluation should not come to light after days of training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from detlab.config.config import CfgNode
from detlab.config.nearest import did_you_mean
from detlab.data.stream import random_state_of
from detlab.engine.hooks import LAST_EVALUATION
from detlab.evaluation.evaluator import known_metric_names
from detlab.evaluation.testing import ExpectedResult, expected_results
from detlab.utils import comm
from detlab.utils.file_io import PathManager
from detlab.utils.finite import names_not_finite

__all__ = ["NO_EVALUATOR", "check_test_side", "config_for_evaluation", "warn_of_weights_that_are_not_finite"]

logger = logging.getLogger(__name__)

NO_EVALUATOR = (
    "{0}.build_evaluator gives none for data set {1!r}: nothing is measured on it; override it to change that"
)


def check_test_side(cfg: CfgNode, trainer_class: Any, is_test_overridden: bool) -> None:
    """Make sure that ``trainer_class.test(cfg, model)`` will find what it needs; all ranks must call it.

    Looks at ``TEST.EXPECTED_RESULTS``, and for each of ``DATASETS.TEST`` builds loader and evaluator, by the trainer's
    own methods, and drops them. Tasks and metrics that are expected must be among those of the evaluator, if it says
    which they are. No image is read, no worker started, and the state of the random generators stays as
    it is. Single settings are checked by :func:`detlab.config.constraints.check_config`.

    Args:
        cfg: of the run.
        trainer_class: with ``build_test_loader`` and ``build_evaluator``, as ``DefaultTrainer`` has them; a
            ``build_evaluator`` that raises ``NotImplementedError`` is a warning.
        is_test_overridden: its ``test`` is not the one that builds these. Then evaluators are left out, and a loader
            that fails is a warning.

    Raises:
        ValueError: a setting is wrong.
        Exception: whatever building a loader or an evaluator raises, after a line in the log that says of which set.
    """
    _check_expectations(cfg, is_test_overridden)
    with random_state_of(0, 0):
        for name in cfg.DATASETS.TEST:
            try:
                _try_out(cfg, trainer_class, name, is_test_overridden)
            except Exception as error:
                if not is_test_overridden:
                    logger.error(f"Found before anything is computed: {name!r} of DATASETS.TEST cannot be evaluated")
                    raise
                logger.warning(f"{name!r} of DATASETS.TEST cannot be loaded, if test() needs it: {error}")


def _try_out(cfg: CfgNode, trainer_class: Any, name: str, is_test_overridden: bool) -> None:
    # Not kept: a large data set would fill the memory all through training.
    trainer_class.build_test_loader(cfg, name)
    if is_test_overridden:
        return
    try:
        known = known_metric_names(trainer_class.build_evaluator(cfg, name))
    except NotImplementedError:
        logger.warning(NO_EVALUATOR.format(trainer_class.__name__, name))
        known = {}
    if known is not None:
        _check_names(expected_results(cfg), known, name)


def _check_names(expectations: Sequence[ExpectedResult], known: Mapping[str, Sequence[str]], dataset_name: str) -> None:
    """Refuses what an evaluation cannot give; metrics of single classes, with a ``-`` in their name, are let pass."""
    for task, metric, _, _ in expectations:
        if task not in known:
            what, names, asked = "tasks", list(known), task
        elif metric not in known[task] and "-" not in metric:
            what, names, asked = f"metrics of {task}", list(known[task]), metric
        else:
            continue
        raise ValueError(
            f"TEST.EXPECTED_RESULTS has {task!r}, {metric!r}, but the {what} on data set {dataset_name!r} are "
            f"{', '.join(names) or 'none'}{did_you_mean(asked, names)}"
        )


def _check_expectations(cfg: CfgNode, is_test_overridden: bool) -> None:
    expectations = expected_results(cfg)
    names = cfg.DATASETS.TEST
    if expectations and not is_test_overridden and len(names) != 1:
        raise ValueError(
            f"TEST.EXPECTED_RESULTS is compared with the results on one data set, but DATASETS.TEST is {list(names)}; "
            "name one, or leave TEST.EXPECTED_RESULTS empty"
        )


def config_for_evaluation(cfg: CfgNode, weights: str) -> CfgNode:
    """The config for evaluating weights without training them; all ranks must call it.

    Where a training has left the results of its own evaluation in ``OUTPUT_DIR``, it is one with another
    ``OUTPUT_DIR``, a folder in that one, and the log says which; else ``cfg`` itself.

    Args:
        cfg: frozen.
        weights: path of the file that is evaluated, which gives the folder its name; may be empty.
    """
    holds_results = bool(cfg.OUTPUT_DIR) and PathManager.isfile(os.path.join(cfg.OUTPUT_DIR, LAST_EVALUATION))
    if not comm.broadcast(holds_results):
        return cfg
    name = os.path.splitext(os.path.basename(weights.partition("?")[0]))[0] or "random_weights"
    own = cfg.clone()
    own.defrost()
    own.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, f"eval_{name}")
    own.freeze()
    logger.info(
        f"Results of this evaluation go to {own.OUTPUT_DIR}/inference: {cfg.OUTPUT_DIR}/inference holds those of a "
        "training"
    )
    return own


def warn_of_weights_that_are_not_finite(model: nn.Module) -> None:
    """Names the parameters and statistics of normalisation that hold an infinity or no number, if there are any."""
    if wrong := names_not_finite(model):
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        logger.warning(f"weights that are not finite are evaluated: {shown}; the results mean nothing")
