"""From names of datasets to loaders of batches.

``build_detection_train_loader`` and ``build_detection_test_loader`` take either explicit parts or a config.
"""

from __future__ import annotations

import itertools
import logging
import operator
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detlab.checkpoint.restricted_pickle import load_arrays
from detlab.config.config import CfgNode, configurable
from detlab.data.batches import BatchPlan, GlobalBatches, OwnBatches
from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.common import AspectRatioGroupedDataset, DatasetFromList, MapDataset
from detlab.data.dataset_mapper import DatasetMapper
from detlab.data.detection_utils import check_metadata_consistency
from detlab.data.loader import TrainingLoader, worker_options
from detlab.data.samplers.distributed_sampler import (
    EpochSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detlab.structures.boxes import BoxMode
from detlab.utils import comm
from detlab.utils.env import seed_all_rng
from detlab.utils.file_io import PathManager

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "check_category_ids",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], Any]
Collator = Callable[[list[Any]], Any]

HISTOGRAM_COLUMNS = 3  # pairs of category and count in a row
LONGEST_NAME = 16
# Names that other programs write proposals under.
PROPOSAL_KEY_ALIASES = {"indexes": "ids", "scores": "objectness_logits"}


# ---------------------------------------------------------------------------------------- choosing among the images


def _objects(image: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return image.get("annotations", ())


def filter_images_with_only_crowd_annotations(dataset_dicts: DatasetDicts) -> DatasetDicts:
    """The images with at least one object that is no crowd; how many were left out is logged."""
    kept = [image for image in dataset_dicts if any(not obj.get("iscrowd", 0) for obj in _objects(image))]
    _log_left_out(len(dataset_dicts), len(kept), "no usable annotations (none, or crowds only)")
    return kept


def filter_images_with_few_keypoints(dataset_dicts: DatasetDicts, min_keypoints_per_image: int) -> DatasetDicts:
    """The images whose objects together have so many keypoints labelled (visibility above 0); the rest is logged."""
    kept = [image for image in dataset_dicts if _count_keypoints(image) >= min_keypoints_per_image]
    _log_left_out(len(dataset_dicts), len(kept), f"fewer than {min_keypoints_per_image} keypoints")
    return kept


def _count_keypoints(image: dict[str, Any]) -> int:
    labelled = (visibility > 0 for obj in _objects(image) for visibility in obj.get("keypoints", ())[2::3])
    return sum(labelled)


def _log_left_out(before: int, after: int, reason: str) -> None:
    logger.info(f"Left out {before - after} of {before} images with {reason}; {after} remain")


def load_proposals_into_dataset(dataset_dicts: DatasetDicts, proposal_file: str) -> DatasetDicts:
    """Adds precomputed proposals to images: ``proposal_boxes``, ``proposal_objectness_logits``, ``proposal_bbox_mode``.

    Args:
        dataset_dicts: in the standard format, with ``image_id``; changed in place.
        proposal_file: a pickle of a dictionary with, for each image, its id (``ids``), an (N, 4) array (``boxes``) and
            an (N,) array (``objectness_logits``); ``bbox_mode``, a number of ``BoxMode``, defaults to ``XYXY_ABS``.

    Returns:
        ``dataset_dicts``; proposals of an image are in the order of decreasing objectness.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a dictionary, asks to run code, or lacks an image.
    """
    proposals = _read_proposals(proposal_file)
    place_of = {str(image_id): place for place, image_id in enumerate(proposals["ids"])}
    missing = [image["image_id"] for image in dataset_dicts if str(image["image_id"]) not in place_of]
    if missing:
        raise ValueError(f"{proposal_file} has no proposals for {len(missing)} images, such as image {missing[0]}")
    box_mode = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))
    for image in dataset_dicts:
        place = place_of[str(image["image_id"])]
        logits = np.asarray(proposals["objectness_logits"][place])
        order = np.argsort(-logits, kind="stable")
        image["proposal_boxes"] = np.asarray(proposals["boxes"][place])[order]
        image["proposal_objectness_logits"] = logits[order]
        image["proposal_bbox_mode"] = box_mode
    logger.info(f"Took proposals of {len(dataset_dicts)} images from {proposal_file}")
    return dataset_dicts


