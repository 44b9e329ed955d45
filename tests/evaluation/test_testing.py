"""Results printed, flattened, and compared with expectations."""

import logging

import pytest

from detlab.config.config import get_cfg
from detlab.evaluation.testing import expected_results, flatten_results_dict, print_csv_format, verify_results

RESULTS = {"bbox": {"AP": 38.51234, "AP50": 59.0, "AP-cat": 1.0}}


def expecting(*entries):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [list(entry) for entry in entries]
    return cfg


def test_main_metrics_are_printed_for_pasting(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({**RESULTS, "note": 3})
    assert caplog.messages == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 38.5123,59.0000",
        "copypaste: note=3",
    ]


def test_what_is_no_mapping_cannot_be_printed():
    with pytest.raises(TypeError, match="list"):
        print_csv_format([1])


def test_results_within_tolerance_pass():
    assert verify_results(expecting(("bbox", "AP", 38.5, 0.05)), RESULTS) is True
    assert verify_results(get_cfg(), {}) is True


@pytest.mark.parametrize(
    "entry, sentence",
    [
        (("bbox", "AP", 38.0, 0.2), "bbox/AP: 38.51234 is not within 0.2 of 38.0"),
        (("bbox", "AP75", 38.0, 0.2), "no such metric"),
        (("segm", "AP", 38.0, 0.2), "no results for task 'segm'"),
    ],
)
def test_a_failure_is_said_and_ends_the_program(caplog, entry, sentence):
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        verify_results(expecting(("bbox", "AP50", 59.0, 0.1), entry), RESULTS)
    assert ended.value.code == 1
    assert "Result verification failed!" in caplog.text and sentence in caplog.text


def test_nan_is_never_as_expected():
    with pytest.raises(SystemExit):
        verify_results(expecting(("bbox", "AP", 38.0, 100.0)), {"bbox": {"AP": float("nan")}})


@pytest.mark.parametrize(
    "entry",
    [("bbox", "AP", 38.0), ("bbox", "AP", float("nan"), 1.0), ("bbox", "AP", 1.0, -1.0), (1, "AP", 1.0, 1.0)],
)
def test_a_malformed_expectation_is_named(entry):
    with pytest.raises(ValueError, match=r"\[.*\] in TEST\.EXPECTED_RESULTS.*tolerance"):
        expected_results(expecting(entry))


def test_expectations_come_with_names():
    (expected,) = expected_results(expecting(("bbox", "AP", 38, 0.5)))
    assert expected == ("bbox", "AP", 38.0, 0.5) and expected.tolerance == 0.5


def test_nested_results_are_flattened_with_slashes():
    assert flatten_results_dict({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a/b/c": 1, "a/d": 2, "e": 3}
