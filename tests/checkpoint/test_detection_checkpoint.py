"""A run is saved whole or not at all, and weights of many origins find their places."""

import contextlib
import errno
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from detlab.checkpoint import Checkpointer, DetectionCheckpointer


class Detector(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 3)})})
        self.head = nn.Linear(4, num_classes)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))


def filled(value, **kwargs):
    model = Detector(**kwargs)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def all_equal(model, value):
    return all(bool((parameter == value).all()) for parameter in model.parameters())


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    for name in ("detlab", "fvcore"):
        logging.getLogger(name).propagate = True
    return caplog


def test_a_run_comes_back_as_it_was(tmp_path):
    model = filled(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    model.head(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert isinstance(checkpointer, Checkpointer) and not checkpointer.has_checkpoint()
    checkpointer.save("model_0000004", iteration=4)

    other = filled(0.0)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    resumed = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    rest = resumed.resume_or_load("", resume=True)
    assert rest["iteration"] == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert other_optimizer.param_groups[0]["lr"] == 0.5
    state = other_optimizer.state[other.head.weight]["momentum_buffer"]
    assert torch.equal(state, optimizer.state[model.head.weight]["momentum_buffer"])


def test_without_resume_only_the_weights_are_loaded(tmp_path):
    model = filled(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("pretrained")
    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=fresh)
    checkpointer.resume_or_load(str(tmp_path / "pretrained.pth"), resume=False)
    assert fresh.param_groups[0]["lr"] == 0.1


def test_resuming_where_nothing_was_saved_starts_from_the_weights(tmp_path):
    DetectionCheckpointer(filled(1.0), str(tmp_path / "a")).save("pretrained")
    model = filled(0.0)
    checkpointer = DetectionCheckpointer(model, str(tmp_path / "b"))
    checkpointer.resume_or_load(str(tmp_path / "a" / "pretrained.pth"), resume=True)
    assert all_equal(model, 1.0)


def test_nothing_to_load_loads_nothing():
    model = filled(2.0)
    assert DetectionCheckpointer(model).load("") == {}
    assert all_equal(model, 2.0)


KILLED_WHILE_SAVING = """
import os, signal, sys
import torch
from torch import nn
from detlab.checkpoint import DetectionCheckpointer

model = nn.Linear(1000, 10)
nn.init.ones_(model.weight)
checkpointer = DetectionCheckpointer(model, sys.argv[1])
checkpointer.save("model_0000000", iteration=0)
save = torch.save

def killed_halfway(data, file):
    save(data, file)
    file.truncate(file.tell() // 2)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = killed_halfway
nn.init.zeros_(model.weight)
checkpointer.save(sys.argv[2], iteration=1)
"""


@pytest.mark.parametrize("name", ["model_0000001", "model_0000000"])
def test_a_run_killed_while_saving_leaves_the_last_good_checkpoint(tmp_path, name):
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), name], check=False)
    assert killed.returncode == -signal.SIGKILL
    model = nn.Linear(1000, 10)
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 0
    assert bool((model.weight == 1).all())
    assert [os.path.basename(file) for file in checkpointer.get_all_checkpoint_files()] == ["model_0000000.pth"]


def test_a_full_disk_is_said_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpointer = DetectionCheckpointer(filled(1.0), str(tmp_path))
    checkpointer.save("model_0000000")

    def disk_is_full(data, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_is_full)
    with pytest.raises(OSError, match=r"model_0000001.*No space left.*earlier checkpoints are whole"):
        checkpointer.save("model_0000001")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000000.pth"]
    assert checkpointer.get_checkpoint_file().endswith("model_0000000.pth")


def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path):
    class Hook:
        def state_dict(self):
            return {"history": [Detector]}

    checkpointer = DetectionCheckpointer(filled(1.0), str(tmp_path), hook=Hook())
    with pytest.raises(TypeError, match=r"hook\.history\.0 is a builtins\.type"):
        checkpointer.save("model")
    assert not os.listdir(tmp_path)


