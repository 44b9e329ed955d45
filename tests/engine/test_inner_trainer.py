"""What programs written for the reference do with ``trainer._trainer``."""

import gc
import itertools
import time
import weakref

import pytest
import torch

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.engine.defaults import DefaultTrainer, create_ddp_model
from detlab.engine.hooks import CallbackHook
from detlab.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from tests.engine.toys import ToyLoader, ToyTrainer, toy_cfg, weights


def iterations_of(trainer, name="loss_a"):
    return [iteration for _, iteration in trainer.storage.history(name).values()]


def trained(trainer_class, cfg, hooks=()):
    """A trainer that has trained."""
    trainer = trainer_class(cfg)
    trainer.register_hooks(hooks)
    trainer.train()
    return trainer


def has_moved(trainer):
    at_first = torch.nn.utils.parameters_to_vector(ToyTrainer.build_model(None).parameters())
    return not torch.equal(weights(trainer), at_first)


@pytest.fixture(autouse=True)
def _same_seed_of_steps(monkeypatch):
    """Of those that no checkpoint tells."""
    monkeypatch.setattr("detlab.utils.comm.shared_random_seed", lambda: 7)


class Backwards(HookBase):
    """Notes the iterations whose backward pass it hears of, and whether gradients are there."""

    def __init__(self):
        self.heard = []

    def after_backward(self):
        parameters = self.trainer.model.parameters()
        self.heard.append((self.trainer.iter, all(p.grad is not None for p in parameters)))


ALL_HEARD = [(iteration, True) for iteration in range(6)]

# ---------------------------------------------------------------------------------------------- it is reached into


class CallsIt(ToyTrainer):
    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()


class CallsItOnly(ToyTrainer):
    def run_step(self):
        self._trainer.run_step()


class TakesApart(ToyTrainer):
    def run_step(self):
        inner = self._trainer
        assert inner.model.training, "[Trainer] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(inner._data_loader_iter)
        data_time = time.perf_counter() - start
        loss_dict = inner.model(data)
        inner.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        inner.after_backward()
        inner._write_metrics(loss_dict, data_time)
        inner.optimizer.step()


class ScalesItself(ToyTrainer):
    def run_step(self):
        with torch.autocast("cpu", dtype=self._trainer.precision):
            loss_dict = self.model(next(self._trainer._data_loader_iter))
        self.optimizer.zero_grad()
        self._trainer.grad_scaler.scale(sum(loss_dict.values())).backward()
        self._trainer.after_backward()
        self._trainer._write_metrics(loss_dict, 0.0)
        self._trainer.grad_scaler.step(self.optimizer)
        self._trainer.grad_scaler.update()


@pytest.mark.parametrize(
    ("trainer_class", "amp"),
    [(CallsIt, False), (CallsIt, True), (CallsItOnly, False), (TakesApart, False), (ScalesItself, True)],
)
def test_a_step_that_reaches_into_the_inner_trainer_trains_writes_and_is_heard_of(tmp_path, trainer_class, amp):
    hook = Backwards()
    trainer = trained(trainer_class, toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", amp), hooks=[hook])
    assert iterations_of(trainer) == list(range(6))
    assert hook.heard == ALL_HEARD
    assert trainer.data_loader.numbers == list(range(6))
    assert has_moved(trainer)


def test_a_step_that_calls_the_inner_trainer_is_the_usual_step(tmp_path):
    usual, calling = (trained(kind, toy_cfg(tmp_path / kind.__name__)) for kind in (ToyTrainer, CallsIt))
    assert torch.equal(weights(calling), weights(usual))


@pytest.mark.parametrize("trainer_class", [CallsIt, TakesApart])
def test_a_step_of_ones_own_takes_the_batches_of_a_resumed_run(tmp_path, trainer_class):
    trained(trainer_class, toy_cfg(tmp_path, "SOLVER.MAX_ITER", 4))
    resumed = trainer_class(toy_cfg(tmp_path))
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert resumed.data_loader.numbers == [4, 5]
    assert iterations_of(resumed) == [4, 5]


def test_the_inner_trainer_is_the_trainer_seen_as_another_kind(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    inner = trainer._trainer
    assert isinstance(inner, SimpleTrainer) and not isinstance(inner, AMPTrainer)
    assert (inner.model, inner.optimizer, inner.data_loader) == (trainer.model, trainer.optimizer, trainer.data_loader)
    assert inner.gather_metric_period == 1 and not inner.zero_grad_before_forward and not inner.async_write_metrics
    trainer.iter = 3
    assert inner.iter == 3
    inner.iter = 4
    assert trainer.iter == 4
    inner.note_of_a_program = "kept"
    assert trainer._trainer.note_of_a_program == "kept"
    other = ToyLoader(seed=9)
    trainer._trainer.reset_data_loader(lambda: other)
    assert trainer.data_loader is other and next(trainer._trainer._data_loader_iter) and other.numbers == [4]
    mixed = ToyTrainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True))._trainer
    assert isinstance(mixed, AMPTrainer)
    assert (mixed.precision, mixed.log_grad_scaler) == (torch.bfloat16, False)


