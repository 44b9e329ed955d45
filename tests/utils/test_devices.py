"""Devices by name."""

import pytest

from detlab.utils.devices import device_kind


def test_the_kind_of_a_device_is_its_name_without_a_number():
    assert [device_kind(name) for name in ("cpu", "cuda", "cuda:3")] == ["cpu", "cuda", "cuda"]


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_a_device_that_torch_does_not_know_is_refused_with_those_it_does(name):
    with pytest.raises(ValueError, match=rf"train\.device is '{name}'.*'cuda'.*'cpu'"):
        device_kind(name, "train.device")