def test_a_name_with_a_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="save_dir"):
        DetectionCheckpointer(filled(1.0), str(tmp_path)).save("sub/model")


def test_processes_that_do_not_write_write_nothing(tmp_path):
    DetectionCheckpointer(filled(1.0), str(tmp_path), save_to_disk=False).save("model")
    DetectionCheckpointer(filled(1.0)).save("model")
    assert not os.listdir(tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="OUTPUT_DIR"):
        DetectionCheckpointer(filled(1.0), str(tmp_path / "file" / "out")).check_save_dir()


def test_a_last_checkpoint_that_is_gone_names_those_that_are_there(tmp_path):
    checkpointer = DetectionCheckpointer(filled(1.0), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.save("model_0000002")
    os.unlink(tmp_path / "model_0000002.pth")
    with pytest.raises(FileNotFoundError, match=r"'model_0000002\.pth'.*model_0000001\.pth"):
        checkpointer.resume_or_load("", resume=True)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*MODEL\.WEIGHTS"):
        DetectionCheckpointer(filled(1.0)).load("nowhere.pth")


def test_other_shapes_and_names_are_listed_and_not_fatal(tmp_path, log):
    state = filled(1.0, num_classes=80).state_dict()
    del state["pixel_mean"], state["pixel_std"], state["backbone.stem.conv1.bias"]
    state["mask_head.weight"] = torch.ones(2)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.ones(3, 4)
    torch.save({"model": state}, tmp_path / "coco.pth")
    model = filled(0.0)
    DetectionCheckpointer(model).load(str(tmp_path / "coco.pth"))
    assert bool((model.backbone.stem.conv1.weight == 1).all()) and bool((model.head.weight == 0).all())
    assert "head.weight: (80, 4) in the file, (3, 4) in the model" in log.text
    assert "left as initialized:\n  backbone.stem.conv1.bias" in log.text
    assert "not in the model:\n  mask_head.weight" in log.text
    assert "pixel_mean" not in log.text and "cell_anchors" not in log.text and "NOTHING" not in log.text


def test_weights_of_another_model_are_called_that(tmp_path, log):
    torch.save({"model": {"something.else": torch.ones(1)}}, tmp_path / "other.pth")
    model = nn.Linear(1, 1)
    DetectionCheckpointer(model).load(str(tmp_path / "other.pth"))
    assert "NOTHING was loaded" in log.text


def test_weights_saved_from_a_distributed_wrapper_lose_its_prefix(tmp_path, log):
    state = {f"module.{name}": value for name, value in filled(1.0).state_dict().items()}
    torch.save({"model": state}, tmp_path / "ddp.pth")
    model = filled(0.0)
    DetectionCheckpointer(model).load(str(tmp_path / "ddp.pth"))
    assert all_equal(model, 1.0) and "left as initialized" not in log.text


def zoo_weights(value):
    return {
        "backbone.stem.conv1.weight": np.full((4, 3, 3, 3), value, dtype=np.float32),
        "backbone.stem.conv1.bias": np.full(4, value, dtype=">f4"),
        "head.weight": np.full((3, 4), value, dtype=np.float32),
        "head.bias": np.full(3, value, dtype=np.float32),
    }


def test_the_reference_zoos_pickle_loads(tmp_path):
    data = {"model": zoo_weights(1.0), "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(data))
    model = filled(0.0)
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pkl"))
    assert all_equal(model, 1.0)


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_backbone_names_are_matched_by_their_ends(tmp_path, query):
    weights = {"stem.conv1.weight": np.ones((4, 3, 3, 3)), "stem.conv1.bias": np.ones(4)}
    data = {"model": weights, "__author__": "someone", "matching_heuristics": not query}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(data))
    model = filled(0.0)
    DetectionCheckpointer(model).load(f"{tmp_path}/R-50.pkl{query}")
    assert all_equal(model.backbone, 1.0) and all_equal(model.head, 0.0)


def test_caffe2_blobs_load(tmp_path):
    blobs = {"conv1_w": np.ones((4, 3, 3, 3)), "conv1_b": np.ones(4), "conv1_w_momentum": np.zeros((4, 3, 3, 3))}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    model = filled(0.0)
    DetectionCheckpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert all_equal(model.backbone, 1.0)


def test_plain_weights_of_which_no_name_is_known_are_matched_by_their_ends(tmp_path):
    torch.save(nn.Conv2d(3, 4, 3).state_dict(prefix="conv1."), tmp_path / "backbone.pth")
    model = filled(0.0)
    DetectionCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    assert bool((model.backbone.stem.conv1.weight != 0).all())


def test_names_that_are_ambiguous_are_fatal_only_where_matching_was_asked_for(tmp_path, log):
    torch.save({"weight": torch.ones(1)}, tmp_path / "a.pth")
    DetectionCheckpointer(filled(0.0)).load(str(tmp_path / "a.pth"))
    assert "NOTHING was loaded" in log.text
    with pytest.raises(ValueError, match="fits both"):
        DetectionCheckpointer(filled(0.0)).load(str(tmp_path / "a.pth?matching_heuristics=True"))


def test_a_state_that_does_not_fit_says_what_to_do(tmp_path):
    model = filled(1.0)
    DetectionCheckpointer(model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters(), lr=1)).save("a")
    few = torch.optim.SGD([model.head.weight], lr=1)
    with pytest.raises(
        ValueError, match=r"a\.pth does not fit \(.*groups have 4 parameters .*, 1 here.*another OUTPUT_DIR"
    ):
        DetectionCheckpointer(model, str(tmp_path), optimizer=few).load(str(tmp_path / "a.pth"))


