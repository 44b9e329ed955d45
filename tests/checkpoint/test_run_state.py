"""States that no run can be in are refused where they are loaded, with key and value."""

import re

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.checkpoint.run_state import check_scheduler_state, check_trainer_state
from detlab.solver.lr_scheduler import LRMultiplier
from tests.limits import run_limited

NO_COUNTS = [-5, 1.5, "x", None, float("nan"), True, 10**400, [1]]


class Trainer:
    """What the checkpoint knows of one."""

    def __init__(self):
        self.iter = 0

    def state_dict(self):
        return {"iteration": self.iter}

    def load_state_dict(self, state):
        self.iter = state["iteration"]


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def multiplier():
    return LRMultiplier(optimizer_of(nn.Linear(2, 1)), ConstantParamScheduler(1.0), max_iter=10)


SCHEDULERS = {
    "LRMultiplier": multiplier,
    "MultiStepLR": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer_of(nn.Linear(2, 1)), [3, 5]),
    "CosineAnnealingLR": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer_of(nn.Linear(2, 1)), 7),
    "SequentialLR": lambda: torch.optim.lr_scheduler.ChainedScheduler([multiplier()]),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_takes_its_own_state(make):
    scheduler = make()
    check_scheduler_state(make(), scheduler.state_dict())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"step": "boom"}, "the scheduler's 'step' is no part of its state, but set to 'boom'"),
        ({"get_lr": None}, "the scheduler's 'get_lr' is no part"),
        ({"optimizer": 5}, "the scheduler's 'optimizer' is no part"),
        ({"__class__": 5}, "the scheduler's '__class__' is no part"),
        ({5: 5}, "the scheduler's 5 is no part"),
        ({"base_lrs": [float("nan")]}, "the scheduler's base_lrs is [nan]; it must be a list of 1 finite numbers"),
        ({"base_lrs": [-1.0]}, "the scheduler's base_lrs is [-1.0]"),
        ({"base_lrs": [0.1, 0.1]}, "the scheduler's base_lrs is [0.1, 0.1]"),
        ({"base_lrs": "boom"}, "the scheduler's base_lrs is 'boom'"),
        *(({"last_epoch": value}, "the scheduler's last_epoch is ") for value in NO_COUNTS),
    ],
)
@pytest.mark.parametrize("name", ["LRMultiplier", "MultiStepLR"])
def test_a_scheduler_takes_nothing_but_a_state(name, change, words):
    scheduler = SCHEDULERS[name]()
    with pytest.raises(ValueError, match=re.escape(words)):
        check_scheduler_state(scheduler, {**scheduler.state_dict(), **change})


def test_settings_of_a_scheduler_keep_their_type():
    scheduler = SCHEDULERS["MultiStepLR"]()
    for change in ({"gamma": "x"}, {"gamma": float("nan")}, {"milestones": 3}):
        with pytest.raises(ValueError, match=f"the scheduler's {next(iter(change))} is "):
            check_scheduler_state(scheduler, {**scheduler.state_dict(), **change})
    with pytest.raises(ValueError, match="holds a list in place of a scheduler's state"):
        check_scheduler_state(scheduler, [])


def test_a_multiplier_keeps_its_methods():
    scheduler = multiplier()
    with pytest.raises(ValueError, match="'step' is no part"):
        scheduler.load_state_dict({**scheduler.state_dict(), "step": "boom", "last_epoch": 3})
    assert scheduler.last_epoch == 0 and callable(scheduler.step)


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
@pytest.mark.parametrize("place", [("iteration",), ("_trainer", "iteration")])
def test_an_iteration_that_is_none_is_refused_with_its_key(place, value):
    state = {"iteration": value} if len(place) == 1 else {"iteration": 3, "_trainer": {"iteration": value}}
    with pytest.raises(ValueError, match=rf"^{re.escape('.'.join(place))} is ") as caught:
        check_trainer_state(state)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("iteration", [-1, 0, 10**9])
def test_a_count_is_taken(iteration):
    check_trainer_state({"iteration": iteration, "_trainer": {"iteration": iteration}})
    check_trainer_state({})


def checkpoint(folder, **content):
    """A file that some other program has written, and a run that would resume from it."""
    path = str(folder / "evil.pth")
    model = nn.Linear(2, 1)
    torch.save({"model": model.state_dict(), **content}, path)
    optimizer = optimizer_of(model)
    scheduler = LRMultiplier(optimizer, ConstantParamScheduler(1.0), max_iter=10)
    run = DetectionCheckpointer(model, trainer=Trainer(), optimizer=optimizer, scheduler=scheduler)
    return run, path


@pytest.mark.parametrize(
    "content, words",
    [
        ({"trainer": {"iteration": -5}}, "the state of 'trainer' in .*evil.pth .*iteration is -5"),
        ({"trainer": {"iteration": 1.5}}, "evil.pth .*iteration is 1.5"),
        ({"trainer": {"iteration": 1, "_trainer": {"iteration": None}}}, "evil.pth .*_trainer.iteration is None"),
        ({"iteration": "x"}, "evil.pth: iteration is 'x'"),
        ({"scheduler": {"step": "boom"}}, "the state of 'scheduler' in .*evil.pth .*'step' is no part"),
        ({"scheduler": {"last_epoch": float("nan")}}, "evil.pth .*last_epoch is nan"),
    ],
)
def test_a_file_with_a_state_that_no_run_can_have_is_named(tmp_path, content, words):
    run, path = checkpoint(tmp_path, **content)
    with pytest.raises(ValueError, match=words):
        run.load(path)


def test_weights_alone_may_come_with_any_iteration(tmp_path):
    run, path = checkpoint(tmp_path, iteration="epoch 3")
    assert run.resume_or_load(path, resume=False)["iteration"] == "epoch 3"
    assert DetectionCheckpointer(nn.Linear(2, 1)).load(path)["iteration"] == "epoch 3"


@pytest.mark.parametrize("depth", [10, 40])
@pytest.mark.parametrize("key", ["optimizer", "scheduler", "trainer", "more"])
def test_a_state_of_lists_of_the_same_lists_does_not_hang_a_resume(tmp_path, key, depth):
    value = [1.0]
    for _ in range(depth):
        value = [value, value]
    evil = {
        "optimizer": {
            "state": {0: {"momentum_buffer": value}},
            "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": [0, 1]}],
        },
        "scheduler": {"last_epoch": value},
        "trainer": {"iteration": value},
        "more": value,
    }[key]
    run, path = checkpoint(tmp_path, **{key: evil})
    outcome = run_limited(run.load, path, seconds=20)
    if key == "more" and depth == 10:
        assert not outcome.error
        return
    assert outcome.error.startswith("ValueError") and "evil.pth" in outcome.error and len(outcome.error) < 700, outcome
