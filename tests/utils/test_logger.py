"""One format, no duplicates, nothing lost."""

import io
import logging
import sys
import uuid

import pytest

from detlab.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger


@pytest.fixture
def name():
    unique = f"detlab_test_{uuid.uuid4().hex}"
    yield unique
    for handler in logging.getLogger(unique).handlers:
        handler.close()


def test_lines_go_to_the_console_and_the_file(tmp_path, capsys, name):
    logger = setup_logger(str(tmp_path), name=name, abbrev_name="dl")
    logging.getLogger(f"{name}.data").warning("two images are missing")
    logger.debug("details")
    console = capsys.readouterr().out.splitlines()
    file = (tmp_path / "log.txt").read_text().splitlines()
    assert "dl.data]: WARNING two images are missing" in console[0] and console[1].endswith("dl]: details")
    assert file[0].endswith(f"{name}.data WARNING: two images are missing") and len(file) == 2


def test_setting_up_twice_does_not_repeat_lines(tmp_path, capsys, name):
    for _ in range(2):
        logger = setup_logger(str(tmp_path / "run.log"), name=name)
    logger.info("once")
    assert capsys.readouterr().out.count("once") == 1
    assert (tmp_path / "run.log").read_text().count("once") == 1


def test_other_ranks_write_files_of_their_own_and_stay_silent(tmp_path, capsys, name):
    setup_logger(str(tmp_path / "deep" / "log.txt"), distributed_rank=1, name=name).info("hello")
    assert capsys.readouterr().out == ""
    assert "hello" in (tmp_path / "deep" / "log.txt.rank1").read_text()


def test_exceptions_are_written_with_their_traceback(tmp_path, capsys, name):
    logger = setup_logger(str(tmp_path), name=name)
    try:
        raise KeyError("lost")
    except KeyError:
        logger.exception("failed")
    assert "KeyError: 'lost'" in capsys.readouterr().out
    assert "KeyError: 'lost'" in (tmp_path / "log.txt").read_text()


def test_colours_are_for_terminals(capsys, name, monkeypatch):
    logger = setup_logger(name=name)
    logger.info("plain")
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    from termcolor import termcolor

    getattr(getattr(termcolor, "can_colorize", None), "cache_clear", lambda: None)()
    logger.info("colourful")
    assert "colourful" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_the_console_cannot_show_is_escaped_and_the_file_keeps_it(tmp_path, capfd, name, monkeypatch, encoding):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding, write_through=True))
    # The last one is what a name of a file that is no UTF-8 has.
    text = "übung ∞ 猫 \udcff"
    setup_logger(str(tmp_path), name=name).info(text)
    assert capfd.readouterr().err == ""
    assert shown.getvalue().decode(encoding).endswith(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    assert "übung ∞ 猫 \\udcff" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_folder_in_place_of_the_log_is_refused_with_the_cure(tmp_path, name):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(ValueError, match=r"log\.txt shall be written as a file, but a folder.*move it away"):
        setup_logger(str(tmp_path), name=name)


def test_messages_repeat_only_as_often_as_asked(caplog):
    caplog.set_level(logging.INFO)
    for i in range(7):
        log_first_n(logging.INFO, "first two", n=2, name="x")
        log_first_n(logging.INFO, f"text {i % 2}", name="x", key="message")
        log_every_n(logging.INFO, "every third", n=3, name="x")
        log_every_n_seconds(logging.INFO, "hourly", n=3600)
    counted = {text: caplog.messages.count(text) for text in set(caplog.messages)}
    assert counted == {"first two": 2, "text 0": 1, "text 1": 1, "every third": 3, "hourly": 1}
    assert {record.name for record in caplog.records} == {"x", __name__}


def test_a_key_of_place_and_text_tells_both_apart(caplog):
    caplog.set_level(logging.INFO)
    for text in ["a", "b", "a"]:
        log_first_n(logging.INFO, text, key=("caller", "message"), name="x")
    log_first_n(logging.INFO, "a", key=("caller", "message"), name="x")
    assert caplog.messages == ["a", "b", "a"]
    with pytest.raises(ValueError, match="neither 'caller' nor 'message'"):
        log_first_n(logging.INFO, "a", key="line")


def test_a_small_table_has_a_row_of_three_decimals():
    rows = create_small_table({"AP": 40.12345, "AP50": 60, "APs": float("nan")}).splitlines()
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == ["AP", "AP50", "APs"]
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == ["40.123", "60", "nan"]
