"""Weights that are no numbers are found, whatever their type."""

import pytest
import torch

from detlab.checkpoint.finite import check_finite, check_real, find_non_finite

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_element_is_found(dtype, bad):
    weights = {"good": torch.ones(5).to(dtype), "bad": torch.tensor([1.0, bad, 2.0]).to(dtype)}
    assert find_non_finite(weights) == ["bad"]


def test_infinities_that_cancel_are_found():
    assert find_non_finite({"w": torch.tensor([float("inf"), -float("inf")])}) == ["w"]


def test_a_sum_beyond_the_range_of_the_type_is_no_damage():
    assert find_non_finite({"w": torch.full((10,), 3e38), "h": torch.full((10,), 6e4).half()}) == []


def test_whole_numbers_and_empty_weights_are_finite():
    assert find_non_finite({"i": torch.tensor([2**62]), "b": torch.tensor([True]), "e": torch.zeros(0)}) == []


def test_infinities_that_the_model_is_made_with_are_no_damage():
    mask = torch.tensor([0.0, -float("inf")])
    assert find_non_finite({"mask": mask}, {"mask": mask.clone()}) == []
    assert find_non_finite({"mask": mask.flip(0)}, {"mask": mask}) == ["mask"]
    assert find_non_finite({"mask": mask}, {"mask": torch.zeros(3)}) == ["mask"]


@pytest.mark.parametrize(
    "given, wanted",
    [
        (torch.tensor([1e300], dtype=torch.float64), torch.float32),
        (torch.tensor([1e6]), torch.float16),
        (torch.tensor([1e30], dtype=torch.bfloat16), torch.float16),
        (torch.tensor([10**6]), torch.float16),
    ],
)
def test_what_is_finite_in_the_file_and_infinite_in_the_model_is_found(given, wanted):
    assert find_non_finite({"w": given}) == []
    assert find_non_finite({"w": given}, {"w": torch.zeros(1, dtype=wanted)}) == ["w"]
    assert find_non_finite({"w": given / given * 3}, {"w": torch.zeros(1, dtype=wanted)}) == []


def test_complex_weights_of_a_real_model_are_refused():
    weights = {"w": torch.ones(2, dtype=torch.complex64), "other": torch.ones(1)}
    with pytest.raises(ValueError, match=r"the weight w is complex \(torch\.complex64\) .* torch\.float32"):
        check_real(weights, {"w": torch.zeros(2)})
    check_real(weights, {"w": torch.zeros(2, dtype=torch.complex64), "gone": torch.zeros(1)})
    check_real(weights, {"other": torch.zeros(1)})


def test_the_message_counts_and_names_the_first_five():
    weights = {f"w{index}": torch.tensor([float("nan")]) for index in range(7)} | {"good": torch.ones(1)}
    with pytest.raises(
        ValueError, match=r"7 of its 8 weights are not finite in the model .*: w0, w1, w2, w3, w4, \.\.\."
    ):
        check_finite(weights)
