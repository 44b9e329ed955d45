import json
import logging
import math
import os
import re
import threading

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.coco import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
)
from detlab.structures.boxes import BoxMode

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
NAME = "test_coco_dataset"


def annotation(number, image_id=1, category_id=7, bbox=(1, 1, 4, 4), **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "iscrowd": 0, **more}


def content(*annotations, categories=((3, "low"), (7, "high"))):
    return {
        "images": [
            {"id": 2, "file_name": "b.jpg", "height": 10, "width": 12},
            {"id": 1, "file_name": "a.jpg", "height": 20, "width": 22},
        ],
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in reversed(categories)],
    }


@pytest.fixture
def write(tmp_path):
    def write_json(what, name="annotations.json"):
        path = tmp_path / name
        path.write_text(json.dumps(what))
        return str(path)

    return write_json


@pytest.fixture
def name():
    yield NAME
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)


def test_images_come_in_the_order_of_their_ids(write):
    dicts = load_coco_json(write(content(annotation(1))), "root")
    assert [d["image_id"] for d in dicts] == [1, 2]
    assert dicts[0]["file_name"] == os.path.join("root", "a.jpg") and (dicts[0]["height"], dicts[0]["width"]) == (
        20,
        22,
    )
    assert dicts[1]["annotations"] == []
    assert dicts[0]["annotations"] == [
        {"iscrowd": 0, "bbox": [1, 1, 4, 4], "category_id": 7, "bbox_mode": BoxMode.XYWH_ABS}
    ]


def test_scattered_category_ids_become_contiguous_classes(write, name, caplog):
    dicts = load_coco_json(write(content(annotation(1), annotation(2, category_id=3))), "root", name)
    assert [a["category_id"] for a in dicts[0]["annotations"]] == [1, 0]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["low", "high"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_unusual_category_ids_are_mentioned(write, caplog):
    try:
        load_coco_json(write(content()), "root", "test_scattered")
        assert "are not 1..2 but between 3 and 7; they become classes 0..1" in caplog.text
        caplog.clear()
        load_coco_json(write(content(categories=((1, "a"), (2, "b")))), "root", "test_contiguous")
        assert not caplog.text
    finally:
        for made in ("test_scattered", "test_contiguous"):
            MetadataCatalog.remove(made)


def test_polygons_with_too_few_points_are_dropped_and_counted(write, caplog):
    path = write(
        content(
            annotation(1, segmentation=[SQUARE, [1, 2, 3, 4]]),
            annotation(2, segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]),
            annotation(3, segmentation=[]),
        )
    )
    (kept, without), _ = (d["annotations"] for d in load_coco_json(path, "root"))
    assert kept["segmentation"] == [SQUARE] and "segmentation" not in without
    assert f"Left out 1 masks without a polygon of 3 points or more in {path} (annotation 2: [4, 7]" in caplog.text


def test_run_lengths_are_compressed(write):
    mask = np.zeros((20, 22), dtype=np.uint8, order="F")
    mask[3:9, 4:8] = 1
    compressed = coco_mask.encode(mask)
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1
    counts = np.diff([0, *changes, mask.size]).tolist()
    path = write(
        content(
            annotation(1, iscrowd=1, segmentation={"size": [20, 22], "counts": counts}),
            annotation(2, iscrowd=1, segmentation={"size": [20, 22], "counts": compressed["counts"].decode()}),
        )
    )
    for loaded in load_coco_json(path, "root")[0]["annotations"]:
        assert (coco_mask.decode(loaded["segmentation"]) == mask).all() and loaded["iscrowd"] == 1


def test_keypoints_move_to_the_centres_of_pixels(write):
    path = write(content(annotation(1, keypoints=[3, 4, 2, 0, 0, 0])))
    assert load_coco_json(path, "root")[0]["annotations"][0]["keypoints"] == [3.5, 4.5, 2, 0.5, 0.5, 0]


def test_extra_keys_are_kept_where_they_are(write):
    path = write(content(annotation(1, score=0.5), annotation(2)))
    first, second = load_coco_json(path, "root", extra_annotation_keys=["score"])[0]["annotations"]
    assert first["score"] == 0.5 and "score" not in second


