"""The table of the operators, as a user makes it; on tiny inputs its times say nothing and are not looked at."""

import os
import re
import subprocess
import sys

import pytest

OPERATORS = ("roi_align", "pooler", "nms", "batched_nms", "nms_fixed", "roi_align_rotated", "nms_rotated",
             "box_iou_rotated", "paste_masks", "match_boxes", "mask_targets")  # fmt: skip


def run(project_root, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(project_root / "tools" / "benchmark_ops.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def table(project_root):
    done = run(project_root, "--quick", "--repeats", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_operator_has_rows_with_times_a_ratio_and_the_time_of_its_bytes(table):
    rows = [line for line in table if re.search(r"  (torchvision|plain) ", line)]
    assert {line.split()[0] for line in rows} == {*OPERATORS, "tiny"}
    for line in rows:
        assert re.search(r"( +\d+\.\d{3}){2}  (torchvision|plain) +\d+\.\d +\d+\.\d{3}$", line), line


@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
@pytest.mark.parametrize("map_name", ["25x38", "FPN"])
def test_roi_align_has_a_row_for_every_sampling_ratio_and_layout(table, passes, map_name):
    for kind in ("ratio 0 contiguous", "ratio 0 channels_last", "ratio 2 contiguous", "ratio 2 channels_last"):
        name = f"roi_align {passes} {map_name} 8 boxes {kind} "
        assert any(line.startswith(name) for line in table), name


def test_an_expression_chooses_the_rows(project_root):
    done = run(project_root, "--quick", "--repeats", "1", "--rows", "^nms_fixed|box_iou")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines() if "  torchvision " in line or "  plain " in line]
    assert names == ["nms_fixed", "box_iou_rotated"]


def test_results_that_differ_are_an_error_and_not_a_ratio(project_root, monkeypatch):
    monkeypatch.syspath_prepend(str(project_root / "tools"))
    import benchmark_ops
    import torch

    with pytest.raises(AssertionError, match="boxes kept differ"):
        benchmark_ops.check_same("nms", torch.tensor([0, 1]), torch.tensor([0, 2]))
    with pytest.raises(AssertionError, match="some row"):
        benchmark_ops.check_same("some row", torch.ones(3), torch.tensor([1, 1, 1.01]))
    with pytest.raises(AssertionError, match="pixels differ"):
        benchmark_ops.check_same("paste", torch.zeros(9, 9, dtype=torch.bool), torch.ones(9, 9, dtype=torch.bool))
    benchmark_ops.check_same("same", (torch.ones(3),), [torch.ones(3)])
