"""Suppression through the public functions; the operators have tests of their own."""

import torch

from detlab.layers.nms import batched_nms, batched_nms_rotated, nms, nms_fixed, nms_rotated
from detlab.layers.rotated_boxes import pairwise_iou_rotated


def scene(count=60, classes=3):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([low, low + 5 + torch.rand(count, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes, scores, torch.randint(classes, (count,), generator=generator)


def iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def plain_nms(boxes, scores, classes, threshold):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        rivals = (k for k in kept if classes[k] == classes[i])
        if all(iou(boxes[k].tolist(), boxes[i].tolist()) <= threshold for k in rivals):
            kept.append(i)
    return kept


def test_suppression_equals_a_plain_loop():
    boxes, scores, classes = scene()
    assert nms(boxes, scores, 0.4).tolist() == plain_nms(boxes, scores, torch.zeros_like(classes), 0.4)
    assert batched_nms(boxes, scores, classes, 0.4).tolist() == plain_nms(boxes, scores, classes, 0.4)


def test_no_boxes_leave_none():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), nothing, 0.5).shape == (0,)
    assert batched_nms_rotated(torch.zeros(0, 5), torch.zeros(0), nothing, 0.5).shape == (0,)
    assert nms_rotated(torch.zeros(0, 5), torch.zeros(0), 0.5).shape == (0,)


def test_half_precision_boxes_are_suppressed_exactly():
    boxes, scores, classes = scene()
    boxes = boxes.bfloat16()
    assert torch.equal(batched_nms(boxes, scores, classes, 0.4), batched_nms(boxes.float(), scores, classes, 0.4))


def as_rotated(boxes):
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([center, size, torch.zeros(len(boxes), 1)], dim=1)


def test_unturned_boxes_are_suppressed_as_upright_ones():
    boxes, scores, classes = scene()
    assert torch.equal(nms_rotated(as_rotated(boxes), scores, 0.4), nms(boxes, scores, 0.4))
    assert torch.equal(
        batched_nms_rotated(as_rotated(boxes), scores, classes, 0.4), batched_nms(boxes, scores, classes, 0.4)
    )


def test_a_batch_of_fixed_size_keeps_what_each_image_alone_does():
    images = [scene(count=40), scene(count=40)]
    images[1][1][20:] = -torch.inf
    for prepare, suppress in ((lambda x: x, batched_nms), (as_rotated, batched_nms_rotated)):
        boxes, scores, classes = (torch.stack(parts) for parts in zip(*images))
        boxes = torch.stack([prepare(own) for own in boxes]).double()
        indices, counts = nms_fixed(boxes, scores, classes, 0.4, 40)
        for i, count in enumerate((40, 20)):
            alone = suppress(boxes[i, :count], scores[i, :count], classes[i, :count], 0.4)
            assert indices[i].tolist() == alone.tolist() + [0] * (40 - len(alone))
            assert counts[i] == len(alone)


def test_crossed_bars_share_a_square():
    bars = torch.tensor([[0.0, 0.0, 4.0, 1.0, 0.0], [0.0, 0.0, 4.0, 1.0, 90.0]])
    torch.testing.assert_close(
        pairwise_iou_rotated(bars, bars), torch.tensor([[1.0, 1 / 7], [1 / 7, 1.0]]), atol=1e-4, rtol=1e-4
    )
    assert nms_rotated(bars, torch.tensor([0.5, 0.9]), 0.2).tolist() == [1, 0]
    assert nms_rotated(bars, torch.tensor([0.5, 0.9]), 0.1).tolist() == [1]
