"""What comes first in every process: the output directory, logs, seeds, settings of torch; writers."""

import argparse
import re

import numpy as np
import pytest
import torch
from torch import nn

from detlab.config.config import get_cfg
from detlab.config.constraints import LIMITS
from detlab.config.lazy import LazyConfig
from detlab.config.limits import OneOf
from detlab.engine.predictor import DefaultPredictor
from detlab.engine.setup import create_ddp_model, default_setup, default_writers
from detlab.engine.trainer import DefaultTrainer
from tests.engine.toys import ToyTrainer, toy_cfg


def small_setup(tmp_path, **settings):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.MODEL.DEVICE = "cpu"
    for key, value in settings.items():
        cfg[key] = value
    return cfg


def contradictory(cfg):
    cfg.MODEL.RPN.IOU_LABELS = [0, 1]
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 3.0
    return cfg


BOTH_PROBLEMS = r"(?s)ROI_HEADS\.POSITIVE_FRACTION must be.*\n.*RPN\.IOU_LABELS must have"


@pytest.mark.parametrize("eval_only", [False, True])
def test_set_up_refuses_a_config_that_contradicts_itself_before_it_writes(tmp_path, eval_only):
    with pytest.raises(ValueError, match=BOTH_PROBLEMS):
        default_setup(contradictory(small_setup(tmp_path)), argparse.Namespace(eval_only=eval_only))
    assert not (tmp_path / "out").exists()


def test_trainer_and_predictor_refuse_a_config_that_contradicts_itself(tmp_path):
    for build in (DefaultTrainer, DefaultPredictor):
        with pytest.raises(ValueError, match=BOTH_PROBLEMS):
            build(contradictory(small_setup(tmp_path)))


def test_without_iterations_there_is_nothing_to_train_but_something_to_evaluate(tmp_path):
    cfg = small_setup(tmp_path)
    cfg.SOLVER.MAX_ITER = 0
    for start in (lambda: default_setup(cfg, argparse.Namespace()), lambda: DefaultTrainer(cfg)):
        with pytest.raises(ValueError, match="nothing to train"):
            start()
    default_setup(cfg, argparse.Namespace(eval_only=True))
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_set_up_saves_the_config_and_seeds_everything(tmp_path):
    cfg = small_setup(tmp_path, SEED=11)
    args = argparse.Namespace(eval_only=False)
    draws = []
    for _ in range(2):
        default_setup(cfg, args)
        draws.append((np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]
    loaded = get_cfg()
    loaded.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    assert loaded.dump() == cfg.dump()
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Environment info" in log
    assert "World size: 1" in log


def test_an_evaluation_does_not_replace_the_config_of_the_training(tmp_path):
    default_setup(small_setup(tmp_path, SEED=1), argparse.Namespace())
    default_setup(small_setup(tmp_path, SEED=2), argparse.Namespace(eval_only=True))
    assert "SEED: 1" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_config_that_differs_is_kept_beside_the_new_one(tmp_path):
    for seed in (1, 1, 2, 3):
        default_setup(small_setup(tmp_path, SEED=seed), argparse.Namespace(resume=True))
    texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("config*")}
    seeds = {name: text.partition("\nSEED: ")[2][:1] for name, text in texts.items()}
    assert seeds == {"config.yaml": "3", "config_1.yaml": "1", "config_2.yaml": "2"}
    assert "config_2.yaml" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize("content", [b"\xff\x00\xfe", b"A: [1,\n", b"A: 1\n\x00"])
def test_a_damaged_config_of_an_earlier_run_is_kept_and_said(tmp_path, content):
    cfg = small_setup(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_bytes(content)
    default_setup(cfg, argparse.Namespace(resume=True))
    assert (tmp_path / "out" / "config_1.yaml").read_bytes() == content
    assert (tmp_path / "out" / "config.yaml").read_text() == cfg.dump()
    assert re.search(r"is damaged \(.*kept as .*config_1\.yaml", (tmp_path / "out" / "log.txt").read_text())


def test_set_up_takes_python_configs(tmp_path):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 4, "device": "cpu"}})
    default_setup(cfg, argparse.Namespace())
    assert LazyConfig.load(str(tmp_path / "out" / "config.yaml")) == cfg


