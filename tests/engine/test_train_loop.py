"""The loop, its state, and what a step promises."""

import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import SequentialSampler

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.data.build import build_batch_data_loader
from detlab.engine.hooks import LRScheduler, PeriodicCheckpointer
from detlab.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detlab.utils.events import EventStorage
from tests.engine.toys import Poisoned, ToyLoader, toy_trainer, weights


class Recorder(HookBase):
    """Writes down when it is called."""

    def __init__(self, name="", calls=None, fail_in=None):
        self.name, self.calls, self.fail_in = name, [] if calls is None else calls, fail_in

    def _note(self, moment):
        self.calls.append(f"{self.name}{moment}")
        if moment == self.fail_in:
            raise RuntimeError(f"{self.name}{moment} failed")

    def before_train(self):
        self._note("before_train")

    def after_train(self):
        self._note("after_train")

    def before_step(self):
        self._note("before_step")

    def after_backward(self):
        self._note("after_backward")

    def after_step(self):
        self._note("after_step")


class Counting(HookBase):
    """Has a state."""

    def __init__(self, count=0):
        self.count = count

    def after_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


# ------------------------------------------------------------------------------------------------------- the loop


def test_hooks_run_in_the_order_of_registration_at_every_moment():
    trainer, calls = toy_trainer(), []
    trainer.register_hooks([Recorder("a.", calls), None, Recorder("b.", calls)])
    trainer.train(0, 1)
    moments = ["before_train", "before_step", "after_backward", "after_step", "after_train"]
    assert calls == [f"{name}{moment}" for moment in moments for name in ("a.", "b.")]
    assert [hook.name for hook in trainer.hooks] == ["a.", "b."]


def test_the_iteration_counts_from_start_and_ends_at_max():
    trainer, seen = toy_trainer(), []

    class Watch(HookBase):
        def after_step(self):
            seen.append((self.trainer.iter, self.trainer.storage.iter))

        def after_train(self):
            seen.append(self.trainer.iter)

    trainer.register_hooks([Watch()])
    trainer.train(3, 5)
    assert seen == [(3, 3), (4, 4), 5]
    assert (trainer.start_iter, trainer.max_iter) == (3, 5)


class SetEnd(HookBase):
    """Sets ``max_iter`` at a moment of an iteration."""

    def __init__(self, moment, iteration, max_iter):
        self.iteration, self.max_iter = iteration, max_iter
        setattr(self, moment, self._set)

    def _set(self):
        if self.trainer.iter == self.iteration:
            self.trainer.max_iter = self.max_iter


@pytest.mark.parametrize(
    ("moment", "iteration", "max_iter", "iterations"),
    [
        ("after_step", 1, 3, [0, 1, 2]),
        ("after_step", 1, 0, [0, 1]),
        ("before_step", 1, 1, [0, 1]),
        ("after_backward", 1, 1, [0, 1]),
        ("after_step", 3, 6, [0, 1, 2, 3, 4, 5]),
        ("before_train", 0, 0, []),
    ],
)
def test_a_hook_sets_the_end_of_a_run_after_the_step_that_is_going_on(moment, iteration, max_iter, iterations):
    trainer, seen = toy_trainer(), []

    class Watch(HookBase):
        def after_step(self):
            seen.append(self.trainer.iter)

    trainer.register_hooks([SetEnd(moment, iteration, max_iter), Watch()])
    trainer.train(0, 4)
    assert seen == iterations
    assert trainer.iter == trainer.max_iter == len(iterations)
    assert trainer.state_dict()["iteration"] == len(iterations) - 1


@pytest.mark.parametrize("value", [None, "9", float("nan"), True])
def test_an_end_that_is_no_number_of_iterations_is_refused(value):
    class SetEnd(HookBase):
        def before_train(self):
            self.trainer.max_iter = value

    trainer = toy_trainer()
    with pytest.raises(TypeError, match=f"max_iter must be a number of iterations, got {value!r}"):
        trainer.train(0, value)
    with pytest.raises(TypeError, match=f"start_iter must be a number of iterations, got {value!r}"):
        trainer.train(value, 3)
    trainer.register_hooks([SetEnd()])
    with pytest.raises(TypeError, match=f"max_iter must be a number of iterations, got {value!r}"):
        trainer.train(0, 3)


