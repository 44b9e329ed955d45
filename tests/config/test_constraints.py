"""What each key may hold, and that everything in use does."""

import functools
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from detlab.config import constraints
from detlab.config.config import CfgNode, get_cfg
from detlab.config.constraints import LIMITS, RULES, check_config, problem_with
from detlab.config.limits import OneOf
from detlab.utils.image import read_image

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.yaml"))


def keys_of(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def assign(cfg, dotted_key, value):
    *parents, leaf = dotted_key.split(".")
    setattr(functools.reduce(lambda section, part: section[part], parents, cfg), leaf, value)


def merge(cfg, dotted_key, value):
    cfg.merge_from_list([dotted_key, value])


def put(cfg, dotted_key, value):
    *parents, leaf = dotted_key.split(".")
    for part in parents:
        cfg = cfg.setdefault(part, CfgNode())
    cfg[leaf] = value


def test_every_key_has_a_limit_and_every_limit_and_rule_is_about_keys_that_exist():
    known = set(keys_of(get_cfg()))
    assert set(LIMITS) == known
    assert {key for rule in RULES for key in rule.keys} <= known


def test_the_defaults_and_every_config_that_comes_along_are_accepted():
    check_config(get_cfg())
    assert len(CONFIGS) > 90
    for path in CONFIGS:
        cfg = get_cfg()
        cfg.merge_from_file(str(path))
        check_config(cfg)
        check_config(cfg, training=False)


def test_every_recorded_config_is_accepted(shared_dir):
    folder = shared_dir / "compat"
    recorded = list(json.loads((folder / "zoo_configs.json").read_text()).values())
    for project in json.loads((folder / "projects_configs.json").read_text()).values():
        recorded += [{**project["defaults"], **settings} for settings in project["configs"].values()]
    assert len(recorded) > 100
    for settings in recorded:
        cfg = get_cfg()
        for key, value in settings.items():
            put(cfg, key, value)
        check_config(cfg)


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.MIN_SIZE_TEST", 0),
        ("INPUT.MIN_SIZE_TRAIN", (0,)),
        ("MODEL.RPN.CONV_DIMS", [-1, 64]),
        ("SEED", -5),
        ("TEST.EVAL_PERIOD", 0),
        ("TEST.EVAL_PERIOD", -1),
        ("SOLVER.WARMUP_ITERS", 0),
        ("SOLVER.STEPS", ()),
        ("SOLVER.BASE_LR", 0.0),
        ("SOLVER.MAX_ITER", 10),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        ("SOLVER.WEIGHT_DECAY_NORM", None),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [32, 64]),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", -1.0),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
        ("MODEL.DEVICE", "cuda:1"),
        ("TEST.DETECTIONS_PER_IMAGE", -1),
    ],
)
def test_values_with_a_meaning_of_their_own_are_accepted(key, value):
    cfg = get_cfg()
    put(cfg, key, value)
    check_config(cfg)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("MODEL.RPN.POSITIVE_FRACTION", 3.0, r"must be a share in \[0, 1\], got 3\.0"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0, r"must be a whole number in \[1, 16777216\], got 0"),
        ("MODEL.DEVICE", "gpu", r"must be 'cuda', .*got 'gpu'"),
        ("OUTPUT_DIR", "", "must be a directory"),
        ("SOLVER.BASE_LR", -1.0, "must be a number from 0 on"),
        ("SOLVER.MAX_ITER", -3, r"must be a whole number in \[0, 1000000000000\], got -3"),
        ("INPUT.MIN_SIZE_TRAIN", (), "must be a list of at least 1 entry"),
        ("INPUT.MIN_SIZE_TRAIN", (-5,), r"got \(-5,\)"),
        ("INPUT.MIN_SIZE_TEST", -1, r"in \[0, 65536\]"),
        ("INPUT.MAX_SIZE_TRAIN", 0, "from 1 on"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.0, 1.0]], "above 0"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "above 0"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "from 1 on"),
        ("SEED", None, "must be a whole number, got None"),
        ("SEED", 2**70, r"got 1180591620717411303424; a computer's numbers end at 2\*\*63"),
        ("SOLVER.MAX_ITER", 2**63, "got 9223372036854775808; a computer's numbers"),
        ("SOLVER.STEPS", (1, 2**63), r"got \(1, 9223372036854775808\); a computer's numbers"),
        ("DATALOADER.NUM_WORKERS", 10**6, r"in \[0, 1024\], got 1000000"),
        ("SOLVER.IMS_PER_BATCH", 10**9, r"in \[1, 1048576\], got 1000000000"),
        ("INPUT.FORMAT", "rgbx", "must be 'BGR', 'RGB', .*, got 'rgbx'"),
        ("MODEL.DEVICE", "meta", "'meta' knows shapes but computes nothing; it must be one such as 'cuda'"),
        ("MODEL.MASK_ON", None, "must be True or False, got None"),
        ("MODEL.META_ARCHITECTURE", None, "must be a name, as text, got None"),
    ],
)
def test_a_value_out_of_its_limits_is_refused_with_key_limit_and_value(key, value, words):
    cfg = get_cfg()
    put(cfg, key, value)
    with pytest.raises(ValueError, match=f"^{key} {words}|^{key} .*{words}"):
        check_config(cfg)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"MODEL.RPN.IOU_LABELS": [0, 1]}, r"IOU_LABELS must have one entry more .* 3 intervals; got \[0, 1\]"),
        (
            {"MODEL.LOAD_PROPOSALS": True, "DATASETS.TRAIN": ("a", "b"), "DATASETS.PROPOSAL_FILES_TRAIN": ("x",)},
            r"PROPOSAL_FILES_TRAIN for each data set in DATASETS\.TRAIN; got 1 for 2",
        ),
        ({"MODEL.LOAD_PROPOSALS": True, "DATASETS.TEST": ("a",)}, r"PROPOSAL_FILES_TEST .* got 0 for 1"),
        ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, r"the smallest and the largest length .*\(800,\)"),
        (
            {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute"},
            r"CROP\.SIZE for INPUT\.CROP\.TYPE 'absolute' must be two whole pixels; got \[0\.9, 0\.9\]",
        ),
        ({"INPUT.CROP.ENABLED": True, "INPUT.CROP.SIZE": [2.0, 0.5]}, "two shares in"),
        ({"INPUT.FORMAT": "L"}, "must have one number each for images of INPUT.FORMAT 'L'"),
        ({"MODEL.PIXEL_MEAN": [1.0], "MODEL.PIXEL_STD": [1.0]}, "must have 3 numbers each .* 'BGR'"),
        ({"MODEL.PIXEL_MEAN": [1.0]}, "must have one number a channel each"),
        (
            {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6)},
            "one entry a stage each; got 2 and 3",
        ),
        (
            {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.6]},
            "must be the first entry",
        ),
        ({"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True}, "set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True"),
        ({"SOLVER.MAX_ITER": 0}, "nothing to train; .*--eval-only"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(settings, words):
    cfg = get_cfg()
    for key, value in settings.items():
        put(cfg, key, value)
    with pytest.raises(ValueError, match=words):
        check_config(cfg)


def test_stacked_images_and_formats_of_ones_own_have_as_many_channels_as_they_like(monkeypatch):
    monkeypatch.setitem(constraints.LIMITS, "INPUT.FORMAT", OneOf(("BGR", "L", "RGBD")))
    for format, channels in (("BGR", 6), ("RGBD", 4), ("L", 1)):
        cfg = get_cfg()
        cfg.INPUT.FORMAT = format
        cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0] * channels
        check_config(cfg)


@pytest.mark.parametrize("format", LIMITS["INPUT.FORMAT"].values)
def test_every_image_format_that_is_accepted_is_read_and_has_the_channels_that_are_asked_for(format, tmp_path):
    mode = format if format in ("I;16", "I", "F") else "RGB"
    Image.new(mode, (5, 4)).save(tmp_path / "image.tiff")
    channels = read_image(str(tmp_path / "image.tiff"), format).reshape(4, 5, -1).shape[2]
    cfg = get_cfg()
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = format, [1.0] * channels, [1.0] * channels
    check_config(cfg)
    if channels > 1:
        cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0] * (channels - 1)
        with pytest.raises(ValueError, match=f"must have {channels} numbers each for images"):
            check_config(cfg)


def test_all_problems_are_named_at_once():
    cfg = get_cfg()
    cfg.MODEL.RPN.POSITIVE_FRACTION = 3
    cfg.MODEL.DEVICE = "gpu"
    cfg.MODEL.RPN.IOU_LABELS = [0, 1]
    # A rule about a key whose value is refused anyway has nothing to add.
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [-1.0, 2.0]
    with pytest.raises(ValueError) as error:
        check_config(cfg)
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "MODEL.DEVICE",
        "MODEL.RPN.POSITIVE_FRACTION",
        "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        "MODEL.RPN.IOU_LABELS",
    ]


