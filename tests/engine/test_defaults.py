"""Arguments, set-up, scaling, writers, the predictor."""

import argparse
import gc
import itertools
import json
import logging
import math
import os
import re
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.config.config import get_cfg
from detlab.config.constraints import LIMITS
from detlab.config.lazy import LazyConfig
from detlab.config.limits import OneOf
from detlab.engine import defaults
from detlab.engine.defaults import DefaultPredictor, DefaultTrainer
from detlab.engine.hooks import BestCheckpointer
from detlab.engine.train_loop import AMPTrainer, HookBase
from detlab.modeling.meta_arch.build import build_model
from tests.engine.toys import ToyLoader, ToyModel
from tests.modeling.tiny import tiny_config

# -------------------------------------------------------------------------------------------------- command line


def test_the_command_line_has_what_users_of_such_tools_know():
    args = defaults.default_argument_parser().parse_args(
        ["--config-file", "a.yaml", "--import", "x.py", "--import", "y", "--num-gpus", "2", "--resume", "SEED", "3"]
    )
    assert (args.config_file, args.imports, args.num_gpus, args.opts) == ("a.yaml", ["x.py", "y"], 2, ["SEED", "3"])
    assert (args.resume, args.eval_only, args.num_machines, args.machine_rank) == (True, False, 1, 0)
    assert args.dist_url == "auto"
    assert "torchrun" in defaults.default_argument_parser().format_help()
    assert "my epilog" in defaults.default_argument_parser("my epilog").format_help()


@pytest.mark.parametrize(
    "arguments", [("--num-gpus", "-1"), ("--num-gpus", "two"), ("--num-machines", "0"), ("--machine-rank", "-2")]
)
def test_a_number_that_cannot_be_is_refused_by_the_command_line(arguments, capsys):
    with pytest.raises(SystemExit):
        defaults.default_argument_parser().parse_args(arguments)
    option, value = arguments
    assert re.search(rf"argument {option}: must be a whole number from \d on, got '{value}'", capsys.readouterr().err)


def test_a_python_config_is_sent_to_the_program_that_takes_it(tmp_path):
    (tmp_path / "model.py").write_text("model = dict()\n")
    args = defaults.default_argument_parser().parse_args(["--config-file", str(tmp_path / "model.py")])
    with pytest.raises(ValueError, match=r"lazyconfig_train_net\.py"):
        defaults.config_from_args(args)


def test_the_config_is_read_after_the_modules_and_frozen(tmp_path):
    module = tmp_path / "early.py"
    module.write_text("import os\nos.environ['EARLY_MODULE'] = 'loaded'\n")
    file = tmp_path / "c.yaml"
    file.write_text("SEED: 5\n")
    parser = defaults.default_argument_parser()
    cfg = defaults.config_from_args(
        parser.parse_args(["--import", str(module), "--config-file", str(file), "SOLVER.MAX_ITER", "7"])
    )
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.is_frozen()) == (5, 7, True)
    assert os.environ.pop("EARLY_MODULE") == "loaded"


# --------------------------------------------------------------------------------------------------------- set-up


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
        defaults.default_setup(contradictory(small_setup(tmp_path)), argparse.Namespace(eval_only=eval_only))
    assert not (tmp_path / "out").exists()


def test_trainer_and_predictor_refuse_a_config_that_contradicts_itself(tmp_path):
    for build in (DefaultTrainer, DefaultPredictor):
        with pytest.raises(ValueError, match=BOTH_PROBLEMS):
            build(contradictory(small_setup(tmp_path)))


