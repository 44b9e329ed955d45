"""Objects keep their colour from frame to frame."""

import numpy as np
import pytest
import torch

from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.utils.video_visualizer import FRAMES_REMEMBERED, VideoVisualizer
from detlab.utils.visualizer import ColorMode

H, W = 80, 120
FRAME = np.full((H, W, 3), 100, dtype=np.uint8)


def masks_at(*corners):
    masks = torch.zeros(len(corners), H, W, dtype=torch.bool)
    for mask, (x, y) in zip(masks, corners):
        mask[y : y + 30, x : x + 30] = True
    return masks


def objects(corners, classes, with_masks=True):
    boxes = torch.tensor([[x, y, x + 30, y + 30] for x, y in corners]).reshape(-1, 4).float()
    instances = Instances((H, W), pred_boxes=Boxes(boxes), pred_classes=torch.tensor(classes, dtype=torch.int64))
    instances.scores = torch.ones(len(corners))
    if with_masks:
        instances.pred_masks = masks_at(*corners)
    return instances


def color_at(output, x, y):
    return output.get_image()[y, x].tolist()


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_moving_object_keeps_its_colour_and_another_class_does_not_take_it(with_masks):
    video = VideoVisualizer({})
    video.draw_instance_predictions(FRAME, objects([(5, 5), (60, 40)], [0, 1], with_masks))
    first = [seen.color for seen in video._remembered]
    video.draw_instance_predictions(FRAME, objects([(62, 41), (7, 6)], [1, 0], with_masks))
    assert [seen.color for seen in video._remembered] == first[::-1]
    video.draw_instance_predictions(FRAME, objects([(7, 6)], [3], with_masks))
    assert video._remembered[0].color not in first


def test_an_object_missing_for_a_few_frames_comes_back_in_its_colour():
    video = VideoVisualizer({})
    before = color_at(video.draw_instance_predictions(FRAME, objects([(5, 5)], [0])), 28, 30)
    for _ in range(FRAMES_REMEMBERED - 2):
        video.draw_instance_predictions(FRAME, objects([], []))
    assert color_at(video.draw_instance_predictions(FRAME, objects([(5, 5)], [0])), 28, 30) == before
    for _ in range(FRAMES_REMEMBERED):
        video.draw_instance_predictions(FRAME, objects([], []))
    assert video._remembered == []


def test_colours_that_are_given_are_used():
    given = objects([(5, 5)], [0])
    given.COLOR = [(0.0, 1.0, 0.0)]
    drawn = VideoVisualizer({}).draw_instance_predictions(FRAME, given)
    assert color_at(drawn, 28, 30) == pytest.approx([50, 177, 50], abs=2)


def test_panoptic_things_keep_their_colour():
    video = VideoVisualizer({"stuff_classes": ["sky"], "thing_classes": ["cat"]}, ColorMode.IMAGE_BW)
    info = [{"id": 1, "category_id": 0, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}]
    ids = masks_at((5, 5))[0].long() + 1
    video.draw_panoptic_seg_predictions(FRAME, ids, info)
    (before,) = [seen.color for seen in video._remembered]
    video.draw_panoptic_seg_predictions(FRAME, torch.roll(ids, 3, 1), info)
    assert [seen.color for seen in video._remembered] == [before]


def test_a_label_map_is_drawn():
    output = VideoVisualizer({"stuff_colors": [(0, 255, 0)]}).draw_sem_seg(FRAME, np.zeros((H, W), dtype=int))
    assert color_at(output, 10, 70)[1] > 200


def test_colours_by_class_are_for_single_images():
    with pytest.raises(ValueError, match="SEGMENTATION"):
        VideoVisualizer({}, ColorMode.SEGMENTATION)
