"""Runs that are killed at random moments, resumed, and compared with one that was left in peace: all is the same."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch

from detlab.data.datasets.shapes import generate_shapes
from tests.engine.test_train_net import USER_MODULE, tiny_settings

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")

NUM_ITERS = 40
NUM_KILLS = int(os.environ.get("NUM_KILLS", "50"))  # of the long test, over its four cases
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS_TO_END = 60
# What a signal may be answered with: stopping, or (before and after training) Python's own end by it.
STATUSES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}
OPTIONS = [
    "SOLVER.MAX_ITER", str(NUM_ITERS), "SOLVER.CHECKPOINT_PERIOD", "7", "SOLVER.STEPS", "(25,)",
    "TEST.EVAL_PERIOD", "9", "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2",
]  # fmt: skip


class Case(NamedTuple):
    """How a run is done."""

    num_processes: int
    num_workers: int


class Kill(NamedTuple):
    """What happens to one."""

    signal_number: int
    is_early: bool  # counted from the start of the program, not from the first iteration
    seconds: float
    to_all: bool  # as a terminal does, not to the first process only


class Program:
    """tools/train_net.py, with all processes that come of it in a session of its own."""

    started: ClassVar[list["Program"]] = []

    def __init__(self, folder: Path, temporary: Path, case: Case, project_root: Path, *flags: str) -> None:
        self.folder = folder
        self.temporary = temporary
        config_file = folder.with_name(f"{folder.name}.yaml")
        config_file.write_text(tiny_settings().dump())
        arguments = ["--config-file", config_file, "--import", USER_MODULE, "--num-gpus", case.num_processes, *flags,
                     "OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", case.num_workers, *OPTIONS]  # fmt: skip
        self.iterations_before = self.count_iterations()
        self.process = subprocess.Popen(
            [sys.executable, str(project_root / "tools" / "train_net.py"), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(project_root), "TMPDIR": str(self.temporary)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(folder.with_name(f"{folder.name}.err")).open("w"),
        )

        self.started.append(self)

    @property
    def stderr(self) -> str:
        return self.folder.with_name(f"{self.folder.name}.err").read_text()

    def count_iterations(self) -> int:
        file = self.folder / "iterations.txt"
        return file.read_text().count("\n") if file.exists() else 0

    def living(self) -> list[int]:
        """The processes of the session."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session = entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(entry.name))
        return found

    def kill(self, kill: Kill) -> bool:
        """Wait for the moment and signal; false if the program had ended before."""
        while not kill.is_early and self.count_iterations() == self.iterations_before and self.process.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(kill.seconds)
            return False
        (os.killpg if kill.to_all else os.kill)(self.process.pid, kill.signal_number)
        return True

    def wait(self) -> int:
        """The status, when everything has ended."""
        status = self.process.wait(5 * SECONDS_TO_END)
        deadline = time.monotonic() + SECONDS_TO_END
        while self.living() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.living()
        return status


def leaves(state, path=""):
    """Numbers and tensors of nested containers, by their place."""
    if isinstance(state, dict):
        return {k: v for name, part in state.items() for k, v in leaves(part, f"{path}/{name}").items()}
    if isinstance(state, (list, tuple)):
        return leaves(dict(enumerate(state)), path)
    return {path: state} if isinstance(state, (torch.Tensor, int, float, bool)) else {}


def final_state(folder):
    return leaves(torch.load(folder / "model_final.pth", weights_only=True))


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert sum(isinstance(value, torch.Tensor) for value in first.values()) > 50
    different = [
        name
        for name, value in first.items()
        if not (torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name])
    ]
    assert different == []


def assert_nothing_is_left(program: Program, seen: set[int]) -> None:
    """Of all processes of the runs in a folder."""
    assert [path.name for path in program.folder.rglob(".*")] == []
    # torch makes the folder of its compiler's cache there, for all programs of a user, as soon as it is imported.
    left = [path.name for path in program.temporary.iterdir() if not path.name.startswith("torchinductor_")]
    assert left == []
    assert [name for name in os.listdir("/dev/shm") if any(f"_{pid}_" in name for pid in seen)] == []


@pytest.fixture(autouse=True)
def _no_program_survives():
    yield
    for program in Program.started:
        for pid in program.living():
            os.kill(pid, signal.SIGKILL)
    Program.started.clear()


@pytest.fixture(scope="module")
def _pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(str(folder), num_train=12, num_val=3, image_size=(64, 80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USER_MODULE_PICTURES", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def temporary():
    """A folder for temporary files with a path short enough for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/tmp") as folder:
        yield Path(folder)


def undisturbed_state(tmp_path, temporary, project_root, case):
    # Workers change nothing, either.
    program = Program(tmp_path / "undisturbed", temporary, case._replace(num_workers=0), project_root)
    assert program.wait() == 0, program.stderr
    return final_state(program.folder)


def kill_and_resume(tmp_path, temporary, project_root, case, kills, num_hits):
    """Runs in one folder after another, each resumed until it is through, until so many of ``kills`` hit a program."""
    expected = undisturbed_state(tmp_path, temporary, project_root, case)
    hits: Counter[signal.Signals] = Counter()
    for number in itertools.count(1):
        if hits.total() >= num_hits:
            return hits
        seen: set[int] = set()
        status = None
        while status != 0:
            program = Program(tmp_path / f"killed_{number}", temporary, case, project_root, "--resume")
            kill = next(kills) if hits.total() < num_hits else None
            was_hit = kill is not None and program.kill(kill)
            seen.update(program.living())
            status = program.wait()
            allowed = STATUSES[kill.signal_number] | {0} if was_hit else {0}
            assert status in allowed, (case, kill, status, program.stderr)
            # Python's own end by a signal prints where it was.
            assert status < 0 or "Traceback" not in program.stderr, (case, kill, status, program.stderr)
            if was_hit:
                hits[kill.signal_number] += 1
        assert_same(final_state(program.folder), expected)
        assert_nothing_is_left(program, seen)


def random_kills(rng):
    """Signals in turn, without end."""
    for number in itertools.count():
        to_all = number % 2 == 0 and rng.random() < 0.5
        yield Kill(SIGNALS[number % 3], rng.random() < 0.25, rng.uniform(0, 3), to_all)


def test_runs_killed_in_training_end_as_if_they_had_not_been_and_leave_nothing(
    _pictures, tmp_path, temporary, project_root
):
    to_all = {signal.SIGKILL: False, signal.SIGTERM: True, signal.SIGINT: True}
    kills = (Kill(number, False, random.uniform(0, 0.3), to_all[number]) for number in itertools.cycle(SIGNALS))
    case = Case(num_processes=1, num_workers=2)
    assert kill_and_resume(tmp_path, temporary, project_root, case, kills, num_hits=3).total() == 3


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(1, 0), Case(1, 2), Case(2, 0), Case(2, 2)], ids=str)
def test_many_kills_at_any_moment_change_nothing_and_leave_nothing(_pictures, tmp_path, temporary, project_root, case):
    kills = random_kills(random.Random(repr(case)))
    hits = kill_and_resume(tmp_path, temporary, project_root, case, kills, num_hits=-(-NUM_KILLS // 4))
    print(f"{case}: {', '.join(f'{count} {number.name}' for number, count in hits.items())} hit a running program")