def test_a_hook_registered_with_the_inner_trainer_is_one_of_the_trainer(tmp_path):
    trainer, hook = ToyTrainer(toy_cfg(tmp_path)), Backwards()
    trainer._trainer.register_hooks([hook])
    trainer.train()
    assert hook.heard == ALL_HEARD


def test_putting_back_what_was_read_changes_nothing(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer._trainer = trainer._trainer
    trainer.train()
    assert iterations_of(trainer) == list(range(6))


# ----------------------------------------------------------------------------------------------------- it is replaced


class OwnSimple(SimpleTrainer):
    """A step as those who derive from the reference's write it."""

    def run_step(self):
        assert self.model.training
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        loss_dict = self.model(data)
        losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()


class OwnInner(TrainerBase):
    """Derived from the loop alone."""

    def __init__(self, model, data_loader, optimizer):
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self._data_loader_iter = iter(data_loader)

    def run_step(self):
        loss_dict = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self.after_backward()
        SimpleTrainer.write_metrics(loss_dict, 0.0, self.iter)
        self.optimizer.step()

    def state_dict(self):
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class BuildsAll(ToyTrainer):
    """Without the constructor of the default trainer."""

    inner_class = SimpleTrainer

    def __init__(self, cfg):
        super(DefaultTrainer, self).__init__()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = self.inner_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())


class BuildsAllByName(BuildsAll):
    def __init__(self, cfg):
        TrainerBase.__init__(self)
        model = self.build_model(cfg)
        self._trainer = self.inner_class(model, self.build_train_loader(cfg), self.build_optimizer(cfg, model))
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.checkpointer = DetectionCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())


class Replaces(ToyTrainer):
    inner_class = SimpleTrainer

    def __init__(self, cfg):
        super().__init__(cfg)
        self._trainer = self.inner_class(self.model, self.data_loader, self.optimizer)


INNER = [SimpleTrainer, AMPTrainer, OwnSimple, OwnInner]
OUTER = [BuildsAll, BuildsAllByName, Replaces]


def with_inner(outer_class, inner):
    return type(outer_class.__name__, (outer_class,), {"inner_class": inner})


