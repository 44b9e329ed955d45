"""What is drawn is where it should be, in the colour it should have."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks, PolygonMasks, ROIMasks
from detlab.structures.rotated_boxes import RotatedBoxes
from detlab.utils.visualizer import ColorMode, VisImage, Visualizer

H, W = 120, 160
GREY = 100
METADATA = {
    "thing_classes": ["cat", "dog"],
    "thing_colors": [(255, 0, 0), (0, 0, 255)],
    "stuff_classes": ["sky", "road"],
    "stuff_colors": [(0, 255, 255), (0, 255, 0)],
    "keypoint_names": ["head", "tail"],
    "keypoint_connection_rules": [("head", "tail", (0, 255, 0))],
    "label_divisor": 1000,
    "thing_dataset_id_to_contiguous_id": {1: 0, 2: 1},
}


def canvas(mode=ColorMode.IMAGE, scale=1.0):
    return Visualizer(np.full((H, W, 3), GREY, dtype=np.uint8), METADATA, scale, mode)


def changed(output):
    """(H, W) where the picture is no longer the grey canvas."""
    return np.abs(output.get_image().astype(int) - GREY).max(axis=2) > 4


def mask_of(x0, y0, x1, y1):
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def predictions(**fields):
    values = {
        "pred_boxes": Boxes(torch.tensor([[10.0, 20, 60, 90], [90, 30, 150, 100]])),
        "scores": torch.tensor([0.9, 0.6]),
        "pred_classes": torch.tensor([0, 1]),
        "pred_masks": torch.stack([mask_of(10, 20, 60, 90), mask_of(90, 30, 150, 100)]),
    }
    return Instances((H, W), **{**values, **fields})


class TestPicture:
    def test_an_untouched_picture_is_the_image_to_the_pixel(self):
        image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
        np.testing.assert_array_equal(Visualizer(image).get_output().get_image(), image)

    @pytest.mark.parametrize("scale", [0.5, 1.0, 1.7, 3.0])
    @pytest.mark.parametrize("size", [(H, W), (101, 333)])
    def test_its_size_is_the_images_times_the_scale(self, size, scale):
        picture = VisImage(np.zeros((*size, 3), dtype=np.uint8), scale).get_image()
        assert picture.shape == (int(size[0] * scale), int(size[1] * scale), 3) and picture.dtype == np.uint8

    def test_the_image_beneath_can_be_replaced_and_saved(self, tmp_path):
        output = VisImage(np.zeros((H, W, 3), dtype=np.uint8))
        output.reset_image(np.full((H, W, 3), 300.0))
        output.save(str(tmp_path / "picture.png"))
        saved = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
        assert saved.shape == (H, W, 3) and (saved == 255).all()

    def test_other_arrays_than_rgb_images_are_refused(self):
        with pytest.raises(ValueError, match=r"\(H, W, 3\).*\(3, 120, 160\)"):
            Visualizer(np.zeros((3, H, W)))


class TestShapes:
    def test_a_box_is_drawn_along_its_edges_and_nowhere_else(self):
        drawn = changed(canvas().draw_box((20, 30, 100, 80), alpha=1, edge_color="r"))
        assert drawn[30, 20:100].all() and drawn[30:80, 20].all() and drawn[30:80, 99].all()
        assert not drawn[35:75, 26:95].any() and not drawn[:25].any() and not drawn[:, 106:].any()

    def test_a_polygon_is_filled_with_the_right_opacity(self):
        output = canvas().draw_polygon([[20, 30], [100, 30], [100, 80], [20, 80]], (1.0, 0, 0), alpha=0.5)
        inside = output.get_image()[40:70, 30:90].reshape(-1, 3).astype(int)
        np.testing.assert_allclose(inside, np.tile([(GREY + 255) / 2, GREY / 2, GREY / 2], (len(inside), 1)), atol=2)

    def test_a_mask_is_filled_and_its_hole_is_not(self):
        ring = mask_of(20, 20, 120, 100) & ~mask_of(50, 40, 90, 80)
        drawn = changed(canvas().draw_binary_mask(ring, (1, 0, 0), alpha=0.5))
        assert drawn[22:98, 22:118][ring[22:98, 22:118].numpy()].all()
        assert not drawn[43:77, 53:87].any() and not drawn[:16].any()

    def test_small_parts_of_a_mask_are_left_out(self):
        both = mask_of(20, 20, 60, 60) | mask_of(100, 100, 102, 102)
        drawn = changed(canvas().draw_binary_mask(both, "b", area_threshold=10))
        assert drawn[40, 40] and not drawn[95:110, 95:110].any()

    def test_a_soft_mask_is_as_thick_as_it_says(self):
        soft = torch.zeros(H, W)
        soft[:60], soft[60:] = 1.0, 0.25
        picture = canvas().draw_soft_mask(soft, (1.0, 1.0, 1.0), alpha=0.8).get_image()
        assert picture[20, 20, 0] == pytest.approx(GREY + 155 * 0.8, abs=2)
        assert picture[100, 20, 0] == pytest.approx(GREY + 155 * 0.2, abs=2)

    def test_text_is_written_at_its_place(self):
        drawn = changed(canvas().draw_text("label", (80, 60), color="r"))
        rows, columns = np.nonzero(drawn)
        assert 58 <= rows.min() and rows.max() < 85 and abs((columns.min() + columns.max()) / 2 - 80) < 4

    def test_dark_text_is_made_readable(self):
        picture = canvas().draw_text("WWWW", (80, 60), color=(0, 0, 0.2), font_size=30).get_image()
        assert picture[60:90].max() > 180

    def test_circles_and_lines_are_where_they_should_be(self):
        visualizer = canvas()
        visualizer.draw_circle((40, 50), "r", radius=6)
        drawn = changed(visualizer.draw_line([90, 150], [20, 20], "b", linewidth=3))
        assert drawn[50, 40] and drawn[50, 45] and not drawn[50, 49] and drawn[20, 91:149].all() and not drawn[26, 100]

    def test_a_rotated_box_turns_counter_clockwise(self):
        drawn = changed(canvas().draw_rotated_box_with_label((80, 60, 80, 20, 45), edge_color="r"))
        # The long axis of the box goes up to the right.
        assert drawn[20:60, 85:120].any() and drawn[60:100, 40:75].any()
        assert not drawn[10:45, 30:60].any() and not drawn[75:110, 100:130].any()


class TestInstances:
    @pytest.mark.parametrize("form", ["tensor", "bitmasks", "polygons", "list"])
    def test_masks_of_every_form_cover_the_same(self, form):
        corners = [[10, 20, 60, 20, 60, 90, 10, 90], [90, 30, 150, 30, 150, 100, 90, 100]]
        masks = {
            "tensor": torch.stack([mask_of(10, 20, 60, 90), mask_of(90, 30, 150, 100)]),
            "bitmasks": BitMasks(torch.stack([mask_of(10, 20, 60, 90), mask_of(90, 30, 150, 100)])),
            "polygons": PolygonMasks([[np.array(polygon, dtype=float)] for polygon in corners]),
            "list": [[corners[0]], mask_of(90, 30, 150, 100).numpy()],
        }
        picture = canvas().overlay_instances(masks=masks[form], assigned_colors=["r", "b"]).get_image()
        assert picture[50, 30, 0] > 150 and picture[50, 30, 2] < 80
        assert picture[60, 120, 2] > 150 and picture[60, 120, 0] < 80
        assert picture[60, 75].tolist() == [GREY] * 3

    def test_small_objects_lie_on_large_ones(self):
        masks = torch.stack([mask_of(60, 50, 80, 70), mask_of(10, 10, 150, 110)])
        picture = canvas().overlay_instances(masks=masks, assigned_colors=["r", "b"], alpha=1).get_image()
        assert picture[60, 70].tolist() == [255, 0, 0] and picture[20, 20].tolist() == [0, 0, 255]

    def test_predictions_have_the_colours_of_their_classes(self):
        output = canvas(ColorMode.SEGMENTATION).draw_instance_predictions(predictions(), jittering=False)
        picture = output.get_image().astype(int)
        assert picture[70, 30, 0] > picture[70, 30, 2] + 100 and picture[80, 120, 2] > picture[80, 120, 0] + 100

    def test_what_no_mask_covers_turns_grey(self):
        image = np.zeros((H, W, 3), dtype=np.uint8)
        image[:, :, 0] = 150
        visualizer = Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW)
        only_masks = Instances((H, W), pred_masks=predictions().pred_masks)
        picture = visualizer.draw_instance_predictions(only_masks).get_image()
        assert picture[5, 5].tolist() == [50, 50, 50] and len(set(picture[60, 30].tolist())) > 1

    def test_small_maps_over_boxes_are_pasted(self):
        with_maps = predictions(pred_masks=ROIMasks(torch.ones(2, 28, 28)))
        drawn = changed(canvas().draw_instance_predictions(with_maps))
        assert drawn[50:80, 15:55].all() and not drawn[10:110, 66:84].any()

    def test_keypoints_below_the_threshold_and_their_lines_are_left_out(self):
        keypoints = torch.tensor([[[30.0, 30, 1], [100, 30, 1]], [[30, 90, 1], [100, 90, 0.01]]])
        drawn = changed(canvas().overlay_instances(keypoints=Keypoints(keypoints)))
        assert drawn[30, 30:100].all() and drawn[90, 30] and not drawn[85:95, 40:110].any()

    def test_a_person_has_a_spine(self):
        names = ["nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip"]
        points = torch.tensor([[80.0, 10, 1], [60, 40, 1], [100, 40, 1], [70, 90, 1], [90, 90, 1]])
        visualizer = Visualizer(np.full((H, W, 3), GREY, dtype=np.uint8), {"keypoint_names": names})
        drawn = changed(visualizer.draw_and_connect_keypoints(points))
        assert drawn[15:85, 79:82].any(axis=1).all()

    def test_targets_of_the_loader_are_drawn(self):
        targets = Instances((H, W), gt_boxes=predictions().pred_boxes, gt_classes=torch.tensor([0, 1]))
        targets.gt_masks = BitMasks(predictions().pred_masks)
        assert changed(canvas().draw_target_instances(targets))[50:80, 15:55].all()

    def test_rotated_boxes_and_nothing_at_all_are_drawn(self):
        rotated = RotatedBoxes(torch.tensor([[80.0, 60, 80, 40, 90]]))
        drawn = changed(canvas().overlay_instances(boxes=rotated, labels=["turned"]))
        # Turned by 90 degrees, the upper side, which is dashed, is the left one.
        assert drawn[25:95, 100].all() and 0.4 < drawn[25:95, 60].mean() < 1 and not drawn[60, 10:50].any()
        assert not changed(canvas().draw_instance_predictions(predictions()[torch.zeros(2, dtype=torch.bool)])).any()
        assert not changed(canvas().overlay_instances()).any()
        assert not changed(canvas().overlay_rotated_instances()).any()

    def test_labels_name_class_score_and_crowd(self):
        visualizer = canvas()
        assert visualizer.prediction_labels(predictions()) == ["cat 90%", "dog 60%"]
        assert Visualizer(np.zeros((H, W, 3))).prediction_labels(predictions()) == ["0 90%", "1 60%"]
        assert visualizer._labels([0, 1], None, [0, 1]) == ["cat", "dog|crowd"]

    def test_different_numbers_of_things_are_refused(self):
        with pytest.raises(ValueError, match=r"'boxes': 2, 'labels': 1"):
            canvas().overlay_instances(boxes=np.zeros((2, 4)), labels=["one"])


class TestWholeImages:
    def test_a_label_map_is_drawn_in_its_colours_but_for_what_is_ignored(self):
        labels = np.zeros((H, W), dtype=np.int64)
        labels[60:], labels[:, 120:] = 1, 255
        picture = canvas().draw_sem_seg(labels, draw_text=False).get_image().astype(int)
        np.testing.assert_allclose(picture[30, 60], [GREY * 0.2, GREY * 0.2 + 204, GREY * 0.2 + 204], atol=2)
        np.testing.assert_allclose(picture[90, 60], [GREY * 0.2, GREY * 0.2 + 204, GREY * 0.2], atol=2)
        assert picture[60, 150].tolist() == [GREY] * 3

    def test_things_lie_on_stuff(self):
        ids = torch.zeros(H, W, dtype=torch.int64)
        ids[:60], ids[20:50, 20:60] = 1, 2
        info = [
            {"id": 1, "category_id": 0, "isthing": False},
            {"id": 2, "category_id": 0, "isthing": True, "score": 0.5},
            {"id": 3, "category_id": 1, "isthing": True, "score": 0.5},
        ]
        for mode in (ColorMode.IMAGE, ColorMode.IMAGE_BW):
            picture = canvas(mode).draw_panoptic_seg_predictions(ids, info).get_image().astype(int)
            assert picture[10, 100, 2] > picture[10, 100, 0] + 100
            assert picture[40, 40, 0] > picture[40, 40, 2] + 50
            assert picture[100, 80].tolist() == [GREY] * 3

    def test_panoptic_ids_are_read_by_the_label_divisor(self):
        ids = np.full((H, W), -1)
        ids[:60] = 1001
        assert changed(canvas().draw_panoptic_seg(ids, None))[30, 30]
        with pytest.raises(ValueError, match="label_divisor"):
            Visualizer(np.zeros((H, W, 3))).draw_panoptic_seg(ids, None)

    def test_a_dataset_dict_is_drawn_whole(self, tmp_path):
        colors = np.zeros((H, W, 3), dtype=np.uint8)
        colors[100:, :, 0], colors[100:, :, 1] = 7, 1
        Image.fromarray(colors).save(tmp_path / "panoptic.png")
        Image.fromarray(np.where(np.arange(W) < 80, 1, 255).astype(np.uint8)[None].repeat(H, 0)).save(
            tmp_path / "s.png"
        )
        annotation = {"bbox": [90, 20, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
        annotation["segmentation"] = [[90, 20, 130, 20, 130, 60, 90, 60]]
        annotation["keypoints"] = [100, 90, 2, 140, 90, 2]
        without = {"bbox": [5, 5, 10, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        segments = [{"id": 7 + 256, "category_id": 0, "isthing": False}]
        drawn = changed(canvas(ColorMode.SEGMENTATION).draw_dataset_dict({"annotations": [annotation, without]}))
        assert drawn[50, 95:125].all() and drawn[90, 100:140].all() and not drawn[110].any()
        assert changed(canvas().draw_dataset_dict({"sem_seg_file_name": str(tmp_path / "s.png")}))[60, :79].all()
        panoptic = {"pan_seg_file_name": str(tmp_path / "panoptic.png"), "segments_info": segments}
        drawn = changed(canvas().draw_dataset_dict(panoptic))
        assert drawn[110].all() and not drawn[50].any()


def test_matplotlib_comes_only_with_drawing_and_pyplot_never():
    code = (
        "import sys, numpy; from detlab.utils.visualizer import Visualizer; assert 'matplotlib' not in sys.modules;"
        "Visualizer(numpy.zeros((9, 9, 3))).draw_text('a', (1, 1)).get_image();"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
