"""The comparison of whole models; its times say nothing here and are not looked at, but how they become a table is."""

import re
import subprocess
import sys

import pytest
import torch

from tests.engine.distributed_mains import load_tool


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as the program would set it, and for as long as this
        return load_tool("benchmark")


class Side:
    """Steps of known times, the first of each kind slow."""

    def __init__(self, *times):
        self.times = {name: [(99.0, 99.0), *times] for name in ("training", "inference")}
        self.has_ended = False

    def run(self, name):
        return self.times[name].pop(0)

    def end(self):
        self.has_ended = True


def test_of_two_processes_the_fastest_turns_after_the_first_are_compared(benchmark, capsys):
    sides = Side((2.0, 3.0), (1.0, 5.0)), Side((4.0, 8.0), (3.0, 6.0))
    benchmark.compare_served(*sides, ("new it/s", "old it/s"), repeats=2)
    for name, line in zip(("training", "inference"), capsys.readouterr().out.splitlines()[1:]):
        assert line.split() == [name, "1.000", "0.333", "3.00", "2.00"]
    assert all(side.has_ended for side in sides)


def test_the_masks_of_objects_are_their_boxes(benchmark):
    (mask,) = benchmark.masks_of(torch.tensor([[1.0, 2.0, 4.0, 5.0]]), 6, 7)
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[2:5, 1:4] = True
    assert torch.equal(mask, expected)


def test_shares_are_those_of_products_and_of_the_rest(benchmark, capsys):
    x = torch.randn(300, 300)
    benchmark.print_shares({"products": lambda: x @ x, "both": lambda: (x @ x).sin()})
    text = capsys.readouterr().out
    assert "aten::sin" in text and "aten::mm" not in text
    assert re.search(r"both +products +\d+\.\d%, step \d+\.\d\d of them", text)


def test_a_folder_without_detlab_is_refused(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--against", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.parse_arguments()
    assert f"--against {tmp_path}: there is no folder 'detlab' in it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkout_is_compared_with_itself(project_root):
    options = ["--size", "64", "64", "--batch", "1", "--repeats", "1", "--device", "cpu", "--masks"]
    command = [sys.executable, str(project_root / "tools" / "benchmark.py"), *options, "--against", str(project_root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.findall(r"^(training|inference)( +\d+\.\d+){4}$", done.stdout, re.MULTILINE) != []
