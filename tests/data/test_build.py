import logging
import pickle

import numpy as np
import pytest
import torch

from detlab.config.config import get_cfg
from detlab.data.build import (
    build_detection_test_loader,
    build_detection_train_loader,
    check_category_ids,
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
    trivial_batch_collator,
    worker_init_reset_seed,
)
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.samplers.distributed_sampler import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detlab.structures.boxes import BoxMode


def image(n, objects):
    return {"file_name": f"{n}.jpg", "image_id": n, "width": 10, "height": 8, "annotations": objects}


def obj(category=0, **more):
    return {"category_id": category, "bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYXY_ABS, **more}


IMAGES = [
    image(0, [obj(0), obj(1)]),
    image(1, []),
    image(2, [obj(1, iscrowd=1)]),
    image(3, [obj(2, keypoints=[1, 1, 2, 1, 1, 0, 1, 1, 1]), obj(2, iscrowd=0)]),
]


@pytest.fixture
def register():
    names = []

    def add(name, dicts, classes=("a", "b", "c")):
        names.append(name)
        DatasetCatalog.register(name, lambda: [dict(d) for d in dicts])
        if classes:
            MetadataCatalog.get(name).thing_classes = list(classes)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def ids(dicts):
    return [d["image_id"] for d in dicts]


def small_cfg(*train, num_classes=3):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = train
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def test_images_with_crowds_only_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.INFO):
        assert ids(filter_images_with_only_crowd_annotations(IMAGES)) == [0, 3]
    assert "Left out 2 of 4 images" in caplog.text


def test_images_with_few_keypoints_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.INFO):
        assert ids(filter_images_with_few_keypoints(IMAGES, 2)) == [3]
    assert "Left out 3 of 4 images with fewer than 2 keypoints" in caplog.text
    assert ids(filter_images_with_few_keypoints(IMAGES, 3)) == []


def test_datasets_are_joined_in_order(register):
    names = [register("test_build_1", IMAGES[:2]), register("test_build_2", IMAGES[2:])]
    assert ids(get_detection_dataset_dicts(names, filter_empty=False)) == [0, 1, 2, 3]
    assert ids(get_detection_dataset_dicts(names)) == [0, 3]
    assert ids(get_detection_dataset_dicts("test_build_1")) == [0]


def test_datasets_of_different_classes_are_not_joined(register):
    names = [register("test_build_1", IMAGES), register("test_build_2", IMAGES, ("a", "b", "d"))]
    with pytest.raises(ValueError, match="same 'thing_classes'"):
        get_detection_dataset_dicts(names)
    assert len(get_detection_dataset_dicts(names, check_consistency=False)) == 4


def test_an_unregistered_dataset_names_the_nearest(register):
    register("test_build_1", IMAGES)
    with pytest.raises(KeyError, match="Did you mean 'test_build_1'"):
        get_detection_dataset_dicts("test_build_11")


def test_no_names_and_no_images_are_refused(register):
    with pytest.raises(ValueError, match=r"set DATASETS\.TRAIN"):
        get_detection_dataset_dicts([])
    with pytest.raises(ValueError, match="'test_build_1' is empty"):
        get_detection_dataset_dicts(register("test_build_1", []))


def test_an_empty_training_set_says_what_was_there_and_what_to_do(register):
    name = register("test_build_1", IMAGES[1:3])
    with pytest.raises(ValueError, match=r"2 images have 1 annotations, 1 of them crowds.*FILTER_EMPTY_ANNOTATIONS"):
        build_detection_train_loader(small_cfg(name))
    keypoints = register("test_build_2", IMAGES)
    with pytest.raises(ValueError, match=r"MIN_KEYPOINTS_PER_IMAGE to 2 or less"):
        get_detection_dataset_dicts(keypoints, min_keypoints=5)


