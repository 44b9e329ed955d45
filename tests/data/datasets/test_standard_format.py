from collections import deque

import numpy as np
import pytest
import torch

from detlab.data.datasets.standard_format import check_standard_format
from detlab.structures.boxes import BoxMode


def image(**changes):
    """An image of two objects, the second of which has other values; a value of ... removes the key."""
    objects = [{"category_id": 1, "bbox": [1, 2, 3.5, 4], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0} for _ in "ab"]
    objects[1] = {key: value for key, value in {**objects[1], **changes}.items() if value is not ...}
    return {"file_name": "a.jpg", "height": 8, "width": 9, "annotations": objects}


@pytest.mark.parametrize(
    "dataset",
    [
        [],
        [{"file_name": "a.jpg"}],
        [{"file_name": "a.jpg", "annotations": None}],
        (image(), image(iscrowd=True)),
        deque([image()]),
        [image(category_id=np.int64(2), bbox=np.zeros(4), iscrowd=np.uint8(1))],
        [image(category_id=torch.tensor(2), bbox=torch.zeros(5), segmentation=[[1, 2, 3]])],
        [image(bbox=(np.float32(1), 2, 3, 4), bbox_mode=1)],
        [image(bbox=..., bbox_mode=..., iscrowd=...)],
    ],
)
def test_what_users_give_and_the_rest_can_work_with_passes(dataset):
    check_standard_format(dataset, "mine")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "dataset 'mine' should be a list of images, but is None"),
        ("a.jpg", "should be a list of images, but is 'a.jpg'"),
        (iter([]), "should be a list of images, but is <list_iterator"),
        ({"a": 1}, "should be a list of images, but is {'a': 1}"),
        ([image(), "a.jpg"], "image number 1 of dataset 'mine' should be an object .* but is 'a.jpg'"),
        (
            [image(), {"file_name": "b.jpg", "annotations": 3}],
            "image 'b.jpg' of dataset 'mine' .* annotations, but is 3",
        ),
        ([{"image_id": 5, "annotations": [None]}], "annotation number 0 of image 5 of dataset 'mine'"),
        ([image(category_id=...)], "annotation number 1 in image 'a.jpg' of dataset 'mine' has no 'category_id'"),
        ([image(category_id="cat")], "'category_id': 'cat'; it is the index"),
        ([image(category_id=1.0)], "'category_id': 1.0"),
        ([image(category_id=True)], "'category_id': True"),
        ([image(bbox=[1, 2, 3])], r"'bbox': \[1, 2, 3\]; a box is 4 numbers, or 5"),
        ([image(bbox=[1, 2, 3, None])], "a box is 4 numbers"),
        ([image(bbox=7)], "'bbox': 7"),
        ([image(bbox_mode=...)], "has no 'bbox_mode'; say what the numbers"),
        ([image(iscrowd="0")], "'iscrowd': '0'"),
        ([image(iscrowd=2)], "'iscrowd': 2"),
        ([image(iscrowd=None)], "'iscrowd': None"),
    ],
)
def test_what_would_end_in_a_key_error_later_is_refused_with_the_image(dataset, message):
    with pytest.raises(ValueError, match=message):
        check_standard_format(dataset, "mine")