def test_boxes_of_five_numbers_are_rotated(write):
    path = write(content(annotation(1, bbox=(5, 5, 4, 2, 30))))
    assert load_coco_json(path, "root")[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWHA_ABS


@pytest.mark.parametrize("box", [(1, 1, 0, 4), (1, 1, 4, -2), (1, math.nan, 4, 4), (1, 1, math.inf, 4)])
def test_boxes_without_area_are_dropped_and_counted(write, box, caplog):
    path = write(content(annotation(1), annotation(2, bbox=box), annotation(3, bbox=box), annotation(4, bbox=box)))
    assert len(load_coco_json(path, "root")[0]["annotations"]) == 1
    assert f"Left out 3 boxes without a positive, finite width and height in {path} (annotation 2: bbox" in caplog.text


def test_annotations_of_unknown_images_are_dropped_and_counted(write, caplog):
    path = write(content(annotation(1), annotation(2, image_id=77)))
    assert sum(len(d["annotations"]) for d in load_coco_json(path, "root")) == 1
    assert "Left out 1 annotations of images that the file does not list" in caplog.text and "image 77" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (content(annotation(1), annotation(1)), "1 ids of annotations in .* more than once .such as 1."),
        ({**content(), "images": [content()["images"][0]] * 2}, "1 ids of images"),
        (content(categories=((3, "a"), (3, "b"))), "1 ids of categories"),
        (content({k: v for k, v in annotation(1).items() if k != "id"}), "annotation number 0 .* has no 'id'"),
        (content(annotation(1, category_id=8)), "annotation 1 of image 1 .* 'category_id': 8.* 2 categories"),
        (content(annotation(1, bbox=())), r"'bbox': \[\]"),
        (content({k: v for k, v in annotation(1).items() if k != "bbox"}), "has no 'bbox'; a box is"),
        (content(annotation(1, bbox=(1, 2, 3))), r"'bbox': \[1, 2, 3\]; a box is"),
        (content(annotation(1, ignore=1)), "'ignore': 1; that is not supported"),
        ([1, 2], "is not in COCO format"),
    ],
)
def test_files_that_contradict_themselves_are_refused(write, name, wrong, message):
    with pytest.raises(ValueError, match=message):
        load_coco_json(write(wrong), "root", name)


def test_the_minival_files_of_2014_may_hold_annotations_twice(write):
    path = write(content(annotation(1), annotation(1)), "instances_minival2014.json")
    assert len(load_coco_json(path, "root")[0]["annotations"]) == 2


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist.*DETLAB_DATASETS"):
        load_coco_json(str(tmp_path / "nothing.json"), "root")
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"broken\.json is not valid json .* download complete"):
        load_coco_json(str(broken), "root")


def test_registering_touches_no_file(name, tmp_path):
    missing = tmp_path / "missing.json"
    register_coco_instances(name, {"thing_colors": [[1, 2, 3]]}, missing, tmp_path)
    register_coco_instances(name, {"thing_colors": [[1, 2, 3]]}, missing, tmp_path)
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file == str(missing) and metadata.evaluator_type == "coco"
    assert metadata.thing_colors == [[1, 2, 3]]
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get(name)
    with pytest.raises(ValueError, match="already registered"):
        register_coco_instances(name, {}, tmp_path / "other.json", tmp_path)


def test_a_dataset_can_be_prepared_when_it_is_needed(name, write, tmp_path):
    path = tmp_path / "annotations.json"
    register_coco_instances(name, {}, str(path), "root", prepare=lambda: write(content(annotation(1))))
    assert not path.exists()
    assert len(DatasetCatalog.get(name)) == 2


@pytest.mark.parametrize(("split", "images", "objects", "crowds"), [("train", 166, 1580, 15), ("val", 188, 1692, 20)])
def test_real_annotations_are_all_there(shared_dir, split, images, objects, crowds, caplog):
    folder = shared_dir / "datasets" / "coco"
    dicts = load_coco_json(str(folder / f"annotations/instances_{split}2017.json"), str(folder / f"{split}2017"))
    annotations = [a for d in dicts for a in d["annotations"]]
    assert len(dicts) == images and len(annotations) == objects
    assert sum(a["iscrowd"] for a in annotations) == crowds
    assert all(isinstance(a["segmentation"], dict) == bool(a["iscrowd"]) for a in annotations)
    assert all(os.path.isfile(d["file_name"]) for d in dicts) and not caplog.text


