"""Checkpoints come when they should, and only the newest stay."""

import os

import pytest
import torch
from fvcore.common.checkpoint import PeriodicCheckpointer as FvcorePeriodicCheckpointer
from torch import nn

from detlab.checkpoint import DetectionCheckpointer, PeriodicCheckpointer


def files(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


def test_every_period_and_the_end_are_saved(tmp_path):
    periodic = PeriodicCheckpointer(DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)), period=2, max_iter=5)
    assert isinstance(periodic, FvcorePeriodicCheckpointer)
    for iteration in range(5):
        periodic.step(iteration, note="x")
    assert files(tmp_path) == ["model_0000001.pth", "model_0000003.pth", "model_final.pth"]
    last = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)
    assert (last["iteration"], last["note"]) == (4, "x")


def test_a_resumed_run_forgets_what_the_killed_run_wrote(tmp_path):
    def run(start, stop):
        checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
        periodic = PeriodicCheckpointer(checkpointer, period=1, max_to_keep=2, file_prefix="m")
        for iteration in range(start, stop):
            periodic.step(iteration)

    torch.save({}, tmp_path / "m_final.pth")
    torch.save({}, tmp_path / "mine.pth")
    run(0, 3)
    assert files(tmp_path) == ["m_0000001.pth", "m_0000002.pth", "m_final.pth", "mine.pth"]
    run(3, 4)
    assert files(tmp_path) == ["m_0000002.pth", "m_0000003.pth", "m_final.pth", "mine.pth"]


def test_later_checkpoints_of_another_run_are_left_alone(tmp_path):
    torch.save({}, tmp_path / "model_0000900.pth")
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    PeriodicCheckpointer(checkpointer, period=1, max_to_keep=1).step(0)
    assert files(tmp_path) == ["model_0000000.pth", "model_0000900.pth"]


def test_a_directory_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path / "file" / "output"))
    with pytest.raises(OSError, match=r"cannot be written to '.*output'.*OUTPUT_DIR"):
        PeriodicCheckpointer(checkpointer, period=10)


def test_processes_that_do_not_write_delete_nothing(tmp_path):
    torch.save({}, tmp_path / "model_0000000.pth")
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False)
    periodic = PeriodicCheckpointer(checkpointer, period=1, max_to_keep=1)
    periodic.step(1)
    assert files(tmp_path) == ["model_0000000.pth"]


@pytest.mark.parametrize("arguments", [{"period": 0}, {"period": 1, "max_to_keep": 0}])
def test_periods_are_positive(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        PeriodicCheckpointer(DetectionCheckpointer(nn.Linear(1, 1)), **arguments)
