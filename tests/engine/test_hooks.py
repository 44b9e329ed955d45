"""Each hook does its one thing."""

import contextlib
import json
import logging
import os

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn
from torch.utils.data import DataLoader

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.engine import hooks
from detlab.engine.train_loop import HookBase
from detlab.utils.events import CommonMetricPrinter, EventWriter, JSONWriter
from detlab.utils.registry import Registry
from tests.engine.toys import toy_trainer


@pytest.fixture(autouse=True)
def _logs_are_captured():
    logger = logging.getLogger("detlab")
    before = logger.propagate, logger.level
    logger.propagate = True
    logger.setLevel(logging.INFO)
    yield
    logger.propagate = before[0]
    logger.setLevel(before[1])


def test_callbacks_get_the_trainer_at_their_moments():
    trainer, calls = toy_trainer(), []
    moments = ["before_train", "before_step", "after_backward", "after_step", "after_train"]
    notes = {m: (lambda given, m=m: calls.append((m, given.iter))) for m in moments}
    trainer.register_hooks([hooks.CallbackHook(**notes), hooks.CallbackHook()])
    trainer.train(0, 1)
    assert calls == [(m, 0) for m in moments[:4]] + [("after_train", 1)]


def test_the_timer_puts_the_time_of_steps_after_the_warmup(caplog):
    trainer = toy_trainer()
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=2)])
    with caplog.at_level(logging.INFO):
        trainer.train(0, 5)
    times = trainer.storage.history("time").values()
    assert [iteration for _, iteration in times] == [2, 3, 4]
    assert all(seconds > 0 for seconds, _ in times)
    assert "Overall training speed: 3 iterations" in caplog.text


def test_a_run_without_iterations_ends_in_peace():
    trainer = toy_trainer()
    trainer.register_hooks([hooks.IterationTimer(), hooks.PeriodicWriter([])])
    trainer.train(5, 5)


def test_writers_write_periodically_at_the_end_and_what_was_put_after_training(tmp_path):
    class Late(HookBase):
        def after_train(self):
            self.trainer.storage.put_scalar("late", 1.0)

    class Count(EventWriter):
        written, closed = 0, False

        def write(self):
            self.written += 1

        def close(self):
            self.closed = True

    trainer, count = toy_trainer(), Count()
    trainer.register_hooks([Late(), hooks.PeriodicWriter([count, JSONWriter(str(tmp_path / "m.json"))], period=3)])
    trainer.train(0, 7)
    assert (count.written, count.closed) == (4, True)
    rows = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [2, 5, 6, 7]
    assert rows[-1]["late"] == 1.0
    with pytest.raises(TypeError, match="EventWriter"):
        hooks.PeriodicWriter(["log.txt"])