def test_a_category_outside_of_the_models_classes_is_found_before_training(register):
    name = register("test_build_1", IMAGES)
    with pytest.raises(
        ValueError, match=r"category_id 2 in image 3\.jpg of test_build_1 .* \[0, 2\), as are 2 .* to 3 or"
    ):
        build_detection_train_loader(small_cfg(name, num_classes=2))
    cfg = small_cfg(name, num_classes=2)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    build_detection_train_loader(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        build_detection_train_loader(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    build_detection_train_loader(cfg)


def test_negative_categories_are_refused_and_all_good_ones_pass():
    check_category_ids(IMAGES, 3)
    with pytest.raises(ValueError, match=r"category_id -1 .* count from 0"):
        check_category_ids([image(0, [obj(-1)])], 3)


def test_classes_that_the_model_has_in_vain_are_mentioned(register, caplog):
    build_detection_train_loader(small_cfg(register("test_build_1", IMAGES), num_classes=80))
    assert "NUM_CLASSES 80, but 'test_build_1' has 3 classes; set NUM_CLASSES to 3" in caplog.text


def test_the_histogram_counts_objects_of_each_class(caplog):
    with caplog.at_level(logging.INFO):
        print_instances_class_histogram(IMAGES, ["a", "b", "a category with a long name", "d"])
    cells = [cell.strip() for line in caplog.text.splitlines() for cell in line.split("|")]
    assert cells[cells.index("a") + 1] == "1" and cells[cells.index("a category wi...") + 1] == "2"
    assert cells[cells.index("b") + 1] == "1" and cells[cells.index("d") + 1] == "0"
    assert cells[cells.index("total") + 1] == "4"
    with pytest.raises(ValueError, match="category_id 2"):
        print_instances_class_histogram(IMAGES, ["a", "b"])


def test_a_config_makes_the_loader(register):
    cfg = small_cfg(register("test_build_1", IMAGES))
    cfg.SEED = 7
    loader = build_detection_train_loader(cfg, mapper=lambda d: d["image_id"])
    assert len(loader.dataset) == 2 and loader.batch_size == 2 and loader.state_dict() == {"seed": 7}
    assert isinstance(loader.sampler, TrainingSampler) and set(next(iter(loader))) <= {0, 3}
    explicit = build_detection_train_loader(cfg, mapper=lambda d: d["image_id"], dataset=IMAGES)
    assert len(explicit.dataset) == 4


def test_the_config_names_the_sampler(register):
    cfg = small_cfg(register("test_build_1", IMAGES))
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    assert isinstance(build_detection_train_loader(cfg).sampler, RepeatFactorTrainingSampler)
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.merge_from_list(["DATALOADER.RANDOM_SUBSET_RATIO", "0.5"])
    subset = build_detection_train_loader(cfg, dataset=IMAGES).sampler
    assert isinstance(subset, RandomSubsetTrainingSampler) and len(subset.epoch_indices(0)) == 2
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.5
    with pytest.raises(ValueError, match=r"1\.5 \(DATALOADER\.RANDOM_SUBSET_RATIO\) of 4 entries"):
        build_detection_train_loader(cfg, dataset=IMAGES)
    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(ValueError, match="'Sampler'; it can be 'TrainingSampler'"):
        build_detection_train_loader(cfg)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_test_loader_gives_everything_once(register, num_workers):
    cfg = small_cfg()
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = build_detection_test_loader(cfg, register("test_build_1", IMAGES), mapper=lambda d: d["image_id"])
    assert len(loader) == 4 and list(loader) == [[0], [1], [2], [3]]
    batched = build_detection_test_loader(IMAGES, mapper=lambda d: d["image_id"], batch_size=3)
    assert list(batched) == [[0, 1, 2], [3]]


def test_a_subset_of_the_default_share_is_all():
    cfg = small_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    sampler = build_detection_train_loader(cfg, dataset=IMAGES).sampler
    assert sorted(sampler.epoch_indices(0)) == [0, 1, 2, 3]


def test_images_without_annotations_are_not_repeated():
    cfg = small_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    unlabelled = [{"file_name": f"{n}.jpg", "image_id": n, "width": 4, "height": 4} for n in range(3)]
    sampler = build_detection_train_loader(cfg, dataset=unlabelled + [image(9, [obj(0)])]).sampler
    assert sorted(sampler.epoch_indices(0))[:3] == [0, 1, 2] and 3 in sampler.epoch_indices(0)


OPTIONS = {
    "multiprocessing_context": "spawn",
    "pin_memory": False,
    "prefetch_factor": 3,
    "persistent_workers": True,
    "worker_init_fn": lambda worker_id: np.random.seed(worker_id),
}


def image_id_of(entry):
    return entry["image_id"]


@pytest.mark.parametrize("with_config", [True, False])
def test_the_loaders_options_can_be_chosen(register, with_config):
    name = register("test_build_1", IMAGES)
    cfg = small_cfg(name)
    if with_config:
        loader = build_detection_test_loader(cfg, name, mapper=image_id_of, num_workers=1, **OPTIONS)
        training = build_detection_train_loader(cfg, mapper=image_id_of, num_workers=1, **OPTIONS)._loader
    else:
        loader = build_detection_test_loader(IMAGES, mapper=image_id_of, num_workers=1, **OPTIONS)
        training = build_detection_train_loader(
            IMAGES, mapper=image_id_of, total_batch_size=2, num_workers=1, **OPTIONS
        )._loader
    for chosen in (loader, training):
        assert chosen.multiprocessing_context.get_start_method() == "spawn"
        assert chosen.prefetch_factor == 3 and chosen.persistent_workers


def test_options_of_workers_make_no_difference_without_workers():
    loader = build_detection_test_loader(IMAGES, mapper=image_id_of, **OPTIONS)
    assert list(loader) == [[0], [1], [2], [3]]
    assert len(next(iter(build_detection_train_loader(IMAGES, mapper=image_id_of, total_batch_size=2, **OPTIONS)))) == 2


def test_a_spawned_worker_takes_lambdas_and_classes_made_in_functions():
    class Mapper:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, entry):
            return self.factor * entry["image_id"]

    loader = build_detection_test_loader(
        IMAGES, mapper=Mapper(10), collate_fn=lambda batch: batch[0], num_workers=1, multiprocessing_context="spawn"
    )
    assert list(loader) == [0, 10, 20, 30]


def test_an_unknown_option_of_a_loader_is_refused():
    with pytest.raises(TypeError, match="num_wrokers"):
        build_detection_test_loader(IMAGES, mapper=None, num_wrokers=2)
    with pytest.raises(ValueError, match=r"DATALOADER\.NUM_WORKERS\) is -1"):
        build_detection_test_loader(IMAGES, mapper=None, num_workers=-1)


def test_evaluation_does_not_replace_images():
    loader = build_detection_test_loader(IMAGES, mapper=lambda d: None)
    with pytest.raises(ValueError, match="entry 0"):
        next(iter(loader))


def test_evaluation_leaves_the_callers_randomness_alone():
    before = torch.get_rng_state()
    list(build_detection_test_loader(IMAGES, mapper=None, num_workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_dataset_may_be_a_torch_dataset(register):
    DatasetCatalog.register("test_build_torch", lambda: torch.utils.data.TensorDataset(torch.arange(5)))
    try:
        dataset = get_detection_dataset_dicts("test_build_torch")
        assert len(dataset) == 5
        assert len(get_detection_dataset_dicts(["test_build_torch"] * 2)) == 10
    finally:
        DatasetCatalog.remove("test_build_torch")


def test_proposals_come_with_a_dataset(tmp_path, register):
    boxes, logits = [np.zeros((1, 4)), np.zeros((0, 4))], [np.zeros(1), np.zeros(0)]
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps({"ids": [0, 1], "boxes": boxes, "objectness_logits": logits}))
    name = register("test_build_1", IMAGES[:2])
    assert "proposal_boxes" in get_detection_dataset_dicts(name, proposal_files=[str(path)])[0]
    with pytest.raises(ValueError, match="1 datasets need as many proposal files, got 2"):
        get_detection_dataset_dicts(name, proposal_files=[str(path)] * 2)


def test_a_test_set_without_a_proposal_file_is_named(register):
    cfg = small_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.TEST = ("test_build_1",)
    with pytest.raises(ValueError, match=r"none for test_build_1: DATASETS\.TEST is \('test_build_1',\)"):
        build_detection_test_loader(cfg, register("test_build_1", IMAGES))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.json", "'test_build_odd' gave a str; it should give a list"),
        ({"images": []}, "gave a dict"),
        (None, "gave a NoneType"),
        ([image(0, []), "1.jpg"], r"image number 1 of dataset 'test_build_odd' .* but is '1\.jpg'"),
        ([None], "image number 0 of dataset 'test_build_odd' .* but is None"),
    ],
)
def test_what_is_no_list_of_dictionaries_is_refused_by_name(given, message):
    DatasetCatalog.register("test_build_odd", lambda: given)
    try:
        with pytest.raises((TypeError, ValueError), match=message):
            get_detection_dataset_dicts("test_build_odd")
    finally:
        DatasetCatalog.remove("test_build_odd")


