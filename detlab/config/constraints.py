"""What each key of a config may hold, and how keys go together: the one place that says so.

``LIMITS`` is read when settings are merged, by ``check_config`` before anything is built from a config, and for tables
of all keys. Keys that a project adds have no limit and may hold anything of their type. What is registered by name
(models, samplers, schedules, ...) is left to the registries, which know the names.

Code of yours that gives a key a further meaning widens its entry, for example
``LIMITS["INPUT.MASK_FORMAT"] = OneOf(("polygon", "bitmask", "rle"))``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detlab.config.limits import Anything, Each, Interval, Limit, OneOf, Optional, PerLevel, Text, is_held
from detlab.config.values import shown

__all__ = ["LIMITS", "RULES", "Rule", "check_config", "problem_with"]

_SHARE = Interval(0, 1, noun="a share")
_OVERLAP = Interval(0, 1, open_low=True, noun="an overlap")
_SCORE = Interval(high=1, noun="a score")
_FROM_0 = Interval(0)
_ABOVE_0 = Interval(0, open_low=True)
_COUNT = Interval(1, whole=True)
_COUNT_OR_0 = Interval(0, whole=True)
# Where a slip of the finger would cost the machine's memory, there are generous bounds: beyond these no layer, batch or
# computer is.
_CHANNELS = Interval(1, 2**16, whole=True)
_LAYERS = Interval(0, 1000, whole=True)
_CLASSES = Interval(1, 10**6, whole=True)
_BINS = Interval(1, 1024, whole=True)
_PIXELS = Interval(1, 2**16, whole=True)
_PIXELS_OR_0 = Interval(0, 2**16, whole=True)
_SAMPLES = Interval(1, 2**24, whole=True)
# There is room for so many in every image, whether they are found or not.
_KEPT = Interval(1, 10**6, whole=True)
_IMAGES = Interval(1, 2**20, whole=True)
_PROCESSES = Interval(0, 2**20, whole=True)
# Each is a process of a few hundred megabytes.
_WORKERS = Interval(0, 1024, whole=True)
# Thirty years at a thousand a second.
_ITERATIONS = Interval(0, 10**12, whole=True)
_WHOLE = Interval(whole=True)
_FLAG = OneOf((True, False))
# Of something that is registered; the registry knows which there are, and whether there may be none.
_NAME = Text(r"(?s).*", "a name, as text")
_NORM = Optional(_NAME, "no normalisation")
_NAMES = Each(Text())
_FEATURES = Each(Text(words="the name of a feature map"))
_THRESHOLDS = Each(_OVERLAP, at_least=1, rising=True)
_LABELS = Each(OneOf((-1, 0, 1)), at_least=2)
_BOX_LOSS = OneOf(("smooth_l1", "giou", "diou", "ciou"))
# Of boxes with 4 numbers, or of rotated ones with 5.
_BOX_WEIGHTS = Each(_ABOVE_0, counts=(4, 5))
# What detlab.utils.image reads for a model: formats of Pillow and two of its own.
_CHANNELS_OF = {
    name: count
    for count, names in {
        3: ("BGR", "RGB", "YUV-BT.601", "YCbCr", "HSV", "LAB"),
        1: ("L", "I;16", "I", "F"),
        2: ("LA",),
        4: ("RGBA", "RGBX", "CMYK"),
    }.items()
    for name in names
}
_DEVICE = Text(
    r"(cpu|cuda|mps|xpu|hpu|mtia|npu|xla|meta|privateuseone)(:\d+)?",
    "'cuda', 'cuda:1' (the second GPU), 'cpu', 'mps' or another device type that torch knows",
)


def _anchors() -> dict[str, Limit]:
    section = "MODEL.ANCHOR_GENERATOR"
    return {
        f"{section}.NAME": _NAME,
        f"{section}.SIZES": PerLevel(_ABOVE_0),
        f"{section}.ASPECT_RATIOS": PerLevel(_ABOVE_0),
        f"{section}.ANGLES": PerLevel(Interval()),
        f"{section}.OFFSET": Interval(0, 1, open_high=True),
    }


def _backbone() -> dict[str, Limit]:
    section = "MODEL.RESNETS"
    return {
        "MODEL.BACKBONE.NAME": _NAME,
        "MODEL.BACKBONE.FREEZE_AT": _WHOLE,
        f"{section}.DEPTH": _COUNT,
        f"{section}.OUT_FEATURES": _FEATURES,
        f"{section}.NUM_GROUPS": _CHANNELS,
        f"{section}.WIDTH_PER_GROUP": _CHANNELS,
        f"{section}.NORM": _NORM,
        f"{section}.STRIDE_IN_1X1": _FLAG,
        f"{section}.RES5_DILATION": _CHANNELS,
        f"{section}.RES2_OUT_CHANNELS": _CHANNELS,
        f"{section}.STEM_OUT_CHANNELS": _CHANNELS,
        f"{section}.DEFORM_ON_PER_STAGE": Each(OneOf((True, False)), counts=(4,)),
        f"{section}.DEFORM_MODULATED": _FLAG,
        f"{section}.DEFORM_NUM_GROUPS": _CHANNELS,
        "MODEL.FPN.IN_FEATURES": _FEATURES,
        "MODEL.FPN.OUT_CHANNELS": _CHANNELS,
        "MODEL.FPN.NORM": _NORM,
        "MODEL.FPN.FUSE_TYPE": OneOf(("sum", "avg")),
        "MODEL.BACKBONE.DTYPE": OneOf(("", "bfloat16", "float16")),
    }


def _rpn() -> dict[str, Limit]:
    section = "MODEL.RPN"
    return {
        "MODEL.PROPOSAL_GENERATOR.NAME": _NAME,
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _FROM_0,
        f"{section}.HEAD_NAME": _NAME,
        f"{section}.IN_FEATURES": _FEATURES,
        f"{section}.CONV_DIMS": Each(Interval(1, 2**16, whole=True, also=-1, meaning="as many as come in"), at_least=1),
        f"{section}.BOUNDARY_THRESH": Interval(high=2**31, whole=True),
        f"{section}.IOU_THRESHOLDS": _THRESHOLDS,
        f"{section}.IOU_LABELS": _LABELS,
        f"{section}.BATCH_SIZE_PER_IMAGE": _SAMPLES,
        f"{section}.POSITIVE_FRACTION": _SHARE,
        f"{section}.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
        f"{section}.BBOX_REG_LOSS_WEIGHT": _FROM_0,
        f"{section}.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
        f"{section}.SMOOTH_L1_BETA": _FROM_0,
        f"{section}.LOSS_WEIGHT": _FROM_0,
        f"{section}.PRE_NMS_TOPK_TRAIN": _COUNT,
        f"{section}.PRE_NMS_TOPK_TEST": _COUNT,
        f"{section}.POST_NMS_TOPK_TRAIN": _KEPT,
        f"{section}.POST_NMS_TOPK_TEST": _KEPT,
        f"{section}.NMS_THRESH": _SHARE,
    }


def _roi_heads() -> dict[str, Limit]:
    section = "MODEL.ROI_HEADS"
    return {
        f"{section}.NAME": _NAME,
        f"{section}.PROPOSAL_APPEND_GT": _FLAG,
        f"{section}.NUM_CLASSES": _CLASSES,
        f"{section}.IN_FEATURES": _FEATURES,
        f"{section}.IOU_THRESHOLDS": _THRESHOLDS,
        f"{section}.IOU_LABELS": _LABELS,
        f"{section}.BATCH_SIZE_PER_IMAGE": _SAMPLES,
        f"{section}.POSITIVE_FRACTION": _SHARE,
        f"{section}.SCORE_THRESH_TEST": _SCORE,
        f"{section}.NMS_THRESH_TEST": _SHARE,
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": _THRESHOLDS,
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": Each(_BOX_WEIGHTS, at_least=1),
    }


def _box_head() -> dict[str, Limit]:
    section = "MODEL.ROI_BOX_HEAD"
    flags = ("CLS_AGNOSTIC_BBOX_REG", "TRAIN_ON_PRED_BOXES", "USE_SIGMOID_CE", "USE_FED_LOSS")
    return {
        f"{section}.NAME": _NAME,
        f"{section}.NUM_CONV": _LAYERS,
        f"{section}.CONV_DIM": _CHANNELS,
        f"{section}.NUM_FC": _LAYERS,
        f"{section}.FC_DIM": _CHANNELS,
        f"{section}.NORM": _NORM,
        **_pooler(section),
        **{f"{section}.{flag}": _FLAG for flag in flags},
        f"{section}.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
        f"{section}.BBOX_REG_LOSS_WEIGHT": _FROM_0,
        f"{section}.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
        f"{section}.SMOOTH_L1_BETA": _FROM_0,
        f"{section}.FED_LOSS_NUM_CLASSES": _CLASSES,
        f"{section}.FED_LOSS_FREQ_WEIGHT_POWER": Interval(),
    }


def _pooler(section: str) -> dict[str, Limit]:
    return {
        f"{section}.POOLER_RESOLUTION": _BINS,
        f"{section}.POOLER_SAMPLING_RATIO": Interval(0, 1024, whole=True),
        f"{section}.POOLER_TYPE": _NAME,
    }


def _mask_and_keypoint_heads() -> dict[str, Limit]:
    mask, keypoint = "MODEL.ROI_MASK_HEAD", "MODEL.ROI_KEYPOINT_HEAD"
    return {
        "MODEL.MASK_ON": _FLAG,
        f"{mask}.NAME": _NAME,
        f"{mask}.NUM_CONV": _LAYERS,
        f"{mask}.CONV_DIM": _CHANNELS,
        f"{mask}.NORM": _NORM,
        f"{mask}.CLS_AGNOSTIC_MASK": _FLAG,
        **_pooler(mask),
        "MODEL.KEYPOINT_ON": _FLAG,
        f"{keypoint}.NAME": _NAME,
        f"{keypoint}.NUM_KEYPOINTS": _CHANNELS,
        f"{keypoint}.CONV_DIMS": Each(_CHANNELS, at_least=1),
        **_pooler(keypoint),
        f"{keypoint}.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": _FLAG,
        f"{keypoint}.MIN_KEYPOINTS_PER_IMAGE": _COUNT_OR_0,
        f"{keypoint}.LOSS_WEIGHT": _FROM_0,
    }


def _dense_heads() -> dict[str, Limit]:
    retina, semantic, panoptic = "MODEL.RETINANET", "MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN"
    return {
        f"{retina}.NUM_CLASSES": _CLASSES,
        f"{retina}.IN_FEATURES": _FEATURES,
        f"{retina}.NUM_CONVS": _LAYERS,
        f"{retina}.NORM": _NORM,
        f"{retina}.PRIOR_PROB": Interval(0, 1, open_low=True, open_high=True),
        f"{retina}.IOU_THRESHOLDS": _THRESHOLDS,
        f"{retina}.IOU_LABELS": _LABELS,
        f"{retina}.FOCAL_LOSS_GAMMA": _FROM_0,
        f"{retina}.FOCAL_LOSS_ALPHA": Interval(0, 1, also=-1, meaning="no weighting"),
        f"{retina}.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
        f"{retina}.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
        f"{retina}.SMOOTH_L1_LOSS_BETA": _FROM_0,
        f"{retina}.SCORE_THRESH_TEST": _SCORE,
        f"{retina}.TOPK_CANDIDATES_TEST": _KEPT,
        f"{retina}.NMS_THRESH_TEST": _SHARE,
        f"{semantic}.NAME": _NAME,
        f"{semantic}.IN_FEATURES": _FEATURES,
        f"{semantic}.IGNORE_VALUE": _WHOLE,
        f"{semantic}.NUM_CLASSES": _CLASSES,
        f"{semantic}.CONVS_DIM": _CHANNELS,
        f"{semantic}.NORM": _NORM,
        f"{semantic}.COMMON_STRIDE": _PIXELS,
        f"{semantic}.LOSS_WEIGHT": _FROM_0,
        f"{panoptic}.INSTANCE_LOSS_WEIGHT": _FROM_0,
        f"{panoptic}.COMBINE.ENABLED": _FLAG,
        f"{panoptic}.COMBINE.OVERLAP_THRESH": _SHARE,
        f"{panoptic}.COMBINE.STUFF_AREA_LIMIT": _FROM_0,
        f"{panoptic}.COMBINE.INSTANCES_CONFIDENCE_THRESH": _SCORE,
    }


def _data() -> dict[str, Limit]:
    return {
        "INPUT.FORMAT": OneOf(tuple(_CHANNELS_OF)),
        "INPUT.MASK_FORMAT": OneOf(("polygon", "bitmask")),
        "INPUT.MIN_SIZE_TRAIN": Each(_PIXELS_OR_0, at_least=1),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": OneOf(("choice", "range")),
        "INPUT.MIN_SIZE_TEST": _PIXELS_OR_0,
        "INPUT.MAX_SIZE_TRAIN": _COUNT,
        "INPUT.MAX_SIZE_TEST": _COUNT,
        "INPUT.RANDOM_FLIP": OneOf(("horizontal", "vertical", "none")),
        "INPUT.CROP.ENABLED": _FLAG,
        "INPUT.CROP.TYPE": OneOf(("relative", "relative_range", "absolute", "absolute_range")),
        "INPUT.CROP.SIZE": Each(_ABOVE_0, counts=(2,)),
        "DATASETS.TRAIN": _NAMES,
        "DATASETS.TEST": _NAMES,
        "DATASETS.PROPOSAL_FILES_TRAIN": _NAMES,
        "DATASETS.PROPOSAL_FILES_TEST": _NAMES,
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _COUNT,
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _COUNT,
        "DATALOADER.NUM_WORKERS": _WORKERS,
        "DATALOADER.ASPECT_RATIO_GROUPING": _FLAG,
        "DATALOADER.SAMPLER_TRAIN": _NAME,
        "DATALOADER.REPEAT_THRESHOLD": _FROM_0,
        "DATALOADER.REPEAT_SQRT": _FLAG,
        "DATALOADER.RANDOM_SUBSET_RATIO": Interval(0, 1, open_low=True, noun="a share"),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": _FLAG,
    }


def _solver() -> dict[str, Limit]:
    limits: dict[str, Limit] = {
        "OPTIMIZER": _NAME,
        "MAX_ITER": _ITERATIONS,
        "IMS_PER_BATCH": _IMAGES,
        "REFERENCE_WORLD_SIZE": _PROCESSES,
        "BASE_LR": _FROM_0,
        "BASE_LR_END": _FROM_0,
        "LR_SCHEDULER_NAME": _NAME,
        "STEPS": Each(_COUNT_OR_0),
        "GAMMA": _FROM_0,
        # Each is an entry of the schedule.
        "NUM_DECAYS": Interval(0, 10_000, whole=True),
        "WARMUP_FACTOR": _FROM_0,
        "WARMUP_ITERS": _COUNT_OR_0,
        "RESCALE_INTERVAL": _FLAG,
        "WARMUP_METHOD": OneOf(("linear", "constant")),
        "MOMENTUM": _SHARE,
        "NESTEROV": _FLAG,
        "WEIGHT_DECAY": _FROM_0,
        "WEIGHT_DECAY_NORM": Optional(_FROM_0, "as WEIGHT_DECAY"),
        "WEIGHT_DECAY_BIAS": Optional(_FROM_0, "as WEIGHT_DECAY"),
        "BIAS_LR_FACTOR": Optional(_FROM_0, "1"),
        "CLIP_GRADIENTS.ENABLED": _FLAG,
        "CLIP_GRADIENTS.CLIP_TYPE": OneOf(("value", "norm", "full_model")),
        "CLIP_GRADIENTS.CLIP_VALUE": _ABOVE_0,
        "CLIP_GRADIENTS.NORM_TYPE": Interval(0, open_low=True, infinite=True),
        "AMP.ENABLED": _FLAG,
        "AMP.PRECISION": OneOf(("", "float16", "bfloat16")),
        "CHECKPOINT_PERIOD": _COUNT,
    }
    return {f"SOLVER.{key}": limit for key, limit in limits.items()}


def _test() -> dict[str, Limit]:
    limits: dict[str, Limit] = {
        # As is "never" as a negative number.
        "EVAL_PERIOD": _WHOLE,
        "EXPECTED_RESULTS": Each(Anything("a row such as ['bbox', 'AP', 38.5, 0.2]")),
        "DETECTIONS_PER_IMAGE": Interval(1, 10**6, whole=True, also=-1, meaning="all"),
        "KEYPOINT_OKS_SIGMAS": Each(_ABOVE_0),
        "AUG.ENABLED": _FLAG,
        "AUG.MIN_SIZES": Each(_PIXELS, at_least=1),
        "AUG.MAX_SIZE": _COUNT,
        "AUG.FLIP": _FLAG,
        "PRECISE_BN.ENABLED": _FLAG,
        "PRECISE_BN.NUM_ITER": _COUNT,
    }
    return {f"TEST.{key}": limit for key, limit in limits.items()}


LIMITS: dict[str, Limit] = {
    "VERSION": _WHOLE,
    "SEED": _WHOLE,
    "VIS_PERIOD": _WHOLE,
    "CUDNN_BENCHMARK": _FLAG,
    "GLOBAL.HACK": Anything("anything"),
    "MODEL.META_ARCHITECTURE": _NAME,
    "MODEL.WEIGHTS": Optional(Text(r"(?s).*", "a path or an address, as text"), "random weights"),
    "MODEL.LOAD_PROPOSALS": _FLAG,
    "OUTPUT_DIR": Text(words="a directory ('.' for the current one)"),
    "FLOAT32_PRECISION": OneOf(("", "highest", "high", "medium")),
    "MODEL.DEVICE": _DEVICE,
    "MODEL.COMPILE": _FLAG,
    "MODEL.LAYOUT": OneOf(("auto", "channels_last", "contiguous")),
    "MODEL.PIXEL_MEAN": Each(Interval(), at_least=1),
    "MODEL.PIXEL_STD": Each(_ABOVE_0, at_least=1),
    **_anchors(),
    **_backbone(),
    **_rpn(),
    **_roi_heads(),
    **_box_head(),
    **_mask_and_keypoint_heads(),
    **_dense_heads(),
    **_data(),
    **_solver(),
    **_test(),
}
"""What a key may hold, by its dotted name."""


def problem_with(dotted_key: str, value: Any) -> str:
    """What is wrong with a key's value, as a sentence with key, limit and value; empty if nothing is."""
    limit = LIMITS.get(dotted_key)
    if limit is None or limit.accepts(value):
        return ""
    reason = "" if _are_held(value) else "; a computer's numbers end at 2**63 for whole ones, at 1.8e308 for others"
    return f"{dotted_key} must be {limit.describe()}, got {shown(value)}{reason}"


