"""Loggers: one line format for the console and a file for each process; messages that do not repeat; small tables."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from types import FrameType
from typing import Any

from tabulate import tabulate
from termcolor import colored

from detlab.utils.file_io import AppendedText, PathManager
from detlab.utils.folder_watch import follow

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

DATE_FORMAT = "%m/%d %H:%M:%S"
LINE_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


class _ConsoleFormatter(logging.Formatter):
    """The head of a line in green, the level of warnings and errors in red."""

    LEVEL_STYLES: dict[int, list[str]] = {logging.WARNING: ["blink"], logging.ERROR: ["blink", "underline"]}

    def __init__(self, color: bool, root_name: str, abbrev_name: str):
        super().__init__(LINE_FORMAT, DATE_FORMAT)
        self._color = color
        self._root_name = root_name
        self._abbrev_name = abbrev_name

    def format(self, record: logging.LogRecord) -> str:
        short_name = self._shorten(record.name)
        head = f"[{self.formatTime(record, self.datefmt)} {short_name}]: "
        styles = self.LEVEL_STYLES.get(min(record.levelno, logging.ERROR))
        level = record.levelname if styles else ""
        if self._color:
            # termcolor leaves the colours out by itself when the output is not a terminal or NO_COLOR is set.
            head = colored(head, "green")
            level = colored(level, "red", attrs=styles) if level else ""
        return head + (level + " " if level else "") + self._body(record)

    def _shorten(self, name: str) -> str:
        if name == self._root_name or name.startswith(self._root_name + "."):
            return self._abbrev_name + name[len(self._root_name) :]
        return name

    def _body(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _ConsoleHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stdout`` is at the moment, so that redirections made later take effect.

    Characters that the console cannot show are written as escapes.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def format(self, record: logging.LogRecord) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return super().format(record).encode(encoding, "backslashreplace").decode(encoding)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


class _FileHandler(logging.StreamHandler):
    """Appends to a file of :data:`PathManager`; each record is flushed, so that a killed run keeps its last words."""

    def __init__(self, path: str):
        folder = os.path.dirname(path)
        if folder:
            PathManager.mkdirs(folder)
        self._file = AppendedText(path)
        super().__init__(self._file)
        self.path = self._file.path
        follow(self)

    def reopen_if_gone(self) -> bool:
        """See :class:`~detlab.utils.folder_watch.OpenFile`."""
        self.acquire()
        try:
            return self._file.reopen_if_gone()
        finally:
            self.release()

    def close(self) -> None:
        self._file.close()
        super().close()


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detlab",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Gives a logger its level (debug) and handlers. Calling it again adds only what is missing.

    Args:
        output: a directory, which gets ``log.txt``, or a path that ends in ``.txt`` or ``.log``; None for no file.
            Ranks other than 0 append ``.rankN`` to the name.
        distributed_rank: the rank of this process. Only rank 0 writes to the console.
        color: colours on the console, when that is a terminal.
        name: of the logger; it takes the messages of all loggers below, ``name.*``.
        abbrev_name: stands in for ``name`` on the console.
        enable_propagation: also hand messages to the parent logger.
        configure_stdout: write to the console at all.

    Returns:
        The logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if configure_stdout and distributed_rank == 0 and not any(isinstance(h, _ConsoleHandler) for h in logger.handlers):
        console = _ConsoleHandler()
        console.setFormatter(_ConsoleFormatter(color, name, abbrev_name if abbrev_name is not None else name))
        logger.addHandler(console)
    if output is not None:
        _add_file(logger, _log_path(output, distributed_rank))
    return logger


def _log_path(output: str, rank: int) -> str:
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return path if rank == 0 else f"{path}.rank{rank}"


def _add_file(logger: logging.Logger, path: str) -> None:
    absolute = path if "://" in path else os.path.abspath(path)
    if any(isinstance(handler, _FileHandler) and handler.path == absolute for handler in logger.handlers):
        return
    handler = _FileHandler(path)
    handler.setFormatter(logging.Formatter(LINE_FORMAT, DATE_FORMAT))
    logger.addHandler(handler)


_times_seen: Counter[tuple] = Counter()
_last_logged: dict[tuple, float] = {}


def _calling_frame() -> FrameType:
    """The frame that called into this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    assert frame is not None
    return frame


def _place(frame: FrameType) -> tuple[str, int]:
    return frame.f_code.co_filename, frame.f_lineno


def _logger_for(name: str | None, frame: FrameType) -> logging.Logger:
    return logging.getLogger(name or frame.f_globals.get("__name__", "detlab"))


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | Collection[str] = "caller"
) -> None:
    """Logs only the first ``n`` times.

    Args:
        lvl: a level of :mod:`logging`.
        msg: the message.
        n: how often.
        name: of the logger; the calling module's by default.
        key: what makes two calls the same: ``"caller"`` (the line of code), ``"message"``, or both, as a tuple.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    unknown = set(keys) - {"caller", "message"}
    if unknown:
        raise ValueError(f"key={key!r}: {sorted(unknown)} is neither 'caller' nor 'message'")
    frame = _calling_frame()
    identity = ("first", _place(frame) if "caller" in keys else None, msg if "message" in keys else None)
    _times_seen[identity] += 1
    if _times_seen[identity] <= n:
        _logger_for(name, frame).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Logs the first and then every ``n``-th time that this line of code is reached.

    Args:
        lvl: a level of :mod:`logging`.
        msg: the message.
        n: the period.
        name: of the logger; the calling module's by default.
    """
    frame = _calling_frame()
    identity = ("every", _place(frame))
    if _times_seen[identity] % n == 0:
        _logger_for(name, frame).log(lvl, msg)
    _times_seen[identity] += 1


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Logs unless this line of code did so less than ``n`` seconds ago.

    Args:
        lvl: a level of :mod:`logging`.
        msg: the message.
        n: seconds.
        name: of the logger; the calling module's by default.
    """
    frame = _calling_frame()
    now = time.monotonic()
    if now - _last_logged.get(_place(frame), -float("inf")) >= n:
        _logger_for(name, frame).log(lvl, msg)
        _last_logged[_place(frame)] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """A table of one row, for a few results: the keys above, the values (three decimals) below."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