def test_a_run_without_an_end_is_ended_by_a_hook():
    class End(HookBase):
        def after_step(self):
            if self.trainer.iter == 4:
                self.trainer.max_iter = 5

    trainer = toy_trainer()
    trainer.register_hooks([End()])
    trainer.train(0, math.inf)
    assert trainer.iter == 5


def test_the_state_names_the_last_iteration_that_is_done_at_every_moment():
    trainer, seen = toy_trainer(), []

    class Watch(HookBase):
        def note(self):
            seen.append(self.trainer.state_dict()["iteration"])

        before_train = before_step = after_backward = after_step = after_train = note

    trainer.register_hooks([Watch()])
    trainer.train(5, 7)
    assert seen == [4, 4, 4, 5, 5, 5, 6, 6]


def test_a_step_that_failed_is_not_done_in_the_state():
    trainer = toy_trainer()
    trainer.register_hooks([Recorder(fail_in="after_backward")])
    with pytest.raises(RuntimeError):
        trainer.train(2, 4)
    assert trainer.state_dict()["iteration"] == 1


def test_a_hook_that_ends_last_does_so_wherever_it_stands():
    trainer, calls = toy_trainer(), []
    last = Recorder("last.", calls)
    last.ends_last = True
    trainer.register_hooks([last, Recorder("a.", calls), Recorder("b.", calls)])
    trainer.train(0, 1)
    assert calls[:3] == ["last.before_train", "a.before_train", "b.before_train"]
    assert calls[-3:] == ["a.after_train", "b.after_train", "last.after_train"]


