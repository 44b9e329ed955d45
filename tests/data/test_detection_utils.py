"""Annotations under transforms, their way to ``Instances``, and what is said about wrong ones."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detlab.config import get_cfg
from detlab.data import detection_utils as utils
from detlab.data import transforms as T
from detlab.data.catalog import MetadataCatalog
from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from detlab.structures.masks import BitMasks, PolygonMasks
from tests.limits import run_limited

SIZE = HEIGHT, WIDTH = 40, 60
NAMES = ("nose", "left_eye", "right_eye", "tail")
FLIP = [0, 2, 1, 3]
NOTHING = T.NoOpTransform()
TWICE_AND_FLIPPED = T.TransformList([T.ResizeTransform(HEIGHT, WIDTH, 80, 120), T.HFlipTransform(120)])


@pytest.fixture
def datasets():
    """Two datasets that agree and one that does not."""
    made = {
        "_eyes_a": {"keypoint_names": list(NAMES), "keypoint_flip_map": [("left_eye", "right_eye")]},
        "_eyes_b": {"keypoint_names": list(NAMES), "keypoint_flip_map": [("left_eye", "right_eye")]},
        "_eyes_c": {"keypoint_names": ["nose"], "keypoint_flip_map": []},
    }
    for name, values in made.items():
        MetadataCatalog.get(name).set(**values)
    yield list(made)
    for name in made:
        MetadataCatalog.remove(name)


def annotation(**extra) -> dict:
    return {"bbox": [10, 5, 20, 15], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, **extra}


def rectangle(x0, y0, x1, y1) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def bitmap(x0, y0, x1, y1) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


# ------------------------------------------------------------------------------------------------------------- images


def test_a_missing_size_is_filled_in():
    record = {"file_name": "a.jpg"}
    utils.check_image_size(record, np.zeros((*SIZE, 3)))
    assert record == {"file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}
    utils.check_image_size(record, np.zeros((*SIZE, 3)))


def test_another_size_is_refused_with_the_file_and_both_sizes():
    with pytest.raises(utils.SizeMismatchError, match=r"'a\.jpg' is 60 wide and 40 high.*61 wide and 40 high"):
        utils.check_image_size({"file_name": "a.jpg", "width": 61, "height": 40}, np.zeros((*SIZE, 3)))
    with pytest.raises(utils.SizeMismatchError, match="EXIF"):
        utils.check_image_size({"file_name": "a.jpg", "width": 40, "height": 60}, np.zeros((*SIZE, 3)))
    assert issubclass(utils.SizeMismatchError, ValueError)


def test_image_reading_is_offered_here_too():
    from detlab.utils import image

    assert utils.read_image is image.read_image
    assert utils.convert_PIL_to_numpy is image.convert_PIL_to_numpy
    assert utils.convert_image_to_rgb is image.convert_image_to_rgb


# -------------------------------------------------------------------------------------------------------------- boxes


def test_a_box_is_read_in_its_mode():
    assert utils.get_bbox(annotation()) == [10, 5, 30, 20]
    assert utils.get_bbox({"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS}) == [1, 2, 3, 4]
    np.testing.assert_allclose(
        utils.get_bbox({"bbox": [10, 10, 4, 2, 90], "bbox_mode": BoxMode.XYWHA_ABS}), [9, 8, 11, 12]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bbox_mode": BoxMode.XYXY_ABS, "category_id": 7}, r"no 'bbox'.*category_id: 7"),
        ({"bbox": None, "bbox_mode": BoxMode.XYXY_ABS}, "no 'bbox'"),
        ({"bbox": [1, 2, 3, 4]}, "no 'bbox_mode'"),
        ({"bbox": [1, 2, 3], "bbox_mode": BoxMode.XYXY_ABS}, r"3 numbers.*\[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWH_ABS}, "5 numbers"),
    ],
)
def test_an_annotation_without_a_proper_box_is_shown(wrong, message):
    with pytest.raises(ValueError, match=message):
        utils.get_bbox(wrong)
    with pytest.raises(ValueError, match=message):
        utils.transform_instance_annotations(wrong, NOTHING, SIZE)


def test_boxes_move_and_are_cut_at_the_border():
    own = annotation(bbox=[-10, 5, 90, 15])
    result = utils.transform_instance_annotations(own, TWICE_AND_FLIPPED, (80, 120))
    assert result is own
    np.testing.assert_allclose(own["bbox"], [0, 10, 120, 40])
    assert own["bbox_mode"] == BoxMode.XYXY_ABS


@pytest.mark.parametrize(
    ("box", "mode"),
    [
        ([10, 10, 0, 5], BoxMode.XYWH_ABS),
        ([10, 10, 5, -5], BoxMode.XYWH_ABS),
        ([30, 10, 10, 20], BoxMode.XYXY_ABS),
        ([10, float("nan"), 20, 20], BoxMode.XYXY_ABS),
        ([10, 10, float("inf"), 20], BoxMode.XYXY_ABS),
        ([70, 10, 80, 20], BoxMode.XYXY_ABS),
    ],
)
@pytest.mark.parametrize("transform", [NOTHING, TWICE_AND_FLIPPED, T.RotationTransform(HEIGHT, WIDTH, 30)], ids=str)
def test_empty_inverted_and_endless_boxes_are_removed_in_silence(box, mode, transform):
    size = transform.apply_segmentation(np.zeros(SIZE, np.uint8)).shape
    kept = annotation(bbox=[10, 10, 20, 20], bbox_mode=BoxMode.XYXY_ABS)
    moved = utils.transform_annotations([annotation(bbox=box, bbox_mode=mode), kept], transform, size)
    instances = utils.filter_empty_instances(utils.annotations_to_instances(moved, size))
    is_turned_in = box == [70, 10, 80, 20] and isinstance(transform, T.RotationTransform)
    assert len(instances) == (2 if is_turned_in else 1)
    assert instances.gt_boxes.tensor.isfinite().all()
    assert (instances.gt_boxes.area() > 0).all()


def test_all_annotations_of_an_image_at_once_come_out_as_one_by_one():
    rng = np.random.default_rng(0)
    annotations = []
    for _ in range(7):
        x, y = rng.uniform(0, 30, 2)
        corners = [rng.uniform(0, 40, 2 * n).tolist() for n in rng.integers(3, 9, rng.integers(1, 4))]
        points = np.concatenate([rng.uniform(0, 60, (4, 2)), rng.integers(0, 3, (4, 1))], axis=1).reshape(-1).tolist()
        annotations.append(annotation(bbox=[x, y, 10.0, 5.0], segmentation=corners, keypoints=points))
    transforms = [T.CropTransform(5, 5, 40, 30), T.ResizeTransform(30, 40, 80, 120), T.HFlipTransform(120)]
    together = utils.transform_annotations(annotations, transforms, (80, 120), keypoint_hflip_indices=FLIP)
    for own, moved in zip(annotations, together):
        alone = utils.transform_instance_annotations(dict(own), transforms, (80, 120), keypoint_hflip_indices=FLIP)
        np.testing.assert_allclose(alone["bbox"], moved["bbox"])
        np.testing.assert_allclose(alone["keypoints"], moved["keypoints"])
        assert len(alone["segmentation"]) == len(moved["segmentation"])
        for one, other in zip(alone["segmentation"], moved["segmentation"]):
            np.testing.assert_allclose(one, other)


def test_transforming_together_does_not_change_what_is_given():
    own = annotation(segmentation=[rectangle(1, 1, 5, 5)], keypoints=[1, 2, 2] * 4)
    before = repr(own)
    utils.transform_annotations([own], TWICE_AND_FLIPPED, (80, 120), keypoint_hflip_indices=FLIP)
    assert repr(own) == before


def test_no_annotations_give_no_instances():
    assert utils.transform_annotations([], TWICE_AND_FLIPPED, (80, 120)) == []
    for mask_format in ("polygon", "bitmask"):
        instances = utils.annotations_to_instances([], SIZE, mask_format)
        assert len(instances) == 0
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_classes.dtype == torch.int64
        assert len(utils.filter_empty_instances(instances)) == 0


# -------------------------------------------------------------------------------------------------------------- masks


def compressed(mask):
    return coco_mask.encode(np.asfortranarray(mask))


def uncompressed(mask):
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, len(flat)]).tolist()}


def as_text(mask):
    encoded = compressed(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("write", [compressed, uncompressed, as_text, lambda m: m, lambda m: m.astype(bool)])
def test_masks_of_every_notation_become_the_same_bitmap(write):
    mask = bitmap(10, 5, 30, 20)
    own = annotation(segmentation=write(mask))
    utils.transform_instance_annotations(own, T.HFlipTransform(WIDTH), SIZE)
    np.testing.assert_array_equal(own["segmentation"], mask[:, ::-1])
    instances = utils.annotations_to_instances([own], SIZE, "bitmask")
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), mask[:, ::-1] > 0)


def test_masks_that_need_no_transform_can_be_gathered_as_they_are():
    mask = bitmap(10, 5, 30, 20)
    annotations = [
        annotation(segmentation=uncompressed(mask)),
        annotation(segmentation=[rectangle(10, 5, 30, 20)]),
        annotation(segmentation=[]),
        annotation(segmentation=mask),
    ]
    masks = utils.annotations_to_instances(annotations, SIZE, "bitmask").gt_masks
    assert isinstance(masks, BitMasks)
    np.testing.assert_array_equal(masks.tensor.numpy(), np.stack([mask, mask, mask * 0, mask]) > 0)


def test_polygons_stay_polygons_or_are_drawn():
    own = annotation(segmentation=[rectangle(10, 5, 30, 20), rectangle(40, 5, 50, 10)])
    utils.transform_instance_annotations(own, TWICE_AND_FLIPPED, (80, 120))
    expected = bitmap(10, 5, 30, 20) + bitmap(40, 5, 50, 10)
    expected = np.kron(expected, np.ones((2, 2)))[:, ::-1]
    polygons = utils.annotations_to_instances([own], (80, 120), "polygon").gt_masks
    assert isinstance(polygons, PolygonMasks)
    assert [p.shape for p in polygons.polygons[0]] == [(8,), (8,)]
    drawn = utils.annotations_to_instances([own], (80, 120), "bitmask").gt_masks
    np.testing.assert_array_equal(drawn.tensor[0].numpy(), expected > 0)
    np.testing.assert_array_equal(BitMasks.from_polygon_masks(polygons, 80, 120).tensor, drawn.tensor)


def test_a_box_a_polygon_and_a_bitmap_of_one_object_move_together():
    transforms = T.TransformList(
        [T.CropTransform(5, 3, 50, 30), T.ResizeTransform(30, 50, 60, 75), T.HFlipTransform(75), T.VFlipTransform(60)]
    )
    size = (60, 75)
    mask = bitmap(10, 5, 30, 20)
    drawn = annotation(segmentation=mask)
    outlined = annotation(segmentation=[rectangle(10, 5, 30, 20)])
    moved = utils.transform_annotations([drawn, outlined], transforms, size)
    masks = utils.annotations_to_instances(moved, size, "bitmask").gt_masks
    boxes = np.stack([own["bbox"] for own in moved])
    np.testing.assert_allclose(boxes[0], boxes[1])
    np.testing.assert_allclose(masks.get_bounding_boxes().tensor.numpy(), boxes, atol=1.0)
    assert (masks.tensor[0] != masks.tensor[1]).float().mean() < 0.02


def test_a_crop_cuts_polygons_without_shapely(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "shapely", None)
    monkeypatch.setitem(sys.modules, "shapely.geometry", None)
    annotations = [
        annotation(segmentation=[rectangle(10, 5, 30, 20)]),
        annotation(segmentation=[rectangle(0, 0, 5, 5)]),
    ]
    moved = utils.transform_annotations(annotations, T.CropTransform(20, 10, 20, 20), (20, 20))
    instances = utils.annotations_to_instances(moved, (20, 20))
    np.testing.assert_allclose(instances.gt_masks.get_bounding_boxes().tensor[0], [0, 0, 10, 10])
    assert len(utils.filter_empty_instances(instances)) == 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "4 values"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 values"),
        ([1, 2, 3, 4, 5, 6], "1 values"),
        (["abc"], "holds numbers"),
        ("abc", "got str"),
        ({"counts": [1]}, "got dict"),
        (np.zeros((2, 3, 4)), r"ndarray of shape \(2, 3, 4\)"),
        (np.zeros((30, 60)), "60 wide and 30 high"),
    ],
)
def test_a_segmentation_that_is_none_is_shown(segmentation, message):
    with pytest.raises(ValueError, match=message):
        utils.transform_instance_annotations(annotation(segmentation=segmentation), NOTHING, SIZE)


BROKEN = {
    "NaN": [rectangle(1, 1, 9, float("nan"))],
    "infinity": [rectangle(1, 1, float("inf"), 9)],
    "null": [rectangle(1, 1, 9, None)],
    "1e300": [rectangle(1, 1, 1e300, 9)],
    "too few pixels": {"size": list(SIZE), "counts": [10, 10]},
    "too many pixels": {"size": list(SIZE), "counts": [10, 10**9]},
    "compressed, too few pixels": {"size": list(SIZE), "counts": "1" * 9},
    "not whole numbers": {"size": list(SIZE), "counts": [0.5, 2399.5]},
    "a huge size": {"size": [2**31, 2**31], "counts": [2**62]},
}


@pytest.mark.parametrize("segmentation", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_mask_is_refused_before_it_is_moved_or_drawn(segmentation):
    objects = [annotation(segmentation=[rectangle(1, 1, 9, 9)]), annotation(segmentation=segmentation)]
    for transform in (NOTHING, TWICE_AND_FLIPPED, T.CropTransform(5, 5, 10, 10)):
        outcome = run_limited(utils.transform_annotations, objects, transform, SIZE, seconds=10)
        assert outcome.error.startswith("ValueError: 'segmentation': ")
    outcome = run_limited(utils.annotations_to_instances, objects, SIZE, "bitmask", seconds=10)
    assert outcome.error.startswith("ValueError: 'segmentation': ")


def test_a_corner_far_away_costs_little_and_changes_no_pixel():
    far = [rectangle(-1e8, 10, 1e8, 20)]

    def train_on_it():
        (moved,) = utils.transform_annotations([annotation(segmentation=far)], TWICE_AND_FLIPPED, (80, 120))
        for mask_format in ("polygon", "bitmask"):
            masks = utils.annotations_to_instances([moved], (80, 120), mask_format).gt_masks
            crop = masks.crop_and_resize(torch.tensor([[0.0, 0, 28, 80]]), 28)
            assert crop.any(dim=2).sum() == 7
            assert crop.all(dim=2).sum() == 7

    assert run_limited(train_on_it, seconds=10).error == ""


def test_corners_that_a_transform_makes_infinite_are_refused():
    class Explode(T.Transform):
        def apply_image(self, img):
            return img

        def apply_coords(self, coords):
            return coords * np.array([1.0, np.inf])

    (moved,) = utils.transform_annotations([annotation(segmentation=[rectangle(1, 1, 9, 9)])], Explode(), SIZE)
    for mask_format in ("polygon", "bitmask"):
        with pytest.raises(ValueError, match="a polygon has y = inf at its corner 0"):
            utils.annotations_to_instances([moved], SIZE, mask_format)


def test_what_cannot_be_a_polygon_names_the_setting():
    with pytest.raises(ValueError, match=r"INPUT\.MASK_FORMAT to 'bitmask'"):
        utils.annotations_to_instances([annotation(segmentation=compressed(bitmap(1, 1, 5, 5)))], SIZE, "polygon")
    with pytest.raises(ValueError, match="'outline'"):
        utils.annotations_to_instances([annotation(segmentation=[])], SIZE, "outline")
    with pytest.raises(ValueError, match=r"\(10, 60\).*\(40, 60\)"):
        utils.annotations_to_instances([annotation(segmentation=np.zeros((10, 60)))], SIZE, "bitmask")


# ---------------------------------------------------------------------------------------------------------- instances


def test_instances_hold_boxes_and_classes():
    instances = utils.annotations_to_instances([annotation(), annotation(category_id=0)], SIZE)
    assert instances.image_size == SIZE
    assert instances.gt_boxes.tensor.tolist() == [[10, 5, 30, 20]] * 2
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.tolist() == [3, 0] and instances.gt_classes.dtype == torch.int64
    assert not instances.has("gt_masks") and not instances.has("gt_keypoints")


@pytest.mark.parametrize("key", ["category_id", "segmentation", "keypoints"])
def test_each_annotation_needs_what_the_others_have(key):
    complete = annotation(segmentation=[rectangle(1, 1, 5, 5)], keypoints=np.zeros((4, 3)))
    partial = {k: v for k, v in complete.items() if k != key}
    with pytest.raises(ValueError, match=rf"annotation 1 of 2 has no '{key}'"):
        utils.annotations_to_instances([complete, partial], SIZE)


def test_rotated_boxes_are_gathered_and_almost_upright_ones_cut():
    boxes = [[10, 10, 40, 4, 0.5], [30, 20, 10, 4, 45]]
    annotations = [annotation(bbox=box, bbox_mode=BoxMode.XYWHA_ABS) for box in boxes]
    instances = utils.annotations_to_instances_rotated(annotations, SIZE)
    np.testing.assert_allclose(instances.gt_boxes.tensor.numpy(), [[15, 10, 30, 4, 0.5], boxes[1]])
    assert instances.gt_classes.tolist() == [3, 3]
    assert utils.annotations_to_instances_rotated([], SIZE).gt_boxes.tensor.shape == (0, 5)
    with pytest.raises(ValueError, match=r"\[10, 5, 20, 15\]"):
        utils.annotations_to_instances_rotated([annotation()], SIZE)


def test_empty_objects_are_filtered_by_box_and_by_mask():
    boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 8], [0, 0, 5, 5], [0, 0, float("nan"), 5]]))
    masks = BitMasks(torch.tensor([1, 1, 0, 1]).view(4, 1, 1).expand(4, 10, 10))
    instances = Instances((10, 10), gt_boxes=boxes, gt_masks=masks, index=torch.arange(4))
    assert utils.filter_empty_instances(instances).index.tolist() == [0]
    assert utils.filter_empty_instances(instances, by_mask=False).index.tolist() == [0, 2]
    assert utils.filter_empty_instances(instances, by_box=False).index.tolist() == [0, 1, 3]
    assert utils.filter_empty_instances(instances, by_mask=False, box_threshold=6).index.tolist() == []
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert kept.index.tolist() == [0] and mask.tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="by_box=False"):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


# ---------------------------------------------------------------------------------------------------------- keypoints


def test_keypoints_move_flip_and_lose_visibility_outside():
    keypoints = [10, 10, 2, 20, 10, 1, 30, 10, 2, 5, 5, 0]
    moved = utils.transform_keypoint_annotations(keypoints, TWICE_AND_FLIPPED, (80, 120), FLIP)
    np.testing.assert_allclose(moved, [[100, 20, 2], [60, 20, 2], [80, 20, 1], [0, 0, 0]])
    moved = utils.transform_keypoint_annotations(keypoints, T.CropTransform(15, 5, 10, 10), (10, 10), FLIP)
    np.testing.assert_allclose(moved, [[0, 0, 0], [5, 5, 1], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("flips", "is_mirrored"), [("", False), ("h", True), ("v", True), ("hv", False), ("hh", False), ("hvh", True)]
)
def test_left_and_right_are_exchanged_in_mirror_images_only(flips, is_mirrored):
    transforms = [T.HFlipTransform(WIDTH) if flip == "h" else T.VFlipTransform(HEIGHT) for flip in flips]
    keypoints = np.array([[10, 20, 2], [11, 20, 2], [12, 20, 2], [13, 20, 2]])
    moved = utils.transform_keypoint_annotations(keypoints, transforms, SIZE, FLIP)
    in_place = T.TransformList(transforms).apply_coords(keypoints[:, :2].astype(float))
    np.testing.assert_allclose(moved[:, :2], in_place[FLIP] if is_mirrored else in_place)


def test_keypoints_on_the_border_are_inside():
    corners = [0, 0, 2, WIDTH, HEIGHT, 2, -0.1, 5, 2, 5, HEIGHT + 0.1, 2]
    moved = utils.transform_keypoint_annotations(corners, NOTHING, SIZE)
    assert moved[:, 2].tolist() == [2, 2, 0, 0]


def test_wrong_keypoints_are_refused():
    with pytest.raises(ValueError, match=r"has 3 keypoints.*name 4"):
        utils.transform_keypoint_annotations([0] * 9, NOTHING, SIZE, FLIP)
    with pytest.raises(ValueError, match=r"\[10\]"):
        utils.transform_keypoint_annotations([0] * 10, NOTHING, SIZE, FLIP)
    with pytest.raises(ValueError, match="create_keypoint_hflip_indices"):
        utils.transform_keypoint_annotations([0] * 12, T.HFlipTransform(WIDTH), SIZE)
    annotations = [annotation(keypoints=[0] * 12), annotation(keypoints=[0] * 9)]
    with pytest.raises(ValueError, match=r"\[12, 9\]"):
        utils.transform_annotations(annotations, NOTHING, SIZE)


def test_flip_indices_come_from_the_metadata(datasets):
    assert utils.create_keypoint_hflip_indices(datasets[:2]) == FLIP
    assert utils.create_keypoint_hflip_indices("_eyes_a") == FLIP
    with pytest.raises(ValueError, match="'_eyes_c'"):
        utils.create_keypoint_hflip_indices(datasets)
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        utils.create_keypoint_hflip_indices([])


def test_a_flip_map_of_unknown_keypoints_is_refused():
    MetadataCatalog.get("_eyes_wrong").set(keypoint_names=["nose"], keypoint_flip_map=[("left_eye", "right_eye")])
    try:
        with pytest.raises(ValueError, match=r"\['left_eye', 'right_eye'\]"):
            utils.create_keypoint_hflip_indices("_eyes_wrong")
    finally:
        MetadataCatalog.remove("_eyes_wrong")


# ------------------------------------------------------------------------------------------------- proposals and crops


def test_proposals_move_are_filtered_and_bounded():
    record = {
        "proposal_boxes": np.array([[10, 5, 20, 15], [10, 5, 0, 15], [50, 30, 40, 40], [0, 0, 3, 3], [1, 1, 9, 9]]),
        "proposal_bbox_mode": BoxMode.XYWH_ABS,
        "proposal_objectness_logits": np.array([5.0, 4.0, 3.0, 2.0, 1.0]),
        "other": 1,
    }
    utils.transform_proposals(record, (80, 120), TWICE_AND_FLIPPED, proposal_topk=2, min_box_size=7)
    assert record.keys() == {"other", "proposals"}
    proposals = record["proposals"]
    np.testing.assert_allclose(proposals.proposal_boxes.tensor, [[60, 10, 100, 40], [0, 60, 20, 80]])
    assert proposals.objectness_logits.tolist() == [5.0, 3.0]
    assert proposals.image_size == (80, 120)


def test_rotated_proposals_become_the_boxes_around_them():
    record = {
        "proposal_boxes": [[5.0, 4.0, 4.0, 2.0, 90.0]],
        "proposal_bbox_mode": BoxMode.XYWHA_ABS,
        "proposal_objectness_logits": [1.0],
    }
    utils.transform_proposals(record, SIZE, NOTHING, proposal_topk=2)
    torch.testing.assert_close(record["proposals"].proposal_boxes.tensor, torch.tensor([[4.0, 2.0, 6.0, 6.0]]))


def test_proposals_may_be_missing_or_wrong():
    record = {"file_name": "a.jpg"}
    utils.transform_proposals(record, SIZE, NOTHING, proposal_topk=2)
    assert record == {"file_name": "a.jpg"}
    record = {"proposal_boxes": np.zeros((2, 4)), "proposal_objectness_logits": np.zeros(3)}
    with pytest.raises(ValueError, match="2 proposal_boxes but 3"):
        utils.transform_proposals(record, SIZE, NOTHING, proposal_topk=2)


@pytest.mark.parametrize("box", [[0, 0, 10, 10], [50, 30, 60, 40], [25, 15, 30, 20], [0, 0, 60, 40]])
def test_a_crop_around_an_object_holds_its_center(box):
    np.random.seed(0)
    corners = set()
    for _ in range(100):
        crop = utils.gen_crop_transform_with_instance((20, 30), SIZE, annotation(bbox=box, bbox_mode=BoxMode.XYXY_ABS))
        x, y = crop.apply_coords(np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]]))[0]
        assert 0 <= x <= 30 and 0 <= y <= 20
        assert crop.x0 >= 0 and crop.y0 >= 0 and crop.x0 + 30 <= WIDTH and crop.y0 + 20 <= HEIGHT
        assert (crop.w, crop.h) == (30, 20)
        corners.add((crop.x0, crop.y0))
    assert len(corners) > 10


def test_a_crop_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\(50, 30\)"):
        utils.gen_crop_transform_with_instance((50, 30), SIZE, annotation())
    with pytest.raises(ValueError, match=r"\[100, 5, 20, 15\]"):
        utils.gen_crop_transform_with_instance((20, 30), SIZE, annotation(bbox=[100, 5, 20, 15]))


# ------------------------------------------------------------------------------------------------- metadata and config


def test_datasets_used_together_must_agree(datasets):
    utils.check_metadata_consistency("keypoint_names", datasets[:2])
    with pytest.raises(ValueError, match=r"'keypoint_names'.*'_eyes_a'.*'_eyes_c'"):
        utils.check_metadata_consistency("keypoint_names", datasets)
    with pytest.raises(AttributeError, match="class_image_count"):
        utils.check_metadata_consistency("class_image_count", datasets)


def test_fed_loss_weights_are_powers_of_the_image_counts_in_order_of_id():
    counts = [{"id": 2, "image_count": 9}, {"id": 1, "image_count": 4}, {"id": 3, "image_count": 100}]
    MetadataCatalog.get("_counted").class_image_count = counts
    try:
        assert utils.get_fed_loss_cls_weights("_counted", 0.5).tolist() == [2.0, 3.0, 10.0]
        assert utils.get_fed_loss_cls_weights(["_counted"]).tolist() == [4.0, 9.0, 100.0]
    finally:
        MetadataCatalog.remove("_counted")


def test_the_config_decides_the_augmentations():
    cfg = get_cfg()
    assert [repr(a) for a in utils.build_augmentation(cfg, is_train=True)] == [
        "ResizeShortestEdge(short_edge_length=(800,), max_size=1333, sample_style='choice')",
        "RandomFlip()",
    ]
    assert [repr(a) for a in utils.build_augmentation(cfg, is_train=False)] == [
        "ResizeShortestEdge(short_edge_length=(800, 800), max_size=1333, sample_style='choice')"
    ]
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert repr(utils.build_transform_gen(cfg, True)[1]) == "RandomFlip(horizontal=False, vertical=True)"
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, True)) == 1
    cfg.INPUT.RANDOM_FLIP = "both"
    with pytest.raises(ValueError, match="'both'"):
        utils.build_augmentation(cfg, True)
