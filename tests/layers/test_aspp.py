"""Atrous spatial pyramid pooling."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detlab.layers.aspp import ASPP


def test_branches_are_projected_to_one_map():
    aspp = ASPP(6, 4, [2, 3, 4], norm="", activation=F.relu)
    x = torch.randn(2, 6, 8, 10)
    branches = [conv(x) for conv in aspp.convs[:4]]
    pooled = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), aspp.convs[4][1].weight, aspp.convs[4][1].bias))
    joined = torch.cat([*branches, pooled.expand(2, 4, 8, 10)], dim=1)
    torch.testing.assert_close(aspp(x), F.relu(F.conv2d(joined, aspp.project.weight, aspp.project.bias)))


def test_state_names_follow_the_order_of_the_branches():
    names = list(ASPP(6, 4, [1, 2, 3], norm="BN", activation=nn.ReLU()).state_dict())
    assert "convs.0.weight" in names
    assert "convs.3.norm.running_var" in names
    assert "convs.4.1.bias" in names
    assert "project.norm.weight" in names
    assert "convs.0.bias" not in names


def test_separable_branches_and_dropout_keep_the_size():
    aspp = ASPP(6, 4, [1, 2, 3], norm="BN", activation=F.relu, dropout=0.5, use_depthwise_separable_conv=True)
    x = torch.randn(2, 6, 8, 8)
    out = aspp(x)
    assert out.shape == (2, 4, 8, 8)
    assert (out == 0).float().mean() > 0.25
    assert "convs.1.depthwise.weight" in aspp.state_dict()
    assert torch.equal(aspp.eval()(x), aspp(x))


def test_pool_window_must_divide_the_map():
    aspp = ASPP(2, 2, [1, 2, 3], norm="", activation=F.relu, pool_kernel_size=(4, 5))
    assert aspp(torch.randn(1, 2, 8, 10)).shape == (1, 2, 8, 10)
    with pytest.raises(ValueError, match=r"pool_kernel_size \(4, 5\) must divide .* \(8, 9\)"):
        aspp(torch.randn(1, 2, 8, 9))


def test_other_than_three_dilations_are_refused():
    with pytest.raises(ValueError, match="three dilated branches"):
        ASPP(2, 2, [1, 2], norm="", activation=F.relu)