def test_without_iterations_there_is_nothing_to_train_but_something_to_evaluate(tmp_path):
    cfg = small_setup(tmp_path)
    cfg.SOLVER.MAX_ITER = 0
    for start in (lambda: defaults.default_setup(cfg, argparse.Namespace()), lambda: DefaultTrainer(cfg)):
        with pytest.raises(ValueError, match="nothing to train"):
            start()
    defaults.default_setup(cfg, argparse.Namespace(eval_only=True))
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_set_up_saves_the_config_and_seeds_everything(tmp_path):
    cfg = small_setup(tmp_path, SEED=11)
    args = argparse.Namespace(eval_only=False)
    draws = []
    for _ in range(2):
        defaults.default_setup(cfg, args)
        draws.append((np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]
    loaded = get_cfg()
    loaded.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    assert loaded.dump() == cfg.dump()
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Environment info" in log
    assert "World size: 1" in log


def test_an_evaluation_does_not_replace_the_config_of_the_training(tmp_path):
    defaults.default_setup(small_setup(tmp_path, SEED=1), argparse.Namespace())
    defaults.default_setup(small_setup(tmp_path, SEED=2), argparse.Namespace(eval_only=True))
    assert "SEED: 1" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_config_that_differs_is_kept_beside_the_new_one(tmp_path):
    for seed in (1, 1, 2, 3):
        defaults.default_setup(small_setup(tmp_path, SEED=seed), argparse.Namespace(resume=True))
    texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("config*")}
    seeds = {name: text.partition("\nSEED: ")[2][:1] for name, text in texts.items()}
    assert seeds == {"config.yaml": "3", "config_1.yaml": "1", "config_2.yaml": "2"}
    assert "config_2.yaml" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize("content", [b"\xff\x00\xfe", b"A: [1,\n", b"A: 1\n\x00"])
def test_a_damaged_config_of_an_earlier_run_is_kept_and_said(tmp_path, content):
    cfg = small_setup(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_bytes(content)
    defaults.default_setup(cfg, argparse.Namespace(resume=True))
    assert (tmp_path / "out" / "config_1.yaml").read_bytes() == content
    assert (tmp_path / "out" / "config.yaml").read_text() == cfg.dump()
    assert re.search(r"is damaged \(.*kept as .*config_1\.yaml", (tmp_path / "out" / "log.txt").read_text())


def test_set_up_takes_python_configs(tmp_path):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 4, "device": "cpu"}})
    defaults.default_setup(cfg, argparse.Namespace())
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
    defaults.default_setup(cfg, argparse.Namespace())
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
    defaults.default_setup(cfg, argparse.Namespace())
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
        defaults.default_setup(small_setup(tmp_path), argparse.Namespace())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_gpu_that_is_not_there_is_said_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = small_setup(tmp_path)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ValueError, match=r"no GPU.*MODEL.DEVICE cpu"):
        defaults.default_setup(cfg, argparse.Namespace())
    assert not (tmp_path / "out").exists()


def test_a_device_that_torch_does_not_know_is_refused_with_those_it_does(tmp_path):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "device": "gpu"}})
    with pytest.raises(ValueError, match=r"train\.device is 'gpu'.*'cuda'.*'cpu'"):
        defaults.default_setup(cfg, argparse.Namespace())


def test_metrics_without_an_output_directory_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="OUTPUT_DIR is empty"):
        defaults.default_writers("", 3)
    assert not list(tmp_path.iterdir())


