import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from detlab.data import workers
from detlab.data.build import build_detection_train_loader
from detlab.data.workers import worker_options

# A training that hands tensors from two workers to their parent, which then ends, waits, or is killed. A worker that
# is killed amid a tensor leaves its memory, so they read no further than the parent has got while that is waiting.
TRAINING = """
import itertools, os, signal, sys, time
import torch
import torch.utils.data._utils.worker as worker
signal.alarm(100)  # where workers cannot hand over what they read, it would wait for ever
worker.MP_STATUS_CHECK_INTERVAL = 0.2  # how soon a worker notices that its parent is gone
from detlab.data import workers
from detlab.data.build import build_detection_train_loader

workers.SHORT_FOLDERS = (sys.argv[2],)
entries = [{"n": n, "width": 3, "height": 4} for n in range(50)]
parent, samples_of_worker = os.getpid(), itertools.count(1)

def read(entry):
    while sys.argv[1] == "waits" and next(samples_of_worker) > 2 * 4 and os.getppid() == parent:
        time.sleep(0.05)
    return torch.zeros(3, 100, 100)

loader = build_detection_train_loader(entries, mapper=read, total_batch_size=4, num_workers=2, seed=0)
batches = iter(loader)
list(itertools.islice(batches, 4))
pids = [os.getpid(), *(process.pid for process in batches.gi_frame.f_locals["batches"]._workers)]
print(*pids, flush=True)
if sys.argv[1] == "waits":
    time.sleep(60)
elif sys.argv[1] == "fails":
    raise ZeroDivisionError
"""


@pytest.fixture
def tmp_path():
    """With a path short enough for the names of sockets, wherever the tests keep their files."""
    with tempfile.TemporaryDirectory(prefix="workers-", dir="/tmp") as folder:
        yield Path(folder)


def start(folder, how, temporary=None):
    """Run a training whose sockets lie in ``folder``, whether that is its folder for temporary files or another."""
    environment = {**os.environ, "TMPDIR": str(temporary or folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, how, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 3
    assert how != "waits" or len(list(folder.glob("pymp-*/detlab-owner"))) == 1
    return process, pids


def is_gone(pid):
    """Whether a process has ended, even if nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def left_in_memory(pids):
    return [path.name for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")]


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and /dev/shm")


@needs_linux
@pytest.mark.parametrize("how", ["ends", "fails"])
def test_a_run_that_ends_leaves_no_folder_of_sockets(tmp_path, how):
    process, pids = start(tmp_path, how)
    process.wait(60)
    assert wait_for(lambda: all(map(is_gone, pids)))
    assert list(tmp_path.iterdir()) == [] and left_in_memory(pids) == []


@needs_linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_leaves_neither_workers_nor_folders(tmp_path, number):
    process, pids = start(tmp_path, "waits")
    os.kill(process.pid, number)
    process.wait(60)
    assert wait_for(lambda: all(map(is_gone, pids)))
    assert list(tmp_path.iterdir()) == [] and left_in_memory(pids) == []


@needs_linux
def test_a_worker_that_is_killed_ends_the_run_and_leaves_no_folder(tmp_path):
    process, pids = start(tmp_path, "waits")
    os.kill(pids[1], signal.SIGKILL)
    assert process.wait(60) != 0
    assert wait_for(lambda: all(map(is_gone, pids)))
    assert list(tmp_path.iterdir()) == [] and left_in_memory(pids) == []


@needs_linux
def test_what_a_run_leaves_that_was_killed_with_its_workers_goes_when_the_next_begins(tmp_path):
    process, pids = start(tmp_path, "waits")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert wait_for(lambda: all(map(is_gone, pids)))
    assert len(list(tmp_path.glob("pymp-*"))) == 1
    foreign = tmp_path / "pymp-somebodys"
    foreign.mkdir()
    process, _ = start(tmp_path, "ends")
    process.wait(60)
    assert list(tmp_path.iterdir()) == [foreign]


@needs_linux
def test_a_run_leaves_the_folder_of_another_that_goes_on(tmp_path):
    other, other_pids = start(tmp_path, "waits")
    (folder,) = tmp_path.glob("pymp-*")
    process, _ = start(tmp_path, "ends")
    process.wait(60)
    assert list(tmp_path.iterdir()) == [folder]
    os.kill(other.pid, signal.SIGKILL)
    other.wait(60)
    assert wait_for(lambda: all(map(is_gone, other_pids)))


@needs_linux
def test_where_the_temporary_folder_has_a_long_path_sockets_go_to_a_short_one(tmp_path):
    """Longer than the system takes for sockets: the first tensor would fail."""
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    process, pids = start(tmp_path, "waits", temporary=long)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert wait_for(lambda: all(map(is_gone, pids)))
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 60]
    assert list(long.iterdir()) == []


def test_without_any_short_folder_the_cure_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 100)))
    monkeypatch.setattr(workers, "SHORT_FOLDERS", (str(tmp_path / "missing"),))
    with pytest.raises(
        ValueError, match=r"aaa, has \d+ bytes.*missing can be written to; set TMPDIR.*NUM_WORKERS to 0"
    ):
        workers._place_of_sockets()


def test_without_workers_nothing_is_chosen_for_them():
    assert worker_options(0).keys() == {"num_workers", "generator"}
    assert worker_options(0, prefetch_factor=2, pin_memory=True).keys() == {"num_workers", "generator", "pin_memory"}


def test_what_the_user_chooses_goes_first():
    generator = torch.Generator()
    options = worker_options(1, multiprocessing_context="spawn", generator=generator)
    assert options["multiprocessing_context"] == "spawn" and options["generator"] is generator


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_users_function_begins_each_worker(tmp_path, context):
    def begin(worker_id):
        (tmp_path / str(worker_id)).touch()

    loader = build_detection_train_loader(
        [{"n": 1}],
        mapper=None,
        total_batch_size=1,
        num_workers=2,
        worker_init_fn=begin,
        multiprocessing_context=context,
    )
    next(iter(loader))
    assert wait_for(lambda: {path.name for path in tmp_path.iterdir()} >= {"0"})


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match=r"DATALOADER\.NUM_WORKERS\) is -2"):
        worker_options(-2)
