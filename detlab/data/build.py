"""From names of datasets to loaders of batches.

``build_detection_train_loader`` and ``build_detection_test_loader`` take either explicit parts or a config.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detlab.config.config import CfgNode, configurable
from detlab.data.batches import GlobalBatches, OwnBatches
from detlab.data.catalog import DatasetCatalog, DatasetDicts, MetadataCatalog
from detlab.data.common import DatasetFromList, MapDataset, MappedIterable, ToIterableDataset
from detlab.data.dataset_mapper import DatasetMapper
from detlab.data.datasets.standard_format import check_standard_format
from detlab.data.detection_utils import check_metadata_consistency
from detlab.data.iterable_loader import IterableLoader
from detlab.data.loader import TrainingLoader
from detlab.data.proposals import load_proposals_into_dataset
from detlab.data.samplers.distributed_sampler import (
    EpochSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detlab.data.transfer import send_small_fields_in_messages
from detlab.data.workers import worker_options
from detlab.utils import comm
from detlab.utils.env import seed_all_rng
from detlab.utils.serialize import PicklableWrapper

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

# Here, for a worker that is started afresh comes by as well: the parts of a loader are made in this file.
send_small_fields_in_messages()

Mapper = Callable[[dict[str, Any]], Any]
Collator = Callable[[list[Any]], Any]

HISTOGRAM_COLUMNS = 3  # pairs of category and count in a row
LONGEST_NAME = 16
TRAIN_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
WHOLE = (int, np.integer)


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
        TypeError: a dataset is neither a list of dictionaries nor a ``Dataset``, or some are this and some that.
        ValueError: no names, an empty dataset or one that is not in the standard format, classes that differ, or no
            image is left; the message counts.
    """
    names = [names] if isinstance(names, str) else list(names)
    _check_named(names)
    loaded = [DatasetCatalog.get(name) for name in names]
    if any(isinstance(dataset, Dataset) for dataset in loaded):
        return _joined(names, loaded)
    for name, dicts in zip(names, loaded):
        _check_dicts(name, dicts)
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