@pytest.mark.parametrize("kind", ["yaml", "Python"])
def test_a_relative_output_directory_stays_where_it_was_at_set_up(tmp_path, monkeypatch, kind):
    from omegaconf import OmegaConf

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = small_setup(tmp_path, OUTPUT_DIR="out")
    cfg.freeze()
    if kind == "Python":
        cfg = OmegaConf.create({"train": {"output_dir": "out", "device": "cpu"}})
        OmegaConf.set_readonly(cfg, True)
    default_setup(cfg, argparse.Namespace())
    monkeypatch.chdir(tmp_path / "elsewhere")
    if kind == "yaml":
        assert cfg.is_frozen()
        assert cfg.OUTPUT_DIR == str(tmp_path / "out")
    else:
        assert OmegaConf.is_readonly(cfg)
        assert cfg.train.output_dir == str(tmp_path / "out")
    assert re.search(r"(?i)output_dir: out\n", (tmp_path / "out" / "config.yaml").read_text())


def test_all_files_of_a_training_lie_together_when_the_program_goes_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = toy_cfg("out")
    default_setup(cfg, argparse.Namespace())
    monkeypatch.chdir(tmp_path / "elsewhere")
    ToyTrainer(cfg).train()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert list((tmp_path / "elsewhere").iterdir()) == []


FILES = [
    "config.yaml", "log.txt", "metrics.json", "last_checkpoint", "last_evaluation.json", "model_final.pth",
    ".running.lock",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_refused_before_training(tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    message = rf"{re.escape(str(tmp_path / 'out' / name))} shall be written as a file.*move it away.*OUTPUT_DIR"
    with pytest.raises(ValueError, match=message):
        default_setup(small_setup(tmp_path), argparse.Namespace())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_gpu_that_is_not_there_is_said_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = small_setup(tmp_path)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ValueError, match=r"no GPU.*MODEL.DEVICE cpu"):
        default_setup(cfg, argparse.Namespace())
    assert not (tmp_path / "out").exists()


def test_a_device_that_torch_does_not_know_is_refused_with_those_it_does(tmp_path):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "device": "gpu"}})
    with pytest.raises(ValueError, match=r"train\.device is 'gpu'.*'cuda'.*'cpu'"):
        default_setup(cfg, argparse.Namespace())


def test_metrics_without_an_output_directory_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="OUTPUT_DIR is empty"):
        default_writers("", 3)
    assert not list(tmp_path.iterdir())


def test_the_precision_of_products_is_set(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        default_setup(small_setup(tmp_path, FLOAT32_PRECISION="high"), argparse.Namespace())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precisions_are_those_of_the_limits_for_both_kinds_of_configs(tmp_path, monkeypatch):
    from omegaconf import OmegaConf

    lazy = OmegaConf.create({"train": {"output_dir": str(tmp_path), "float32_precision": "best"}})
    with pytest.raises(ValueError, match=r"train\.float32_precision must be .*'highest'.*, got 'best'"):
        default_setup(lazy, argparse.Namespace())
    for key, limit in (("FLOAT32_PRECISION", "lowest"), ("SOLVER.AMP.PRECISION", "float64")):
        monkeypatch.setitem(LIMITS, key, OneOf(("", limit)))
    with pytest.raises(ValueError, match=r"train\.float32_precision must be '' or 'lowest', got 'best'"):
        default_setup(lazy, argparse.Namespace())
    with pytest.raises(ValueError, match=r"torch\.bfloat16, got torch\.float64"):
        ToyTrainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float64"))


def test_one_process_needs_no_wrapper():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model