def test_an_evaluation_does_not_mind_the_settings_of_training():
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.OUTPUT_DIR = 0, -1.0, ""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (), "range"
    check_config(cfg, training=False)
    cfg.INPUT.MIN_SIZE_TEST = -1
    with pytest.raises(ValueError, match="MIN_SIZE_TEST"):
        check_config(cfg, training=False)


def test_keys_of_a_project_and_parts_of_a_config_are_let_alone():
    check_config(CfgNode({"MODEL": {"DEVICE": "cpu", "MY_FRACTION": 7}}))
    assert problem_with("MODEL.MY_FRACTION", 7) == ""


def test_code_can_widen_a_limit(monkeypatch):
    monkeypatch.setitem(constraints.LIMITS, "INPUT.MASK_FORMAT", OneOf(("polygon", "bitmask", "rle")))
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.MASK_FORMAT", "rle"])
    check_config(cfg)


def test_every_limit_and_rule_reads_as_words():
    assert all(limit.describe() for limit in LIMITS.values())
    assert all(rule.words for rule in RULES)


# ------------------------------------------------------------------------------------------------------- odd values

HUGE = 10**5000  # more digits than Python writes out
ODD_VALUES = [None, "text", -1, 0, 1e400, math.nan, 2**70, 10**400, HUGE, [], ()]
MAY_BE_NONE = {
    "MODEL.WEIGHTS",
    *(f"SOLVER.{key}" for key in ("WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS", "BIAS_LR_FACTOR")),
}
NORMS = {key for key in LIMITS if key.endswith(".NORM")}


