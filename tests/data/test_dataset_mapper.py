"""From a dataset's entry to a sample: what is in it, on drawn and on real images, and what is said about bad data."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.config import get_cfg
from detlab.data import transforms as T
from detlab.data.catalog import MetadataCatalog
from detlab.data.dataset_mapper import DatasetMapper
from detlab.data.datasets.coco import load_coco_json
from detlab.data.detection_utils import SizeMismatchError, read_image
from detlab.structures.boxes import BoxMode
from detlab.structures.masks import BitMasks, PolygonMasks, polygons_to_bitmask

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def record(tmp_path):
    """One image on disk, with a red rectangle and a green one, and its entry."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[5:20, 10:30] = [255, 0, 0]
    image[25:35, 40:50] = [0, 255, 0]
    Image.fromarray(image).save(tmp_path / "image.png")
    labels = np.where(image[:, :, 0] > 0, 1, np.where(image[:, :, 1] > 0, 2, 0)).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    boxes = [[10, 5, 20, 15], [40, 25, 10, 10]]
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 17,
        "annotations": [
            {
                "bbox": [x, y, w, h],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "keypoints": [x + 1.0, y + 1.0, 2, x + w - 1.0, y + 1.0, 2, x, y, 0],
                "iscrowd": 0,
            }
            for index, (x, y, w, h) in enumerate(boxes)
        ],
    }


def mapper(augmentations=(), is_train=True, image_format="RGB", **options) -> DatasetMapper:
    return DatasetMapper(is_train, augmentations=list(augmentations), image_format=image_format, **options)


@pytest.fixture(scope="module")
def coco_records(shared_dir):
    """Real images with their boxes, polygons and crowds, as the COCO files have them."""
    root = shared_dir / "datasets" / "coco"
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    records = {
        image["id"]: {
            "file_name": str(root / "val2017" / image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
        for image in content["images"][:25]
    }
    for own in content["annotations"]:
        if own["image_id"] in records:
            records[own["image_id"]]["annotations"].append({**own, "bbox_mode": BoxMode.XYWH_ABS})
    return list(records.values())


# ---------------------------------------------------------------------------------------------- what is in the sample


def test_a_training_sample_holds_image_labels_and_the_entry_itself(record):
    sample = mapper(use_instance_mask=True)(record)
    assert sample.keys() == {"file_name", "height", "width", "image_id", "image", "instances", "sem_seg"}
    assert sample["image"].shape == (3, HEIGHT, WIDTH) and sample["image"].dtype == torch.uint8
    assert sample["image"].is_contiguous()
    assert sample["image"][:, 10, 15].tolist() == [255, 0, 0]
    instances = sample["instances"]
    assert instances.image_size == (HEIGHT, WIDTH)
    assert instances.gt_boxes.tensor.tolist() == [[10, 5, 30, 20], [40, 25, 50, 35]]
    assert instances.gt_classes.tolist() == [0, 1]
    assert isinstance(instances.gt_masks, PolygonMasks)
    assert not instances.has("gt_keypoints")
    assert sample["sem_seg"].dtype == torch.int64 and sample["sem_seg"][10, 15] == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_labels_of_more_than_8_bits_keep_their_numbers(record, tmp_path, dtype):
    labels = np.zeros((HEIGHT, WIDTH), dtype=dtype)
    labels[5:20, 10:30], labels[25:35, 40:50] = 300, 60000
    Image.fromarray(labels).save(tmp_path / "labels.tiff")
    record["sem_seg_file_name"] = str(tmp_path / "labels.tiff")
    augmentations = [T.ResizeShortestEdge(80), T.RandomFlip(1.0), T.RandomCrop("relative", (0.9, 0.9))]
    sample = mapper([*augmentations, T.RandomRotation(10)])(record)
    assert sample["sem_seg"].dtype == torch.int64
    assert sample["sem_seg"].unique().tolist() == [0, 300, 60000]


def test_the_entry_is_not_changed(record):
    before = copy.deepcopy(record)
    mapper(
        [T.ResizeShortestEdge(80), T.RandomFlip(1.0)],
        use_instance_mask=True,
        use_keypoint=True,
        keypoint_hflip_indices=[1, 0, 2],
    )(record)
    assert record == before


def test_bgr_images_have_their_channels_reversed(record):
    rgb, bgr = mapper()(record)["image"], mapper(image_format="BGR")(record)["image"]
    assert torch.equal(rgb.flip(0), bgr)
    grey = mapper(image_format="L")(record)["image"]
    assert grey.shape == (1, HEIGHT, WIDTH)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", "YUV-BT.601"])
@pytest.mark.parametrize("augmentations", [[], [T.RandomFlip(1.0)], [T.Resize(50)]], ids=str)
def test_samples_own_their_memory(record, image_format, augmentations):
    sample = mapper(augmentations, image_format=image_format)(record)
    sample["image"] += 1
    sample["sem_seg"] += 1


def test_in_inference_the_annotations_are_dropped(record):
    sample = mapper([T.Resize(80)], is_train=False, use_instance_mask=True)(record)
    assert sample.keys() == {"file_name", "height", "width", "image_id", "image"}
    assert sample["image"].shape == (3, 80, 80)
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)


def test_size_is_optional(record):
    del record["height"], record["width"]
    sample = mapper([T.Resize(80)])(record)
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)