def _are_held(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_are_held, value))
    return not isinstance(value, (int, float)) or value != value or is_held(value, whole=isinstance(value, int))


# ------------------------------------------------------------------------------------------- keys that go together


class Rule(NamedTuple):
    """How the values of several keys go together."""

    keys: tuple[str, ...]
    words: str  # for a table
    problem: Callable[..., str]  # of the keys' values, in order: what is wrong, or ""
    training: bool = False  # whether it matters in training only


def _labels_fit(section: str) -> Rule:
    thresholds_key, labels_key = f"{section}.IOU_THRESHOLDS", f"{section}.IOU_LABELS"

    def problem(thresholds: Sequence[float], labels: Sequence[int]) -> str:
        if len(labels) == len(thresholds) + 1:
            return ""
        return (
            f"{labels_key} must have one entry more than {thresholds_key}, whose {len(thresholds)} cuts make "
            f"{len(thresholds) + 1} intervals; got {list(labels)} for {list(thresholds)}"
        )

    return Rule((thresholds_key, labels_key), "one label for each interval between thresholds", problem)


def _proposal_files(split: str) -> Rule:
    files_key, names_key = f"DATASETS.PROPOSAL_FILES_{split}", f"DATASETS.{split}"

    def problem(loads: bool, names: Sequence[str], files: Sequence[str]) -> str:
        if not loads or len(names) == len(files):
            return ""
        return (
            f"MODEL.LOAD_PROPOSALS needs a file in {files_key} for each data set in {names_key}; got {len(files)} for "
            f"{len(names)}: {list(files)} for {list(names)}"
        )

    words = "with LOAD_PROPOSALS, as many files as data sets"
    return Rule(("MODEL.LOAD_PROPOSALS", names_key, files_key), words, problem, training=split == "TRAIN")


