"""Results of an evaluation: printed for spreadsheets, flattened for metric writers, compared with expectations."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task as comma-separated lines, to be pasted into a spreadsheet.

    Every line begins with ``copypaste:``, so that ``grep`` finds it in a log. Metrics with a ``-`` in their name
    (those of single categories) are left out.

    Raises:
        TypeError: ``results`` is no mapping of task names.
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results must map task names to metrics; got {type(results).__name__}: {results!r}")
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(main))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))


class ExpectedResult(NamedTuple):
    """An entry of ``TEST.EXPECTED_RESULTS``."""

    task: str
    metric: str
    value: float
    tolerance: float


def expected_results(cfg) -> list[ExpectedResult]:
    """``cfg.TEST.EXPECTED_RESULTS``: entries ``[task, metric, expected value, tolerance]``.

    Raises:
        ValueError: an entry that has not this form, with a finite value and a tolerance of 0 or more.
    """
    return [_parsed(entry) for entry in cfg.TEST.EXPECTED_RESULTS]


def _parsed(entry) -> ExpectedResult:
    try:
        task, metric, value, tolerance = entry
        parsed = ExpectedResult(task, metric, float(value), float(tolerance))
        is_well_formed = isinstance(task, str) and isinstance(metric, str) and math.isfinite(parsed.value)
    except (TypeError, ValueError):
        is_well_formed = False
    if not is_well_formed or not parsed.tolerance >= 0:
        raise ValueError(
            f"{entry!r} in TEST.EXPECTED_RESULTS is not of the form [task, metric, expected value, tolerance], "
            "as in ['bbox', 'AP', 38.5, 0.2]"
        )
    return parsed


def verify_results(cfg, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS``: entries ``[task, metric, expected value, tolerance]``.

    Returns:
        True when every metric is within its tolerance, and when nothing is expected.

    Raises:
        SystemExit: a metric is missing, not finite, or too far off; with status 1, so that a script stops.
        ValueError: an entry that has not this form.
    """
    expectations = expected_results(cfg)
    if not expectations:
        return True
    failures = [text for expected in expectations if (text := _failure(expected, results)) is not None]
    if failures:
        logger.error("Result verification failed!")
        for text in failures:
            logger.error(text)
        logger.error("Expected results: " + pprint.pformat([list(entry) for entry in expectations]))
        logger.error("Actual results: " + pprint.pformat(results))
        sys.exit(1)
    logger.info("Results verification passed.")
    return True


def _failure(expected: ExpectedResult, results: Mapping[str, Mapping[str, float]]) -> str | None:
    task, metric, value, tolerance = expected
    metrics = results.get(task)
    if not isinstance(metrics, Mapping):
        return f"{task}/{metric}: no results for task {task!r}; there are {sorted(results)}"
    if metric not in metrics:
        return f"{task}/{metric}: no such metric; there are {sorted(metrics)}"
    actual = float(metrics[metric])
    if not math.isfinite(actual) or abs(actual - value) > tolerance:
        return f"{task}/{metric}: {actual} is not within {tolerance} of {value}"
    return None


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{"bbox": {"AP": 1.0}}`` becomes ``{"bbox/AP": 1.0}``, to any depth."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update((f"{key}/{inner}", number) for inner, number in flatten_results_dict(value).items())
        else:
            flat[key] = value
    return flat