def test_the_precision_of_products_is_set(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        defaults.default_setup(small_setup(tmp_path, FLOAT32_PRECISION="high"), argparse.Namespace())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precisions_are_those_of_the_limits_for_both_kinds_of_configs(tmp_path, monkeypatch):
    from omegaconf import OmegaConf

    lazy = OmegaConf.create({"train": {"output_dir": str(tmp_path), "float32_precision": "best"}})
    with pytest.raises(ValueError, match=r"train\.float32_precision must be .*'highest'.*, got 'best'"):
        defaults.default_setup(lazy, argparse.Namespace())
    for key, limit in (("FLOAT32_PRECISION", "lowest"), ("SOLVER.AMP.PRECISION", "float64")):
        monkeypatch.setitem(LIMITS, key, OneOf(("", limit)))
    with pytest.raises(ValueError, match=r"train\.float32_precision must be '' or 'lowest', got 'best'"):
        defaults.default_setup(lazy, argparse.Namespace())
    with pytest.raises(ValueError, match=r"torch\.bfloat16, got torch\.float64"):
        ToyTrainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float64"))


def test_one_process_needs_no_wrapper():
    model = nn.Linear(1, 1)
    assert defaults.create_ddp_model(model, broadcast_buffers=False) is model


# --------------------------------------------------------------------------------------------------------- scaling


def scaled(num_workers, **solver):
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.REFERENCE_WORLD_SIZE = 16, 0.02, 8
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 1000, (600, 800), 100
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 500, 200
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    cfg.freeze()
    before = cfg.clone()
    result = DefaultTrainer.auto_scale_workers(cfg, num_workers)
    assert cfg == before
    return cfg, result


def test_more_processes_make_larger_batches_and_shorter_schedules():
    _, cfg = scaled(16)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (32, 0.04, 500, (300, 400))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (50, 250, 100)
    assert solver.REFERENCE_WORLD_SIZE == 16
    assert cfg.is_frozen()


@pytest.mark.parametrize("settings", [{"REFERENCE_WORLD_SIZE": 0}, {"REFERENCE_WORLD_SIZE": 4}])
def test_a_config_for_as_many_processes_is_taken_as_it_is(settings):
    given, result = scaled(4, **settings)
    assert result is given


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 9.*REFERENCE_WORLD_SIZE 8"):
        scaled(4, IMS_PER_BATCH=9)


# --------------------------------------------------------------------------------------------------------- trainer


class ToyTrainer(DefaultTrainer):
    """Everything of the default trainer but model and data."""

    results = {"bbox": {"AP": 1.0}}

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return ToyModel()

    @classmethod
    def build_train_loader(cls, cfg):
        return ToyLoader(seed=3)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return cls.results


def toy_cfg(tmp_path, *options):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "(4,)", "MODEL.DEVICE", "cpu",
         "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.WARMUP_ITERS", 2, *options]
    )  # fmt: skip
    cfg.freeze()
    return cfg


def test_the_trainer_gives_its_last_results_and_checks_them(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path, "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1.0, 0.1]]"))
    trainer.resume_or_load(resume=False)
    assert trainer.train() == {"bbox": {"AP": 1.0}}
    wrong = ToyTrainer(toy_cfg(tmp_path, "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 5.0, 0.1]]"))
    with pytest.raises(SystemExit):
        wrong.train()


def test_hooks_hear_of_the_backward_pass_and_see_gradients(tmp_path):
    class LookAtGradients(HookBase):
        norms = []

        def after_backward(self):
            self.norms.append(self.trainer.model.linear.weight.grad.norm().item())

    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.register_hooks([LookAtGradients()])
    trainer.train()
    assert len(LookAtGradients.norms) == 6
    assert any(LookAtGradients.norms)


@pytest.mark.parametrize("writes", ["trainer", "inner"])
@pytest.mark.parametrize("amp", [False, True])
def test_a_step_as_users_of_the_reference_write_it_trains_and_its_metrics_are_written(tmp_path, writes, amp):
    class OwnStep(ToyTrainer):
        def run_step(self):
            assert self.model.training
            start = time.perf_counter()
            data = next(self._trainer._data_loader_iter)
            data_time = time.perf_counter() - start
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())
            self.optimizer.zero_grad()
            losses.backward()
            (self if writes == "trainer" else self._trainer)._write_metrics(loss_dict, data_time)
            self.optimizer.step()

    trainer = OwnStep(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", amp))
    trainer.train()
    history = trainer.storage.history("loss_a").values()
    assert [iteration for _, iteration in history] == list(range(6))
    assert not torch.equal(trainer.model.linear.weight, ToyTrainer.build_model(None).linear.weight)


def test_a_trainer_is_gone_when_it_is_dropped(tmp_path):
    """Not only when Python looks for cycles: its model fills the GPU, and its workers the memory."""
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.train()
    left = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert left() is None
    finally:
        gc.enable()


def test_the_order_of_the_hooks_is_the_documented_one(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    names = [type(hook).__name__ for hook in trainer.hooks]
    assert names == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]
    assert trainer.max_iter == 6
    assert trainer.cfg.is_frozen()


@pytest.mark.parametrize("amp", ["False", "True"])
def test_a_resumed_trainer_ends_bitwise_like_one_that_was_not_stopped(tmp_path, amp):
    options = ["SOLVER.AMP.ENABLED", amp]

    class Stop(HookBase):
        def before_step(self):
            if self.trainer.iter == 5:
                raise KeyboardInterrupt

    whole = ToyTrainer(toy_cfg(tmp_path / "whole", *options, "SEED", 1))
    whole.train()
    stopped = ToyTrainer(toy_cfg(tmp_path / "stopped", *options))
    stopped._trainer._step_seed = whole._trainer._step_seed
    stopped.register_hooks([Stop()])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = ToyTrainer(toy_cfg(tmp_path / "stopped", *options))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    resumed.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert isinstance(resumed._trainer, AMPTrainer) == (amp == "True")


def test_a_finished_run_that_gets_more_iterations_goes_on_after_its_last(tmp_path):
    first = ToyTrainer(toy_cfg(tmp_path))
    first.register_hooks([BestCheckpointer(0, first.checkpointer, "bbox/AP")])
    first.train()
    more = ToyTrainer(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 8))
    more.resume_or_load(resume=True)
    assert more.start_iter == 6
    again = ToyTrainer(toy_cfg(tmp_path))
    again.resume_or_load(resume=True)
    assert again.train() == {"bbox": {"AP": 1.0}}