def _sizes_make_a_range(sampling: str, sizes: Sequence[int]) -> str:
    if sampling != "range" or (len(sizes) == 2 and sizes[0] <= sizes[1]):
        return ""
    return (
        "INPUT.MIN_SIZE_TRAIN must be the smallest and the largest length for INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'; "
        f"got {tuple(sizes)}. To draw one of them use 'choice'"
    )


def _crop_fits_its_type(enabled: bool, kind: str, size: Sequence[float]) -> str:
    if not enabled:
        return ""
    if kind.startswith("relative"):
        fits, words = all(0 < side <= 1 for side in size), "shares in (0, 1]"
    elif kind == "absolute_range":
        fits, words = all(type(side) is int for side in size) and size[0] <= size[1], "whole pixels, smaller one first"
    else:
        fits, words = all(type(side) is int for side in size), "whole pixels"
    return "" if fits else f"INPUT.CROP.SIZE for INPUT.CROP.TYPE {kind!r} must be two {words}; got {list(size)}"


def _pixel_statistics_fit(format: str, mean: Sequence[float], std: Sequence[float]) -> str:
    if len(mean) != len(std):
        return (
            "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD must have one number a channel each; "
            f"got {list(mean)} and {list(std)}"
        )
    # A format that code of the user's has added to the limit is one of a mapper of its own.
    channels = _CHANNELS_OF.get(format, len(mean))
    # Several images stacked by a mapper of one's own have more; a single grey channel would be copied unnoticed.
    if len(mean) == channels or (channels > 1 and len(mean) > channels):
        return ""
    numbers = "one number" if channels == 1 else f"{channels} numbers"
    return (
        f"MODEL.PIXEL_MEAN and MODEL.PIXEL_STD must have {numbers} each for images of INPUT.FORMAT {format!r}; "
        f"got {list(mean)} and {list(std)}"
    )


