"""What is refused, what is left out, and what is set right; how files are loaded is in test_coco.py."""

import copy
import json
import logging
import math
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detlab.data.datasets.coco_format import checked_coco, class_indices, read_coco

POLYGON = [1, 1, 5, 1, 5, 5, 1, 5]
RUNS = {"size": [20, 22], "counts": coco_mask.encode(np.eye(20, 22, dtype=np.uint8, order="F"))["counts"].decode()}
FILE = "dir/some.json"


def annotation(number, image_id=1, **more):
    facts = {"id": number, "image_id": image_id, "category_id": 7, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    return {**facts, "segmentation": [POLYGON], **more}


def content(*annotations, **more):
    return {
        "images": [
            {"id": 2, "file_name": "b.jpg", "height": 10, "width": 12},
            {"id": 1, "file_name": "a.jpg", "height": 20, "width": 22},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "low"}, {"id": 7, "name": "high"}],
        **more,
    }


def changed(kind, **values):
    """A file of three annotations of which the second of ``kind`` has other values; a value of ... removes the key."""
    made = content(*map(annotation, (1, 2, 3)))
    entry = made[kind][1]
    entry.update(values)
    for key in [key for key, value in values.items() if value is ...]:
        del entry[key]
    return made


BOTH = pytest.mark.parametrize("for_evaluation", [False, True])


@BOTH
def test_a_sound_file_stays_as_it_is(for_evaluation, caplog):
    made = content(
        annotation(1),
        annotation(2, 2, segmentation=[], keypoints=[1, 2, 2], num_keypoints=1),
        annotation(3, iscrowd=1, segmentation=RUNS),
    )
    before = copy.deepcopy(made)
    read = checked_coco(made, FILE, for_evaluation=for_evaluation)
    assert (read.images, read.annotations, read.categories) == (
        before["images"],
        before["annotations"],
        before["categories"],
    )
    assert class_indices(read) == {3: 0, 7: 1} and not caplog.text