def _check_named(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("no dataset is named; set DATASETS.TRAIN and DATASETS.TEST, such as ('coco_2017_train',)")


def _joined(names: list[str], datasets: list[Any]) -> Dataset:
    """Datasets of torch as one."""
    others = [name for name, dataset in zip(names, datasets) if not isinstance(dataset, Dataset)]
    are_iterable = {isinstance(dataset, IterableDataset) for dataset in datasets}
    if others or len(are_iterable) > 1:
        kinds = {name: type(dataset).__name__ for name, dataset in zip(names, datasets)}
        raise TypeError(
            f"datasets of different kinds cannot be joined: {kinds}; lists, map-style or iterable all of them"
        )
    if True not in are_iterable:
        for name, dataset in zip(names, datasets):
            _check_not_empty(name, dataset)
    if len(datasets) == 1:
        return datasets[0]
    return ChainDataset(datasets) if True in are_iterable else ConcatDataset(datasets)


def _check_dicts(name: str, dicts: Any) -> None:
    """Makes sure that what a registered function gave is a list of dictionaries in the standard format."""
    if isinstance(dicts, (str, dict)) or not isinstance(dicts, Sequence):
        raise TypeError(
            f"the function registered for dataset {name!r} gave a {type(dicts).__name__}; it should give a list with "
            "one dictionary for each image, or a torch.utils.data.Dataset"
        )
    _check_not_empty(name, dicts)
    check_standard_format(dicts if isinstance(dicts, (list, tuple)) else list(dicts), name)


def _check_not_empty(name: str, dataset: Any) -> None:
    if not len(dataset):
        raise ValueError(f"dataset {name!r} is empty; are its annotations the right file?")


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
        ValueError: a ``category_id`` is missing, no whole number, or not in [0, num_classes); the message names the
            first and counts the rest.
    """
    wrong: list[tuple[Any, Any]] = [
        (obj.get("category_id"), image.get("file_name", image.get("image_id")))
        for image in dataset_dicts
        for obj in _objects(image)
        if not _is_class(obj.get("category_id"), num_classes)
    ]
    if wrong:
        category, image = next((pair for pair in wrong if not isinstance(pair[0], WHOLE)), wrong[0])
        whose = f" of {', '.join(names)}" if names else ""
        if not isinstance(category, WHOLE):
            raise ValueError(
                f"an annotation in image {image}{whose} has the category_id {category!r}; each needs the number of its "
                "class, counted from 0"
            )
        largest = max(category_id for category_id, _ in wrong)
        cure = f"set the model's NUM_CLASSES to {largest + 1} or more" if largest >= num_classes else "count from 0"
        raise ValueError(
            f"category_id {category} in image {image}{whose} is outside of [0, {num_classes}), as are {len(wrong)} "
            f"annotations in all; {cure}, or correct the annotations"
        )


def _is_class(category: Any, num_classes: int) -> bool:
    return isinstance(category, WHOLE) and bool(0 <= category < num_classes)


def print_instances_class_histogram(dataset_dicts: DatasetDicts, class_names: Sequence[str]) -> None:
    """Logs a table of how many objects, crowds left out, each class has.

    Raises:
        ValueError: a ``category_id`` has no name, or there are no names.
    """
    from tabulate import tabulate

    if not class_names:
        raise ValueError(f"a histogram needs the names of the classes, got {class_names!r}")
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
        kwargs: further arguments of ``DataLoader``, such as ``multiprocessing_context="spawn"``. Those for workers make
            no difference where ``num_workers`` is 0.

    Returns:
        A :class:`~detlab.data.loader.TrainingLoader`; with an iterable dataset, unless that is made of a map-style one
        and a sampler, an :class:`~detlab.data.iterable_loader.IterableLoader`.

    Raises:
        ValueError: the batch cannot be divided among the processes, both or no batch size is given, or a sampler where
            there should be none or the other way round.
    """
    own_batch_size = _own_batch_size(total_batch_size, single_gpu_batch_size)
    options = {
        "batch_size": own_batch_size,
        "collate_fn": collate_fn or trivial_batch_collator,
        "num_workers": num_workers,
        "prefetch_factor": prefetch_factor,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        **kwargs,
    }
    _check_sampler(dataset, sampler)
    if isinstance(dataset, IterableDataset):
        dataset, sampler = _parts_of_iterable(dataset)
    if isinstance(sampler, EpochSampler):
        group_ids = _aspect_groups(dataset) if aspect_ratio_grouping else None
        return TrainingLoader(
            dataset, GlobalBatches(sampler, own_batch_size * comm.get_world_size(), group_ids), **options
        )
    seed = comm.shared_random_seed() if seed is None else seed
    if isinstance(dataset, IterableDataset):
        options = {"worker_init_fn": worker_init_reset_seed, **options}
        return IterableLoader(
            dataset, seed=seed, aspect_ratio_grouping=aspect_ratio_grouping, drop_last=drop_last, **options
        )
    group_ids = _aspect_groups(dataset) if aspect_ratio_grouping else None
    return TrainingLoader(dataset, OwnBatches(sampler, own_batch_size, seed, group_ids, drop_last), **options)


def _check_sampler(dataset: Any, sampler: Any) -> None:
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset has its own order: a sampler cannot be used with it")
    elif sampler is None:
        raise ValueError(f"{type(dataset).__name__} is map-style: a sampler has to say in which order it is read")


def _parts_of_iterable(dataset: IterableDataset) -> tuple[Any, Any]:
    """A dataset and a sampler in place of an iterable dataset that was made of these, which can begin anywhere."""
    if type(dataset) is ToIterableDataset and dataset.shard_sampler:
        return dataset.dataset, dataset.sampler
    if type(dataset) is MappedIterable:
        entries, sampler = _parts_of_iterable(dataset.dataset)
        return (dataset, None) if sampler is None else (MapDataset(entries, dataset.map_func), sampler)
    return dataset, None


def _own_batch_size(total: int | None, own: int | None) -> int:
    """Samples in a batch of this process."""
    if own is not None:
        if total:
            raise ValueError(f"give total_batch_size={total} or single_gpu_batch_size={own}, not both")
        if own < 1:
            raise ValueError(f"single_gpu_batch_size={own}: a batch has at least one sample")
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


def _as_samples(dataset: Any, mapper: Mapper | None, **options: Any) -> Any:
    """A dataset of samples, from one of entries or a list of them."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if isinstance(dataset, str) or not (isinstance(dataset, IterableDataset) or hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"a dataset is a list of dictionaries or a torch.utils.data.Dataset, got {dataset!r}; for a registered "
            "name, get_detection_dataset_dicts(name) gives it"
        )
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
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO, seed_shuffle=seed)
    raise ValueError(_explain_unknown_sampler(name))


def _explain_unknown_sampler(name: str) -> str:
    *others, last = map(repr, TRAIN_SAMPLERS)
    return (
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; it can be {', '.join(others)} or {last}, and any other sampler can be "
        "passed to build_detection_train_loader"
    )


def check_train_loader_settings(cfg: CfgNode) -> None:
    """Refuses what ``build_detection_train_loader(cfg)`` would refuse whatever the data are, before they are read.

    Raises:
        KeyError: a name of ``DATASETS.TRAIN`` is not registered.
        ValueError: ``DATASETS.TRAIN`` is empty, or ``DATALOADER.SAMPLER_TRAIN`` unknown.
    """
    _check_named(cfg.DATASETS.TRAIN)
    for name in cfg.DATASETS.TRAIN:
        DatasetCatalog[name]
    if cfg.DATALOADER.SAMPLER_TRAIN not in TRAIN_SAMPLERS:
        raise ValueError(_explain_unknown_sampler(cfg.DATALOADER.SAMPLER_TRAIN))


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
        absent = [name for name in names if name not in known]
        if absent:
            raise ValueError(
                f"MODEL.LOAD_PROPOSALS needs a file for each dataset, but there is none for {', '.join(absent)}: "
                f"DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}, with DATASETS.PROPOSAL_FILES_TEST "
                f"{tuple(cfg.DATASETS.PROPOSAL_FILES_TEST)}"
            )
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
    **kwargs: Any,
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
        kwargs: further arguments of ``DataLoader``, such as ``multiprocessing_context="spawn"``, ``pin_memory``,
            ``prefetch_factor`` or ``persistent_workers``. Those for workers make no difference where ``num_workers``
            is 0.

    Raises:
        ValueError: a sampler together with an iterable dataset.
    """
    samples = _as_samples(dataset, mapper, reject="raise")
    if sampler is None and not isinstance(samples, IterableDataset):
        sampler = InferenceSampler(len(samples))
    _check_sampler(samples, sampler)
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        collate_fn=PicklableWrapper(collate_fn or trivial_batch_collator),
        **worker_options(num_workers, **kwargs),
    )