@pytest.mark.parametrize("kind", ["instances", "person_keypoints", "rotated"])
def test_a_dataset_written_back_says_the_same(shared_dir, name, kind, tmp_path):
    folder = shared_dir / "datasets" / "coco"
    source = folder / f"annotations/{kind}_val2017.json"
    register_coco_instances(name, {}, str(source), str(folder / "val2017"))
    output = tmp_path / "out" / "converted.json"
    convert_to_coco_json(name, str(output))
    original, written = json.loads(source.read_text()), json.loads(output.read_text())
    assert [c["name"] for c in written["categories"]] == [c["name"] for c in original["categories"]]
    assert [c["id"] for c in written["categories"]] == [c["id"] for c in original["categories"]]
    expected = {}
    for a in original["annotations"]:
        expected.setdefault(a["image_id"], []).append(a)
    for image in written["images"]:
        for one, other in zip(
            expected.get(image["id"], []),
            [a for a in written["annotations"] if a["image_id"] == image["id"]],
            strict=True,
        ):
            assert one["category_id"] == other["category_id"] and one["iscrowd"] == other["iscrowd"]
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
            assert one.get("keypoints") == other.get("keypoints")
            assert one.get("num_keypoints") == other.get("num_keypoints")
            if not one["iscrowd"]:
                assert other["area"] == pytest.approx(one["area"], rel=1e-3)
                assert one.get("segmentation") == other.get("segmentation")


def test_a_written_file_is_kept_as_long_as_it_says_the_same(name, tmp_path, caplog):
    image = {"file_name": "a.jpg", "width": 3, "height": 2, "annotations": []}
    DatasetCatalog.register(name, lambda: [image])
    output = tmp_path / "cached.json"
    threads = [threading.Thread(target=convert_to_coco_json, args=(name, str(output))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = os.stat(output)
    convert_to_coco_json(name, str(output))
    assert os.stat(output).st_ino == first.st_ino and os.stat(output).st_mtime_ns == first.st_mtime_ns
    assert "replaced" not in caplog.text
    convert_to_coco_json(name, str(output), allow_cached=False)
    assert os.stat(output).st_mtime_ns > first.st_mtime_ns


@pytest.mark.parametrize("change", ["annotations", "classes", "size"])
def test_a_file_that_was_written_of_other_annotations_is_replaced(name, tmp_path, change, caplog):
    image = {"file_name": "a.jpg", "width": 30, "height": 20, "annotations": []}
    DatasetCatalog.register(name, lambda: [image])
    MetadataCatalog.get(name).thing_classes = ["one", "two"]
    output = tmp_path / "cached.json"
    convert_to_coco_json(name, str(output))
    before = json.loads(output.read_text())
    if change == "annotations":
        image["annotations"] = [{"category_id": 1, "bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS}]
    elif change == "classes":
        MetadataCatalog.remove(name)
        MetadataCatalog.get(name).thing_classes = ["one", "three"]
    else:
        image["width"] = 31
    convert_to_coco_json(name, str(output))
    assert json.loads(output.read_text()) == convert_to_coco_dict(name) != before
    assert f"{output} was made of other annotations" in caplog.text


@pytest.mark.parametrize("change", ["box", "half", "empty", "more"])
def test_a_written_file_that_was_changed_or_cut_since_is_replaced(name, tmp_path, change, caplog):
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    image = {"file_name": "a.jpg", "height": 10, "width": 12, "image_id": 5}
    image["annotations"] = [dict(box) for _ in range(200)]
    DatasetCatalog.register(name, lambda: [image])
    MetadataCatalog.get(name).thing_classes = ["a"]
    path = tmp_path / "out.json"
    convert_to_coco_json(name, str(path))
    whole = path.read_bytes()
    spoiled = {
        "box": whole[:-5000] + whole[-5000:].replace(b"[1.0,2.0,3.0,4.0]", b"[9.0,2.0,3.0,4.0]", 1),
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "more": whole + b" ",
    }[change]
    assert spoiled != whole
    path.write_bytes(spoiled)
    caplog.clear()
    convert_to_coco_json(name, str(path))
    assert path.read_bytes() == whole
    assert re.search(
        r"out\.json (is cut off, or was changed|was made of other annotations).* it is replaced", caplog.text
    )


def test_a_cached_file_without_a_fingerprint_is_replaced(name, tmp_path):
    DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg", "width": 3, "height": 2, "annotations": []}])
    output = tmp_path / "cached.json"
    output.write_text(json.dumps({"info": {}, "images": [], "annotations": [], "categories": []}))
    convert_to_coco_json(name, str(output))
    assert len(json.loads(output.read_text())["images"]) == 1


def test_numbers_of_numpy_are_written_as_plain_ones(name, tmp_path):
    image = {"file_name": "a.jpg", "image_id": np.int64(4), "width": np.int32(9), "height": np.int16(8)}
    obj = {"category_id": np.int64(0), "bbox": np.ones(4), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": np.bool_(True)}
    obj.update(segmentation=np.eye(8, 9, dtype=bool), keypoints=np.array([1.5, 2.5, 2]))
    DatasetCatalog.register(name, lambda: [{**image, "annotations": [obj]}])
    MetadataCatalog.get(name).thing_classes = ["one"]
    convert_to_coco_json(name, str(tmp_path / "plain.json"))
    written = json.loads((tmp_path / "plain.json").read_text())
    assert written["images"] == [{"id": 4, "width": 9, "height": 8, "file_name": "a.jpg"}]
    assert written["annotations"][0]["image_id"] == 4 and written["annotations"][0]["iscrowd"] == 1
    assert (coco_mask.decode(written["annotations"][0]["segmentation"]) == np.eye(8, 9)).all()
    assert written["annotations"][0]["keypoints"] == [1, 2, 2] and written["annotations"][0]["area"] == 8


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"width": 3, "height": 2}, "has no 'file_name'"),
        ({"file_name": "a.jpg", "height": 2}, "has no 'width', which COCO format needs; it has {'file_name': 'a.jpg'"),
        ({"file_name": "a", "width": 1, "height": 1, "annotations": [{"category_id": 0}]}, "has no 'bbox'"),
        (
            {
                "file_name": "a",
                "width": 1,
                "height": 1,
                "annotations": [{"category_id": 5, "bbox": [0, 0, 1, 1], "bbox_mode": 0}],
            },
            "category_id 5, but its classes are 0 to 0",
        ),
    ],
)
def test_what_cannot_be_written_in_the_format_is_told(name, image, message):
    DatasetCatalog.register(name, lambda: [image])
    MetadataCatalog.get(name).set(thing_classes=["one"], thing_dataset_id_to_contiguous_id={9: 0})
    with pytest.raises(ValueError, match=message):
        convert_to_coco_dict(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1, "height": 20, "width": 22}]}, "image 1 in .* has no 'file_name'"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 22}]}, "image 1 in .* has no 'height'"),
        ({"categories": [{"id": 7}]}, "category 7 in .* has no 'name'"),
    ],
)
def test_what_loading_needs_is_told(write, name, changes, message):
    with pytest.raises(ValueError, match=message):
        load_coco_json(write({**content(annotation(1)), **changes}), "root", name)