def _read_proposals(proposal_file: str) -> dict[str, Any]:
    with PathManager.open(proposal_file, "rb") as stream:
        try:
            content = load_arrays(stream)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{proposal_file} is refused: {error}; it should hold arrays and numbers only") from None
    if not isinstance(content, dict):
        raise ValueError(f"{proposal_file} should be a dictionary, but is a {type(content).__name__}")
    found = {PROPOSAL_KEY_ALIASES.get(str(key), str(key)): value for key, value in content.items()}
    absent = {"ids", "boxes", "objectness_logits"} - found.keys()
    if absent:
        raise ValueError(
            f"{proposal_file} should be a dictionary with {sorted(absent)}, but has {sorted(map(str, content))}"
        )
    return found


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Loads and joins datasets for detection.

    Args:
        names: of registered datasets.
        filter_empty: leave out images without objects, or with crowds only.
        min_keypoints: leave out images with fewer keypoints labelled; 0 keeps them.
        proposal_files: one for each dataset, see :func:`load_proposals_into_dataset`.
        check_consistency: make sure that the datasets have the same classes.

    Returns:
        A list in the standard format, or, if the datasets are ``torch.utils.data.Dataset``, these joined and otherwise
        as they are.

    Raises:
        KeyError: a name is not registered.
        ValueError: no names, an empty dataset, classes that differ, or no image is left; the message counts.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no dataset is named; set DATASETS.TRAIN and DATASETS.TEST, such as ('coco_2017_train',)")
    loaded = [DatasetCatalog.get(name) for name in names]
    for name, dataset in zip(names, loaded):
        if not len(dataset):
            raise ValueError(f"dataset {name!r} is empty; are its annotations the right file?")
    if isinstance(loaded[0], Dataset):
        return loaded[0] if len(loaded) == 1 else ConcatDataset(loaded)
    if proposal_files:
        if len(proposal_files) != len(names):
            raise ValueError(f"{len(names)} datasets need as many proposal files, got {len(proposal_files)}")
        loaded = [load_proposals_into_dataset(dicts, file) for dicts, file in zip(loaded, proposal_files)]
    joined = list(itertools.chain.from_iterable(loaded))
    if "annotations" not in joined[0]:
        return joined
    chosen = filter_images_with_only_crowd_annotations(joined) if filter_empty else joined
    if min_keypoints > 0:
        chosen = filter_images_with_few_keypoints(chosen, min_keypoints)
    if not chosen:
        raise ValueError(_explain_empty(names, joined, filter_empty, min_keypoints))
    if check_consistency and all(MetadataCatalog.get(name).get("thing_classes") for name in names):
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(chosen, MetadataCatalog.get(names[0]).thing_classes)
    return chosen


def _explain_empty(names: list[str], images: DatasetDicts, filter_empty: bool, min_keypoints: int) -> str:
    objects = [obj for image in images for obj in _objects(image)]
    crowds = sum(bool(obj.get("iscrowd", 0)) for obj in objects)
    cures = []
    if filter_empty:
        cures.append("set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to keep images without objects")
    if min_keypoints > 0:
        most = max(map(_count_keypoints, images))
        cures.append(f"lower MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE to {most} or less")
    return (
        f"no image of {', '.join(names)} is left: their {len(images)} images have {len(objects)} annotations, "
        f"{crowds} of them crowds. Check the annotation files, or {' and '.join(cures)}"
    )


# ------------------------------------------------------------------------------------------------------ categories


def check_category_ids(dataset_dicts: Iterable[dict[str, Any]], num_classes: int, names: Sequence[str] = ()) -> None:
    """Makes sure that a model with ``num_classes`` classes can be trained on these annotations.

    Args:
        dataset_dicts: in the standard format.
        num_classes: of the model.
        names: of the datasets, for messages.

    Raises:
        ValueError: a ``category_id`` is not in [0, num_classes); the message names the first and counts the rest.
    """
    wrong = [
        (obj["category_id"], image.get("file_name", image.get("image_id")))
        for image in dataset_dicts
        for obj in _objects(image)
        if not 0 <= obj["category_id"] < num_classes
    ]
    if wrong:
        category, image = wrong[0]
        largest = max(category_id for category_id, _ in wrong)
        whose = f" of {', '.join(names)}" if names else ""
        cure = f"set the model's NUM_CLASSES to {largest + 1} or more" if largest >= num_classes else "count from 0"
        raise ValueError(
            f"category_id {category} in image {image}{whose} is outside of [0, {num_classes}), as are {len(wrong)} "
            f"annotations in all; {cure}, or correct the annotations"
        )