def default_of(key):
    return functools.reduce(lambda section, part: section[part], key.split("."), get_cfg())


def refusal(way, key, value):
    """What a config says to a value; an empty text if it takes it."""
    cfg = get_cfg()
    try:
        way(cfg, key, value)
        check_config(cfg)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", [key for key in LIMITS if key != "GLOBAL.HACK"])
def test_an_odd_value_is_taken_only_where_it_means_something(key):
    default = default_of(key)

    def means_something(value):
        if value is None:
            return key in MAY_BE_NONE | NORMS
        if isinstance(value, str):
            return isinstance(default, str)
        if isinstance(value, (list, tuple)):
            return isinstance(default, (list, tuple))
        is_infinity = key.endswith("NORM_TYPE") and value == math.inf
        return is_infinity or (
            not isinstance(default, (str, list, tuple)) and value == value and -(2.0**71) < value < 2.0**71
        )

    for value in ODD_VALUES:
        for way in (assign, put, merge):
            said = refusal(way, key, value)
            # An assignment takes a number or a text for a list of one.
            assert said or way is assign or means_something(value), (key, way.__name__, str(type(value)))
            assert not said or (said.startswith(key) and "\n" not in said and len(said) < 400), said


def test_an_odd_text_of_the_command_line_is_answered_with_the_key():
    texts = ["None", "text", "-1", "1e400", "1" + "0" * 400, "1" + "0" * 5000, "[]", "(", "", "\0"]
    for key, text in itertools.product(LIMITS, texts):
        said = refusal(merge, key, text)
        assert not said or (said.startswith(key) and len(said) < 400), said