def test_crowds_are_left_out(record):
    record["annotations"][0]["iscrowd"] = 1
    assert mapper()(record)["instances"].gt_classes.tolist() == [1]


def test_an_image_without_objects_has_the_same_fields(record):
    options = {"use_instance_mask": True, "use_keypoint": True, "keypoint_hflip_indices": [1, 0, 2]}
    for mask_format in ("polygon", "bitmask"):
        full = mapper(**options, instance_mask_format=mask_format)(record)["instances"]
        empty = mapper(**options, instance_mask_format=mask_format)({**record, "annotations": []})["instances"]
        assert len(empty) == 0
        assert list(empty.get_fields()) == list(full.get_fields())
        assert len(type(full).cat([empty, full])) == 2


def test_an_entry_without_annotations_gives_no_instances(record):
    del record["annotations"], record["sem_seg_file_name"]
    assert mapper()(record).keys() == {"file_name", "height", "width", "image_id", "image"}


def test_objects_that_a_crop_removes_are_gone(record):
    sample = mapper([T.CropTransform(0, 0, 32, 22)], use_instance_mask=True)(record)
    assert sample["instances"].gt_classes.tolist() == [0]


def test_everything_moves_together(record):
    options = {"use_instance_mask": True, "use_keypoint": True, "keypoint_hflip_indices": [1, 0, 2]}
    for seed in range(10):
        np.random.seed(seed)
        augmentations = [T.RandomCrop("relative_range", (0.8, 0.8)), T.ResizeShortestEdge((60, 90)), T.RandomFlip()]
        sample = mapper(augmentations, **options, instance_mask_format="bitmask", recompute_boxes=True)(record)
        instances = sample["instances"]
        for index in range(len(instances)):
            label = instances.gt_classes[index].item()
            on_image = sample["image"][label] > 127
            mask = instances.gt_masks.tensor[index]
            assert (mask != on_image).float().mean() < 0.02
            assert (mask != (sample["sem_seg"] == label + 1)).float().mean() < 0.02
            left, top, right, bottom = instances.gt_boxes.tensor[index].tolist()
            rows, columns = mask.nonzero().unbind(1)
            assert [left, top, right, bottom] == [
                columns.min().item(),
                rows.min().item(),
                columns.max().item() + 1,
                rows.max().item() + 1,
            ]
            for x, y, visibility in instances.gt_keypoints.tensor[index].tolist():
                assert visibility == 0 or mask[int(y), int(x)]