@BOTH
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "is not in COCO format"),
        ({}, "is not in COCO format"),
        (content(images=None), "'images' in dir/some.json should be a list of images, but is None"),
        (content(annotations=None), "'annotations' .* should be a list of annotations, but is None"),
        (content(annotations=[None]), "annotation number 0 of 'annotations' .* but is None"),
        (content(categories={"id": 1}), "'categories' .* should be a list of categories"),
        (changed("images", id=...), "image number 1 .* has no 'id'"),
        (changed("images", id=2), "1 ids of images"),
        (changed("images", id="1"), "image '1' .*let all be numbers, or all be text"),
        (changed("images", file_name=5), "image 1 .* 'file_name': 5; the name of a file is a text"),
        (
            changed("images", width=0),
            "image 1 in dir/some.json has 'width': 0; it is a whole number of pixels, 1 or more",
        ),
        (changed("images", width=-3), "'width': -3"),
        (changed("images", width=22.5), "'width': 22.5"),
        (changed("images", height="20"), "'height': '20'"),
        (changed("images", height=10**30), "'height': 1000000000"),
        (changed("images", height=2**31 - 1, width=2**31 - 1), "too many for masks"),
        (changed("categories", id=None), "category number 1 .* 'id': None"),
        (changed("categories", id=3), "1 ids of categories"),
        (changed("categories", name=7), "category 7 .* 'name': 7; a category's name is a text"),
        (changed("annotations", image_id=...), "annotation 2 in dir/some.json has no 'image_id'"),
        (changed("annotations", image_id=[1]), r"'image_id': \[1\]"),
        (changed("annotations", image_id="1"), "'image_id': '1'"),
        (changed("annotations", category_id=...), "annotation 2 of image 1 .* has no 'category_id'"),
        (changed("annotations", category_id=None), "'category_id': None"),
        (changed("annotations", bbox=[1, 2, 3]), r"annotation 2 of image 1 .* 'bbox': \[1, 2, 3\]; a box is"),
        (changed("annotations", bbox=[1, 2, 3, None]), "'bbox'"),
        (changed("annotations", bbox=[1, 2, 3, "4"]), "'bbox'"),
        (changed("annotations", bbox=[1, 2, 3, 10**400]), "'bbox'"),
        (changed("annotations", bbox="1234"), "'bbox': '1234'"),
        (changed("annotations", bbox={"x": 1}), "'bbox'"),
        (changed("annotations", bbox=[5, 5, 3, 3, 30]), "others have 4 numbers; .* all upright or all rotated"),
        (changed("annotations", iscrowd="0"), "'iscrowd': '0'; it is 0, or 1"),
        (changed("annotations", iscrowd=2), "'iscrowd': 2"),
        (changed("annotations", iscrowd=[]), r"'iscrowd': \[\]"),
        (changed("annotations", area="16"), "'area': '16'; it is a number of square pixels"),
        (changed("annotations", segmentation=POLYGON), r"one polygon is a list in a list: \[\[x0, y0"),
        (changed("annotations", segmentation=5), "'segmentation': 5; a mask is a list of polygons"),
        (changed("annotations", segmentation=[["1"] * 6]), "a mask is a list of polygons"),
        (changed("annotations", segmentation=[[POLYGON]]), "a mask is a list of polygons"),
        (
            changed("annotations", segmentation={"size": [22, 20], "counts": [440]}),
            "the mask of annotation 2 of image 1 in",
        ),
        (changed("annotations", segmentation={"size": [20, 22], "counts": [441]}), "the mask of annotation 2"),
        (changed("annotations", segmentation={"counts": [440]}), "the mask of annotation 2"),
        (changed("annotations", segmentation={"size": [20, 22], "counts": None}), "the mask of annotation 2"),
        (changed("annotations", keypoints=[1, 2]), r"'keypoints': \[1, 2\]; keypoints are"),
        (changed("annotations", keypoints=[1, 2, "2"]), "'keypoints'"),
        (changed("annotations", keypoints=7), "'keypoints': 7"),
        (changed("annotations", num_keypoints=-1), "'num_keypoints': -1"),
        (changed("annotations", num_keypoints="1"), "'num_keypoints': '1'"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_the_entry_and_the_value(made, message, for_evaluation):
    with pytest.raises(ValueError, match=message) as caught:
        checked_coco(copy.deepcopy(made), FILE, for_evaluation=for_evaluation)
    assert FILE in str(caught.value) and len(str(caught.value)) < 600


@BOTH
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"image_id": 99}, "annotations of images that the file does not list"),
        ({"bbox": [1, 1, -4, 4]}, "boxes without a (positive, )?finite width and height"),
        ({"bbox": [1, math.nan, 4, 4]}, "boxes without a (positive, )?finite width and height"),
        ({"bbox": [1, 1, math.inf, 4]}, "boxes without a (positive, )?finite width and height"),
        ({"bbox": [1, 1, 1e300, 4]}, "boxes without a (positive, )?finite width and height"),
        ({"bbox": [22, 1, 4, 4]}, "boxes wholly outside of their image"),
        ({"bbox": [1, 30, 4, 4]}, "boxes wholly outside of their image"),
        ({"bbox": [-4, 1, 4, 4]}, "boxes wholly outside of their image"),
        ({"segmentation": [[1, 2, 3, 4]]}, "masks without a polygon of 3 points or more"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "masks without a polygon of 3 points or more"),
        ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "masks without a polygon of 3 points or more"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e300]]}, "masks without a polygon of 3 points or more"),
        ({"segmentation": [[]]}, "masks without a polygon of 3 points or more"),
        ({"keypoints": [1, math.inf, 2]}, "objects with keypoints that are not finite"),
    ],
)
def test_annotations_that_mean_nothing_are_left_out_of_training_and_evaluation(values, reason, for_evaluation, caplog):
    read = checked_coco(changed("annotations", **values), FILE, for_evaluation=for_evaluation)
    assert [one["id"] for one in read.annotations] == [1, 3]
    (message,) = caplog.messages
    assert "Left out 1 " in message and f"in {FILE} (annotation 2: " in message
    assert re.search(reason, message)