def test_iterable_datasets_are_joined_and_kinds_are_not_mixed(register):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(IMAGES)

    DatasetCatalog.register("test_build_stream", Stream)
    try:
        assert isinstance(get_detection_dataset_dicts("test_build_stream"), Stream)
        assert ids(get_detection_dataset_dicts(["test_build_stream"] * 2)) == [0, 1, 2, 3, 0, 1, 2, 3]
        for names in (["test_build_stream", register("test_build_1", IMAGES)], ["test_build_1", "test_build_stream"]):
            with pytest.raises(TypeError, match="'test_build_stream': 'Stream'"):
                get_detection_dataset_dicts(names)
    finally:
        DatasetCatalog.remove("test_build_stream")


@pytest.mark.parametrize("category", [None, "3", 1.5])
def test_a_category_that_is_no_number_is_refused(category):
    with pytest.raises(
        ValueError, match=rf"image 0\.jpg of data has the category_id {category!r}; each needs the number"
    ):
        check_category_ids([image(0, [obj(1), obj(category)])], 3, ["data"])
    with pytest.raises(ValueError, match="has the category_id None"):
        print_instances_class_histogram([image(0, [{"bbox": [0, 0, 1, 1]}])], ["a"])


@pytest.mark.parametrize("names", [None, []])
def test_a_histogram_of_no_classes_is_refused(names):
    with pytest.raises(ValueError, match="needs the names of the classes"):
        print_instances_class_histogram(IMAGES[1:2], names)