class EndAt(HookBase):
    """Ends the run after an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            self.trainer.max_iter = 0


class PutBehind(HookBase):
    """Puts a scalar every three iterations and at the end."""

    def after_step(self):
        if (self.trainer.iter + 1) % 3 == 0:
            self.trainer.storage.put_scalar("behind", float(self.trainer.iter), smoothing_hint=False)

    def after_train(self):
        self.trainer.storage.put_scalar("at_the_end", 1.0)


def test_scalars_of_a_hook_behind_the_writer_are_written(tmp_path):
    trainer = toy_trainer()
    trainer.register_hooks([hooks.PeriodicWriter([JSONWriter(str(tmp_path / "m.json"))], period=3), PutBehind()])
    trainer.train(0, 6)
    rows = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert [(row["iteration"], row["behind"]) for row in rows if "behind" in row] == [(2, 2.0), (5, 5.0)]
    assert [row["iteration"] for row in rows if "at_the_end" in row] == [6]
    assert len([row for row in rows if "total_loss" in row]) == 2


@pytest.mark.parametrize("stops_first", [True, False])
def test_everything_at_the_end_of_a_run_follows_a_hook_that_ends_it(tmp_path, caplog, stops_first):
    trainer, evaluated = toy_trainer(), []
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    writers = [CommonMetricPrinter(100), JSONWriter(str(tmp_path / "m.json"))]
    others = [
        hooks.PeriodicCheckpointer(checkpointer, 100),
        hooks.EvalHook(0, lambda: evaluated.append(trainer.iter) or {"AP": 1.0}),
        hooks.PeriodicWriter(writers, period=100),
    ]
    trainer.register_hooks([EndAt(4), *others] if stops_first else [*others, EndAt(4)])
    trainer.train(0, 100)
    assert evaluated == [5]
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == final["trainer"]["iteration"] == 4
    assert torch.equal(final["model"]["linear.weight"], trainer.model.linear.weight)
    rows = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert rows[0]["iteration"] == 4 and "total_loss" in rows[0] and "AP" in rows[-1]
    # Not one for iteration 5, which was never run.
    assert ["iter: 4" in m for m in caplog.messages if "eta" in m] == ([True] if stops_first else [])


def test_the_time_left_is_that_to_the_end_that_a_hook_has_set():
    class Look(HookBase):
        left = []

        def after_step(self):
            self.left.append(self.trainer.storage.latest()["eta_seconds"][0] > 0)

    trainer = toy_trainer()
    ends_later = hooks.CallbackHook(before_train=lambda given: setattr(given, "max_iter", 3))
    trainer.register_hooks(
        [ends_later, hooks.IterationTimer(0), hooks.PeriodicWriter([CommonMetricPrinter(1)], 1), Look()]
    )
    trainer.train(0, 1)
    assert Look.left == [True, True, False]


# ---------------------------------------------------------------------------------------------------- learning rate


def test_the_learning_rate_is_written_and_then_changed():
    trainer = toy_trainer()
    schedule = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=2, gamma=0.5)
    trainer.register_hooks([hooks.LRScheduler(scheduler=schedule)])
    trainer.train(0, 5)
    assert [value for value, _ in trainer.storage.history("lr").values()] == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_a_scheduler_of_torchs_takes_back_its_state_and_nothing_else():
    trainer = toy_trainer()
    schedule = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2)
    hook = hooks.LRScheduler(trainer.optimizer, schedule)
    state = hook.state_dict()
    with pytest.raises(ValueError, match="'step' is no part of its state"):
        hook.load_state_dict({**state, "step": "boom"})
    hook.load_state_dict({**state, "last_epoch": 3})
    assert schedule.last_epoch == 3 and callable(schedule.step)


@pytest.mark.parametrize("start", [0, 2])
def test_a_param_scheduler_spans_the_whole_run_also_when_it_is_resumed(start):
    trainer = toy_trainer()
    trainer.optimizer.param_groups[0]["initial_lr"] = 0.1
    hook = hooks.LRScheduler(trainer.optimizer, LinearParamScheduler(1.0, 0.0))
    assert hook.state_dict() == {}
    trainer.register_hooks([hook])
    trainer.train(start, 5)
    rates = [value for value, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02][start:])


def test_the_group_shown_is_the_largest_or_else_the_most_common_rate():
    def optimizer(*groups):
        return torch.optim.SGD(
            [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for n, lr in groups], lr=1
        )

    shown = hooks.LRScheduler.get_best_param_group_id
    assert shown(optimizer((1, 0.1), (3, 0.2), (2, 0.3))) == 1
    assert shown(optimizer((1, 0.1), (1, 0.2), (1, 0.2))) == 1
    assert shown(optimizer((5, 0.1))) == 0


# ----------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_are_saved_periodically_and_finally(tmp_path):
    trainer = toy_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=1)])
    trainer.train(0, 5)
    assert sorted(f for f in os.listdir(tmp_path) if f.endswith("pth")) == ["model_0000003.pth", "model_final.pth"]
    other = toy_trainer(seed=5)
    DetectionCheckpointer(other.model, str(tmp_path), trainer=other).resume_or_load("", resume=True)
    assert other.iter == 4
    assert torch.equal(other.model.linear.weight, trainer.model.linear.weight)


def evaluating_trainer(tmp_path, values, mode="max", metric="bbox/AP"):
    trainer = toy_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    results = iter(values)
    trainer.register_hooks(
        [
            hooks.EvalHook(1, lambda: {"bbox": {"AP": next(results)}}),
            hooks.BestCheckpointer(1, checkpointer, metric, mode=mode),
        ]
    )
    return trainer, checkpointer


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", [1.0, 3.0, 2.0], 1),
        ("min", [1.0, 3.0, 0.5], 2),
        ("max", [float("nan"), 1.0, 1.0], 1),
    ],
)
def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path, mode, values, best):
    trainer, _ = evaluating_trainer(tmp_path, values, mode)
    trainer.train(0, 3)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["iteration"] == saved["trainer"]["iteration"] == best


def test_the_best_value_survives_a_resume(tmp_path):
    trainer, checkpointer = evaluating_trainer(tmp_path, [9.0, 1.0])
    trainer.train(0, 2)
    assert checkpointer.get_checkpoint_file().endswith("model_best.pth")
    resumed, checkpointer = evaluating_trainer(tmp_path, [5.0, 6.0, 10.0])
    checkpointer.resume_or_load("", resume=True)
    assert resumed.iter == 0
    assert resumed.hooks[1].best_metric == 9.0
    resumed.train(1, 3)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 0
    resumed.train(3, 4)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3


def test_the_best_value_of_another_metric_is_not_taken_over(tmp_path, caplog):
    trainer, _ = evaluating_trainer(tmp_path, [9.0])
    trainer.train(0, 1)
    other, _ = evaluating_trainer(tmp_path, [], metric="segm/AP")
    other.load_state_dict(trainer.state_dict())
    assert other.hooks[1].best_metric is None
    assert "segm/AP" in caplog.text


def test_a_metric_nobody_puts_is_said(tmp_path, caplog):
    trainer, _ = evaluating_trainer(tmp_path, [9.0], metric="bbox/APx")
    trainer.train(0, 1)
    assert "no metric 'bbox/APx'" in caplog.text
    with pytest.raises(ValueError, match="'best'"):
        hooks.BestCheckpointer(1, None, "bbox/AP", mode="best")


# ------------------------------------------------------------------------------------------------------ evaluation


def test_results_are_put_flat_and_once_at_the_end():
    trainer, calls = toy_trainer(), []

    def evaluate():
        calls.append(trainer.iter)
        return {"bbox": {"AP": 1, "deep": {"er": 2.0}}, "speed": 3}

    trainer.register_hooks([hooks.EvalHook(2, evaluate)])
    trainer.train(0, 4)
    assert calls == [1, 4]
    latest = trainer.storage.latest()
    assert {name: latest[name][0] for name in ("bbox/AP", "bbox/deep/er", "speed")} == {
        "bbox/AP": 1.0, "bbox/deep/er": 2.0, "speed": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("last", [True, False])
def test_a_period_of_zero_evaluates_at_the_end_if_at_all(last):
    trainer, calls = toy_trainer(), []
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(trainer.iter), eval_after_train=last)])
    trainer.train(0, 3)
    assert calls == ([3] if last else [])


def test_a_run_that_failed_in_its_last_step_is_not_evaluated():
    trainer, calls = toy_trainer(), []

    def fail(given):
        if given.iter == 2:
            raise RuntimeError("stop")

    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(1)), hooks.CallbackHook(after_step=fail)])
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train(0, 3)
    assert not calls


class KilledError(Exception):
    """Stands for a signal."""


def run_with_record(tmp_path, start, end, killed_in=None, results=None, period=2):
    """A run whose evaluations are noted; gives the iterations evaluated and the trainer."""
    trainer, evaluated = toy_trainer(), []

    def evaluate():
        if trainer.iter == killed_in:
            raise KilledError
        evaluated.append(trainer.iter)
        return {"bbox": {"AP": float(trainer.iter)}} if results is None else results

    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.EvalHook(period, evaluate, record_file=str(tmp_path / "last_evaluation.json")),
            hooks.BestCheckpointer(period, checkpointer, "bbox/AP"),
        ]
    )
    if start > 0:
        checkpointer.resume_or_load("", resume=True)
    with contextlib.suppress(KilledError):
        trainer.train(start, end)
    return evaluated, trainer


def test_an_evaluation_that_was_killed_is_made_up_for_by_the_resumed_run(tmp_path):
    assert run_with_record(tmp_path, 0, 7, killed_in=3)[0] == [1]
    evaluated, trainer = run_with_record(tmp_path, 4, 7)
    assert evaluated == [4, 5, 7]
    history = trainer.storage.history("bbox/AP").values()
    assert [iteration for _, iteration in history] == [3, 5, 7]


def test_an_evaluation_that_was_finished_is_not_repeated_but_its_results_are_known(tmp_path):
    run_with_record(tmp_path, 0, 7, killed_in=5)
    evaluated, trainer = run_with_record(tmp_path, 4, 7)
    assert evaluated == [5, 7]
    assert trainer.storage.history("bbox/AP").values()[0] == (3.0, 3)
    assert trainer.hooks[1].best_metric == 7.0


def test_the_best_checkpoint_of_an_evaluation_made_up_for_resumes_at_the_right_iteration(tmp_path):
    run_with_record(tmp_path, 0, 7, killed_in=3)
    run_with_record(tmp_path, 4, 5, killed_in=5)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["iteration"] == saved["trainer"]["iteration"] == 3


def test_a_note_of_another_course_of_the_run_is_not_believed(tmp_path):
    run_with_record(tmp_path, 0, 7)
    # Afresh in the same directory, killed in the evaluation after the iteration that the note is of.
    run_with_record(tmp_path, 0, 9, killed_in=7)
    assert json.loads((tmp_path / "last_evaluation.json").read_text())["iteration"] == 5
    assert run_with_record(tmp_path, 8, 9)[0] == [8, 9]
    assert run_with_record(tmp_path, 0, 1, killed_in=1)[0] == []
    assert not (tmp_path / "last_evaluation.json").exists()


def test_a_run_killed_in_its_last_evaluation_evaluates_when_it_is_resumed(tmp_path):
    assert run_with_record(tmp_path, 0, 4, killed_in=4)[0] == [1]
    assert run_with_record(tmp_path, 4, 4)[0] == [4]


def test_an_evaluation_without_numbers_counts_as_finished(tmp_path):
    run_with_record(tmp_path, 0, 7, killed_in=5, results={})
    assert run_with_record(tmp_path, 4, 7, results={})[0] == [5, 7]


def test_a_run_ended_in_an_iteration_that_was_evaluated_is_not_evaluated_again():
    trainer, evaluated = toy_trainer(), []
    trainer.register_hooks([hooks.EvalHook(3, lambda: evaluated.append(trainer.iter)), EndAt(5)])
    trainer.train(0, 100)
    assert evaluated == [2, 5]


@pytest.mark.parametrize(("results", "error"), [({"a": {"b": "x"}}, ValueError), ([1.0], TypeError)])
def test_results_that_are_no_numbers_are_refused(results, error):
    trainer = toy_trainer()
    trainer.register_hooks([hooks.EvalHook(1, lambda: results)])
    with pytest.raises(error, match=r"a/b|list"):
        trainer.train(0, 1)


# --------------------------------------------------------------------------------------------- batch normalisation


class NormedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return {"loss": self.norm(images).mean() + self.bias}


def test_precise_statistics_are_the_true_ones_over_batches_of_different_size():
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 4 + i, 5) * (i + 1) + 100 * i for i in range(4)]
    model = NormedModel()
    trainer = toy_trainer()
    hook = hooks.PreciseBN(1, model, batches, num_iter=4)
    trainer.register_hooks([hook])
    trainer.train(0, 1)
    pixels = torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches], dim=1).double()
    torch.testing.assert_close(model.norm.running_mean.double(), pixels.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), pixels.var(1), rtol=1e-6, atol=1e-6)
    assert model.norm.momentum == 0.1
    assert torch.equal(model.frozen.running_mean, torch.zeros(3))
    assert model.bias.grad is None


def test_precise_statistics_over_a_finite_loader_start_it_again_at_its_end(caplog):
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 4, 5) + 10 * i for i in range(3)]
    statistics = []
    # A loader of torch's has a length, and cannot begin in the middle.
    for loader in (DataLoader(batches, batch_size=None), [*batches, *batches[:2]]):
        model = NormedModel()
        trainer = toy_trainer()
        trainer.register_hooks([hooks.PreciseBN(2, model, loader, num_iter=5)])
        trainer.train(0, 2)
        statistics.append(model.norm.running_mean)
    torch.testing.assert_close(*statistics)
    assert "cannot begin" not in caplog.text


@pytest.mark.parametrize(("loader", "message"), [([], "gives no batch"), (iter([torch.randn(2, 3, 4, 4)]), "iterator")])
def test_precise_statistics_without_enough_batches_are_refused_and_change_nothing(loader, message):
    model = NormedModel()
    trainer = toy_trainer()
    trainer.register_hooks([hooks.PreciseBN(0, model, loader, num_iter=2)])
    with pytest.raises(ValueError, match=message):
        trainer.train(0, 1)
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_precise_statistics_of_a_model_without_norms_do_nothing(caplog):
    trainer = toy_trainer()
    trainer.register_hooks([hooks.PreciseBN(1, trainer.model, [], num_iter=2)])
    trainer.train(0, 1)
    assert "nothing to do" in caplog.text


# ------------------------------------------------------------------------------------------------------- profilers


def test_the_profiler_leaves_a_trace_of_the_chosen_iteration(tmp_path):
    trainer = toy_trainer()
    trainer.register_hooks(
        [
            hooks.TorchProfiler(lambda t: t.iter == 1, str(tmp_path / "a"), save_tensorboard=False),
            hooks.TorchMemoryStats(period=1),
        ]
    )
    trainer.train(0, 3)
    assert os.listdir(tmp_path / "a") == ["profiler-trace-iter1-rank0.json"]


def test_the_profiler_writes_for_tensorboard(tmp_path):
    trainer = toy_trainer()
    trainer.register_hooks([hooks.TorchProfiler(lambda t: t.iter == 0, str(tmp_path))])
    trainer.train(0, 1)
    assert os.listdir(tmp_path / "log" / "profiler-tensorboard-iter0")


def test_the_autograd_profiler_leaves_a_trace_and_stops_when_a_step_fails(tmp_path):
    trainer = toy_trainer()
    trainer.register_hooks([hooks.AutogradProfiler(lambda t: True, str(tmp_path), use_cuda=False)])
    trainer.train(0, 1)
    assert os.listdir(tmp_path) == ["profiler-trace-iter0-rank0.json"]
    trainer.model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        trainer.train(0, 1)
    trainer.model.train()
    trainer.train(0, 1)


# -------------------------------------------------------------------------------------------------- user's own hooks


def test_registered_hooks_are_made_for_the_trainer_in_order():
    registry, made = Registry("TEST_HOOK"), []

    @registry.register()
    class First(HookBase):
        def __init__(self, trainer):
            made.append(trainer)

    @registry.register()
    def never(trainer):
        return None

    @registry.register()
    def wrong(trainer):
        return "hook"

    with pytest.raises(TypeError, match=r"wrong in TEST_HOOK.*'hook'"):
        hooks.registered_hooks(registry, "the trainer")
    assert made == ["the trainer"]
    registry._obj_map.pop("wrong")
    first, nothing = hooks.registered_hooks(registry, "the trainer")
    assert isinstance(first, First)
    assert nothing is None
