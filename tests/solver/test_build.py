"""The SOLVER section becomes groups, an optimizer and a schedule."""

import logging

import pytest
import torch
from torch import nn

from detlab.config.config import get_cfg
from detlab.layers.batch_norm import get_norm
from detlab.solver.build import (
    GradientClipType,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.shared = self.conv
        self.pos_embed = nn.Parameter(torch.zeros(3))


def settings_by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for parameter in group["params"]
    }


def test_without_exceptions_there_is_one_group_of_what_trains():
    groups = get_default_optimizer_params(Net())
    assert len(groups) == 1 and set(groups[0]) == {"params"} and len(groups[0]["params"]) == 5


def test_norms_biases_and_overrides_have_their_own_settings():
    model = Net()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=0.5,
        overrides={"pos_embed": {"weight_decay": 0.3, "lr": 7.0}},
    )
    assert settings_by_name(model, groups) == {
        "conv.weight": {"lr": 1.0, "weight_decay": 0.1},
        "conv.bias": {"lr": 2.0, "weight_decay": 0.5},
        "bn.weight": {"lr": 1.0, "weight_decay": 0.0},
        "bn.bias": {"lr": 2.0, "weight_decay": 0.5},
        "pos_embed": {"lr": 7.0, "weight_decay": 0.3},
    }


def test_rates_may_depend_on_the_full_name():
    model = Net()
    groups = get_default_optimizer_params(model, base_lr=1.0, lr_factor_func=lambda name: 0.5 if "conv" in name else 2)
    lr = {name: settings["lr"] for name, settings in settings_by_name(model, groups).items()}
    assert lr == {"conv.weight": 0.5, "conv.bias": 0.5, "bn.weight": 2, "bn.bias": 2, "pos_embed": 2}


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "LN", "naiveSyncBN"])
def test_every_norm_counts_as_one(norm):
    groups = get_default_optimizer_params(nn.Sequential(get_norm(norm, 32)), weight_decay=1.0, weight_decay_norm=0.0)
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match="overrides has 'bias'"):
        get_default_optimizer_params(Net(), weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"bias_lr_factor=2\.0 needs base_lr"):
        get_default_optimizer_params(Net(), bias_lr_factor=2.0)
    with pytest.raises(ValueError, match="lr_factor_func needs base_lr"):
        get_default_optimizer_params(Net(), lr_factor_func=lambda name: 1.0)


def test_overrides_of_the_caller_stay_as_they_are():
    overrides = {"pos_embed": {"weight_decay": 0.0}}
    get_default_optimizer_params(Net(), weight_decay_bias=0.5, overrides=overrides)
    assert overrides == {"pos_embed": {"weight_decay": 0.0}}


def test_groups_of_equal_settings_are_joined_in_order():
    a, b, c, d = (torch.zeros(1) for _ in range(4))
    groups = [
        {"params": [a], "lr": 1},
        {"params": b, "lr": 2},
        {"lr": 1, "params": [c]},
        {"params": [d], "lr": 2, "x": 0},
    ]
    joined = reduce_param_groups(groups)
    assert [(g["lr"], g.get("x"), len(g["params"])) for g in joined] == [(1, None, 2), (2, None, 1), (2, 0, 1)]
    assert joined[0]["params"][1] is c and groups[0]["params"] == [a]


def test_the_default_is_sgd_with_the_configs_settings():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.5, "SOLVER.MOMENTUM", 0.8, "SOLVER.NESTEROV", True])
    optimizer = build_optimizer(cfg, Net())
    assert type(optimizer) is torch.optim.SGD
    weights, norms = optimizer.param_groups
    assert (weights["lr"], weights["momentum"], weights["nesterov"], weights["weight_decay"]) == (0.5, 0.8, True, 1e-4)
    assert norms["weight_decay"] == 0.0 and len(norms["params"]) == 2


def test_adamw_is_chosen_by_name():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    optimizer = build_optimizer(cfg, Net())
    assert isinstance(optimizer, torch.optim.AdamW) and type(optimizer).__name__ == "AdamWWithGradientClipping"
    cfg.SOLVER.OPTIMIZER = "Adagrad"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER='Adagrad'"):
        build_optimizer(cfg, Net())


def clipped_gradients(clip_type, value, norm_type=2.0):
    cfg = get_cfg()
    settings = ["ENABLED", True, "CLIP_TYPE", clip_type, "CLIP_VALUE", value, "NORM_TYPE", norm_type]
    cfg.merge_from_list([f"SOLVER.CLIP_GRADIENTS.{s}" if i % 2 == 0 else s for i, s in enumerate(settings)])
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0)
    parameters[0].grad = torch.tensor([3.0, 4.0])
    parameters[1].grad = torch.tensor([0.3, -0.4])
    optimizer.step()
    return [(-parameter.detach()).tolist() for parameter in parameters[:2]]


