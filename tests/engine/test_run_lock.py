"""One training at a time in an output directory: who is refused, and what ends a lock."""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import portalocker
import pytest

from detlab.config.config import get_cfg
from detlab.engine import run_lock
from detlab.engine.defaults import default_setup
from detlab.engine.hooks import CallbackHook, PeriodicWriter
from detlab.engine.run_lock import (
    OutputDirInUseError,
    hold_output_dir,
    lock_output_dir,
    unlock_output_dir,
    user_of_output_dir,
)
from detlab.engine.train_loop import HookBase
from detlab.utils.logger import setup_logger
from tests.engine.toys import ToyTrainer, toy_cfg

HOLD = r"""
import os, sys, time
from detlab.engine.run_lock import lock_output_dir
lock_output_dir(sys.argv[1])
if "fork" in sys.argv and os.fork() == 0:
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(100)
os.write(1, b"holds\n")
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """``holder(*arguments)`` starts another process that holds the folder; all are gone afterwards."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _unlocked(tmp_path):
    yield
    unlock_output_dir(str(tmp_path))


def note_of(folder, seconds_ago=0.0, **changes):
    """Writes what a holder leaves that no lock protects."""
    file = folder / run_lock.FILE_NAME
    note = {"host": "elsewhere", "machine": "another", "pid": 7, "started": "2026-01-31 12:00:00", "command": "train"}
    file.write_text(json.dumps({**note, **changes}), encoding="utf-8")
    os.utime(file, (time.time() - seconds_ago,) * 2)


def test_a_second_process_is_refused_and_told_who_and_where(tmp_path, holder):
    process = holder()
    assert process.stdout.readline() == "holds\n"
    (tmp_path / ".model.pth.host.1.00.partial").touch()
    with pytest.raises(OutputDirInUseError) as caught:
        lock_output_dir(str(tmp_path))
    for part in (str(tmp_path), f"process {process.pid} on host", "since 20", "OUTPUT_DIR", run_lock.FILE_NAME):
        assert part in str(caught.value)
    assert f"process {process.pid}" in user_of_output_dir(str(tmp_path))


def test_a_lock_goes_with_its_process_and_leaves_no_file(tmp_path, holder):
    process = holder()
    process.stdout.readline()
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over_with_what_it_left(tmp_path, holder, caplog):
    process = holder()
    process.stdout.readline()
    process.kill()
    process.wait()
    host = os.uname().nodename.replace(".", "-")
    partials = [tmp_path / f".{name}.{host}.{process.pid}.00ff.partial" for name in ("model_0000003.pth", "a.json")]
    others = [tmp_path / f".a.json.{host}.{os.getpid()}.00.partial", tmp_path / ".a.json.other.1.00.partial"]
    for path in (*partials, *others):
        path.touch()
    lock_output_dir(str(tmp_path))
    assert "was killed" in caplog.text
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / run_lock.FILE_NAME])


def test_a_forked_process_does_not_keep_the_lock_of_a_killed_one(tmp_path, holder):
    """Data workers live on for a few seconds."""
    process = holder("fork")
    lines = {process.stdout.readline(), process.stdout.readline()}
    (worker,) = (int(line) for line in lines - {"holds\n"})
    process.kill()
    process.wait()
    try:
        lock_output_dir(str(tmp_path))
    finally:
        os.kill(worker, 9)