def test_a_state_that_its_object_refuses_names_the_object_and_the_file(tmp_path):
    class Hook:
        def state_dict(self):
            return {"best": 1}

        def load_state_dict(self, state):
            raise KeyError("worst")

    DetectionCheckpointer(filled(1.0), str(tmp_path), hook=Hook()).save("a")
    with pytest.raises(ValueError, match=r"'hook' in .*a\.pth does not fit \('worst'\).*--resume"):
        DetectionCheckpointer(filled(1.0), hook=Hook()).load(str(tmp_path / "a.pth"))


def test_a_momentum_of_another_shape_is_refused_when_it_is_loaded(tmp_path):
    model = filled(1.0, num_classes=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.head(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("a")
    other = filled(0.0, num_classes=4)
    resumed = DetectionCheckpointer(other, str(tmp_path), optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(
        ValueError, match=r"momentum_buffer of head\.weight has shape \(8, 4\), .* has \(4, 4\).*--resume"
    ):
        resumed.resume_or_load("", resume=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_name(tmp_path, bad):
    state = filled(1.0).state_dict()
    state["head.bias"] = torch.tensor([1.0, bad, 1.0])
    torch.save({"model": state}, tmp_path / "diverged.pth")
    model = filled(0.0)
    with pytest.raises(ValueError, match=r"diverged\.pth: 1 of its \d+ weights are not finite.*: head\.bias"):
        DetectionCheckpointer(model).load(str(tmp_path / "diverged.pth"))
    assert all_equal(model, 0.0)


def test_running_statistics_that_are_not_finite_are_refused(tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(2))
    model[0].running_var[0] = float("nan")
    torch.save({"model": model.state_dict()}, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=r"not finite.*: 0\.running_var"):
        DetectionCheckpointer(model).load(str(tmp_path / "diverged.pth"))


def test_weights_that_the_model_does_not_have_need_not_be_finite(tmp_path):
    torch.save({"model": {"weight": torch.ones(1, 1), "old": torch.tensor([float("nan")])}}, tmp_path / "a.pth")
    model = nn.Linear(1, 1)
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert model.weight == 1


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({3: np.ones(2)}, r"a weight has the name 3, a int"),
        ({"w": np.array(["a"])}, r"'w' is no weight but a value of the type array of <U1"),
        ({"w": [1.0]}, r"'w' is no weight but a value of the type list"),
    ],
)
def test_names_and_values_that_are_no_weights_are_named_with_the_file(tmp_path, weights, problem):
    (tmp_path / "odd.pkl").write_bytes(pickle.dumps({"model": weights}))
    with pytest.raises(ValueError, match=rf"odd\.pkl: {problem}"):
        DetectionCheckpointer(filled(0.0)).load(str(tmp_path / "odd.pkl"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"", b"model\x00.pth", b"x" * 5000])
def test_a_last_checkpoint_that_names_nothing_tells_which_files_there_are(tmp_path, content):
    checkpointer = DetectionCheckpointer(filled(1.0), str(tmp_path))
    checkpointer.save("model_0000001")
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"last_checkpoint names .*model_0000001\.pth.*--resume"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_what_torch_makes_of_a_full_disk_is_said_as_that(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def write_to_full_disk(path):
        with open("/dev/full", "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr("detlab.checkpoint.detection_checkpoint.write_atomically", write_to_full_disk)
    with pytest.raises(OSError, match=r"model\.pth' was not written \(No space left on device\).*OUTPUT_DIR") as caught:
        DetectionCheckpointer(filled(1.0), str(tmp_path)).save("model")
    assert caught.value.errno == errno.ENOSPC


SAVED_TO_A_SMALL_PLACE = """
import resource, sys
from torch import nn
from detlab.checkpoint import DetectionCheckpointer

checkpointer = DetectionCheckpointer(nn.Linear(1000, 100), sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpointer.save("model")
"""


def test_a_file_that_the_system_cuts_off_is_said_and_does_not_stay(tmp_path):
    saved = subprocess.run(
        [sys.executable, "-c", SAVED_TO_A_SMALL_PLACE, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert "model.pth' was not written (File too large)" in saved.stderr.splitlines()[-1]
    assert not os.listdir(tmp_path)


def test_a_weight_that_the_model_shares_is_not_missing(tmp_path, log):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a

    torch.save({"model": {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}}, tmp_path / "shared.pth")
    DetectionCheckpointer(Shared()).load(str(tmp_path / "shared.pth"))
    assert "left as initialized" not in log.text


def _load_on_rank(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    own_folder = f"{folder}/{rank}"
    checkpointer = DetectionCheckpointer(model, own_folder, optimizer=torch.optim.SGD(model.parameters(), lr=rank + 1))
    os.makedirs(own_folder)
    checkpointer.save("model")
    assert checkpointer.save_to_disk == (rank == 0)
    rest = checkpointer.resume_or_load("", resume=True)
    with open(f"{folder}/{rank}.txt", "w") as file:
        file.write(f"{rest} {checkpointer.checkpointables['optimizer'].param_groups[0]['lr']}")
    try:
        checkpointer.load(f"{folder}/nowhere.pth")
    except FileNotFoundError:
        open(f"{folder}/{rank}.refused", "w").close()
    if rank == 0:
        with open(f"{own_folder}/damaged.pth", "w") as file:
            file.write("nonsense")
    try:
        checkpointer.load(f"{own_folder}/damaged.pth")
    except ValueError:
        open(f"{folder}/{rank}.damaged", "w").close()
    dist.destroy_process_group()


def test_ranks_that_cannot_see_the_file_get_it_from_the_main_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_load_on_rank, args=(port, str(tmp_path)), nprocs=2)
    assert os.listdir(tmp_path / "1") == []
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["{} 1", "{} 1"]
    assert all((tmp_path / f"{rank}.{error}").exists() for rank in range(2) for error in ("refused", "damaged"))


@pytest.mark.parametrize(
    "weight, words",
    [
        (np.full((1, 2), 1e300), "1 of its 1 weights are not finite in the model .*: weight"),
        (np.full((1, 2), 1 + 2j), "the weight weight is complex"),
    ],
    ids=["too large", "complex"],
)
def test_weights_that_would_be_others_in_the_model_are_refused_and_leave_it_as_it_is(tmp_path, weight, words):
    model = torch.nn.Linear(2, 1)
    before = model.weight.clone()
    torch.save({"model": {"weight": weight}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: {words}"):
        DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert torch.equal(model.weight, before)
