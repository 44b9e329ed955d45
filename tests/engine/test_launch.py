"""Starting processes, joining those of torchrun, and what goes wrong in between."""

import json
import socket
import time

import pytest
import torch
import torch.distributed as dist

from detlab.engine.launch import launch
from tests.engine import distributed_mains as mains


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_this_one():
    assert launch(lambda a, b: a + b, 1, args=(1, 2)) == 3
    assert launch(lambda: dist.is_initialized(), 0, device="cpu") is False


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes left after ``run_all``."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        launch(mains.run_all, 2, args=(str(folder),), device="cpu")
    return folder


def test_two_processes_know_their_places(two_processes):
    for rank in range(2):
        place = json.loads((two_processes / f"{rank}.json").read_text())
        assert place == {"world": 2, "local_rank": rank, "local_size": 2, "backend": "gloo", "sum": 3}


def test_a_process_that_fails_takes_the_others_down_and_its_traceback_comes_here(tmp_path):
    begun = time.monotonic()
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        launch(mains.fail_in_rank_1, 2, args=(str(tmp_path),), device="cpu")
    assert "the trouble with rank 1" in str(caught.value)
    assert "fail_in_rank_1" in str(caught.value)
    assert time.monotonic() - begun < 50
    assert not list(tmp_path.iterdir())


def test_two_processes_with_half_the_batch_train_like_one(two_processes, tmp_path):
    mains.train_ddp(str(tmp_path), 10)
    one, two = (torch.load(folder / "trained.pth") for folder in (tmp_path, two_processes))
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-5, atol=1e-6)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


def test_all_ranks_stop_together_at_a_loss_that_is_not_finite(two_processes):
    for rank in range(2):
        text = (two_processes / f"{rank}.txt").read_text()
        assert text.startswith("2\n")
        assert "rank 0: losses: loss_a = nan" in text
        assert "images of the batch of rank 0: 2_0.jpg, 2_1.jpg" in text
        assert "2_2.jpg" not in text


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


def test_under_torchrun_this_process_joins(tmp_path, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch(mains.say_rank, 4, args=(str(tmp_path),), device="cpu") == "done"
    assert (tmp_path / "0_of_1").read_text() == "0"
    assert not dist.is_initialized()


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
