"""Norms by name, the frozen norm and its way into a convolution, statistics over processes."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from detlab.layers.batch_norm import (
    CycleBatchNormList,
    FrozenBatchNorm2d,
    LayerNorm,
    NaiveSyncBatchNorm,
    SyncBatchNorm,
    fold_frozen_norm,
    get_norm,
)


def random_frozen(channels, dtype=torch.float64):
    norm = FrozenBatchNorm2d(channels).to(dtype)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(channels) + 0.5)
    return norm


def random_batch_norm(channels):
    norm = nn.BatchNorm2d(channels)
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value.data.copy_(torch.rand(channels) + 0.5)
    return norm


class TestFrozenBatchNorm:
    def test_equals_batch_norm_in_evaluation(self):
        live = random_batch_norm(5).eval()
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(live))
        x = torch.randn(2, 5, 4, 3)
        torch.testing.assert_close(frozen(x), live(x))

    def test_scale_and_shift_are_computed_once(self):
        norm = random_frozen(3)
        assert all(a is b for a, b in zip(norm.scale_and_shift(), norm.scale_and_shift()))

    @pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
    def test_each_buffer_that_changes_counts(self, name):
        norm = random_frozen(3)
        x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
        before = norm(x)
        getattr(norm, name).add_(1.0)
        after = norm(x)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, copy.deepcopy(norm)(x))

    def test_statistics_that_another_rank_sends_count(self, tmp_path):
        norm = random_frozen(3)
        before = norm.scale_and_shift()[0]
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        try:
            buffers = list(norm.buffers())
            dist._broadcast_coalesced(dist.group.WORLD, buffers, 1 << 20, 0)
            assert norm.scale_and_shift()[0] is not before
        finally:
            dist.destroy_process_group()

    def test_a_fresh_layer_is_the_identity(self):
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x)

    def test_has_the_four_buffers_and_nothing_to_train(self):
        norm = FrozenBatchNorm2d(3)
        assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
        assert not list(norm.parameters())

    def test_output_keeps_the_dtype_of_the_input(self):
        assert FrozenBatchNorm2d(3)(torch.randn(1, 3, 2, 2).bfloat16()).dtype == torch.bfloat16

    def test_gradient_reaches_the_input(self):
        x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(random_frozen(3), x)

    def test_no_images_give_no_images(self):
        assert FrozenBatchNorm2d(3)(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)

    def test_loads_the_state_of_a_batch_norm(self):
        live = random_batch_norm(4)
        frozen = FrozenBatchNorm2d(4)
        frozen.load_state_dict(live.state_dict())
        torch.testing.assert_close(frozen.running_var, live.running_var)

    def test_a_state_of_the_first_version_brings_the_affine_pair_only(self):
        frozen = nn.Sequential(FrozenBatchNorm2d(2))
        state = {"0.weight": torch.full((2,), 3.0), "0.bias": torch.ones(2)}
        frozen.load_state_dict(state)
        x = torch.randn(1, 2, 3, 3)
        torch.testing.assert_close(frozen(x), 3 * x + 1)

    def test_a_present_state_with_missing_statistics_is_refused(self):
        norm = FrozenBatchNorm2d(2)
        state = norm.state_dict()
        del state["running_mean"]
        with pytest.raises(RuntimeError, match="running_mean"):
            norm.load_state_dict(state)

    def test_conversion_walks_through_a_model_and_back(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(random_batch_norm(4)), nn.ReLU()).eval()
        x = torch.randn(2, 3, 4, 4)
        expected = model(x)
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
        assert frozen is model
        assert type(frozen[1][0]) is FrozenBatchNorm2d
        torch.testing.assert_close(frozen(x), expected)
        live = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(frozen)
        assert type(live[1][0]) is nn.BatchNorm2d
        assert live[1][0].weight.requires_grad
        torch.testing.assert_close(live(x), expected)

    def test_conversion_keeps_a_norm_without_affine_pair(self):
        live = nn.BatchNorm2d(3, affine=False).eval()
        live.running_mean.fill_(2.0)
        x = torch.randn(1, 3, 2, 2)
        torch.testing.assert_close(FrozenBatchNorm2d.convert_frozen_batchnorm(live)(x), live(x))

    def test_folding_gives_the_affine_map_of_the_norm(self):
        norm, weight, bias = random_frozen(4), torch.randn(4, 3, 1, 1).double(), torch.randn(4).double()
        x = torch.randn(2, 3, 5, 5).double()
        folded = torch.conv2d(x, *fold_frozen_norm(weight, bias, norm))
        torch.testing.assert_close(folded, norm(torch.conv2d(x, weight, bias)))


class TestGetNorm:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("BN", nn.BatchNorm2d),
            ("SyncBN", nn.SyncBatchNorm),
            ("nnSyncBN", nn.SyncBatchNorm),
            ("FrozenBN", FrozenBatchNorm2d),
            ("GN", nn.GroupNorm),
            ("LN", LayerNorm),
            ("naiveSyncBN", NaiveSyncBatchNorm),
            ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ],
    )
    def test_each_name_makes_its_layer(self, name, kind):
        norm = get_norm(name, 64)
        assert isinstance(norm, kind)
        assert norm.eval()(torch.randn(1, 64, 2, 2)).shape == (1, 64, 2, 2)

    def test_group_norm_has_32_groups(self):
        assert get_norm("GN", 64).num_groups == 32

    @pytest.mark.parametrize("nothing", ["", None])
    def test_no_name_makes_no_layer(self, nothing):
        assert get_norm(nothing, 8) is None

    def test_a_callable_is_called_with_the_channels(self):
        assert get_norm(functools.partial(nn.GroupNorm, 4), 8).num_channels == 8

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(ValueError, match="'FrozenBn' is unknown; did you mean 'FrozenBN'"):
            get_norm("FrozenBn", 8)


class TestLayerNorm:
    def test_normalises_over_channels_at_each_cell(self):
        norm = LayerNorm(6)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x = torch.randn(2, 6, 3, 4)
        centered = x - x.mean(1, keepdim=True)
        plain = centered / (centered.square().mean(1, keepdim=True) + norm.eps).sqrt()
        expected = plain * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(norm(x), expected)


class TestCycleBatchNormList:
    def test_calls_take_turns_and_share_the_affine_pair(self):
        norms = CycleBatchNormList(2, num_features=3)
        nn.init.constant_(norms.weight, 2.0)
        nn.init.constant_(norms.bias, 1.0)
        first, second = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5) + 7
        out = [norms(first), norms(second)]
        for got, x in zip(out, (first, second)):
            torch.testing.assert_close(got, 2 * nn.BatchNorm2d(3, affine=False)(x) + 1)
        assert norms[0].running_mean.abs().max() < 0.5 < norms[1].running_mean.min()
        norms(first)
        assert norms[0].num_batches_tracked == 2

    def test_without_affine_there_is_no_parameter(self):
        norms = CycleBatchNormList(3, num_features=2, affine=False)
        assert not list(norms.parameters())
        assert norms(torch.randn(2, 2, 3, 3)).shape == (2, 2, 3, 3)


def test_naive_sync_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="stats_mode 'n' is unknown"):
        NaiveSyncBatchNorm(4, stats_mode="n")


def test_naive_sync_alone_is_plain_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(NaiveSyncBatchNorm(3)(x), nn.BatchNorm2d(3)(x))


def run_rank(rank, port, results):
    """Each rank normalises its part of one batch; rank 1 has fewer images, in the last case none."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    parts = {"naiveSyncBN": (2, 2), "naiveSyncBN_N": (3, 1), "SyncBN": (3, 1), "empty": (4, 0)}
    for case, sizes in parts.items():
        whole, grad, reference = whole_batch()
        norm = get_norm("naiveSyncBN_N" if case == "empty" else case, 3)
        norm.load_state_dict(reference.state_dict())
        mine = whole.split(sizes)[rank].clone().requires_grad_()
        out = norm(mine)
        (out * grad.split(sizes)[rank]).sum().backward()
        weight_grad = norm.weight.grad.clone()
        dist.all_reduce(weight_grad)
        results[case, rank] = (out.detach(), mine.grad, weight_grad, norm.running_mean, norm.running_var)
    dist.destroy_process_group()


def whole_batch():
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    return torch.randn(4, 3, 6, 5) * 3 + 1, torch.randn(4, 3, 6, 5), norm


def test_two_processes_normalise_as_one_does_with_the_whole_batch(free_port):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(run_rank, args=(free_port, results), nprocs=2)
        results = dict(results)
    whole, grad, norm = whole_batch()
    whole.requires_grad_()
    out = norm(whole)
    (out * grad).sum().backward()
    biased = 0.9 + 0.1 * whole.detach().var((0, 2, 3), unbiased=False)
    for case in ("naiveSyncBN", "naiveSyncBN_N", "SyncBN", "empty"):
        ranks = [results[case, 0], results[case, 1]]
        close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
        close(torch.cat([r[0] for r in ranks]), out.detach())
        close(torch.cat([r[1] for r in ranks]), whole.grad)
        for rank in ranks:
            close(rank[2], norm.weight.grad)
            close(rank[3], norm.running_mean)
            close(rank[4], norm.running_var if case == "SyncBN" else biased)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_sync_batch_norm_alone_is_plain_batch_norm_on_the_cpu():
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(SyncBatchNorm(3)(x), nn.BatchNorm2d(3)(x))