def test_training_again_runs_the_same_iterations_on_the_weights_there_are(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.train()
    first = trainer.model.linear.weight.detach().clone()
    rates = trainer.storage.history("lr").values()
    assert trainer.train() == {"bbox": {"AP": 1.0}}
    assert trainer.data_loader.numbers == [0, 1, 2, 3, 4, 5] * 2
    assert trainer.storage.history("lr").values() == rates
    assert not torch.equal(trainer.model.linear.weight, first)
    rows = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.json").read_text().splitlines()]
    # The second evaluation's results are those of the first, which are there.
    assert rows == [5, 6, 5]


def test_training_again_goes_on_where_it_is_told_to(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.train()
    trainer.start_iter, trainer.max_iter = 6, 8
    trainer.train()
    assert trainer.data_loader.numbers == list(range(8))
    trainer.start_iter, trainer.max_iter = 1, 3
    trainer.train()
    assert trainer.data_loader.numbers == [*range(8), 1, 2]
    assert trainer.storage.history("lr").values()[0][1] == 1


@pytest.mark.parametrize("fails_in", [0, 3])
def test_a_trainer_that_failed_in_a_step_trains_again_on_the_batches_of_the_iterations(tmp_path, fails_in):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    update, trainer.optimizer.step = trainer.optimizer.step, fail_in_call(fails_in, trainer.optimizer.step)
    with pytest.raises(RuntimeError, match="the device is gone"):
        trainer.train()
    trainer.optimizer.step = update
    trainer.train()
    assert trainer.data_loader.numbers == [*range(fails_in + 1), *range(6)]
    assert trainer.iter == 6


def fail_in_call(number, function):
    calls = itertools.count()

    def call(*args):
        if next(calls) == number:
            raise RuntimeError("the device is gone")
        return function(*args)

    return call


# ---------------------------------------------------------------------------------- a run that was finished, resumed


class Evaluated(ToyTrainer):
    """Notes in which iteration it was evaluated."""

    at = []

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.at.append(1)
        return {"bbox": {"AP": 2.0, "APs": math.nan}}


@pytest.fixture
def finished(tmp_path):
    """``finished(*options)`` resumes a run that was finished; gives its results and how often it evaluated."""
    Evaluated(toy_cfg(tmp_path)).train()

    def resume(*options):
        del Evaluated.at[:]
        trainer = Evaluated(toy_cfg(tmp_path, *options))
        trainer.resume_or_load(resume=True)
        return str(trainer.train()), len(Evaluated.at)

    return resume


RESULTS = str({"bbox": {"AP": 2.0, "APs": math.nan}})


def test_a_finished_run_that_is_resumed_keeps_its_results_and_its_metrics(tmp_path, finished):
    before = (tmp_path / "metrics.json").read_text()
    assert finished() == (RESULTS, 0)
    assert finished("SOLVER.BASE_LR", 0.5, "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 2.0, 0.1]]") == (RESULTS, 0)
    assert (tmp_path / "metrics.json").read_text() == before
    with pytest.raises(SystemExit):
        finished("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 3.0, 0.1]]")


def test_a_finished_run_is_evaluated_again_with_other_settings_of_the_evaluation(finished):
    assert finished("TEST.DETECTIONS_PER_IMAGE", 7) == (RESULTS, 1)


def test_a_missing_evaluation_of_a_finished_run_is_made_up_for(tmp_path, finished):
    before = (tmp_path / "metrics.json").read_text()
    (tmp_path / "metrics.json").write_text(before.splitlines(keepends=True)[0])
    (tmp_path / "last_evaluation.json").unlink()
    assert finished() == (RESULTS, 1)
    assert (tmp_path / "metrics.json").read_text() == before
    # Killed between the evaluation and the writing of its results.
    (tmp_path / "metrics.json").write_text(before.splitlines(keepends=True)[0])
    assert finished() == (RESULTS, 0)
    assert (tmp_path / "metrics.json").read_text() == before


DAMAGED = [
    b"",
    b"{",
    b"[1]",
    b"{}",
    b"\xff\xfe\x00",
    b'{"iteration": 5, "results": [1]}',
    b'{"iteration": 5, "results": {"a": {"b": "c"}}}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_of_the_last_evaluation_is_said_and_the_evaluation_repeated(
    tmp_path, finished, content, caplog
):
    (tmp_path / "last_evaluation.json").write_bytes(content)
    logging.getLogger("detlab").propagate = True
    assert finished() == (RESULTS, 1)
    assert f"{tmp_path / 'last_evaluation.json'} is damaged and is removed" in caplog.text
    assert finished() == (RESULTS, 0)


def test_resuming_from_weights_alone_starts_at_zero_and_says_so(tmp_path, caplog):
    DetectionCheckpointer(ToyModel(), str(tmp_path)).save("weights")
    trainer = ToyTrainer(toy_cfg(tmp_path))
    logging.getLogger("detlab").propagate = True
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert "no state of a trainer" in caplog.text


def test_a_directory_with_another_run_is_said_unless_it_is_resumed(tmp_path, caplog):
    ToyTrainer(toy_cfg(tmp_path)).train()
    logging.getLogger("detlab").propagate = True
    ToyTrainer(toy_cfg(tmp_path)).resume_or_load(resume=False)
    assert "add --resume" in caplog.text


def test_evaluators_must_be_as_many_as_data_sets(tmp_path):
    with pytest.raises(ValueError, match="0 evaluators for the 1"):
        DefaultTrainer.test(toy_cfg(tmp_path, "DATASETS.TEST", "['a']"), nn.Identity(), evaluators=[])


# ------------------------------------------------------------------------------------------------------- predictor


@pytest.fixture(scope="module")
def predictor_cfg(tmp_path_factory):
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 48
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(tmp_path_factory.mktemp("weights"))).save("tiny")
    cfg.MODEL.WEIGHTS = str(next(tmp_path_factory.getbasetemp().glob("weights*/tiny.pth")))
    return cfg


def test_the_predictor_answers_in_the_coordinates_of_the_image(predictor_cfg):
    image = np.random.RandomState(0).randint(0, 255, (60, 90, 3), dtype=np.uint8)
    instances = DefaultPredictor(predictor_cfg)(image)["instances"]
    assert instances.image_size == (60, 90)
    assert len(instances) > 0
    assert not predictor_cfg.is_frozen()


def test_the_predictor_turns_the_channels_for_an_rgb_model(predictor_cfg):
    image = np.random.RandomState(0).randint(0, 255, (60, 90, 3), dtype=np.uint8)
    rgb = predictor_cfg.clone()
    rgb.INPUT.FORMAT = "RGB"
    from_bgr, from_rgb = DefaultPredictor(predictor_cfg)(image), DefaultPredictor(rgb)(image[:, :, ::-1])
    assert torch.equal(from_bgr["instances"].scores, from_rgb["instances"].scores)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, "cv2.imread"),
        (np.zeros((4, 4), np.uint8), ValueError, r"\(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
    ],
)
def test_the_predictor_refuses_what_is_no_image(predictor_cfg, image, error, message):
    with pytest.raises(error, match=message):
        DefaultPredictor(predictor_cfg)(image)


def test_the_predictor_refuses_other_formats(predictor_cfg):
    cfg = predictor_cfg.clone()
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="'L'"):
        DefaultPredictor(cfg)
