"""Every kind of file comes to one form; damage and danger come to a sentence."""

import os
import pickle
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.checkpoint.formats import find_unloadable, read_checkpoint
from detlab.checkpoint.pickle_reader import UnsafePickleError


def save_pickle(path, data, protocol=2):
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return str(path)


def save_torch(path, data):
    torch.save(data, path)
    return str(path)


def test_the_reference_zoos_pickle_keeps_its_notes(tmp_path):
    data = {"model": {"w": np.ones(2)}, "__author__": "third-party", "matching_heuristics": True}
    read = read_checkpoint(save_pickle(tmp_path / "model.pkl", data))
    assert read["__author__"] == "third-party" and read["matching_heuristics"] is True
    assert np.array_equal(read["model"]["w"], np.ones(2))


@pytest.mark.parametrize("wrap", [lambda blobs: {"blobs": blobs, "cfg": "NAME: x"}, lambda blobs: blobs])
def test_caffe2_blobs_lose_momenta_and_book_keeping(tmp_path, wrap):
    blobs = {"conv1_w": np.ones(2), "conv1_w_momentum": np.ones(2), "lr": 0.1}
    read = read_checkpoint(save_pickle(tmp_path / "R-50.pkl", wrap(blobs)))
    assert list(read["model"]) == ["conv1_w"]
    assert read["__author__"] == "Caffe2" and read["matching_heuristics"] is True


def test_own_and_plain_torch_files(tmp_path):
    state = nn.Linear(2, 3).state_dict()
    wrapped = read_checkpoint(save_torch(tmp_path / "a.pth", {"model": state, "iteration": 7}))
    plain = read_checkpoint(save_torch(tmp_path / "b.pth", state))
    assert wrapped["iteration"] == 7 and "matching_heuristics" not in wrapped
    for read in (wrapped, plain):
        assert torch.equal(read["model"]["weight"], state["weight"])


@pytest.mark.parametrize("key", ["state_dict", "model_state"])
def test_other_programs_names_for_weights_are_known(tmp_path, key):
    read = read_checkpoint(save_torch(tmp_path / "a.pyth", {key: nn.Linear(2, 3).state_dict(), "epoch": 3}))
    assert set(read["model"]) == {"weight", "bias"} and read["epoch"] == 3 and read["matching_heuristics"]


def test_files_of_torchs_old_format_are_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(nn.Linear(2, 3).state_dict(), path, _use_new_zipfile_serialization=False)
    assert set(read_checkpoint(str(path))["model"]) == {"weight", "bias"}


def test_real_backbone_weights_are_read(shared_dir):
    weights = read_checkpoint(str(shared_dir / "weights" / "mobilenet_v2-b0353104.pth"))["model"]
    assert weights["features.0.0.weight"].shape == (32, 3, 3, 3)


def test_safetensors_are_read_where_the_package_is_installed(tmp_path):
    path = tmp_path / "model.safetensors"
    try:
        from safetensors.torch import save_file
    except ImportError:
        path.write_bytes(b"")
        with pytest.raises(ImportError, match=r"detlab\[safetensors\]"):
            read_checkpoint(str(path))
        return
    save_file({"w": torch.ones(2)}, path)
    assert torch.equal(read_checkpoint(str(path))["model"]["w"], torch.ones(2))


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(("name", "save"), [("bad.pkl", save_pickle), ("bad.pth", save_torch)])
def test_a_file_that_would_run_code_is_refused_by_name(tmp_path, monkeypatch, name, save):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / name, {"model": {"w": Malicious()}})
    with pytest.raises(UnsafePickleError, match=rf"{name} is not read, because it asks for (posix|nt)\.system"):
        read_checkpoint(path)
    assert os.listdir(tmp_path) == [name]


def test_a_whole_pickled_model_is_refused(tmp_path):
    with pytest.raises(UnsafePickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(save_torch(tmp_path / "model.pth", nn.Linear(1, 1)))


@pytest.mark.parametrize(("name", "save"), [("model.pkl", save_pickle), ("model.pth", save_torch)])
@pytest.mark.parametrize("part", [0, 0.3, 0.99])
def test_a_truncated_file_is_named_with_the_cure(tmp_path, name, save, part):
    path = save(tmp_path / name, {"model": {"w": np.ones(500)}})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=rf"{name} \(\d+ bytes\) is damaged.*again"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["page.pkl", "page.pth"])