def test_momentum_of_another_shape_is_refused_where_it_is_loaded():
    before, after = toy_trainer(), toy_trainer()
    before.train(0, 1)
    after.model.linear = nn.Linear(3, 5)
    after.optimizer = torch.optim.SGD(after.model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum_buffer of linear\.weight has shape \(2, 3\).*\(5, 3\)"):
        after.load_state_dict(before.state_dict())


def test_what_is_no_hook_is_refused():
    with pytest.raises(TypeError, match="HookBase"):
        toy_trainer().register_hooks([Recorder])


def test_an_exception_is_logged_and_raised_after_the_hooks_have_ended(caplog):
    trainer, calls = toy_trainer(), []
    trainer.register_hooks([Recorder("a.", calls, fail_in="after_step"), Recorder("b.", calls)])
    logging.getLogger("detlab").propagate = True
    with pytest.raises(RuntimeError, match=r"a\.after_step failed"), caplog.at_level(logging.ERROR):
        trainer.train(7, 9)
    assert calls[-2:] == ["a.after_train", "b.after_train"]
    assert "iteration 7" in caplog.text


def test_a_hook_that_fails_at_the_end_does_not_keep_others_from_ending():
    trainer, calls = toy_trainer(), []
    trainer.register_hooks([Recorder("a.", calls, fail_in="after_train"), Recorder("b.", calls)])
    with pytest.raises(RuntimeError, match=r"a\.after_train failed"):
        trainer.train(0, 1)
    assert calls[-1] == "b.after_train"


def test_two_hooks_of_a_class_keep_their_states():
    before = toy_trainer()
    before.register_hooks([Counting(10), Recorder(), Counting(20)])
    before.train(0, 3)
    state = before.state_dict()
    assert set(state["hooks"]) == {"Counting", "Counting#2"}
    after = toy_trainer()
    after.register_hooks([Counting(), Counting()])
    after.load_state_dict(state)
    assert [hook.count for hook in after.hooks] == [13, 23]


def test_states_of_hooks_that_are_gone_are_named_and_the_rest_is_loaded(caplog):
    before = toy_trainer()
    before.register_hooks([Counting(1), Counting(2)])
    after = toy_trainer()
    after.register_hooks([Counting()])
    logging.getLogger("detlab").propagate = True
    with caplog.at_level(logging.WARNING):
        after.load_state_dict(before.state_dict())
    assert after.hooks[0].count == 1
    assert "Counting#2" in caplog.text


def test_a_state_nobody_can_take_back_is_said(caplog):
    class Forgetful(HookBase):
        def state_dict(self):
            return {"a": 1}

    trainer = toy_trainer()
    trainer.register_hooks([Forgetful()])
    logging.getLogger("detlab").propagate = True
    with caplog.at_level(logging.WARNING):
        trainer.load_state_dict(trainer.state_dict())
    assert "load_state_dict" in caplog.text


def test_a_trainer_dropped_by_its_owner_is_freed_at_once():
    import weakref

    trainer = toy_trainer()
    trainer.register_hooks([Recorder()])
    reference = weakref.ref(trainer)
    del trainer
    assert reference() is None


def test_the_base_leaves_the_step_to_subclasses():
    with pytest.raises(NotImplementedError):
        TrainerBase().train(0, 1)


# ------------------------------------------------------------------------------------------------------- the step


def test_a_step_is_that_of_a_plain_loop():
    trainer = toy_trainer()
    trainer.model.dropout.p = 0.0
    trainer.train(0, 5)
    plain = toy_trainer()
    plain.model.dropout.p = 0.0
    batches = iter(ToyLoader())
    for _ in range(5):
        plain.optimizer.zero_grad()
        sum(plain.model(next(batches)).values()).backward()
        plain.optimizer.step()
    assert torch.equal(weights(trainer), weights(plain))


@pytest.mark.parametrize("options", [{"zero_grad_before_forward": True}, {"async_write_metrics": True}])
def test_options_do_not_change_the_result(options):
    trainer, other = toy_trainer(), toy_trainer(**options)
    np.random.seed(0)
    trainer.train(0, 4)
    np.random.seed(0)
    other.train(0, 4)
    assert torch.equal(weights(trainer), weights(other))


@pytest.mark.parametrize("options", [{}, {"gather_metric_period": 3}, {"async_write_metrics": True}])
@pytest.mark.parametrize("overridden", ["_write_metrics", "write_metrics"])
def test_metrics_that_a_subclass_writes_its_own_way_are_those_of_every_step(options, overridden):
    class Own(SimpleTrainer):
        calls = []

    def write_metrics(loss_dict, data_time, cur_iter, prefix=""):
        Own.calls.append((cur_iter, sorted(loss_dict)))

    def _write_metrics(self, loss_dict, data_time, prefix="", iter=None):
        write_metrics(loss_dict, data_time, self.iter if iter is None else iter)

    setattr(Own, overridden, staticmethod(write_metrics) if overridden == "write_metrics" else _write_metrics)
    trainer = toy_trainer(trainer_class=Own, **options)
    trainer.train(0, 6)
    is_due = range(2, 6, 3) if overridden == "write_metrics" and "gather_metric_period" in options else range(6)
    assert Own.calls == [(iteration, ["loss_a", "loss_b"]) for iteration in is_due]
    assert "loss_a" not in trainer.storage.latest()


def test_metrics_of_a_step_are_written_by_an_override_that_takes_no_iteration():
    class Own(SimpleTrainer):
        calls = []

        def _write_metrics(self, loss_dict, data_time, prefix=""):
            self.calls.append(self.iter)
            super()._write_metrics(loss_dict, data_time, prefix)

    trainer = toy_trainer(trainer_class=Own)
    trainer.train(0, 3)
    assert Own.calls == [0, 1, 2] == [iteration for _, iteration in trainer.storage.history("loss_a").values()]


@pytest.mark.parametrize("options", [{}, {"gather_metric_period": 3}, {"async_write_metrics": True}])
def test_every_loss_is_written_with_its_iteration(options):
    trainer = toy_trainer(**options)
    trainer.train(0, 7)
    for name in ("loss_a", "loss_b", "total_loss", "data_time"):
        assert [iteration for _, iteration in trainer.storage.history(name).values()] == list(range(7)), name
    totals = [value for value, _ in trainer.storage.history("total_loss").values()]
    parts = [sum(pair) for pair in zip(*(
        [value for value, _ in trainer.storage.history(name).values()] for name in ("loss_a", "loss_b")
    ))]  # fmt: skip
    assert totals == pytest.approx(parts)


def test_a_model_may_give_one_loss():
    class OneLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            return self.weight.square()

    model = OneLoss()
    trainer = SimpleTrainer(model, [1], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.train(0, 2)
    assert trainer.storage.latest()["total_loss"][0] == pytest.approx(0.8**2)


@pytest.mark.parametrize(
    ("output", "message"), [({}, "no losses"), ({"loss_x": torch.ones(2, requires_grad=True)}, r"loss_x.*\(2,\)")]
)
def test_losses_that_cannot_be_used_are_refused(output, message):
    model = nn.Linear(1, 1)
    model.forward = lambda batch: output
    with pytest.raises(ValueError, match=message):
        SimpleTrainer(model, [1], torch.optim.SGD(model.parameters(), lr=0.1)).train(0, 1)


def test_a_model_left_in_evaluation_mode_is_refused():
    trainer = toy_trainer()
    trainer.model.eval()
    with pytest.raises(RuntimeError, match=r"iteration 0.*model.train"):
        trainer.train(0, 1)


def test_a_finite_loader_is_started_again_and_an_empty_one_refused():
    batches = [ToyLoader().batch(number) for number in range(2)]
    trainer = toy_trainer(loader=batches)
    trainer.train(0, 5)
    assert trainer.iter == 5
    with pytest.raises(ValueError, match="gives no batch"):
        toy_trainer(loader=[]).train(0, 1)


def test_a_resumed_run_over_a_finite_loader_takes_whole_passes_after_the_first():
    items = [item for number in range(3) for item in ToyLoader().batch(number)]

    def run(start):
        taken = []

        trainer = toy_trainer(loader=build_batch_data_loader(items, SequentialSampler(items), 4))
        trainer.model.register_forward_pre_hook(lambda _, batches: taken.append(batches[0][0]["file_name"]))
        trainer.train(start, 8)
        return taken

    assert run(2) == ["2_0.jpg", "0_0.jpg", "1_0.jpg", "2_0.jpg", "0_0.jpg", "1_0.jpg"]
    assert run(2) == run(0)[2:] and run(7) == run(0)[7:]


def test_a_new_data_loader_begins_where_training_is():
    trainer = toy_trainer()
    trainer.train(0, 3)
    replaced = []
    trainer.reset_data_loader(lambda: replaced.append(ToyLoader(seed=1)) or replaced[0])
    trainer.train(3, 5)
    assert replaced[0].numbers == [3, 4]


def test_two_trainers_train_in_two_threads():
    class MeetTheOther(HookBase):
        def __init__(self, barrier):
            self.barrier = barrier

        def before_step(self):
            self.barrier.wait()

        def after_train(self):
            # The first to end is not the last that began.
            self.barrier.wait() if self.trainer.max_iter == 3 else time.sleep(0.05)

    barrier = threading.Barrier(2, timeout=30)
    trainers = [toy_trainer(), toy_trainer()]
    for trainer in trainers:
        trainer.register_hooks([MeetTheOther(barrier)])
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(trainer.train, 0, 3 + number) for number, trainer in enumerate(trainers)]
    for number, (trainer, future) in enumerate(zip(trainers, futures)):
        future.result()
        assert [iteration for _, iteration in trainer.storage.history("loss_a").values()] == list(range(3 + number))


def test_write_metrics_puts_means_under_the_iteration_and_prefix():
    with EventStorage(5) as storage:
        losses = {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.5)}
        SimpleTrainer.write_metrics(losses, data_time=0.25, cur_iter=3, prefix="aux_")
        latest = storage.latest()
    assert latest["aux_total_loss"] == (3.5, 3)
    assert latest["aux_loss_b"] == (2.5, 3)
    assert latest["data_time"] == (0.25, 3)
    with EventStorage(), pytest.raises(FloatingPointError, match="loss_a = inf"):
        SimpleTrainer.write_metrics({"loss_a": torch.tensor(math.inf)}, 0.0, 0)


