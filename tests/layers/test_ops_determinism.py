"""The CPU's results do not hang on how many threads compute them, nor its decisions on the instruction set."""

import os
import subprocess
import sys

import pytest
import torch

from detlab.layers import _ops


def run_every_operator():
    """Enough work for every thread to get a part of it, results by name."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    maps = [rand(2, 37, size, size + 3) - 0.5 for size in (40, 20)]
    maps[1] = maps[1].to(memory_format=torch.channels_last)
    low = rand(200, 2) * 60
    rois = torch.cat([torch.arange(200).remainder(2)[:, None], low, low + rand(200, 2) * 40], dim=1)
    levels = torch.arange(200).remainder(3).clamp(max=1)
    turned = torch.cat([rois[:, :1], low, rand(200, 2) * 30 + 2, rand(200, 1) * 360], dim=1)
    grad = rand(200, 37, 5, 5) - 0.5
    pooling, turning = ([5, 5], [0.5, 0.25], 0, True), ([5, 5], 0.5, 0)
    corners = torch.cat([(low := rand(4000, 2) * 300), low + rand(4000, 2) * 60], dim=1)
    scores, classes = rand(4000), torch.arange(4000).remainder(3)
    rotated_boxes = torch.cat([rand(3000, 2) * 200, rand(3000, 2) * 30 + 2, rand(3000, 1) * 360], dim=1)
    batch = corners.view(4, 1000, 4), scores.view(4, 1000), classes.view(4, 1000)
    objects, valid = corners.view(4, 1000, 4)[:, ::40] + 1, torch.arange(100).view(4, 25).remainder(5) > 0
    blobs = rand(7, 20, 2).double() * 300
    offsets = torch.arange(8)
    ops = torch.ops.detlab
    return {
        "pooled": ops.roi_align_levels(maps, rois, levels, *pooling),
        "grads": ops.roi_align_levels_backward(grad, maps, rois, levels, *pooling, False),
        "rotated": ops.roi_align_rotated(maps[0], turned, *turning),
        "rotated grad": ops.roi_align_rotated_backward(grad, maps[0], turned, *turning, False),
        "kept": ops.nms(corners, scores, None, 0.5),
        "kept of classes": ops.nms(corners, scores, classes, 0.5),
        "kept rotated": ops.nms_rotated(rotated_boxes, scores[:3000], None, 0.3),
        "fixed": ops.nms_fixed(*batch, 0.5, 300),
        "ious": ops.box_iou_rotated(rotated_boxes[:100], rotated_boxes),
        "hard": ops.paste_masks(rand(20, 28, 28), corners[:20], 150, 201, 0.5),
        "soft": ops.paste_masks(rand(20, 28, 28), corners[:20], 150, 201, -1.0),
        "matches": ops.match_boxes(objects, valid, batch[0]),
        "drawn": ops.mask_targets_from_polygons(
            blobs.flatten(0, 1), offsets * 20, offsets, torch.arange(90).remainder(8), corners[:90], 28
        ),
        "cut": ops.mask_targets_from_bitmaps(rand(7, 250, 301) > 0.5, torch.arange(90).remainder(8), corners[:90], 28),
    }


def as_list(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results_of_one_thread():
    if _ops.backend() != "compiled":
        pytest.skip(f"the compiled operators are not in use: {_ops.report()}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = run_every_operator()
    torch.set_num_threads(before)
    return results


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_bits_do_not_depend_on_the_number_of_threads(num_threads, results_of_one_thread, count):
    num_threads(count)
    assert torch.get_num_threads() == count
    for name, result in run_every_operator().items():
        for actual, expected in zip(as_list(result), as_list(results_of_one_thread[name])):
            assert torch.equal(actual, expected), name


SAVE_RESULTS = """
import sys, torch
from tests.layers.test_ops_determinism import run_every_operator
torch.save(run_every_operator(), sys.argv[1])
"""


@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_decisions_do_not_depend_on_the_instruction_set(tmp_path, project_root, results_of_one_thread, instructions):
    """``DETLAB_CPU_CAPABILITY`` asks for less than the processor has; sums may be fused there or not."""
    path = tmp_path / "results.pt"
    environment = {**os.environ, "DETLAB_CPU_CAPABILITY": instructions, "PYTHONPATH": str(project_root)}
    subprocess.run([sys.executable, "-c", SAVE_RESULTS, str(path)], env=environment, cwd=project_root, check=True)
    others = torch.load(path)
    for name, result in results_of_one_thread.items():
        for actual, expected in zip(as_list(others[name]), as_list(result)):
            if actual.is_floating_point():
                torch.testing.assert_close(
                    actual, expected, atol=2e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
                )
            else:
                assert torch.equal(actual, expected), name