@pytest.mark.parametrize("build", [build_detection_test_loader, build_detection_train_loader])
def test_a_name_in_place_of_a_dataset_is_refused(build):
    options = {"total_batch_size": 2} if build is build_detection_train_loader else {}
    for wrong in ("coco_2017_train", None, 3):
        with pytest.raises(TypeError, match=r"a dataset is a list of dictionaries .* get_detection_dataset_dicts"):
            build(wrong, mapper=None, **options)
    with pytest.raises(TypeError, match="'mapper' cannot be called"):
        build(IMAGES, mapper="mapper", **options)


def test_workers_get_different_seeds():
    drawn = []
    for worker in range(2):
        worker_init_reset_seed(worker)
        drawn.append(np.random.rand())
    assert drawn[0] != drawn[1]


def test_the_trivial_collator_keeps_the_list():
    batch = [1, 2]
    assert trivial_batch_collator(batch) is batch


@pytest.mark.parametrize("num_workers", [0, 1])
def test_real_images_give_the_same_batches_for_any_number_of_workers(shared_dir, num_workers, register):
    from detlab.data.datasets.coco import load_coco_json

    folder = shared_dir / "datasets" / "coco"
    dicts = load_coco_json(str(folder / "annotations" / "instances_val2017.json"), str(folder / "val2017"))
    for entry in dicts:
        for annotation in entry["annotations"]:
            annotation["category_id"] = 0
    cfg = small_cfg(register("test_build_coco", dicts, classes=None))
    cfg.INPUT.MIN_SIZE_TRAIN = (96, 128)
    cfg.MODEL.MASK_ON = True
    cfg.SEED = 2
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = build_detection_train_loader(cfg)
    loader.set_start_iteration(3)
    batch = next(iter(loader))
    assert len(batch) == 2
    cfg.DATALOADER.NUM_WORKERS = 0
    expected = list(zip(range(4), build_detection_train_loader(cfg)))[3][1]
    for one, other in zip(batch, expected):
        assert one["image_id"] == other["image_id"] and torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


def test_a_dataset_that_is_not_in_the_standard_format_is_refused_by_name():
    DatasetCatalog.register("test_no_format", lambda: [{"file_name": "a.jpg", "annotations": [{"bbox": [1, 2, 3, 4]}]}])
    try:
        with pytest.raises(
            ValueError, match=r"annotation number 0 in image 'a\.jpg' of dataset 'test_no_format' has no"
        ):
            get_detection_dataset_dicts("test_no_format")
    finally:
        DatasetCatalog.remove("test_no_format")