def test_a_trainer_without_a_loader_says_so_before_any_step():
    trainer = SimpleTrainer(torch.nn.Linear(1, 1), None, None)
    with pytest.raises(TypeError, match="must be an iterable of batches, got None"):
        trainer.train(0, 1)


@pytest.mark.parametrize("has_own_step", [False, True])
def test_a_subclass_that_skips_the_constructor_and_sets_everything_itself_trains(has_own_step):
    class Own(SimpleTrainer):
        def __init__(self, model, data_loader, optimizer):
            super(SimpleTrainer, self).__init__()
            model.train()
            self.model = model
            self.data_loader = data_loader
            self.optimizer = optimizer

        def run_step(self):
            if not has_own_step:
                return super().run_step()
            losses = self.model(next(self._data_loader_iter))
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            self._write_metrics(losses, 0.0)
            self.optimizer.step()

    trainer = toy_trainer(trainer_class=Own)
    before = weights(trainer)
    trainer.train(0, 3)
    assert [iteration for _, iteration in trainer.storage.history("loss_a").values()] == [0, 1, 2]
    assert not torch.equal(weights(trainer), before)
    assert toy_trainer(trainer_class=Own)._one_step is not trainer._one_step


@pytest.mark.parametrize("period", [1, 2])
def test_metrics_of_a_step_of_ones_own_are_written_when_it_is_time(period):
    class OwnStep(SimpleTrainer):
        def run_step(self):
            losses = self.model(next(self._data_loader_iter))
            sum(losses.values()).backward()
            self._write_metrics(losses, 0.5, prefix="own_")

    trainer = toy_trainer(trainer_class=OwnStep, gather_metric_period=period)
    trainer.train(0, 4)
    iterations = [iteration for _, iteration in trainer.storage.history("own_loss_a").values()]
    assert iterations == list(range(period - 1, 4, period))
    with EventStorage() as storage:
        trainer._write_metrics({"loss": torch.tensor(2.0)}, 0.5, iter=7)
    assert storage.latest()["total_loss"] == (2.0, 7)


