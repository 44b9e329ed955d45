"""Where a model lives, in which layout, and in which precision its backbone computes."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detlab.config import LazyCall as L
from detlab.config.constraints import check_config
from detlab.modeling import build_model
from detlab.modeling.meta_arch.build import instantiate_model, place_model
from tests.modeling.tiny import tiny_batch, tiny_config


def weight_layouts(model):
    """Of the convolutions with more than one tap, whose strides tell the layouts apart."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[2] > 1]
    return {w.is_contiguous(memory_format=torch.channels_last) for w in weights}


def model_of(*settings, masks=False):
    cfg = tiny_config(masks=masks)
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "FrozenBN", *settings])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize(
    ("layout", "is_channels_last"), [("auto", True), ("channels_last", True), ("contiguous", False)]
)
def test_the_layout_on_a_cpu(layout, is_channels_last):
    model = model_of("MODEL.LAYOUT", layout)
    assert weight_layouts(model) == {is_channels_last}
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 64, 96))
    assert maps["p2"].is_contiguous(memory_format=torch.channels_last) is is_channels_last


@pytest.mark.parametrize(
    ("settings", "is_channels_last"),
    [
        ({}, False),
        ({"amp": True}, True),
        ({"backbone_dtype": "bfloat16"}, True),
        ({"layout": "channels_last"}, True),
        ({"amp": True, "layout": "contiguous"}, False),
    ],
)
def test_a_gpu_in_half_precision_takes_channels_last(monkeypatch, settings, is_channels_last):
    model = model_of("MODEL.LAYOUT", "contiguous")
    moved, move = [], nn.Module.to

    def to(module, *args, **kwargs):
        moved.extend(args)
        return module if args else move(module, **kwargs)

    monkeypatch.setattr(nn.Module, "to", to)  # there may be no GPU
    assert weight_layouts(place_model(model, "cuda:0", **settings)) == {is_channels_last}
    assert moved == ["cuda:0"]


def losses_and_gradients(model):
    torch.manual_seed(1)
    losses = model.train()(tiny_batch())
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def test_layouts_agree_in_results_and_gradients_and_share_their_states():
    models = [model_of("MODEL.LAYOUT", layout, masks=True) for layout in ("channels_last", "contiguous")]
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values()))
    (losses, grads), (other_losses, other_grads) = map(losses_and_gradients, models)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, other_losses[name], rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=1e-3, atol=1e-4 * float(grad.abs().max()) + 1e-6)


def test_a_backbone_in_bfloat16_trains_float32_weights_and_hands_on_float32():
    model, exact = model_of("MODEL.BACKBONE.DTYPE", "bfloat16"), model_of()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = model.backbone(images), exact.backbone(images)
    for name in maps:
        assert maps[name].dtype == torch.float32
        assert not torch.equal(maps[name], expected[name])
        torch.testing.assert_close(maps[name], expected[name], rtol=0.1, atol=0.05 * float(expected[name].abs().max()))
    _, grads = losses_and_gradients(model)
    assert {grad.dtype for grad in grads.values()} == {torch.float32}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert list(model.state_dict()) == list(exact.state_dict())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_within_autocast_the_maps_stay_in_half_precision():
    model = model_of("MODEL.BACKBONE.DTYPE", "bfloat16")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.backbone(torch.randn(1, 3, 64, 96))["p2"].dtype == torch.bfloat16


def test_copies_keep_the_precision_and_a_compiled_backbone_follows_it():
    model = copy.deepcopy(model_of("MODEL.BACKBONE.DTYPE", "bfloat16"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.backbone(images)["p2"]
        compiled = torch.compile(lambda x: model.backbone(x), backend="eager", fullgraph=True)
        assert torch.equal(compiled(images)["p2"], expected)
        assert not torch.equal(expected, model_of().backbone(images)["p2"])


def test_a_precision_needs_a_backbone_and_a_known_name():
    with pytest.raises(ValueError, match="Linear has no attribute 'backbone'"):
        place_model(nn.Linear(1, 1), "cpu", backbone_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.DTYPE must be .* got 'half'"):
        place_model(nn.Linear(1, 1), "cpu", backbone_dtype="half")
    with pytest.raises(ValueError, match=r"MODEL\.LAYOUT must be 'auto'.* got 'nhwc'"):
        place_model(nn.Linear(1, 1), "cpu", layout="nhwc")


@pytest.mark.parametrize(
    ("settings", "is_fine"),
    [
        (["MODEL.BACKBONE.DTYPE", "bfloat16"], True),
        (["MODEL.BACKBONE.DTYPE", "float16"], False),
        (["MODEL.BACKBONE.DTYPE", "float16", "SOLVER.AMP.ENABLED", True], False),
        (["MODEL.BACKBONE.DTYPE", "float16", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16"], True),
    ],
)
def test_a_backbone_in_float16_is_trained_with_a_scaled_loss_only(settings, is_fine):
    cfg = tiny_config()
    cfg.merge_from_list(settings)
    check_config(cfg, training=False)
    if is_fine:
        return check_config(cfg)
    with pytest.raises(ValueError, match=r"set MODEL\.BACKBONE\.DTYPE bfloat16 to train"):
        check_config(cfg)


def test_a_python_config_says_the_same_in_its_train_node():
    def build(device=None, **train):
        conv = L(nn.Conv2d)(in_channels=16, out_channels=16, kernel_size=3)
        return instantiate_model(
            OmegaConf.create({"model": conv, "train": train}, flags={"allow_objects": True}), device
        )

    assert weight_layouts(build("cpu")) == {True}
    assert weight_layouts(build(device="cpu")) == {True}
    assert weight_layouts(build("cpu", layout="contiguous")) == {False}
    with pytest.raises(ValueError, match="Conv2d has no attribute 'backbone'"):
        build("cpu", backbone_dtype="bfloat16")