def print_instances_class_histogram(dataset_dicts: DatasetDicts, class_names: Sequence[str]) -> None:
    """Logs a table of how many objects, crowds left out, each class has.

    Raises:
        ValueError: a ``category_id`` has no name.
    """
    from tabulate import tabulate

    check_category_ids(dataset_dicts, len(class_names))
    found = (obj["category_id"] for image in dataset_dicts for obj in _objects(image) if not obj.get("iscrowd"))
    counts = np.bincount(np.fromiter(found, dtype=np.int64), minlength=len(class_names)).tolist()
    cells = [cell for name, count in zip(class_names, counts) for cell in (_shorten(name), count)]
    width = 2 * min(HISTOGRAM_COLUMNS, len(class_names))
    if len(class_names) > 1:
        cells += [None] * (-len(cells) % width) + ["total", sum(counts)]
    rows = [cells[place : place + width] for place in range(0, len(cells), width)]
    table = tabulate(rows, headers=["category", "objects"] * (width // 2), tablefmt="pipe", stralign="center")
    logger.info(f"Objects of each of the {len(class_names)} classes:\n{table}")


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


# ---------------------------------------------------------------------------------------------------------- loaders


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """The samples as they are: models take lists."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Gives each worker process different seeds, for datasets that draw at random outside of a training stream."""
    seed_all_rng((torch.initial_seed() + worker_id) % 2**31)


def build_batch_data_loader(
    dataset: Any,
    sampler: Any,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader of batches for training.

    Args:
        dataset: map-style; or iterable, without a sampler.
        sampler: one of this package, whose stream is divided among the processes batch by batch; or any that gives
            this process's indices.
        total_batch_size: samples in a batch of all processes.
        aspect_ratio_grouping: put wide and high images into different batches. Of map-style datasets, those that are
            made of lists of dictionaries with ``width`` and ``height`` can be grouped.
        num_workers: processes that read samples, for each training process.
        collate_fn: makes a batch of a list of samples; None keeps the list.
        drop_last: leave out what does not fill a batch when a sampler of one's own ends.
        single_gpu_batch_size: samples in a batch of this process, in place of ``total_batch_size``.
        prefetch_factor: batches that each worker reads ahead.
        persistent_workers: keep worker processes for the next ``iter()``.
        pin_memory: see ``torch.utils.data.DataLoader``.
        seed: of the samples' randomness, and the same for all processes. A sampler of this package has its own, which
            is taken. None draws one, for which all processes must call this together.
        kwargs: further arguments of ``DataLoader``.

    Returns:
        A :class:`~detlab.data.loader.TrainingLoader`; with an iterable dataset, some iterable of batches.

    Raises:
        ValueError: the batch cannot be divided among the processes, or both or no batch size is given.
    """
    own_batch_size = _own_batch_size(total_batch_size, single_gpu_batch_size)
    options = {"persistent_workers": persistent_workers and num_workers > 0, "pin_memory": pin_memory, **kwargs}
    if num_workers > 0:
        options["prefetch_factor"] = prefetch_factor
    collate = collate_fn or trivial_batch_collator
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset has its own order: a sampler cannot be used with it")
        options = {"worker_init_fn": worker_init_reset_seed, **worker_options(num_workers), **options}
        return _batches_of_iterable(dataset, own_batch_size, aspect_ratio_grouping, collate, drop_last, options)
    group_ids = _aspect_groups(dataset) if aspect_ratio_grouping else None
    plan: BatchPlan
    if isinstance(sampler, EpochSampler):
        plan = GlobalBatches(sampler, own_batch_size * comm.get_world_size(), group_ids)
    else:
        seed = comm.shared_random_seed() if seed is None else seed
        plan = OwnBatches(sampler, own_batch_size, seed, group_ids, drop_last)
    return TrainingLoader(
        dataset, plan, batch_size=own_batch_size, collate_fn=collate, num_workers=num_workers, **options
    )


def _own_batch_size(total: int | None, own: int | None) -> int:
    """Samples in a batch of this process."""
    if own is not None:
        if total:
            raise ValueError(f"give total_batch_size={total} or single_gpu_batch_size={own}, not both")
        return own
    processes = comm.get_world_size()
    if not total or total < 1 or total % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH (total_batch_size) is {total}, which {processes} processes cannot share equally; "
            f"it should be {processes}, {2 * processes}, {3 * processes}, ..."
        )
    return total // processes


def _aspect_groups(dataset: Any) -> np.ndarray | None:
    """(len,) 0 for high and 1 for wide images, if the dataset can tell without reading them."""
    innermost = dataset
    while isinstance(innermost, MapDataset):
        innermost = innermost.dataset
    is_wide = getattr(innermost, "is_wide", None)
    if is_wide is None:
        logger.info(
            "Images are not grouped by aspect ratio: the dataset does not tell which are wide. A list of dictionaries "
            "with 'width' and 'height' does, or an attribute is_wide with one bool for each entry"
        )
        return None
    return np.asarray(is_wide, dtype=np.int64)


def _batches_of_iterable(
    dataset: IterableDataset,
    batch_size: int,
    aspect_ratio_grouping: bool,
    collate: Collator,
    drop_last: bool,
    options: dict[str, Any],
) -> Any:
    if not aspect_ratio_grouping:
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate, **options)
    entries = DataLoader(dataset, batch_size=1, collate_fn=operator.itemgetter(0), **options)
    return MapDataset(AspectRatioGroupedDataset(entries, batch_size), collate)


def _as_samples(dataset: Any, mapper: Mapper | None, **options: Any) -> Any:
    """A dataset of samples, from one of entries or a list of them."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper, **options)


def _stream_seed(cfg: CfgNode) -> int:
    """Of the training samples: SEED, or one drawn for all processes."""
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def _train_loader_from_config(
    cfg: CfgNode, mapper: Mapper | None = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        num_classes = _num_classes(cfg)
        if num_classes is not None and isinstance(dataset, list):
            check_category_ids(dataset, num_classes, cfg.DATASETS.TRAIN)
            _warn_of_unused_classes(cfg.DATASETS.TRAIN[0], num_classes)
    seed = _stream_seed(cfg)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = _build_sampler(cfg, dataset, seed)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "seed": seed,
    }


def _num_classes(cfg: CfgNode) -> int | None:
    """Of the model, as far as its boxes are concerned; None if it tells no classes, or is not one of ours."""
    sections = {"RetinaNet": "RETINANET", "GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS"}
    section = sections.get(cfg.MODEL.META_ARCHITECTURE)
    return None if section is None else cfg.MODEL[section].NUM_CLASSES


def _warn_of_unused_classes(dataset_name: str, num_classes: int) -> None:
    known = MetadataCatalog.get(dataset_name).get("thing_classes")
    if known and len(known) < num_classes:
        logger.warning(
            f"The model has NUM_CLASSES {num_classes}, but {dataset_name!r} has {len(known)} classes; "
            f"set NUM_CLASSES to {len(known)} unless this is intended"
        )


def _build_sampler(cfg: CfgNode, dataset: Any, seed: int) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info(f"Training samples are chosen by {name}")
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        if "RANDOM_SUBSET_RATIO" not in cfg.DATALOADER:
            raise ValueError("RandomSubsetTrainingSampler needs cfg.DATALOADER.RANDOM_SUBSET_RATIO, a share in (0, 1]")
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO, seed_shuffle=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; it can be 'TrainingSampler', 'RepeatFactorTrainingSampler' or "
        "'RandomSubsetTrainingSampler', and any other sampler can be passed to build_detection_train_loader"
    )


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Any = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader of training batches, without end.

    Called with a config, ``build_detection_train_loader(cfg, mapper=None, *, dataset=None, sampler=None)``, it takes
    what is not given from ``DATASETS``, ``DATALOADER``, ``INPUT`` and ``SOLVER.IMS_PER_BATCH``; ``SEED``, if not
    negative, decides the order of samples and their augmentation.

    Args:
        dataset: a list of dataset dicts, or a dataset, map-style or iterable.
        mapper: makes a training sample of an entry; None takes entries as they are.
        sampler: see :func:`build_batch_data_loader`; None shuffles all entries in each epoch.
        total_batch_size: samples in a batch of all processes.
        aspect_ratio_grouping: put wide and high images into different batches.
        num_workers: processes that read samples, for each training process.
        collate_fn: makes a batch of a list of samples; None keeps the list.
        seed: see :func:`build_batch_data_loader`.
        kwargs: see :func:`build_batch_data_loader`.

    Returns:
        See :func:`build_batch_data_loader`.
    """
    samples = _as_samples(dataset, mapper)
    if sampler is None and not isinstance(samples, IterableDataset):
        sampler = TrainingSampler(len(samples), seed=seed)
    return build_batch_data_loader(
        samples,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        seed=seed,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Mapper | None = None
) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        known = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST))
        proposal_files = [known[name] for name in names]
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if isinstance(dataset, IterableDataset) else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list[Any] | Dataset,
    *,
    mapper: Mapper | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
) -> DataLoader:
    """A loader that gives every entry once, divided among the processes.

    Called with a config, ``build_detection_test_loader(cfg, dataset_name, mapper=None)``, it takes the named dataset
    and ``DatasetMapper(cfg, is_train=False)``.

    Args:
        dataset: a list of dataset dicts, or a dataset, map-style or iterable.
        mapper: makes a sample of an entry; None takes entries as they are.
        sampler: gives this process's indices; None divides the dataset into contiguous parts.
        batch_size: samples in a batch of this process.
        num_workers: processes that read samples, for each process.
        collate_fn: makes a batch of a list of samples; None keeps the list.

    Raises:
        ValueError: a sampler together with an iterable dataset.
    """
    samples = _as_samples(dataset, mapper, reject="raise")
    if isinstance(samples, IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset has its own order: a sampler cannot be used with it")
    elif sampler is None:
        sampler = InferenceSampler(len(samples))
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        collate_fn=collate_fn or trivial_batch_collator,
        **worker_options(num_workers),
    )
