"""Configs of the zoo are found, and turned into models."""

import json

import pytest
import torch

from detlab import model_zoo
from detlab.config.config import CfgNode
from detlab.model_zoo import model_zoo as implementation
from detlab.model_zoo.checkpoints import CHECKPOINT_SUFFIXES, URL_PREFIX

FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
MASK_RCNN_LAZY = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"


def test_checkpoint_locations_are_the_recorded_ones(shared_dir):
    recorded = json.loads((shared_dir / "compat" / "model_zoo.json").read_text())
    assert recorded["config_to_suffix"] == CHECKPOINT_SUFFIXES
    assert recorded["prefix"] == URL_PREFIX


@pytest.mark.parametrize("extension", ["", ".yaml", ".py"])
def test_a_checkpoint_url_names_config_and_file(extension):
    url = model_zoo.get_checkpoint_url("COCO-Detection/faster_rcnn_R_50_FPN_1x" + extension)
    assert url == URL_PREFIX + "COCO-Detection/faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba.pkl"


def test_every_config_with_trained_weights_exists_or_is_of_the_newer_python_kind():
    for stem in CHECKPOINT_SUFFIXES:
        if not stem.startswith("new_baselines/"):
            model_zoo.get_config_file(stem + ".yaml")


def test_a_config_without_trained_weights_is_refused_with_the_nearest_that_have_some():
    with pytest.raises(
        RuntimeError, match=r"no trained weights for 'COCO-Detection/rpn_R_50_FPN_3x\.yaml'.*rpn_R_50_FPN"
    ):
        model_zoo.get_checkpoint_url("COCO-Detection/rpn_R_50_FPN_3x.yaml")


@pytest.mark.parametrize("name", [FASTER_RCNN, MASK_RCNN_LAZY])
def test_a_config_file_is_found(name):
    assert model_zoo.get_config_file(name).endswith(name)


@pytest.mark.parametrize("name", ["COCO-Detection/faster_rcnn_R_50_FPN_1.yaml", "faster_rcnn_R_50_FPN_1x.yaml"])
def test_an_unknown_config_is_refused_with_the_nearest(name):
    with pytest.raises(RuntimeError, match=f"no config '{name}'; nearest are .*{FASTER_RCNN}"):
        model_zoo.get_config_file(name)


@pytest.mark.parametrize("name", ["COCO-Detection", "COCO-Detection/faster_rcnn_R_50_FPN_1x", "../README.md"])
def test_only_configs_are_given(name):
    with pytest.raises(RuntimeError, match="no config"):
        model_zoo.get_config_file(name)


def test_configs_installed_beside_the_code_come_before_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "detlab" / "model_zoo"
    package.mkdir(parents=True)
    monkeypatch.setattr(implementation, "__file__", str(package / "model_zoo.py"))
    for root in (tmp_path / "configs", package / "configs"):
        root.mkdir()
        (root / "a.yaml").write_text("SEED: 1\n")
        assert model_zoo.get_config_file("a.yaml") == str(root / "a.yaml")


def test_an_installation_without_configs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(implementation, "__file__", str(tmp_path / "detlab" / "model_zoo" / "model_zoo.py"))
    with pytest.raises(RuntimeError, match="configs/ was not installed"):
        model_zoo.get_config_file("a.yaml")


def test_trained_replaces_the_initial_weights():
    cfg = model_zoo.get_config(FASTER_RCNN)
    assert isinstance(cfg, CfgNode) and not cfg.is_frozen() and cfg.MODEL.WEIGHTS.endswith("R-50.pkl")
    trained = model_zoo.get_config(FASTER_RCNN, trained=True)
    assert trained["MODEL"]["WEIGHTS"] == model_zoo.get_checkpoint_url(FASTER_RCNN)
    lazy = model_zoo.get_config(MASK_RCNN_LAZY, trained=True)
    assert lazy.train.init_checkpoint == model_zoo.get_checkpoint_url(MASK_RCNN_LAZY)


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch):
    """A zoo of two small configs that need no download."""
    (tmp_path / "rpn.yaml").write_text(
        "MODEL:\n  META_ARCHITECTURE: ProposalNetwork\n  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}\n"
        "  RPN: {IN_FEATURES: [res4]}\n"
    )
    (tmp_path / "linear.py").write_text(
        "from torch.nn import Linear\nfrom detlab.config import LazyCall as L\n"
        "model = L(Linear)(in_features=2, out_features=3)\ntrain = dict(init_checkpoint='', device='cuda')\n"
    )
    monkeypatch.setattr(implementation, "_config_root", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("device", [None, "cpu"])
def test_models_are_built_from_both_kinds_of_config(tiny_zoo, device):
    for name in ("rpn.yaml", "linear.py"):
        model = model_zoo.get(name, device=device)
        expected = "cuda" if device is None and torch.cuda.is_available() else "cpu"
        assert model.training and next(model.parameters()).device.type == expected


def test_a_model_gets_the_weights_that_its_config_names(tiny_zoo):
    weights = torch.nn.Linear(2, 3).state_dict()
    torch.save({"model": weights}, tiny_zoo / "w.pth")
    source = (tiny_zoo / "linear.py").read_text()
    (tiny_zoo / "linear.py").write_text(
        source.replace("init_checkpoint=''", f"init_checkpoint={str(tiny_zoo / 'w.pth')!r}")
    )
    model = model_zoo.get("linear.py", device="cpu")
    assert torch.equal(model.weight, weights["weight"])