def test_boxes_polygons_and_masks_get_their_area(name, caplog):
    mask = coco_mask.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))
    objects = [
        {"category_id": 0, "bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS},
        {"category_id": 1, "bbox": np.array([1.0, 1, 4, 4]), "bbox_mode": BoxMode.XYWH_ABS, "segmentation": [SQUARE]},
        {"category_id": 1, "bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": mask, "iscrowd": 1},
        {"category_id": 0, "bbox": [5, 5, 4, 2, 45], "bbox_mode": BoxMode.XYWHA_ABS},
    ]
    DatasetCatalog.register(name, lambda: [{"file_name": "a", "width": 9, "height": 9, "annotations": objects}])
    MetadataCatalog.get(name).thing_classes = ["x", "y"]
    with caplog.at_level(logging.INFO):
        written = convert_to_coco_dict(name)
    assert [a["area"] for a in written["annotations"]] == [12, 16, 4, 8]
    assert written["annotations"][0]["bbox"] == [1, 2, 3, 4] and written["annotations"][3]["bbox"] == [5, 5, 4, 2, 45]
    assert json.loads(json.dumps(written)) == written
    assert "1 images, 4 annotations" in caplog.text


def test_images_and_semantic_maps_are_paired_by_name(tmp_path, caplog):
    for folder, names in (("images", ["b.jpg", "a.jpg", "c.jpg", "notes.txt"]), ("maps", ["a.png", "b.png"])):
        (tmp_path / folder).mkdir()
        for file in names:
            (tmp_path / folder / file).touch()
    dicts = load_sem_seg(str(tmp_path / "maps"), str(tmp_path / "images"))
    assert [os.path.basename(d["file_name"]) for d in dicts] == ["a.jpg", "b.jpg"]
    assert [os.path.basename(d["sem_seg_file_name"]) for d in dicts] == ["a.png", "b.png"]
    assert "Left out 1 images" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"no .*gif"):
        load_sem_seg(str(tmp_path / "maps"), str(tmp_path / "images"), image_ext="gif")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_sem_seg(str(tmp_path / "nowhere"), str(tmp_path / "images"))