@pytest.mark.parametrize("outer_class", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_a_trainer_put_in_the_place_of_the_inner_one_runs_the_steps(tmp_path, outer_class, inner):
    hook = Backwards()
    trainer = trained(with_inner(outer_class, inner), toy_cfg(tmp_path), hooks=[hook])
    assert type(trainer._trainer) is inner
    assert trainer.model is trainer._trainer.model
    assert iterations_of(trainer) == list(range(6)) == iterations_of(trainer, "lr")
    assert trainer.data_loader.numbers == list(range(6))
    assert hook.heard == ALL_HEARD
    assert {path.name for path in tmp_path.glob("model_*")} >= {"model_0000001.pth", "model_final.pth"}


@pytest.mark.parametrize("outer_class", OUTER)
@pytest.mark.parametrize("inner", [SimpleTrainer, AMPTrainer])
def test_a_run_with_a_replaced_trainer_resumes_bitwise_and_so_does_one_without(tmp_path, outer_class, inner):
    replaced = with_inner(outer_class, inner)
    options = ["SOLVER.AMP.ENABLED", inner is AMPTrainer, "SOLVER.AMP.PRECISION", "float16"]
    whole = trained(ToyTrainer, toy_cfg(tmp_path / "whole", *options))
    assert has_moved(whole)

    def stop(trainer):
        if trainer.iter == 5:
            raise KeyboardInterrupt

    for first, second in itertools.permutations([replaced, ToyTrainer]):
        folder = tmp_path / first.__name__
        with pytest.raises(KeyboardInterrupt):
            trained(first, toy_cfg(folder, *options), hooks=[CallbackHook(before_step=stop)])
        resumed = second(toy_cfg(folder, *options))
        resumed.resume_or_load(resume=True)
        assert resumed.start_iter == 4
        resumed.train()
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.data_loader.numbers == [4, 5]


@pytest.mark.parametrize("inner", INNER)
def test_states_of_hooks_are_saved_once(tmp_path, inner):
    state = with_inner(Replaces, inner)(toy_cfg(tmp_path)).state_dict()
    assert set(state["hooks"]) == {"LRScheduler"}
    assert state["_trainer"]["hooks"] == {}


def test_hooks_of_a_replaced_trainers_own_stay_with_it(tmp_path):
    hook = Backwards()

    class WithHook(SimpleTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_hooks([hook])

    trainer = with_inner(Replaces, WithHook)(toy_cfg(tmp_path))
    assert hook not in trainer.hooks
    trainer.train()
    assert hook.heard == ALL_HEARD


@pytest.mark.parametrize("outer_class", [ToyTrainer, *(with_inner(outer, OwnSimple) for outer in OUTER)])
def test_a_trainer_is_gone_when_it_is_dropped_whatever_runs_its_steps(tmp_path, outer_class):
    trainer = trained(outer_class, toy_cfg(tmp_path))
    left = weakref.ref(trainer), weakref.ref(trainer.model)
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


def test_training_again_with_a_replaced_trainer_takes_the_batches_of_the_iterations(tmp_path):
    trainer = trained(Replaces, toy_cfg(tmp_path))
    trainer.train()
    assert trainer.data_loader.numbers == [*range(6), *range(6)]


# -------------------------------------------------------------------------------------- checkpoints from before


def state_of_before(trainer, scale):
    """What a trainer with an inner one saved."""
    inner = {
        "iteration": trainer.state_dict()["iteration"],
        "hooks": {},
        "optimizer": trainer.optimizer.state_dict(),
        "step_seed": 7,
        "data_loader": trainer.data_loader.state_dict(),
    }
    if scale:
        inner["grad_scaler"] = {
            "scale": scale, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3
        }  # fmt: skip
    scheduler = {"base_lrs": list(trainer.scheduler.base_lrs), "last_epoch": trainer.scheduler.last_epoch}
    return {
        "iteration": inner["iteration"],
        "hooks": {"LRScheduler": scheduler},
        "_trainer": inner,
        "config": trainer.cfg.dump(),
    }


@pytest.mark.parametrize("amp", [False, True])
def test_a_checkpoint_of_a_trainer_with_an_inner_one_is_gone_on_from(tmp_path, amp):
    # The scale has no part in the result but where a step is skipped.
    options = ["SOLVER.AMP.ENABLED", amp, "SOLVER.AMP.PRECISION", "float16"]
    path = tmp_path / "before.pth"

    def save(trainer):
        if trainer.iter == 3:
            scale = trainer._one_step.arithmetic.grad_scaler.get_scale() if amp else None
            torch.save({"model": trainer.model.state_dict(), "trainer": state_of_before(trainer, scale)}, path)

    whole = trained(ToyTrainer, toy_cfg(tmp_path / "whole", *options), hooks=[CallbackHook(after_step=save)])
    assert has_moved(whole)
    resumed = ToyTrainer(toy_cfg(tmp_path / "resumed", *options))
    resumed.data_loader.seed = 77
    resumed.checkpointer.load(str(path))
    assert resumed.iter == 3
    if amp:
        assert resumed._trainer.grad_scaler.state_dict()["_growth_tracker"] == 3
    resumed.start_iter = 4
    resumed.train()
    assert resumed.data_loader.numbers == [4, 5]
    assert torch.equal(weights(resumed), weights(whole))
