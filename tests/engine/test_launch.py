"""Starting processes, joining those of torchrun, and what goes wrong in between."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
import torch
import torch.distributed as dist

from detlab.engine.launch import launch
from tests.engine import distributed_mains as mains

# What torchrun sets for the first of two processes.
TORCHRUN = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_this_one():
    assert launch(lambda a, b: a + b, 1, args=(1, 2)) == 3
    assert launch(lambda: dist.is_initialized(), 0, device="cpu") is False


def test_nobody_can_take_the_port_where_the_processes_will_meet(monkeypatch, tmp_path):
    """Between its choice and the start of the first process there are seconds."""
    ports = []
    start = torch.multiprocessing.start_processes

    def take_ports_and_start(function, args, **kwargs):
        listener = next(value for value in args if isinstance(value, socket.socket))
        ports.append(listener.getsockname()[1])
        with socket.socket() as taker, pytest.raises(OSError, match="in use"):
            taker.bind(("127.0.0.1", ports[0]))
        return start(function, args, **kwargs)

    monkeypatch.setattr(torch.multiprocessing, "start_processes", take_ports_and_start)
    launch(mains.write_place, 2, args=(str(tmp_path),), device="cpu")
    assert len(ports) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes left after ``run_all``."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            patch.delenv(name, raising=False)
        launch(mains.run_all, 2, args=(str(folder),), device="cpu")
    return folder


def test_two_processes_know_their_places(two_processes):
    for rank in range(2):
        place = json.loads((two_processes / f"{rank}.json").read_text())
        policy = place.pop("wait_policy")
        assert place == {"world": 2, "local_rank": rank, "local_size": 2, "backend": "gloo", "sum": 3}
        assert policy == "PASSIVE", "threads of processes that share the cores must not spin"


def test_a_process_that_fails_takes_the_others_down_and_its_traceback_comes_here(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        launch(mains.fail_in_rank_1, 2, args=(str(tmp_path),), device="cpu")
    assert "the trouble with rank 1" in str(caught.value)
    assert "fail_in_rank_1" in str(caught.value)
    # The other one was not waited for: it would have left a file.
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_two_processes_with_half_the_batch_train_like_one(two_processes, tmp_path):
    mains.train_ddp(str(tmp_path), 10)
    one, two = (torch.load(folder / "trained.pth") for folder in (tmp_path, two_processes))
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-5, atol=1e-6)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


@pytest.mark.parametrize(("late", "stops_in"), [(False, 2), (True, 3)])
def test_all_ranks_stop_together_at_a_loss_that_is_not_finite(two_processes, late, stops_in):
    for rank in range(2):
        text = (two_processes / f"{rank}_{late}.txt").read_text()
        assert text.startswith(f"{stops_in}\na loss is not finite in iteration 2")
        assert "rank 0: losses: loss_a = nan" in text
        assert "images of the batch of rank 0: 2_0.jpg, 2_1.jpg" in text
        assert "2_2.jpg" not in text


def test_a_rank_whose_losses_are_numbers_saves_nothing_after_a_bad_loss_of_another(two_processes):
    bad, good = ((two_processes / f"{rank}_not_saved.txt").read_text() for rank in range(2))
    assert bad.startswith("2\na loss is not finite in iteration 2")
    assert good.startswith("2\nnothing is saved: a loss of another rank was not finite")


def test_losses_are_averaged_also_when_ranks_have_others_or_many(two_processes):
    metrics = json.loads((two_processes / "metrics.json").read_text())
    assert metrics["loss_a"] == 1.5
    assert metrics["loss_0"] == 2.0
    assert metrics["loss_many_99"] == 99.5


def test_precise_statistics_are_those_of_all_ranks(two_processes):
    parts = [torch.load(two_processes / f"{rank}.pth") for rank in range(2)]
    pixels = torch.cat([b.transpose(0, 1).flatten(1) for part in parts for b in part["batches"]], dim=1)
    for part in parts:
        torch.testing.assert_close(part["mean"], pixels.mean(1))
        torch.testing.assert_close(part["var"], pixels.var(1))


def test_all_ranks_stop_after_the_same_step_when_a_signal_comes_to_one(two_processes):
    first, second = (json.loads((two_processes / f"{rank}_stops.json").read_text()) for rank in range(2))
    assert first == second
    iterations = [iteration for iteration, _, _ in first]
    # In the step that it came in; in that whose end exchanges losses; in a later one where nothing is exchanged.
    assert iterations == [3, 4, 3, 20]
    assert {(code, on_all_ranks) for _, code, on_all_ranks in first} == {(143, True)}


def test_all_ranks_hear_that_a_directory_is_in_use(two_processes):
    for rank in range(2):
        assert "in use by process 7 on host elsewhere" in (two_processes / f"{rank}_refused.txt").read_text()


# ------------------------------------------------------------------------------------------------- stopping a run

BUSY = """
import sys
from detlab.engine.launch import launch
from tests.engine import distributed_mains
if __name__ == "__main__":
    launch(distributed_mains.be_busy, 2, args=(sys.argv[1],), device="cpu")
