"""Which of a model's numbers are none."""

import math

import torch
from torch import nn

from detlab.utils.finite import names_not_finite


def test_parameters_and_statistics_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    # Of no normalisation: a mask of attention holds infinities by design.
    model.register_buffer("minus_infinity", torch.tensor(-math.inf))
    assert names_not_finite(model) == []
    model[0].bias.data[1] = math.nan
    model[1].running_var[0] = math.inf
    assert names_not_finite(model) == ["0.bias", "1.running_var"]


def test_a_model_without_parameters_has_none_that_are_not_finite():
    assert names_not_finite(nn.Identity()) == []
