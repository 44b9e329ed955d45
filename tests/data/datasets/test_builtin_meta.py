import json

import pytest

from detlab.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
    KEYPOINT_CONNECTION_RULES,
    SHAPES_CATEGORIES,
    builtin_metadata,
)


@pytest.fixture(scope="module")
def panoptic_categories(shared_dir):
    path = shared_dir / "datasets/panoptic/coco/annotations/panoptic_val2017.json"
    return json.loads(path.read_text())["categories"]


def test_coco_has_the_categories_of_its_files(panoptic_categories):
    assert [(c["id"], c["name"], c["isthing"]) for c in COCO_CATEGORIES] == [
        (c["id"], c["name"], c["isthing"]) for c in panoptic_categories
    ]


def test_coco_keypoints_are_those_of_its_files(shared_dir):
    path = shared_dir / "datasets/coco/annotations/person_keypoints_val2017.json"
    person = json.loads(path.read_text())["categories"][0]
    assert list(COCO_PERSON_KEYPOINT_NAMES) == person["keypoints"]
    drawn = {frozenset(rule[:2]) for rule in KEYPOINT_CONNECTION_RULES}
    assert drawn == {frozenset(person["keypoints"][end - 1] for end in ends) for ends in person["skeleton"]}
    assert all(one.replace("left", "right") == other for one, other in COCO_PERSON_KEYPOINT_FLIP_MAP)


def test_stuff_is_numbered_as_in_semantic_maps(shared_dir):
    path = shared_dir / "datasets/panoptic/coco/annotations/stuff_ids.json"
    stuff = {int(number): index for number, index in json.loads(path.read_text())["stuff"].items()}
    metadata = builtin_metadata("coco_panoptic_separated")
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {0: 0, **stuff}
    assert len(metadata["stuff_classes"]) == len(metadata["stuff_colors"]) == 54
    assert len(metadata["thing_classes"]) == len(metadata["thing_colors"]) == 80


def test_the_standard_form_numbers_all_classes_together():
    metadata = builtin_metadata("coco_panoptic_standard")
    things, stuff = metadata["thing_dataset_id_to_contiguous_id"], metadata["stuff_dataset_id_to_contiguous_id"]
    assert sorted([*things.values(), *stuff.values()]) == list(range(133))
    names = {c["id"]: c["name"] for c in COCO_CATEGORIES}
    assert all(metadata["stuff_classes"][index] == names[number] for number, index in {**things, **stuff}.items())


def test_tables_have_the_published_sizes():
    assert len(ADE20K_SEM_SEG_CATEGORIES) == len(set(ADE20K_SEM_SEG_CATEGORIES)) == 150
    assert [c["trainId"] for c in CITYSCAPES_CATEGORIES] == list(range(19))
    assert len(builtin_metadata("cityscapes")["thing_classes"]) == 8
    assert len(SHAPES_CATEGORIES) == 8
    for table in (COCO_CATEGORIES, CITYSCAPES_CATEGORIES, SHAPES_CATEGORIES):
        assert all(len(c["color"]) == 3 and max(c["color"]) <= 255 for c in table)


def test_each_call_gives_metadata_of_its_own():
    builtin_metadata("coco")["thing_classes"].clear()
    assert len(builtin_metadata("coco")["thing_classes"]) == 80


def test_an_unknown_kind_lists_the_known():
    with pytest.raises(KeyError, match="coco_person"):
        builtin_metadata("imagenet")