"""


# There a process keeps the number of its parent when that has ended, and there is no SIGKILL.
AS_ON_WINDOWS = """
import os, signal
own_parent = os.getppid()
os.getppid = lambda: own_parent
del signal.SIGKILL
"""


@pytest.fixture
def busy_run(tmp_path, project_root, request):
    """A program that trains in two processes, of a process group of its own; and the processes."""
    script = tmp_path / "busy.py"
    script.write_text(getattr(request, "param", "") + BUSY)
    marks = tmp_path / "marks"
    marks.mkdir()
    with subprocess.Popen(
        [sys.executable, str(script), str(marks)],
        env={**os.environ, "PYTHONPATH": str(project_root)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            while len(list(marks.iterdir())) < 2 and program.poll() is None:
                time.sleep(0.05)
            yield program, [int(mark.name.split("_")[1]) for mark in marks.iterdir()]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)


def is_running(pid):
    """Also false of one that has ended and waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.parametrize(
    ("send", "number", "status"),
    [(os.kill, signal.SIGTERM, 143), (os.killpg, signal.SIGINT, 130)],
    ids=["SIGTERM to the parent", "SIGINT to all, as a terminal does"],
)
def test_a_signal_to_the_parent_stops_the_processes_and_is_its_status(busy_run, send, number, status):
    program, processes = busy_run
    send(program.pid, number)
    said = program.communicate(timeout=100)[1]
    assert program.returncode == status
    assert len(processes) == 2
    assert not any(is_running(pid) for pid in processes)
    assert "Traceback" not in said
    assert said.count("stopping after this step") == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.parametrize("busy_run", ["", AS_ON_WINDOWS], ids=["as here", "as on Windows"], indirect=True)
def test_processes_end_with_a_parent_that_is_killed(busy_run):
    program, processes = busy_run
    program.kill()
    program.wait()
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(processes) == 2
    assert not any(is_running(pid) for pid in processes)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_a_signal_to_one_process_stops_all(busy_run):
    program, processes = busy_run
    os.kill(processes[0], signal.SIGTERM)
    program.communicate(timeout=100)
    assert program.returncode == 143
    assert not any(is_running(pid) for pid in processes)


# -------------------------------------------------------------------------------------------------------- torchrun


@pytest.fixture
def torchrun(monkeypatch):
    """Sets what torchrun sets, with changes; None takes a variable away."""

    def set_variables(**changes):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for name, value in {**TORCHRUN, "MASTER_PORT": port, **changes}.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize("local_world_size", ["1", None])
def test_under_torchrun_this_process_joins(tmp_path, torchrun, caplog, local_world_size):
    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE=local_world_size)
    assert launch(mains.say_rank, 1, args=(str(tmp_path),), device="cpu") == "done"
    assert (tmp_path / "0_of_1").read_text() == "0"
    assert not dist.is_initialized()
    assert caplog.text == ""


def test_under_torchrun_another_number_of_processes_is_said_not_to_count(tmp_path, torchrun, caplog):
    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    assert launch(mains.say_rank, 4, args=(str(tmp_path),), device="cpu") == "done"
    assert "--num-gpus 4 does not count: torchrun has started 1" in caplog.text


