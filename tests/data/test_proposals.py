import pickle
from pathlib import Path

import numpy as np
import pytest

from detlab.data.proposals import load_proposals_into_dataset
from detlab.structures.boxes import BoxMode


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
        ({**GOOD, "boxes": None}, "as many of each, .* 'boxes': None"),
        ({**GOOD, "bbox_mode": 77}, "has bbox_mode 77, but there are {'XYXY_ABS': 0"),
        (
            {**GOOD, "boxes": [np.zeros(4)]},
            r"image 0 in .* boxes of shape \(4,\) and objectness_logits of shape \(2,\)",
        ),
        ({**GOOD, "objectness_logits": [np.zeros(3)]}, r"boxes of shape \(2, 4\) .* of shape \(3,\)"),
        ({**GOOD, "boxes": [[["a", "b", "c", "d"]] * 2]}, "image 0 in .* no numbers"),
    ],
)
def test_a_file_of_another_structure_is_refused_in_a_sentence(tmp_path, content, message):
    path = proposals_file(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_proposals_into_dataset([image(0)], path)
    assert path in str(caught.value)


def test_images_without_id_have_no_proposals(tmp_path):
    with pytest.raises(ValueError, match="no proposals for 1 images, such as image None"):
        load_proposals_into_dataset([{"file_name": "a.jpg"}], proposals_file(tmp_path, GOOD))


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps(GOOD)[:50]], ids=["empty", "text", "cut off"])
def test_a_damaged_file_is_refused(tmp_path, data):
    path = Path(proposals_file(tmp_path, GOOD))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"proposals\.pkl is damaged"):
        load_proposals_into_dataset([image(0)], str(path))
