"""Losses from when they are noted to when they are written."""

import math

import pytest
import torch

from detlab.engine.step_losses import StepLosses, write_metrics
from detlab.utils.events import EventStorage

IMAGES = [{"file_name": "a.jpg"}, {"image_id": 7}, {}]


def noted(*values, first=0):
    """Losses of one step after another, each a pair that adds up to its value."""
    losses = StepLosses()
    for iteration, value in enumerate(values, first):
        pair = {"loss_a": torch.tensor(value / 4), "loss_b": torch.tensor([value * 3 / 4], requires_grad=True)}
        losses.note(iteration, pair, data_time=0.25, learning_rates=[0.1, 0.2, 0.1], batch=IMAGES)
    return losses


def test_losses_are_written_with_their_iteration_and_the_last_may_be_kept():
    losses = noted(1.0, 2.0, 3.0, first=4)
    with EventStorage() as storage:
        losses.look(keep=1)
        assert len(losses) == 1
        losses.look(keep=1)
        assert storage.history("total_loss").values() == [(1.0, 4), (2.0, 5)]
        losses.look()
        losses.look()
    assert storage.history("total_loss").values() == [(1.0, 4), (2.0, 5), (3.0, 6)]
    assert storage.history("loss_b").values() == [(0.75, 4), (1.5, 5), (2.25, 6)]
    assert storage.history("data_time").values() == [(0.25, 4), (0.25, 5), (0.25, 6)]


def test_whoever_writes_instead_gets_the_losses_of_each_step():
    calls = []
    with EventStorage() as storage:
        noted(1.0, 2.0).look(write=lambda losses, data_time, iter: calls.append((losses, data_time, iter)))
    assert storage.latest() == {}
    assert calls == [({"loss_a": 0.25, "loss_b": 0.75}, 0.25, 0), ({"loss_a": 0.5, "loss_b": 1.5}, 0.25, 1)]


@pytest.mark.parametrize("look", [StepLosses.look, StepLosses.check_own])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_with_rates_and_images(look, value):
    with EventStorage(), pytest.raises(FloatingPointError) as caught:
        look(noted(1.0, value, 2.0))
    message = str(caught.value)
    for part in ("iteration 1;", f"loss_a = {value}", "learning rate: 0.1, 0.2\n", "batch: a.jpg, 7, ?"):
        assert part in message


def test_what_was_checked_is_still_to_be_written():
    losses = noted(1.0)
    losses.check_own()
    with EventStorage() as storage:
        losses.look()
    assert storage.latest()["total_loss"] == (1.0, 0)


def test_what_is_forgotten_is_neither_checked_nor_written():
    losses = noted(math.nan)
    losses.forget()
    losses.check_own()
    with EventStorage() as storage:
        losses.look()
    assert storage.latest() == {}


def test_metrics_are_written_under_a_prefix():
    with EventStorage() as storage:
        write_metrics({"loss_a": torch.tensor(1.0)}, 0.5, 3, prefix="aux_")
    assert storage.latest() == {"data_time": (0.5, 3), "aux_total_loss": (1.0, 3), "aux_loss_a": (1.0, 3)}
