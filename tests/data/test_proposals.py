"""Proposals of a file are what they should be, or the file is refused."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from detlab.data.proposals import load_proposals_into_dataset
from detlab.structures.boxes import BoxMode
from tests.limits import MEBIBYTE, run_limited


def image(n):
    return {"file_name": f"{n}.jpg", "image_id": n, "width": 10, "height": 8, "annotations": []}


def proposals_file(folder, content):
    path = folder / "proposals.pkl"
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_proposals_are_added_best_first(tmp_path):
    boxes = [np.array([[0, 0, 1, 1], [0, 0, 2, 2]], dtype=np.float32), np.zeros((0, 4), dtype=np.float32)]
    scores = [np.array([0.1, 0.9], dtype=np.float32), np.zeros(0, dtype=np.float32)]
    path = proposals_file(tmp_path, {"indexes": ["0", 1], "boxes": boxes, "scores": scores})
    first, second = load_proposals_into_dataset([image(0), image(1)], path)
    assert first["proposal_boxes"].tolist() == [[0, 0, 2, 2], [0, 0, 1, 1]]
    np.testing.assert_allclose(first["proposal_objectness_logits"], [0.9, 0.1])
    assert first["proposal_bbox_mode"] is BoxMode.XYXY_ABS and second["proposal_boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match="no proposals for 1 images, such as image 3"):
        load_proposals_into_dataset([image(3)], path)


def test_a_proposal_file_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("caught",)

    with pytest.raises(ValueError, match="is refused"):
        load_proposals_into_dataset([], proposals_file(tmp_path, {"ids": Trap()}))
    with pytest.raises(ValueError, match="boxes"):
        load_proposals_into_dataset([], proposals_file(tmp_path, {"ids": []}))


GOOD = {"ids": [0], "boxes": [np.zeros((2, 4))], "objectness_logits": [np.zeros(2)]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "should be a dictionary with 'ids' and more, but is a list"),
        ({"ids": [0], 5: 1}, r"with \['boxes', 'objectness_logits'\], but has \['5', 'ids'\]"),
        ({**GOOD, "ids": [0, 1]}, "as many of each, one for an image, but has {'ids': 2, 'boxes': 1"),
        ({**GOOD, "boxes": None}, "should have a list of boxes, one for an image, but has a NoneType"),
        ({**GOOD, "boxes": {0: np.zeros((2, 4))}}, "should have a list of boxes, .* a dict"),
        ({**GOOD, "boxes": {1}}, "should have a list of boxes, .* a set"),
        ({**GOOD, "ids": np.array(3)}, "should have a list of ids, .* a single number"),
        ({**GOOD, "ids": [[0]]}, "has an id that is a list"),
        ({**GOOD, "ids": [None]}, "has an id that is a NoneType"),
        ({key: value * 2 for key, value in GOOD.items()}, "has the id '0' more than once"),
        ({**GOOD, "bbox_mode": True}, "has bbox_mode True"),
        ({**GOOD, "bbox_mode": [0]}, r"has bbox_mode \[0\]"),
        ({**GOOD, "bbox_mode": 2}, "has bbox_mode 2, but there are {'XYXY_ABS': 0, 'XYWH_ABS': 1, 'XYWHA_ABS': 4}"),
        ({**GOOD, "bbox_mode": 77}, "has bbox_mode 77, but there are {'XYXY_ABS': 0"),
        (
            {**GOOD, "boxes": [np.zeros(4)]},
            r"image 0 in .* boxes of shape \(4,\) and objectness_logits of shape \(2,\)",
        ),
        ({**GOOD, "objectness_logits": [np.zeros(3)]}, r"boxes of shape \(2, 4\) .* of shape \(3,\)"),
        ({**GOOD, "boxes": [[["a", "b", "c", "d"]] * 2]}, "image 0 in .* no numbers"),
        ({**GOOD, "boxes": [[[1, 2, 3, 4], [1, 2, 3]]]}, "image 0 in .* rows have different lengths"),
        ({**GOOD, "boxes": [[[1, 2, 3, 4], 5]]}, "image 0 in .* rows have different lengths"),
        ({**GOOD, "boxes": [[[[1, 2, 3, 4]]]]}, "image 0 in .* something else than rows of numbers"),
        ({**GOOD, "boxes": [{0: 1}]}, "image 0 in .* boxes that are a dict"),
        ({**GOOD, "boxes": [np.zeros((2, 5))]}, r"boxes of shape \(2, 5\) .* not \(N, 4\), as XYXY_ABS is"),
        ({**GOOD, "bbox_mode": 4}, r"boxes of shape \(2, 4\) .* not \(N, 5\), as XYWHA_ABS is"),
        ({**GOOD, "boxes": [np.full((2, 4), np.inf)]}, "image 0 in .* has boxes that are not finite"),
        ({**GOOD, "objectness_logits": [np.array([0, np.nan])]}, "image 0 in .*_logits that are not a number"),
        ({**GOOD, "objectness_logits": [np.zeros(2, np.uint8)]}, "image 0 in .*_logits that are an array of uint8"),
        ({**GOOD, "objectness_logits": [np.zeros(2, bool)]}, "image 0 in .*_logits that are an array of bool"),
        ({**GOOD, "objectness_logits": [[10**30, 1]]}, "image 0 in .*_logits that are an array of object"),
    ],
)
def test_a_file_of_another_structure_is_refused_in_a_sentence(tmp_path, content, message):
    path = proposals_file(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_proposals_into_dataset([image(0)], path)
    assert path in str(caught.value)


def test_lists_and_whole_numbers_are_taken_as_floats(tmp_path):
    content = {"ids": np.array([0]), "boxes": [[[0, 0, 1, 1], (1, 1, 9, 9)]], "scores": [np.array([-128, 5], np.int8)]}
    (taken,) = load_proposals_into_dataset([image(0)], proposals_file(tmp_path, content))
    assert taken["proposal_boxes"].dtype == np.float64 and taken["proposal_boxes"][0].tolist() == [1, 1, 9, 9]
    assert taken["proposal_objectness_logits"].tolist() == [5, -128]


def test_rotated_boxes_are_taken(tmp_path):
    content = {**GOOD, "boxes": [np.ones((2, 5))], "bbox_mode": np.int64(4)}
    (taken,) = load_proposals_into_dataset([image(0)], proposals_file(tmp_path, content))
    assert taken["proposal_boxes"].shape == (2, 5) and taken["proposal_bbox_mode"] is BoxMode.XYWHA_ABS


def doubled(depth):
    value = [1.0, 2.0]
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize("key", ["ids", "boxes", "objectness_logits", "bbox_mode"])
@pytest.mark.parametrize("depth", [3, 15, 26, 90])
def test_lists_of_the_same_lists_are_refused_in_a_moment(tmp_path, key, depth):
    content = {**GOOD, key: doubled(depth) if key == "bbox_mode" else [doubled(depth)]}
    path = proposals_file(tmp_path, content)
    assert Path(path).stat().st_size < 2000
    outcome = run_limited(load_proposals_into_dataset, [image(0)], path, seconds=20, more_bytes=256 * MEBIBYTE)
    assert outcome.error.startswith("ValueError") and path in outcome.error and len(outcome.error) < 800, outcome


def test_the_same_large_array_for_many_images_is_refused_in_bounded_memory(tmp_path):
    boxes, logits = np.zeros((50_000, 4), np.float32), np.zeros(50_000, np.float32)
    path = proposals_file(tmp_path, {"ids": [*range(5000)], "boxes": [boxes] * 5000, "scores": [logits] * 5000})
    images = [image(n) for n in range(5000)]
    outcome = run_limited(load_proposals_into_dataset, images, path, seconds=60, more_bytes=256 * MEBIBYTE)
    assert outcome.error.startswith("ValueError") and "the same proposals to many images" in outcome.error, outcome


def load_pipe(path):
    os.mkfifo(path)
    load_proposals_into_dataset([], path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    outcome = run_limited(load_pipe, str(tmp_path / "pipe.pkl"), seconds=10)
    assert outcome.error.startswith("ValueError") and "pipe.pkl is no file" in outcome.error, outcome


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pkl"):
        load_proposals_into_dataset([], str(tmp_path / "gone.pkl"))


def test_images_without_id_have_no_proposals(tmp_path):
    with pytest.raises(ValueError, match="no proposals for 1 images, such as image None"):
        load_proposals_into_dataset([{"file_name": "a.jpg"}], proposals_file(tmp_path, GOOD))


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps(GOOD)[:50]], ids=["empty", "text", "cut off"])
def test_a_damaged_file_is_refused(tmp_path, data):
    path = Path(proposals_file(tmp_path, GOOD))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"proposals\.pkl is damaged"):
        load_proposals_into_dataset([image(0)], str(path))
