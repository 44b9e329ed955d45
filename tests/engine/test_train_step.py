"""One step, without a loop around it."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detlab.engine import train_step
from detlab.engine.train_loop import AMPTrainer, SimpleTrainer
from detlab.engine.train_step import FullPrecision, MixedPrecision, TrainStep
from detlab.utils.events import EventStorage
from tests.engine.toys import Poisoned, ToyLoader, ToyModel


def toy_step(loader=None, model=None, **options):
    torch.manual_seed(0)
    model = model or ToyModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return TrainStep(model, loader or ToyLoader(), optimizer, **options)


def run(step, *iterations, max_iter=math.inf, after_backward=lambda: None, write=None):
    with EventStorage() as storage:
        for storage.iter in iterations:
            step.run(storage.iter, max_iter, after_backward, write)
    return storage


def written(storage):
    return [iteration for _, iteration in storage.history("loss_a").values()]


def test_gradients_are_there_and_not_yet_used_when_it_calls_back():
    step = toy_step()
    weight = step.model.linear.weight
    before, seen = weight.detach().clone(), []
    run(step, 0, after_backward=lambda: seen.append((weight.grad.clone(), weight.detach().clone())))
    ((gradient, at_call),) = seen
    assert gradient.abs().max() > 0
    assert torch.equal(at_call, before)
    assert torch.equal(weight.grad, gradient)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("arithmetic", [FullPrecision, MixedPrecision])
def test_a_step_is_that_of_the_iteration_that_it_is_told(arithmetic):
    """Batch and random numbers follow from it, and from nothing that the step counts."""

    def gradient(step, iteration):
        run(step, iteration)
        return step.model.linear.weight.grad.clone()

    def fresh():
        model = ToyModel()
        policy = arithmetic() if arithmetic is FullPrecision else MixedPrecision(model, torch.bfloat16)
        step = toy_step(model=model, arithmetic=policy)
        nn.init.constant_(model.linear.weight, 0.5)
        nn.init.constant_(model.linear.bias, 0.0)
        step.seed = 3
        return step

    step = fresh()
    first = gradient(step, 7)
    assert step.data_loader.numbers == [7]
    assert torch.equal(gradient(fresh(), 7), first)
    assert not torch.equal(gradient(fresh(), 8), first)
    run(step, 8)
    assert step.data_loader.numbers == [7, 8]
    step.begin_elsewhere(3)
    run(step, 3)
    assert step.data_loader.numbers == [7, 8, 3]


# ------------------------------------------------------------------------------------- when losses are looked at


class SaysItIsOnAGpu(ToyModel):
    """As far as its parameters tell where it is."""

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device("cuda", 0))


@pytest.mark.parametrize(("model_class", "is_late"), [(ToyModel, False), (SaysItIsOnAGpu, True)])
def test_losses_are_looked_at_late_on_a_gpu_and_at_once_on_the_cpu_unless_it_is_said(model_class, is_late, monkeypatch):
    # Nobody scales here, and torch would miss its GPU.
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: None)
    optimizer = torch.optim.SGD(ToyModel().parameters(), lr=0.1)
    for kind in (TrainStep, SimpleTrainer, AMPTrainer):
        assert kind(model_class(), [], optimizer).async_write_metrics is is_late
        assert kind(model_class(), [], optimizer, async_write_metrics=None).async_write_metrics is is_late
        for given in (True, False):
            assert kind(model_class(), [], optimizer, async_write_metrics=given).async_write_metrics is given


def test_losses_that_are_looked_at_late_are_those_of_the_step_before():
    step = toy_step(async_write_metrics=True)
    seen = []
    with EventStorage() as storage:
        for storage.iter in range(4):
            step.run(storage.iter, math.inf, lambda: seen.append(written(storage) if storage.iter > 1 else []))
        assert seen == [[], [], [0], [0, 1]]
        assert written(storage) == [0, 1, 2]
        step.look_at_losses()
        assert written(storage) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("iterations", "max_iter", "expected"),
    [(range(19), 100, 18), (range(20), 100, 20), (range(21), 100, 20), (range(5), 5, 5), (range(38, 40), 100, 2)],
)
def test_all_losses_are_looked_at_in_every_twentieth_iteration_and_in_the_last(iterations, max_iter, expected):
    assert len(written(run(toy_step(async_write_metrics=True), *iterations, max_iter=max_iter))) == expected


def test_the_last_iteration_looks_at_what_the_period_has_left():
    assert written(run(toy_step(gather_metric_period=3), *range(4), max_iter=5)) == [0, 1, 2]
    assert written(run(toy_step(gather_metric_period=3), *range(5), max_iter=5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("period", [0, -1])
def test_a_period_below_one_is_refused(period):
    with pytest.raises(ValueError, match=f"gather_metric_period must be at least 1, got {period}"):
        toy_step(gather_metric_period=period)


# -------------------------------------------------------------------------------------------- nothing spoilt is saved


@pytest.mark.parametrize("options", [{"async_write_metrics": True}, {"gather_metric_period": 10}])
def test_the_state_after_a_bad_step_that_was_not_looked_at_is_refused_with_its_images(options):
    step = toy_step(Poisoned(2), **options)
    run(step, 0, 1)
    step.state_dict()
    run(step, 2)
    with pytest.raises(FloatingPointError, match=r"iteration 2(?s:.*)learning rate: 0\.1(?s:.*)2_0\.jpg, 2_1\.jpg"):
        step.state_dict()


def test_the_state_is_refused_where_only_weights_tell_of_another_ranks_bad_loss(monkeypatch):
    monkeypatch.setattr(train_step.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(train_step.comm, "shared_random_seed", lambda: 1)
    step = toy_step(async_write_metrics=True)
    run(step, 0)
    assert "optimizer" in step.state_dict()
    step.model.linear.bias.data[1] = math.nan
    with pytest.raises(FloatingPointError, match=r"nothing is saved.*another rank.*linear\.bias"):
        step.state_dict()


def test_losses_of_a_step_that_failed_are_forgotten_elsewhere():
    step = toy_step(async_write_metrics=True)
    run(step, 0, 1)
    step.begin_elsewhere(4)
    assert written(run(step, 4, max_iter=5)) == [4]