def test_one_process_may_take_a_directory_again_and_give_it_back(tmp_path):
    lock_output_dir(str(tmp_path))
    with hold_output_dir(str(tmp_path)):
        assert user_of_output_dir(str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []
    unlock_output_dir(str(tmp_path))


def test_a_directory_that_was_deleted_is_taken_anew(tmp_path):
    folder = tmp_path / "a"
    lock_output_dir(str(folder))
    for path in folder.iterdir():
        path.unlink()
    lock_output_dir(str(folder))
    assert (folder / run_lock.FILE_NAME).exists()
    unlock_output_dir(str(folder))


def test_one_folder_by_two_names_is_one(tmp_path, monkeypatch):
    folder, link = tmp_path / "a", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    lock_output_dir(str(folder))
    with hold_output_dir(str(link)):
        assert user_of_output_dir("link") == ""
    assert list(folder.iterdir()) == []


def test_a_directory_is_given_back_also_when_the_program_has_gone_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with hold_output_dir("."):
        monkeypatch.chdir(tmp_path / "b")
        assert (tmp_path / "a" / run_lock.FILE_NAME).exists()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_in_place_of_the_lock_is_refused_with_the_cure(tmp_path):
    (tmp_path / run_lock.FILE_NAME).mkdir()
    with pytest.raises(ValueError, match=r"running\.lock shall be written as a file, but a folder.*move it away"):
        lock_output_dir(str(tmp_path))


# ------------------------------------------------------------------------------------------- a folder that disappears


@pytest.fixture
def disappearing(tmp_path):
    """A trainer that logs, writes metrics and saves every 2 of 6 iterations, and ``at(iteration, function)``."""
    folder = tmp_path / "run"
    cfg = toy_cfg(folder)
    setup_logger(str(folder))
    trainer = ToyTrainer(cfg)
    next(hook for hook in trainer.hooks if isinstance(hook, PeriodicWriter))._period = 2

    def at(iteration, function):
        trainer.register_hooks([CallbackHook(before_step=lambda t: function() if t.iter == iteration else None)])

    yield folder, trainer, at
    package_log = logging.getLogger("detlab")
    for handler in [handler for handler in package_log.handlers if str(folder) in getattr(handler, "path", "")]:
        package_log.removeHandler(handler)
        handler.close()
    unlock_output_dir(str(folder))


def test_a_directory_that_is_deleted_in_training_is_taken_again_and_its_files_are_opened_anew(disappearing):
    folder, trainer, at = disappearing
    is_locked = []
    at(3, lambda: shutil.rmtree(folder))
    at(5, lambda: is_locked.append(user_in_another_process(folder)))
    trainer.train()
    assert is_locked == [f"process {os.getpid()}"]
    assert {path.name for path in folder.glob("*.pth")} == {"model_0000003.pth", "model_0000005.pth", "model_final.pth"}
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in rows] == [3, 5, 6]
    log = (folder / "log.txt").read_text(encoding="utf-8")
    (warning,) = (line for line in log.splitlines() if "was deleted or moved away" in line)
    for part in (str(folder), "config.yaml, the checkpoints", "events.out.tfevents, log.txt, metrics.json"):
        assert part in warning
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert not (folder / run_lock.FILE_NAME).exists()


def test_a_run_whose_directory_has_another_user_ends_and_writes_nothing(disappearing):
    folder, trainer, at = disappearing

    def give_to_another():
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        note_of(folder)

    at(3, give_to_another)
    with pytest.raises(
        OutputDirInUseError, match=r"this run ends and writes nothing more.*process 7 on host elsewhere"
    ):
        trainer.train()
    assert trainer.iter == 3
    assert [path.name for path in folder.iterdir()] == [run_lock.FILE_NAME]
    assert json.loads((folder / run_lock.FILE_NAME).read_text(encoding="utf-8"))["pid"] == 7


def test_a_lock_that_somebody_removes_is_taken_again_and_nothing_is_said_to_be_lost(disappearing):
    folder, trainer, at = disappearing
    is_locked = []
    at(3, (folder / run_lock.FILE_NAME).unlink)
    at(5, lambda: is_locked.append(user_in_another_process(folder)))
    trainer.train()
    assert is_locked == [f"process {os.getpid()}"]
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert f"{run_lock.FILE_NAME} was removed from {folder}" in log
    assert "lost" not in log


def user_in_another_process(folder):
    """Whom another process would find in a folder."""
    code = "import sys; from detlab.engine.run_lock import user_of_output_dir; print(user_of_output_dir(sys.argv[1]))"
    said = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:2])


# ------------------------------------------------------------------------------------------------- SIGTERM at the start

START = """
import argparse, os, signal, sys
from detlab.config.config import get_cfg
from detlab.engine import defaults, run_lock
from detlab.utils import file_io

def end(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)

folder, moment = sys.argv[1:]
cfg = get_cfg()
cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = folder, "cpu"
if moment == "while it locks":
    # Between the lock and the note of it.
    run_lock._write_note = end
elif moment == "while it writes":
    os.fsync = end
defaults.default_setup(cfg, argparse.Namespace())
print("is set up", flush=True)
end()
print("went on", flush=True)
"""


