"""The trainer that a config describes: scaling, its hooks and steps, resuming, evaluation alone."""

import gc
import itertools
import json
import logging
import math
import time
import weakref

import pytest
import torch
from torch import nn

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.config.config import get_cfg
from detlab.engine.hooks import BestCheckpointer
from detlab.engine.train_loop import AMPTrainer, HookBase
from detlab.engine.trainer import DefaultTrainer
from tests.engine.toys import Poisoned, ToyModel, ToyTrainer, toy_cfg

# -------------------------------------------------------------------------------------------------------------- scaling


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


# -------------------------------------------------------------------------------------------------------------- trainer


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


def test_rows_of_metrics_are_whole_when_losses_are_looked_at_late(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 27))
    trainer._trainer.async_write_metrics = True
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [19, 26, 27]
    for row in rows[:2]:
        assert {"total_loss", "loss_a", "loss_b", "data_time", "lr", "time"} <= set(row)


@pytest.mark.parametrize("late", [False, True])
def test_a_bad_loss_stops_the_run_with_names_and_no_spoilt_checkpoint_is_left(tmp_path, late):
    class Spoilt(ToyTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return Poisoned(3)

    trainer = Spoilt(toy_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 1))
    trainer._trainer.async_write_metrics = late
    with pytest.raises(FloatingPointError, match=r"iteration 3(?s:.*)3_1\.jpg"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [f"model_{i:07d}.pth" for i in range(3)]


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
    stopped._one_step.seed = whole._one_step.seed
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


# ------------------------------------------------------------------------------------- a run that was finished, resumed


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