@pytest.mark.parametrize("missing", [["LOCAL_RANK"], ["MASTER_ADDR", "MASTER_PORT"], ["RANK", "WORLD_SIZE"]])
def test_left_overs_of_another_program_do_not_count_and_are_named(torchrun, caplog, missing):
    """With RANK and WORLD_SIZE alone, a process would wait for others that nobody starts."""
    torchrun(**dict.fromkeys(missing))
    assert launch(dist.is_initialized, 1, device="cpu") is False
    (message,) = caplog.messages
    before, after = message.split("because")
    assert all(name in after for name in missing)
    assert all(name in before for name in {"RANK", "LOCAL_RANK", "WORLD_SIZE"} - set(missing))
    assert "--num-gpus 1" in message


def test_an_address_alone_is_no_run(monkeypatch, caplog):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert launch(dist.is_initialized, 1, device="cpu") is False
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "value", "span"),
    [
        ("LOCAL_RANK", "first", "a number from 0 to 1 (as LOCAL_WORLD_SIZE is 2)"),
        ("LOCAL_RANK", "2", "a number from 0 to 1 (as LOCAL_WORLD_SIZE is 2)"),
        ("RANK", "2", "a number from 0 to 1 (as WORLD_SIZE is 2)"),
        ("RANK", "-1", "a number from 0 to 1 (as WORLD_SIZE is 2)"),
        ("WORLD_SIZE", "0", "a number from 1 on"),
        ("WORLD_SIZE", "two", "a number from 1 on"),
        ("LOCAL_WORLD_SIZE", "3", "a number from 1 to 2 (as WORLD_SIZE is 2)"),
        ("MASTER_PORT", "abc", "a number from 1 to 65535"),
        ("MASTER_PORT", "0", "a number from 1 to 65535"),
        ("MASTER_PORT", "65536", "a number from 1 to 65535"),
    ],
)
def test_what_torchrun_never_sets_is_refused_by_name_with_the_cure(torchrun, monkeypatch, name, value, span):
    """A process would wait half an hour for others that cannot come."""
    monkeypatch.setattr(dist, "init_process_group", lambda **kwargs: pytest.fail("it waits"))
    torchrun(**{name: value})
    with pytest.raises(ValueError) as caught:
        launch(print, 1, device="cpu")
    message = str(caught.value)
    assert f"the environment's {name} should be {span}, it is '{value}'" in message
    assert "start the run with torchrun" in message
    assert "unset RANK" in message


@pytest.mark.parametrize("has_log", [False, True])
def test_a_process_says_whom_it_waits_for_before_it_waits(torchrun, monkeypatch, capfd, caplog, has_log):
    """The variables may be left over from another program, and then nobody comes."""

    def meet(**kwargs):
        raise ConnectionError("nobody came")

    monkeypatch.setattr(dist, "init_process_group", meet)
    monkeypatch.setattr(logging.getLogger("detlab"), "level", logging.INFO if has_log else logging.WARNING)
    logging.getLogger("detlab.engine.launch").manager._clear_cache()
    torchrun(RANK="1", LOCAL_RANK="1", MASTER_PORT="29501")
    with pytest.raises(ConnectionError):
        launch(print, 1, device="cpu")
    said = caplog.text if has_log else capfd.readouterr().err
    assert "rank 1: waiting for 2 processes at 127.0.0.1:29501" in said
    assert "unset them" in said


@pytest.mark.parametrize("url", ["tcp://host", "tcp://:29500", "tcp://host:0", "tcp://host:70000", "tcp://host:port"])
def test_an_address_without_a_possible_port_is_refused(url):
    with pytest.raises(ValueError, match=rf"--dist-url {url} should be tcp://host:port"):
        launch(print, 2, dist_url=url, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_machines": 2, "dist_url": "auto"}, "machine 0"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank 2"),
        ({"num_machines": 0}, "--num-machines"),
        ({"device": "tpu:0"}, "tpu|device"),
        ({"device": "meta"}, "'meta'"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        launch(print, 2, **{"device": "cpu", **arguments})


def test_more_processes_than_gpus_are_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--num-gpus 2.*finds none.*MODEL.DEVICE cpu"):
        launch(print, 2, device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="use --num-gpus 1"):
        launch(print, 2, device="cuda")