def test_boxes_are_recomputed_from_what_a_crop_left(record):
    corner = [10.0, 5.0, 30.0, 5.0, 10.0, 20.0]
    record["annotations"][0]["segmentation"] = [corner]
    crop = [T.CropTransform(20, 0, 40, 40)]
    kept = mapper(crop, use_instance_mask=True)(record)["instances"].gt_boxes.tensor[0]
    tight = mapper(crop, use_instance_mask=True, recompute_boxes=True)(record)["instances"].gt_boxes.tensor[0]
    assert kept.tolist() == [0, 5, 10, 20]
    assert tight.tolist() == [0, 5, 10, 12.5]
    with pytest.raises(ValueError, match=r"MODEL\.MASK_ON"):
        mapper(recompute_boxes=True)


def test_augmentations_see_the_boxes(record):
    class Look(T.Augmentation):
        def get_transform(self, image, boxes):
            assert boxes.tolist() == [[10, 5, 30, 20], [40, 25, 50, 35]]
            return T.NoOpTransform()

    mapper([Look()])(record)


def test_proposals_are_taken_if_a_number_is_given(record):
    record.update(
        proposal_boxes=np.array([[0.0, 0, 10, 10], [5, 5, 20, 20], [1, 1, 4, 4]]),
        proposal_objectness_logits=np.array([3.0, 2.0, 1.0]),
        proposal_bbox_mode=BoxMode.XYXY_ABS,
    )
    for is_train in (True, False):
        sample = mapper([T.HFlipTransform(WIDTH)], is_train=is_train, precomputed_proposal_topk=2)(record)
        np.testing.assert_allclose(sample["proposals"].proposal_boxes.tensor, [[50, 0, 60, 10], [40, 5, 55, 20]])
    assert "proposals" not in mapper()(record)


# ------------------------------------------------------------------------------------------------------------- config


def test_the_config_decides(record):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MIN_SIZE_TEST = 50
    cfg.INPUT.CROP.ENABLED = True
    cfg.MODEL.MASK_ON = True
    training = DatasetMapper(cfg, is_train=True)
    assert [type(a).__name__ for a in training.augmentations.augs] == ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    assert training.recompute_boxes and training.use_instance_mask and not training.use_keypoint
    assert training.image_format == "BGR" and training.proposal_topk is None
    assert training(record)["image"].shape[1] == 64
    inference = DatasetMapper(cfg, is_train=False)
    assert not inference.recompute_boxes
    assert inference(record)["image"].shape == (3, 50, 75)
    cfg.MODEL.LOAD_PROPOSALS = True
    assert (DatasetMapper(cfg, True).proposal_topk, DatasetMapper(cfg, False).proposal_topk) == (2000, 1000)
    assert DatasetMapper(cfg, True, augmentations=[]).augmentations.augs == []


def test_flip_indices_come_from_the_training_datasets():
    MetadataCatalog.get("_two_eyes").set(keypoint_names=["l", "r"], keypoint_flip_map=[("l", "r")])
    try:
        cfg = get_cfg()
        cfg.MODEL.KEYPOINT_ON = True
        cfg.DATASETS.TRAIN = ("_two_eyes",)
        assert list(DatasetMapper(cfg, True).keypoint_hflip_indices) == [1, 0]
    finally:
        MetadataCatalog.remove("_two_eyes")


# ----------------------------------------------------------------------------------------------------------- bad data


def test_a_missing_image_is_named(record):
    record["file_name"] += ".missing"
    with pytest.raises(FileNotFoundError, match=r"image\.png\.missing"):
        mapper()(record)


