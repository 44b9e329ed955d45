"""Learning rates follow their closed formulas."""

import math

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, LinearParamScheduler, MultiStepParamScheduler
from torch import nn

from detlab.solver.lr_scheduler import LRMultiplier, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler


def make_optimizer(lr=5.0):
    parameters = nn.Linear(1, 1)
    return torch.optim.SGD([{"params": [parameters.weight]}, {"params": [parameters.bias], "lr": 2 * lr}], lr=lr)


def rates(scheduler, optimizer, num_iters):
    """The learning rate of the first group at each iteration; the second must be twice as high."""
    seen = []
    for _ in range(num_iters):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(2 * first)
        seen.append(first)
        optimizer.step()
        scheduler.step()
    return seen


def linear_warmup(iteration, factor, length):
    return min(1.0, factor + (1 - factor) * iteration / length)


def test_multi_step_with_linear_warmup():
    optimizer = make_optimizer()
    steps = MultiStepParamScheduler([1, 0.1, 0.01, 0.001], milestones=[10, 15, 20], num_updates=30)
    scheduler = LRMultiplier(optimizer, WarmupParamScheduler(steps, 0.001, 5 / 30), max_iter=30)
    expected = [
        5.0 * linear_warmup(i, 0.001, 5) * 0.1 ** sum(i >= milestone for milestone in (10, 15, 20)) for i in range(30)
    ]
    assert rates(scheduler, optimizer, 30) == pytest.approx(expected, rel=1e-9)


def test_cosine_skips_its_beginning_during_the_warmup():
    optimizer = make_optimizer()
    scheduler = LRMultiplier(optimizer, WarmupParamScheduler(CosineParamScheduler(1, 0), 0.001, 5 / 30), max_iter=30)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 30)) for i in range(30)]
    warmup = [0.001 + (cosine[5] - 0.001) * i / 5 for i in range(5)]
    assert rates(scheduler, optimizer, 30) == pytest.approx([5.0 * v for v in warmup + cosine[5:]], rel=1e-9)


def test_rescaling_squeezes_the_whole_cosine_behind_the_warmup():
    optimizer = make_optimizer()
    multiplier = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 5 / 30, rescale_interval=True)
    scheduler = LRMultiplier(optimizer, multiplier, max_iter=30)
    warmup = [0.1 + 0.9 * i / 5 for i in range(5)]
    cosine = [0.5 * (1 + math.cos(math.pi * i / 25)) for i in range(25)]
    assert rates(scheduler, optimizer, 30) == pytest.approx([5.0 * v for v in warmup + cosine], rel=1e-9)


def test_constant_warmup_stays_at_its_factor():
    schedule = WarmupParamScheduler(LinearParamScheduler(2.0, 1.0), 0.25, 0.5, "constant")
    assert [schedule(where) for where in (0.0, 0.49, 0.5, 1.0)] == pytest.approx([0.5, 0.5, 1.5, 1.0])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("length", [0.0, 1.0])
def test_a_warmup_of_nothing_or_everything_works_to_the_end(rescale, length):
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, length, rescale_interval=rescale)
    assert all(0 <= schedule(i / 100) <= 1 for i in range(101))


def test_beyond_the_last_iteration_the_rate_stays():
    optimizer = make_optimizer()
    steps = MultiStepParamScheduler([1, 0.1], milestones=[2], num_updates=4)
    scheduler = LRMultiplier(optimizer, steps, max_iter=4)
    assert rates(scheduler, optimizer, 7) == pytest.approx([5, 5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_a_resumed_schedule_goes_on():
    def make():
        optimizer = make_optimizer()
        return optimizer, LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter=20)

    optimizer, scheduler = make()
    whole = rates(scheduler, optimizer, 20)
    optimizer, scheduler = make()
    rates(scheduler, optimizer, 8)
    state, optimizer_state = scheduler.state_dict(), optimizer.state_dict()
    assert set(state) == {"base_lrs", "last_epoch"}
    optimizer, scheduler = make()
    scheduler.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)
    assert rates(scheduler, optimizer, 12) == whole[8:]


def test_a_multiplier_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(make_optimizer(), lambda where: 1.0, max_iter=3)


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_the_direct_multi_step_schedule(method):
    optimizer = make_optimizer()
    scheduler = WarmupMultiStepLR(
        optimizer, [10, 15], gamma=0.5, warmup_factor=0.1, warmup_iters=4, warmup_method=method
    )
    warmup = [linear_warmup(i, 0.1, 4) if method == "linear" else (0.1 if i < 4 else 1.0) for i in range(20)]
    expected = [5.0 * warmup[i] * 0.5 ** sum(i >= milestone for milestone in (10, 15)) for i in range(20)]
    assert rates(scheduler, optimizer, 20) == pytest.approx(expected)


def test_the_direct_cosine_schedule():
    optimizer = make_optimizer()
    scheduler = WarmupCosineLR(optimizer, max_iters=20, warmup_factor=0.1, warmup_iters=4)
    expected = [5.0 * linear_warmup(i, 0.1, 4) * 0.5 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert rates(scheduler, optimizer, 20) == pytest.approx(expected)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="'exponential' is unknown"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.1, "exponential")
    with pytest.raises(ValueError, match=r"warmup_length=2"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 2)
    with pytest.raises(ValueError, match="must rise"):
        WarmupMultiStepLR(make_optimizer(), [10, 5])
    with pytest.raises(ValueError, match="'cosine' is unknown"):
        WarmupCosineLR(make_optimizer(), 10, warmup_method="cosine")