@pytest.mark.parametrize("moment", ["while it locks", "while it writes", "before it trains"])
def test_sigterm_before_training_leaves_neither_a_lock_nor_half_a_file(tmp_path, moment):
    process = subprocess.run([sys.executable, "-c", START, str(tmp_path), moment], capture_output=True, text=True)
    assert process.returncode == 143, process.stderr
    assert ("is set up" in process.stdout) == (moment == "before it trains")
    assert "went on" not in process.stdout
    assert "Traceback" not in process.stderr
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_sigterm_is_as_usual_when_no_directory_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_held", {})
    monkeypatch.setattr(run_lock, "_cleaning", None)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with hold_output_dir(str(tmp_path)):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        note_of(tmp_path)
        with pytest.raises(OutputDirInUseError):
            lock_output_dir(str(tmp_path))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("output_dir", ["", "s3://bucket/run"])
def test_what_is_no_local_directory_is_not_locked(output_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hold_output_dir(output_dir):
        assert list(tmp_path.rglob("*")) == []


def test_another_machine_is_believed_while_it_gives_signs_of_life(tmp_path, caplog):
    note_of(tmp_path)
    with pytest.raises(OutputDirInUseError, match=r"process 7 on host elsewhere since 2026-01-31 12:00:00 \(train\)"):
        lock_output_dir(str(tmp_path))
    # Asking is no sign of life.
    note_of(tmp_path, run_lock.SECONDS_OF_SILENCE - 60)
    assert user_of_output_dir(str(tmp_path))
    note_of(tmp_path, run_lock.SECONDS_OF_SILENCE + 60)
    assert user_of_output_dir(str(tmp_path)) == ""
    lock_output_dir(str(tmp_path))
    note = json.loads((tmp_path / run_lock.FILE_NAME).read_text(encoding="utf-8"))
    assert note["pid"] == os.getpid()


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SECONDS_BETWEEN_SIGNS", 0.01)
    lock_output_dir(str(tmp_path))
    file = tmp_path / run_lock.FILE_NAME
    os.utime(file, (0, 0))
    deadline = time.monotonic() + 30
    while file.stat().st_mtime < 1000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.stat().st_mtime > 1000


def test_where_the_disk_has_no_locks_a_running_process_of_this_machine_is_found(tmp_path, monkeypatch):
    def no_locks(*args):
        raise portalocker.LockException("not supported")

    monkeypatch.setattr(portalocker, "lock", no_locks)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    note_of(tmp_path, machine=run_lock._machine(), pid=other.pid)
    with pytest.raises(OutputDirInUseError, match=f"process {other.pid}"):
        lock_output_dir(str(tmp_path))
    other.communicate(b"\n")
    lock_output_dir(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"pid": "x"}', "\0" * 100])
def test_a_damaged_note_is_no_obstacle(tmp_path, content):
    (tmp_path / run_lock.FILE_NAME).write_text(content, encoding="utf-8")
    os.utime(tmp_path / run_lock.FILE_NAME, (0, 0))
    lock_output_dir(str(tmp_path))


def test_a_trainer_holds_its_directory_while_it_trains_and_lets_go_after_an_exception(tmp_path):
    held = []

    class Look(HookBase):
        def before_step(self):
            held.append((tmp_path / run_lock.FILE_NAME).exists())
            if len(held) == 3:
                raise RuntimeError("stop")

    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.register_hooks([Look()])
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train()
    assert held == [True, True, True]
    assert not (tmp_path / run_lock.FILE_NAME).exists()


def test_a_trainer_is_refused_before_it_changes_anything(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    note_of(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputDirInUseError):
        trainer.train()
    assert sorted(tmp_path.iterdir()) == before


def test_set_up_refuses_to_train_into_the_files_of_another_run_and_lets_an_evaluation_in(tmp_path, caplog):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    note_of(tmp_path)
    with pytest.raises(OutputDirInUseError):
        default_setup(cfg, argparse.Namespace(eval_only=False))
    assert [path.name for path in tmp_path.iterdir()] == [run_lock.FILE_NAME]
    default_setup(cfg, argparse.Namespace(eval_only=True))
    assert "in use by process 7 on host elsewhere" in (tmp_path / "log.txt").read_text(encoding="utf-8")