def test_a_truncated_jpeg_is_named(record, coco_records, tmp_path):
    whole = Path(coco_records[0]["file_name"]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        mapper()({"file_name": str(tmp_path / "cut.jpg")})


def test_another_size_is_named(record):
    record["width"] += 1
    with pytest.raises(SizeMismatchError, match=r"image\.png.*60 wide.*61 wide"):
        mapper()(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": None}, "no 'bbox'"),
        ({"category_id": None}, "no 'category_id'"),
        ({"bbox": [1, 2, 3]}, r"\[1, 2, 3\]"),
        ({"keypoints": [1, 2, 2]}, r"\[9, 3\]"),
        ({"segmentation": [[1, 2, 3, 4]]}, "4 values"),
        ({"segmentation": {"size": [40, 60], "counts": [2400]}}, r"INPUT\.MASK_FORMAT"),
    ],
)
def test_a_bad_annotation_is_shown_with_its_image(record, change, message):
    record["annotations"][1].update(change)
    made = mapper(use_instance_mask=True, use_keypoint=True, keypoint_hflip_indices=[1, 0, 2])
    with pytest.raises(ValueError, match=rf"image\.png.*{message}"):
        made(record)


def test_keypoints_that_are_not_those_of_the_metadata_are_refused(record):
    with pytest.raises(ValueError, match=r"image\.png.*3 keypoints.*name 17"):
        mapper(use_keypoint=True, keypoint_hflip_indices=np.arange(17))(record)


@pytest.mark.parametrize(("key", "option"), [("segmentation", "use_instance_mask"), ("keypoints", "use_keypoint")])
def test_a_dataset_without_what_the_model_needs_is_refused(record, key, option):
    for own in record["annotations"]:
        del own[key]
    with pytest.raises(ValueError, match=rf"image\.png.*none of its 2 annotations has '{key}'"):
        mapper(**{option: True})(record)


@pytest.mark.parametrize("box", [[10, 10, 0, 5], [10, 10, -4, 5], [float("nan"), 1, 2, 3], [1, 1, float("inf"), 3]])
def test_boxes_without_area_are_dropped_and_nothing_breaks(record, box):
    record["annotations"][0]["bbox"] = box
    instances = mapper([T.RandomFlip(1.0), T.Resize(70)])(record)["instances"]
    assert instances.gt_classes.tolist() == [1]
    assert instances.gt_boxes.tensor.isfinite().all()


# -------------------------------------------------------------------------------------------------------- real images


def test_a_seed_decides_the_sample_of_a_real_image(coco_records):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.MIN_SIZE_TRAIN = (200, 300)
    made = DatasetMapper(cfg, True)
    for record in coco_records[:6]:
        samples = []
        for _ in range(2):
            np.random.seed(record["image_id"])
            samples.append(made(record))
        one, other = samples
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
        for mine, yours in zip(one["instances"].gt_masks.polygons, other["instances"].gt_masks.polygons):
            assert all(np.array_equal(a, b) for a, b in zip(mine, yours))


def test_real_images_come_out_as_pillow_and_numpy_make_them(coco_records):
    made = mapper([T.ResizeShortestEdge(300, 500), T.RandomFlip(1.0)], image_format="BGR", use_instance_mask=True)
    for record in coco_records:
        sample = made(record)
        height, width = sample["image"].shape[1:]
        picture = Image.open(record["file_name"]).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(picture)[:, ::-1, ::-1].transpose(2, 0, 1)
        assert torch.equal(sample["image"], torch.from_numpy(expected.copy()))
        factor = np.array([width / record["width"], height / record["height"]])
        objects = [own for own in record["annotations"] if not own["iscrowd"]]
        assert len(sample["instances"]) == len(objects)
        for own, box in zip(objects, sample["instances"].gt_boxes.tensor.tolist()):
            x, y, w, h = own["bbox"]
            expected_box = [width - (x + w) * factor[0], y * factor[1], width - x * factor[0], (y + h) * factor[1]]
            np.testing.assert_allclose(box, expected_box, atol=1e-3)


def test_masks_of_real_images_are_those_of_the_original_resized(coco_records):
    made = mapper([T.ResizeShortestEdge(400)], use_instance_mask=True, instance_mask_format="bitmask")
    for record in coco_records[:8]:
        sample = made(record)
        objects = [own for own in record["annotations"] if not own["iscrowd"]]
        assert isinstance(sample["instances"].gt_masks, BitMasks)
        for own, mask in zip(objects, sample["instances"].gt_masks.tensor.numpy()):
            original = polygons_to_bitmask(
                [np.array(p) for p in own["segmentation"]], record["height"], record["width"]
            )
            resized = T.ResizeTransform(*original.shape, *mask.shape).apply_segmentation(original)
            both, either = (resized & mask).sum(), (resized | mask).sum()
            # Small objects are all outline.
            assert both / either > 0.9 or either - both < 5 * np.sqrt(either) + 5