# --------------------------------------------------------------------------------------------------- exact resume


@pytest.mark.parametrize("trainer_class", [SimpleTrainer, AMPTrainer])
def test_a_resumed_run_ends_bitwise_like_one_that_was_not_stopped(trainer_class):
    def make():
        trainer = toy_trainer(ToyLoader(seed=3), trainer_class)
        schedule = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=3, gamma=0.5)
        trainer.register_hooks([LRScheduler(trainer.optimizer, schedule)])
        return trainer

    whole = make()
    states = {}

    class Save(HookBase):
        def after_step(self):
            if self.trainer.iter == 4:
                states["model"] = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}
                states["trainer"] = torch.load(_saved(self.trainer.state_dict()), weights_only=True)

    whole.register_hooks([Save()])
    whole.train(0, 10)

    torch.manual_seed(99)
    np.random.seed(99)
    resumed = make()
    resumed.data_loader.seed = 77
    resumed.model.load_state_dict(states["model"])
    resumed.load_state_dict(states["trainer"])
    assert resumed.iter == 4
    resumed.train(5, 10)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.data_loader.numbers[-5:] == resumed.data_loader.numbers


def _saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_the_seed_of_a_step_differs_between_iterations():
    trainer, draws = toy_trainer(), []
    trainer.model.register_forward_hook(lambda *_: draws.append((torch.rand(()).item(), np.random.rand())))
    trainer.train(0, 3)
    assert len(set(draws)) == 3


# ----------------------------------------------------------------------------------------------- losses not finite


LOOKS = [
    ({}, 2),
    ({"async_write_metrics": True}, 3),
    ({"gather_metric_period": 5}, 4),
    ({"gather_metric_period": 5, "async_write_metrics": True}, 4),
]


@pytest.mark.parametrize("trainer_class", [SimpleTrainer, AMPTrainer])
@pytest.mark.parametrize(("options", "stops_in"), LOOKS)
def test_a_loss_that_is_not_finite_stops_training_and_tells_everything(trainer_class, options, stops_in):
    trainer = toy_trainer(Poisoned(2), trainer_class, **options)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train(0, 10)
    message = str(caught.value)
    for part in ("iteration 2", "loss_a = nan", "loss_b = nan", "learning rate: 0.1", "2_0.jpg", "2_1.jpg"):
        assert part in message
    assert trainer.iter == stops_in