def _cascade_fits(name: str, overlaps: Sequence[float], weights: Sequence[Any], first: Sequence[float]) -> str:
    if name != "CascadeROIHeads":
        return ""
    if len(overlaps) != len(weights):
        return (
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS and .BBOX_REG_WEIGHTS must have one entry a stage each; "
            f"got {len(overlaps)} and {len(weights)}"
        )
    if list(overlaps[:1]) != list(first):
        return (
            "MODEL.ROI_HEADS.IOU_THRESHOLDS must be the first entry of MODEL.ROI_BOX_CASCADE_HEAD.IOUS; "
            f"got {list(first)} and {list(overlaps)}"
        )
    return ""


def _federated_loss_fits(federated: bool, sigmoid: bool) -> str:
    if not federated or sigmoid:
        return ""
    return "MODEL.ROI_BOX_HEAD.USE_FED_LOSS works on sigmoids: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True as well"


def _device_computes(device: str) -> str:
    if device.partition(":")[0] != "meta":
        return ""
    return (
        f"MODEL.DEVICE {device!r} knows shapes but computes nothing; it must be one such as 'cuda' or 'cpu' (a model "
        "that is only looked at can be built under torch.device('meta'))"
    )


def _half_precision_scales_its_gradients(backbone: str, amp: bool, precision: str, device: str) -> str:
    if backbone != "float16" or (amp and (precision or ("bfloat16" if device == "cpu" else "float16")) == "float16"):
        return ""
    return (
        "MODEL.BACKBONE.DTYPE 'float16' loses small gradients unless the loss is scaled, as SOLVER.AMP with float16 "
        "does; set MODEL.BACKBONE.DTYPE bfloat16 to train"
    )