def test_an_error_page_in_place_of_a_checkpoint_is_named(tmp_path, name):
    (tmp_path / name).write_text("<html>404</html>")
    with pytest.raises(ValueError, match=f"{name}.*is damaged or is not a checkpoint"):
        read_checkpoint(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "save", "data"),
    [
        ("a.pkl", save_pickle, [1, 2]),
        ("a.pkl", save_pickle, {"lr": 0.1}),
        ("a.pth", save_torch, [1, 2]),
        ("a.pth", save_torch, {"epoch": 3, "optimizer": {}}),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, name, save, data):
    with pytest.raises(ValueError, match=r"no(t a dict of)? weights"):
        read_checkpoint(save(tmp_path / name, data))


def test_what_may_be_saved_can_be_loaded(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    data = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "hooks": {"best": np.float64(0.5), "count": Counter("aab"), "none": None, "array": np.ones(2)},
        "misc": [OrderedDict(a=1), (1, 2.5), {"x"}, torch.Size([1]), torch.float32, torch.device("cpu"), b"x", 1j],
    }
    assert list(find_unloadable(data)) == []
    read = read_checkpoint(save_torch(tmp_path / "a.pth", data))
    assert read["hooks"]["best"] == 0.5 and read["misc"][0] == {"a": 1} and read["hooks"]["count"]["a"] == 2


def test_what_could_not_be_loaded_is_found_before_saving():
    Pair = namedtuple("Pair", "a b")
    data = {"trainer": {"hooks": [0, Malicious()]}, "x": Pair(1, 2), "y": defaultdict(list)}
    found = list(find_unloadable(data))
    assert found[0].startswith("trainer.hooks.1 is a ") and found[0].endswith("Malicious")
    assert found[1].startswith("x is a ") and found[2] == "y is a collections.defaultdict"


UNLOADABLE = {
    "a nested key": lambda: {(1, (2,)): 0},
    "a key of more than 64 bits": lambda: {2**70: 0},
    "a set of sets": lambda: {frozenset()},
    "a huge integer": lambda: 2**5000,
    "dates": lambda: np.array(["2020-01-01"], dtype="M8[D]"),
    "objects": lambda: np.array([None]),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.ones(1, device="meta"),
    "conjugated": lambda: torch.ones(1, dtype=torch.complex64).conj(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", UNLOADABLE)
def test_whatever_a_load_refuses_is_not_saved(tmp_path, what):
    data = {"model": {"w": torch.ones(1)}, "state": UNLOADABLE[what]()}
    assert len(list(find_unloadable(data))) == 1
    with pytest.raises((ValueError, UnsafePickleError)):
        read_checkpoint(save_torch(tmp_path / "a.pth", data))


def test_the_extension_does_not_decide_what_a_file_is(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "a.pkl")
    assert torch.equal(read_checkpoint(str(tmp_path / "a.pkl"))["model"]["w"], torch.ones(2))
    plain = read_checkpoint(save_pickle(tmp_path / "b.pth", {"model": {"w": np.ones(2)}}))
    assert np.array_equal(plain["model"]["w"], np.ones(2))


def test_keys_of_more_numbers_than_a_file_may_have_are_found_before_saving(tmp_path):
    counted = dict.fromkeys(range(50000), 0)
    scattered = {7 * number + 1: 0 for number in range(30_000)}
    assert list(find_unloadable({"x": counted})) == []
    assert "x: more than 20000 keys are numbers that do not count from 0 on" in list(find_unloadable({"x": scattered}))
    path = str(tmp_path / "a.pth")
    torch.save({"model": {"w": torch.ones(1)}, "x": counted}, path)
    assert read_checkpoint(path)["x"] == counted
    torch.save({"model": {"w": torch.ones(1)}, "x": scattered}, path)
    with pytest.raises(ValueError, match=r"a\.pth .* more than 20000 keys are numbers"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", [1, None, b"w_momentum", ("w",)], ids=repr)
def test_a_weight_whose_name_is_no_text_is_refused(tmp_path, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({name: np.ones(3, np.float32)}))
    with pytest.raises(ValueError, match=r"a\.pkl: a weight has the name .*; names are texts"):
        DetectionCheckpointer(torch.nn.Linear(2, 1)).load(str(path))