@pytest.mark.parametrize("box", [[1, 1, 0, 4], [22, 5, 0, 2], [1, 0, 4, 0]])
def test_boxes_of_size_0_count_in_evaluation_as_the_official_code_has_it(box):
    assert len(checked_coco(changed("annotations", bbox=box), FILE).annotations) == 2
    assert len(checked_coco(changed("annotations", bbox=box), FILE, for_evaluation=True).annotations) == 3


@pytest.mark.parametrize("box", [[-3, -3, 4, 4], [21.9, 19.9, 50, 50], [-100, -100, 1000, 1000]])
def test_boxes_that_reach_into_the_image_stay(box, caplog):
    assert len(checked_coco(changed("annotations", bbox=box), FILE).annotations) == 3 and not caplog.text


def test_rotated_boxes_are_outside_when_the_circle_around_them_is():
    boxes = [[5, 5, 4, 2, 30], [-2, 5, 4, 3, 0], [-3, 5, 4, 3, 0], [5, 5, -4, 2, 30]]
    made = content(*(annotation(number, bbox=box) for number, box in enumerate(boxes)))
    assert [one["id"] for one in checked_coco(made, FILE).annotations] == [0, 1]


def test_polygons_that_enclose_nothing_are_taken_out_of_their_mask():
    made = changed("annotations", segmentation=[[1, 2, 3, 4], POLYGON, [math.inf] * 6])
    assert checked_coco(made, FILE).annotations[1]["segmentation"] == [POLYGON]


@BOTH
def test_what_is_spelled_otherwise_is_set_right(for_evaluation, caplog):
    made = content(
        annotation(1.0, 1.0, iscrowd=True, category_id=7.0, area=None),
        annotation(2, iscrowd=None, area=math.nan, num_keypoints=None),
        annotation(3, iscrowd=0.0, area=-1, segmentation=None, keypoints=None),
    )
    made["images"][0].update(width=12.0, height=None)
    first, second, third = checked_coco(made, FILE, for_evaluation=for_evaluation).annotations
    assert first["iscrowd"] == 1 and type(first["iscrowd"]) is int and type(first["image_id"]) is int
    assert "iscrowd" not in second and third["iscrowd"] == 0 and type(third["iscrowd"]) is int
    assert not any("area" in one for one in (first, second, third))
    assert type(made["images"][0]["width"]) is int and "height" not in made["images"][0]
    assert not caplog.text


@BOTH
def test_lists_of_run_lengths_are_compressed(for_evaluation):
    made = changed("annotations", segmentation={"size": [20, 22], "counts": [21, 4, 415]})
    mask = checked_coco(made, FILE, for_evaluation=for_evaluation).annotations[1]["segmentation"]
    assert mask["size"] == [20, 22] and isinstance(mask["counts"], bytes)


def test_compressed_run_lengths_are_looked_into_for_evaluation():
    broken = {"size": [20, 22], "counts": "0" * 50}
    with pytest.raises(ValueError, match=f"the mask of annotation 2 of image 1 in {FILE}: "):
        checked_coco(changed("annotations", segmentation=broken), FILE, for_evaluation=True)
    with pytest.raises(ValueError, match=f"the mask of annotation 2 of image 1 in {FILE}: "):
        checked_coco(changed("annotations", segmentation={**broken, "size": [20, 23]}), FILE)