def _there_is_something_to_train(max_iter: int) -> str:
    if max_iter > 0:
        return ""
    return "SOLVER.MAX_ITER is 0, so there is nothing to train; set the number of iterations, or use --eval-only"


RULES: tuple[Rule, ...] = (
    Rule(("MODEL.DEVICE",), "a device that computes", _device_computes),
    _labels_fit("MODEL.RPN"),
    _labels_fit("MODEL.ROI_HEADS"),
    _labels_fit("MODEL.RETINANET"),
    _proposal_files("TRAIN"),
    _proposal_files("TEST"),
    Rule(
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MIN_SIZE_TRAIN"),
        "'range' takes the smallest and the largest length",
        _sizes_make_a_range,
        training=True,
    ),
    Rule(
        ("INPUT.CROP.ENABLED", "INPUT.CROP.TYPE", "INPUT.CROP.SIZE"),
        "shares for the relative types, whole pixels for the absolute ones",
        _crop_fits_its_type,
        training=True,
    ),
    Rule(
        ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
        "one number for each channel of the format",
        _pixel_statistics_fit,
    ),
    Rule(
        (
            "MODEL.ROI_HEADS.NAME",
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
            "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS",
            "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        ),
        "one entry a stage, and the first overlap is that of ROI_HEADS",
        _cascade_fits,
    ),
    Rule(
        ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"),
        "the federated loss needs sigmoids",
        _federated_loss_fits,
        training=True,
    ),
    Rule(
        ("MODEL.BACKBONE.DTYPE", "SOLVER.AMP.ENABLED", "SOLVER.AMP.PRECISION", "MODEL.DEVICE"),
        "a backbone in float16 trains with the scaled loss of AMP in float16 only",
        _half_precision_scales_its_gradients,
        training=True,
    ),
    Rule(("SOLVER.MAX_ITER",), "at least one iteration to train", _there_is_something_to_train, training=True),
)
"""How keys go together."""


def check_config(cfg: Mapping[str, Any], training: bool = True) -> None:
    """Refuses a config whose values are out of their limits or contradict each other, before anything is built.

    Args:
        cfg: a config; of a part of one, what is there is checked.
        training: False passes over what only training looks at (``SOLVER``, ``*_TRAIN``, ``OUTPUT_DIR``).

    Raises:
        ValueError: names every problem, a line each.
    """
    problems = list(_problems(cfg, training))
    if problems:
        raise ValueError("\n".join(problems))


def _problems(cfg: Mapping[str, Any], training: bool) -> Iterator[str]:
    refused = set()
    for key in LIMITS:
        values = _values(cfg, (key,))
        problem = problem_with(key, values[0]) if values and (training or not _is_for_training(key)) else ""
        if problem:
            refused.add(key)
            yield problem
    for rule in RULES:
        values = _values(cfg, rule.keys)
        # A rule may rely on values that are within their limits.
        if values and (training or not rule.training) and refused.isdisjoint(rule.keys):
            problem = rule.problem(*values)
            if problem:
                yield problem


def _is_for_training(key: str) -> bool:
    return key.startswith("SOLVER.") or key.endswith("_TRAIN") or key == "OUTPUT_DIR"


def _values(cfg: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    """The values of the keys, or nothing if one of them is not there."""
    values = []
    for key in keys:
        node: Any = cfg
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return []
            node = node[part]
        values.append(node)
    return values