def test_reading_names_the_format(coco_records):
    image = read_image(coco_records[0]["file_name"], "BGR")
    assert image.shape == (coco_records[0]["height"], coco_records[0]["width"], 3)


class TestSemanticMaps:
    @pytest.mark.parametrize(
        ("label", "dtype", "suffix"), [(7, np.uint8, "png"), (3, np.uint8, "png"), (-3, np.int32, "tiff")]
    )
    def test_a_label_that_the_model_has_not_is_named_with_the_file(self, record, tmp_path, label, dtype, suffix):
        labels = np.full((HEIGHT, WIDTH), 2, dtype)
        labels[0, 0] = 255
        Image.fromarray(labels).save(tmp_path / f"other.{suffix}")
        record["sem_seg_file_name"] = str(tmp_path / f"other.{suffix}")
        assert mapper(num_sem_seg_classes=3)(record)["sem_seg"].unique().tolist() == [2, 255]
        labels[-1, -1] = label
        Image.fromarray(labels).save(tmp_path / f"other.{suffix}")
        with pytest.raises(
            ValueError, match=rf"map '\S*other\.{suffix}' has labels \[{label}\], but the model has classes 0 to 2"
        ):
            mapper(num_sem_seg_classes=3)(record)
        assert mapper()(record)["sem_seg"][-1, -1] == label

    def test_a_map_of_another_size_is_named_with_both(self, record, tmp_path):
        Image.new("L", (WIDTH, HEIGHT - 1)).save(tmp_path / "labels.png")
        with pytest.raises(
            SizeMismatchError, match=r"labels\.png' is 60 wide and 39 high, but its image '\S*image\.png' is 60"
        ):
            mapper()(record)

    @pytest.mark.parametrize("mode", ["RGB", "LAB", "CMYK"])
    def test_a_map_of_colours_is_named(self, record, tmp_path, mode):
        Image.new(mode, (WIDTH, HEIGHT), (1, 2, 3, 4)[: 4 if mode == "CMYK" else 3]).save(tmp_path / "labels.tiff")
        record["sem_seg_file_name"] = str(tmp_path / "labels.tiff")
        with pytest.raises(ValueError, match=r"labels\.tiff' holds colours"):
            mapper()(record)

    @pytest.mark.parametrize(
        ("architecture", "checked"), [("SemanticSegmentor", 3), ("PanopticFPN", 3), ("GeneralizedRCNN", None)]
    )
    def test_the_config_says_which_labels_there_are_where_a_model_learns_them(self, architecture, checked):
        cfg = get_cfg()
        cfg.MODEL.META_ARCHITECTURE = architecture
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 9
        made = DatasetMapper(cfg, is_train=True)
        assert (made.num_sem_seg_classes, made.sem_seg_ignore_value) == (checked, 9)


def test_a_polygon_that_the_reader_accepts_is_trained_on_after_the_resize(record, tmp_path):
    annotation = {"id": 1, "image_id": 17, "category_id": 1, "bbox": [1, 1, 20, 20]}
    far = {**annotation, "segmentation": [[1, 1, 1e9, 1, 10, 10]]}
    content = {
        "images": [{"id": 17, "file_name": "image.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [far],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "far.json").write_text(json.dumps(content))
    (loaded,) = load_coco_json(str(tmp_path / "far.json"), str(tmp_path))
    for mask_format in ("polygon", "bitmask"):
        options = {"use_instance_mask": True, "instance_mask_format": mask_format}
        sample = mapper([T.Resize((HEIGHT * 4, WIDTH * 4))], **options)(loaded)
        assert len(sample["instances"].gt_masks) == 1