@pytest.mark.parametrize("counts", ["", "\ud800zz", "not a code", "P"])
def test_a_text_that_no_run_lengths_can_be_read_from_is_refused_at_loading(counts):
    made = content(annotation(1, segmentation=RUNS), annotation(2, segmentation={"size": [20, 22], "counts": counts}))
    with pytest.raises(ValueError, match=f"the mask of annotation 2 of image 1 in {FILE}: "):
        checked_coco(made, FILE)


@BOTH
def test_more_corners_than_are_drawn_are_refused_at_loading_with_the_annotation(for_evaluation):
    made = content(annotation(1), annotation(2, segmentation=[POLYGON, [1.0] * 80_000, [2.0] * 60_000]), annotation(3))
    with pytest.raises(
        ValueError, match=f"the mask of annotation 2 of image 1 in {FILE}: .* have 70004 corners together"
    ):
        checked_coco(made, FILE, for_evaluation=for_evaluation)


def test_ids_of_images_may_be_text():
    made = content(annotation(1, "a"))
    made["images"] = [{"id": name, "file_name": f"{name}.jpg", "height": 20, "width": 20} for name in "ab"]
    assert len(checked_coco(made, FILE).annotations) == 1
    made["annotations"][0]["image_id"] = 1
    with pytest.raises(ValueError, match="'image_id': 1; ids under 'images' are like 'a'; let both be numbers"):
        checked_coco(made, FILE)


@pytest.mark.parametrize("key", ["id", "bbox"])
def test_annotations_need_less_for_evaluation(key):
    assert len(checked_coco(changed("annotations", **{key: ...}), FILE, for_evaluation=True).annotations) == 3
    with pytest.raises(ValueError, match=f"has no '{key}'"):
        checked_coco(changed("annotations", **{key: ...}), FILE)


def test_hidden_annotations_are_told_from_none():
    made = content()
    assert checked_coco(made, FILE).annotations == []
    del made["annotations"]
    assert checked_coco(made, FILE).annotations is None


@BOTH
def test_categories_of_one_name_are_told_apart_by_their_ids(for_evaluation, caplog):
    names = ["cell", "cell", "cell (id 1)", "other"]
    made = content(categories=[{"id": number, "name": name} for number, name in enumerate(names)])
    read = checked_coco(made, FILE, for_evaluation=for_evaluation)
    changed_names = [category["name"] for category in read.categories]
    assert changed_names == ["cell (id 0)", "cell (id 1) (id 1)", "cell (id 1)", "other"]
    assert f"2 categories in {FILE} share their names with others; here they are called 'cell (id 0)'" in caplog.text


def test_a_category_that_is_not_listed_is_named():
    read = checked_coco(changed("annotations", category_id=8), FILE)
    with pytest.raises(
        ValueError, match=r"annotation 2 of image 1 in .* 'category_id': 8; it is not among the 2 categ"
    ):
        class_indices(read)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    path = tmp_path / "encoded.json"
    path.write_bytes(json.dumps(content(annotation(1)), ensure_ascii=False).encode(encoding))
    assert len(read_coco(str(path)).annotations) == 1


def test_lists_nested_without_end_are_refused(tmp_path):
    path = tmp_path / "deep.json"
    text = json.dumps(changed("annotations", bbox="here"))
    path.write_text(text.replace('"here"', "[" * 100_000 + "]" * 100_000))
    with pytest.raises(ValueError, match=r"deep\.json nests lists or objects too deeply"):
        read_coco(str(path))


def test_a_warning_tells_the_count_and_no_more_than_three_examples(caplog):
    made = content(*(annotation(number, bbox=[1, 1, 0, 0]) for number in range(10)))
    with caplog.at_level(logging.WARNING):
        checked_coco(made, FILE)
    assert caplog.messages == [
        f"Left out 10 boxes without a positive, finite width and height in {FILE} (annotation 0: bbox [1, 1, 0, 0]; "
        "annotation 1: bbox [1, 1, 0, 0]; annotation 2: bbox [1, 1, 0, 0])"
    ]