@pytest.mark.parametrize(
    ("clip_type", "value", "norm_type", "expected"),
    [
        ("value", 0.35, 2.0, [[0.35, 0.35], [0.3, -0.35]]),
        ("norm", 1.0, 2.0, [[0.6, 0.8], [0.3, -0.4]]),
        ("norm", 2.0, float("inf"), [[1.5, 2.0], [0.3, -0.4]]),
        ("full_model", 25.25**0.5 / 2, 2.0, [[1.5, 2.0], [0.15, -0.2]]),
    ],
)
def test_gradients_are_clipped_before_the_step(clip_type, value, norm_type, expected):
    for got, want in zip(clipped_gradients(clip_type, value, norm_type), expected):
        assert got == pytest.approx(want, rel=1e-5)


def test_an_unknown_way_of_clipping_is_refused():
    assert {kind.value for kind in GradientClipType} == {"value", "norm", "full_model"}
    with pytest.raises(ValueError, match="'everything'"):
        clipped_gradients("everything", 1.0)


def test_an_optimizer_object_is_given_clipping_in_place():
    cfg = get_cfg()
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    assert maybe_add_gradient_clipping(cfg, optimizer) is optimizer and type(optimizer) is torch.optim.SGD
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    assert maybe_add_gradient_clipping(cfg, optimizer) is optimizer
    parameter.grad = torch.tensor([50.0])
    optimizer.step()
    assert parameter.item() == -1.0


def rates(cfg, num_iters):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seen = []
    for _ in range(num_iters):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def make_cfg(*options):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 12, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 1.0, *options])
    return cfg


def test_the_configs_steps_fall_by_gamma(caplog):
    caplog.set_level(logging.WARNING)
    logging.getLogger("detlab").propagate = True
    cfg = make_cfg("SOLVER.STEPS", (4, 8, 30), "SOLVER.GAMMA", 0.5)
    assert rates(cfg, 12) == [1.0] * 4 + [0.5] * 4 + [0.25] * 4
    assert "SOLVER.STEPS=(4, 8, 30)" in caplog.text


def test_the_configs_warmup_is_part_of_the_run():
    cfg = make_cfg("SOLVER.STEPS", (8,), "SOLVER.WARMUP_ITERS", 4, "SOLVER.WARMUP_FACTOR", 0.2)
    assert rates(cfg, 9) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 0.1])


def test_the_configs_cosine_ends_at_its_last_rate():
    cfg = make_cfg("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.1)
    seen = rates(cfg, 14)
    assert seen[0] == 1.0 and seen[6] == pytest.approx(0.55) and seen[12] == seen[13] == pytest.approx(0.1)


def test_the_configs_fixed_gamma_falls_at_equal_distances_and_works_to_the_end():
    cfg = make_cfg(
        "SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS", 2, "SOLVER.GAMMA", 0.5
    )
    assert rates(cfg, 14) == [1.0] * 4 + [0.5] * 4 + [0.25] * 6


def test_a_run_shorter_than_its_warmup_only_warms_up():
    cfg = make_cfg("SOLVER.STEPS", (8,), "SOLVER.WARMUP_ITERS", 1000, "SOLVER.WARMUP_FACTOR", 0.0)
    assert rates(cfg, 8) == pytest.approx([i / 12 * 0.1 for i in range(8)])


@pytest.mark.parametrize(("warmup", "warns"), [(12, True), (11, False), (0, False)])
def test_a_warmup_that_the_run_does_not_outlast_is_warned_of(caplog, monkeypatch, warmup, warns):
    monkeypatch.setattr(logging.getLogger("detlab"), "propagate", True)
    rates(make_cfg("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", warmup), 1)
    words = f"SOLVER.WARMUP_ITERS={warmup} is not over within SOLVER.MAX_ITER=12: the learning rate never reaches"
    assert (words in caplog.text) is warns


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"])
def test_a_rate_of_zero_stays_zero(name):
    cfg = make_cfg("SOLVER.BASE_LR", 0.0, "SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.STEPS", ())
    assert rates(cfg, 12) == [0.0] * 12


def test_a_schedule_without_iterations_is_refused():
    with pytest.raises(ValueError, match=r"needs iterations, but SOLVER\.MAX_ITER is 0"):
        rates(make_cfg("SOLVER.MAX_ITER", 0), 1)


def test_schedules_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"SOLVER\.LR_SCHEDULER_NAME='Cosine'.*WarmupCosineLR"):
        rates(make_cfg("SOLVER.LR_SCHEDULER_NAME", "Cosine"), 1)
    with pytest.raises(ValueError, match=r"SOLVER\.STEPS"):
        rates(make_cfg("SOLVER.STEPS", (8, 4)), 1)
    with pytest.raises(ValueError, match=r"BASE_LR_END=3\.0"):
        rates(make_cfg("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 3.0), 1)