@pytest.mark.parametrize("options", [{}, {"async_write_metrics": False}])
def test_a_loss_that_is_looked_at_in_its_step_stops_before_the_update(options):
    trainer = toy_trainer(Poisoned(2), **options)
    with pytest.raises(FloatingPointError):
        trainer.train(0, 5)
    assert weights(trainer).isfinite().all()


@pytest.mark.parametrize("trainer_class", [SimpleTrainer, AMPTrainer])
@pytest.mark.parametrize("options", [options for options, _ in LOOKS])
@pytest.mark.parametrize("bad_iteration", [2, 6])
def test_no_spoilt_checkpoint_is_left(tmp_path, trainer_class, options, bad_iteration):
    trainer = toy_trainer(Poisoned(bad_iteration), trainer_class, **options)
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([PeriodicCheckpointer(checkpointer, 1)])
    with pytest.raises(FloatingPointError, match=rf"iteration {bad_iteration}(?s:.*){bad_iteration}_1\.jpg"):
        trainer.train(0, 7)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [f"model_{i:07d}.pth" for i in range(bad_iteration)]
    resumed = toy_trainer(trainer_class=trainer_class)
    checkpointer = DetectionCheckpointer(resumed.model, str(tmp_path), trainer=resumed)
    checkpointer.resume_or_load("", resume=True)
    assert resumed.iter == bad_iteration - 1
    assert weights(resumed).isfinite().all()


def test_a_bad_last_step_is_found_when_losses_are_looked_at_later():
    with pytest.raises(FloatingPointError, match="iteration 4"):
        toy_trainer(Poisoned(4), async_write_metrics=True).train(0, 5)


# ------------------------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_on_the_cpu(precision):
    # The default scale would overflow in the first steps, which are then skipped.
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if precision == torch.float16 else None
    trainer = toy_trainer(trainer_class=AMPTrainer, precision=precision, grad_scaler=scaler)
    trainer.model.dropout.p = 0.0
    dtypes = set()
    trainer.model.linear.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    full = toy_trainer()
    full.model.dropout.p = 0.0
    trainer.train(0, 5)
    full.train(0, 5)
    assert dtypes == {precision}
    assert trainer.grad_scaler.is_enabled() == (precision == torch.float16)
    assert weights(trainer).dtype == torch.float32
    torch.testing.assert_close(weights(trainer), weights(full), rtol=0.05, atol=0.02)
    assert not torch.equal(weights(trainer), weights(full))


def test_the_scale_is_saved_and_written():
    trainer = toy_trainer(trainer_class=AMPTrainer, log_grad_scaler=True)
    trainer.train(0, 1)
    assert trainer.storage.latest()["[metric]grad_scaler"] == (65536.0, 0)
    state = trainer.state_dict()
    state["grad_scaler"]["scale"] = 8.0
    trainer.load_state_dict(state)
    assert trainer.grad_scaler.get_scale() == 8.0


def test_a_state_without_mixed_precision_can_be_resumed_with_it_and_back():
    plain, mixed = toy_trainer(), toy_trainer(trainer_class=AMPTrainer)
    mixed.load_state_dict(plain.state_dict())
    plain.load_state_dict(mixed.state_dict())
    bf16 = toy_trainer(trainer_class=AMPTrainer, precision=torch.bfloat16)
    mixed.load_state_dict(bf16.state_dict())


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="float64"):
        toy_trainer(trainer_class=AMPTrainer, precision=torch.float64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"gather_metric_period": 3}, {"async_write_metrics": True}])
def test_losses_that_come_from_a_gpu_are_those_of_the_model(options):
    class Counting(nn.Linear):
        def forward(self, batch):
            return {"loss_a": super().forward(batch).sum() * 0 + batch.sum(), "loss_b": self.weight.sum() * 0 + 1}

    model = Counting(4, 4, device="cuda")
    batches = [torch.full((1, 4), float(i), device="cuda") for i in range(7)]
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    trainer.train(0, 7)
    assert [value for value, _ in trainer.storage.history("loss_a").values()] == [4.0 * i for i in range(7)]
