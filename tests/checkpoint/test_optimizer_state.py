"""A momentum of another model's shape is refused where it is loaded, not in the step that uses it."""

import re

import pytest
import torch
from torch import nn

from detlab.checkpoint.optimizer_state import check_optimizer_state


def trained(make_optimizer, width=3):
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    optimizer = make_optimizer(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_its_own_state(name):
    _, optimizer = trained(OPTIMIZERS[name])
    check_optimizer_state(optimizer, optimizer.state_dict(), "a.pth")


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "ASGD", "Rprop"])
def test_the_state_of_a_wider_model_is_refused_with_both_shapes(name):
    _, wider = trained(OPTIMIZERS[name], width=8)
    model, optimizer = trained(OPTIMIZERS[name])
    with pytest.raises(ValueError, match=r"a\.pth.*of 0\.weight has shape \(8, 2\), the parameter has \(3, 2\)"):
        check_optimizer_state(optimizer, wider.state_dict(), "a.pth", model=model)


def test_without_a_model_parameters_are_named_by_the_optimizer_or_their_place():
    _, wider = trained(OPTIMIZERS["SGD"], width=8)
    model, optimizer = trained(OPTIMIZERS["SGD"])
    with pytest.raises(ValueError, match="momentum_buffer of parameter 0 has shape"):
        check_optimizer_state(optimizer, wider.state_dict(), "a.pth")
    named = torch.optim.SGD(list(model.named_parameters()), lr=0.1)
    with pytest.raises(ValueError, match=r"momentum_buffer of 0\.weight has shape"):
        check_optimizer_state(named, wider.state_dict(), "a.pth")


def test_other_groups_are_refused_with_their_sizes():
    model, optimizer = trained(OPTIMIZERS["SGD"])
    fewer = torch.optim.SGD([model[0].weight], lr=0.1)
    with pytest.raises(ValueError, match=r"groups have 4 parameters in a\.pth, 1 here"):
        check_optimizer_state(fewer, optimizer.state_dict(), "a.pth")


@pytest.mark.parametrize("state", [{}, {"state": {}, "param_groups": 3}, {"state": {}, "param_groups": [{}]}, None])
def test_what_is_no_state_of_an_optimizer_is_refused(state):
    _, optimizer = trained(OPTIMIZERS["SGD"])
    with pytest.raises(ValueError, match=r"a\.pth holds no state of an optimizer"):
        check_optimizer_state(optimizer, state, "a.pth")


def spoil(state, change):
    change(state["param_groups"][0], state["state"][0])
    return state


SPOILT = {
    "momentum": (lambda group, entries: entries["momentum_buffer"].fill_(float("nan")), "momentum_buffer of 0.weight"),
    "infinite momentum": (
        lambda group, entries: entries["momentum_buffer"].fill_(float("inf")),
        "momentum_buffer of 0.weight is not finite",
    ),
    "an entry": (lambda group, entries: entries.update(step=float("nan")), "step of 0.weight is not finite"),
    "nested lists": (lambda group, entries: entries.update(x=[[1]]), "x of 0.weight is a list that holds others"),
    "a nested dict": (lambda group, entries: entries.update(x={1: {}}), "x of 0.weight is a dict that holds others"),
    "lr": (lambda group, entries: group.update(lr=float("nan")), "param_groups.0.lr is nan"),
    "negative lr": (lambda group, entries: group.update(lr=-0.1), "param_groups.0.lr is -0.1; it must be a finite"),
    "infinite lr": (lambda group, entries: group.update(lr=float("inf")), "param_groups.0.lr is inf"),
    "huge lr": (lambda group, entries: group.update(lr=10**400), "param_groups.0.lr is 1000"),
    "lr in a tensor": (lambda group, entries: group.update(lr=torch.tensor(-1.0)), "param_groups.0.lr is -1.0"),
    "a text as lr": (
        lambda group, entries: group.update(lr="boom"),
        "param_groups.0.lr is 'boom'; it must be a number",
    ),
    "no lr": (lambda group, entries: group.update(lr=None), "param_groups.0.lr is None; it must be a number"),
    "weight decay": (lambda group, entries: group.update(weight_decay=-1), "param_groups.0.weight_decay is -1"),
    "an own setting": (lambda group, entries: group.update(mine=[1.0, float("nan")]), "param_groups.0.mine is"),
    "nested settings": (lambda group, entries: group.update(mine=[[1]]), "param_groups.0.mine is a list that holds"),
    "params": (lambda group, entries: group.update(params=[[1], [2], [3], [4]]), "param_groups.0.params holds a list"),
}


@pytest.mark.parametrize("change, words", SPOILT.values(), ids=SPOILT)
def test_a_state_that_no_training_can_have_is_refused_with_key_and_value(change, words):
    model, optimizer = trained(OPTIMIZERS["SGD"])
    state = spoil(optimizer.state_dict(), change)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        check_optimizer_state(optimizer, state, "a.pth", model=model)
    assert "a.pth" in str(caught.value) and len(str(caught.value)) < 400


def test_flat_lists_of_tensors_and_settings_of_ones_own_are_taken():
    _, optimizer = trained(OPTIMIZERS["SGD"])
    state = optimizer.state_dict()
    state["param_groups"][0].update(mine=float("inf"), schedule=[0.1, None, "x"], table={"a": 1})
    state["state"][0].update(history=[torch.ones(2), None], pair=(1, 2.0), best=torch.tensor(float("inf")))
    check_optimizer_state(optimizer, state, "a.pth")
