import pytest
import torch

from detlab.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detlab.modeling.suppression import clip_boxes_to_images
from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.instances import Instances


def slow_proposals(level_boxes, level_logits, size, nms_thresh, pre_topk, post_topk, min_size):
    """One image, one box at a time: the greedy suppression of Faster R-CNN within each level."""
    candidates = []
    for level, (boxes, logits) in enumerate(zip(level_boxes, level_logits)):
        for i in logits.argsort(descending=True)[:pre_topk].tolist():
            box = boxes[i].clone()
            box[0::2].clamp_(0, size[1])
            box[1::2].clamp_(0, size[0])
            if box.isfinite().all() and box[2] - box[0] > min_size and box[3] - box[1] > min_size:
                candidates.append((logits[i].item(), level, box))
    kept = []
    for score, level, box in sorted(candidates, key=lambda c: -c[0]):
        same_level = [k for k in kept if k[1] == level]
        if all(pairwise_iou(Boxes(box[None]), Boxes(k[2][None])).item() <= nms_thresh for k in same_level):
            kept.append((score, level, box))
    return kept[:post_topk]


def random_levels(num_images=2, counts=(60, 20)):
    torch.manual_seed(3)
    boxes = [torch.rand(num_images, c, 2) * 100 - 10 for c in counts]
    boxes = [torch.cat((low, low + torch.rand_like(low) * 60), dim=-1) for low in boxes]
    return boxes, [torch.randn(num_images, c) for c in counts]


@pytest.mark.parametrize("min_size", [0.0, 12.0])
def test_proposals_equal_a_slow_greedy_suppression(min_size):
    boxes, logits = random_levels()
    boxes[0][0, 5, 2] = float("nan")
    sizes = [(70, 90), (80, 64)]
    found = find_top_rpn_proposals(boxes, logits, sizes, 0.5, 40, 15, min_size, training=False)
    for i, size in enumerate(sizes):
        expected = slow_proposals([b[i] for b in boxes], [x[i] for x in logits], size, 0.5, 40, 15, min_size)
        assert len(found[i]) == len(expected) > 5
        assert torch.allclose(found[i].objectness_logits, torch.tensor([e[0] for e in expected]))
        assert torch.allclose(found[i].proposal_boxes.tensor, torch.stack([e[2] for e in expected]))


def test_an_image_whose_boxes_are_all_empty_gives_no_proposals():
    boxes = [torch.zeros(1, 5, 4)]
    found = find_top_rpn_proposals(boxes, [torch.zeros(1, 5)], [(10, 10)], 0.7, 5, 5, 0.0, training=False)
    assert len(found[0]) == 0 and found[0].proposal_boxes.tensor.shape == (0, 4)


def test_boxes_are_clipped_to_their_own_image():
    boxes = torch.tensor([[[-5.0, -5, 50, 50]], [[-5.0, 3, 50, 50]]])
    clipped = clip_boxes_to_images(boxes, torch.tensor([[20.0, 30.0], [40.0, 10.0]]))
    assert clipped.tolist() == [[[0, 0, 30, 20]], [[0, 3, 10, 40]]]


def test_ground_truth_joins_the_proposals_with_near_certain_objectness():
    proposals = Instances((10, 10), proposal_boxes=Boxes(torch.ones(2, 4)), objectness_logits=torch.zeros(2))
    truth = Instances((10, 10), gt_boxes=Boxes(torch.zeros(3, 4)), gt_classes=torch.zeros(3))
    joined = add_ground_truth_to_proposals([truth], [proposals])[0]
    assert len(joined) == 5 and not joined.has("gt_classes")
    assert torch.sigmoid(joined.objectness_logits[2:].double()).min() > 1 - 1e-9
    boxes_only = add_ground_truth_to_proposals([Boxes(torch.zeros(0, 4))], [proposals])[0]
    assert len(boxes_only) == 2


def test_a_proposal_field_without_ground_truth_is_named():
    proposals = Instances((10, 10), proposal_boxes=Boxes(torch.ones(1, 4)), objectness_logits=torch.zeros(1))
    proposals.colour = torch.zeros(1)
    with pytest.raises(ValueError, match="colour"):
        add_ground_truth_to_proposals([Boxes(torch.zeros(1, 4))], [proposals])
