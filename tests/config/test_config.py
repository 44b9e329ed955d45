"""Yaml settings: merging, refusing, bases, and constructors that take a config."""

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fvcore.common.config
import numpy as np
import pytest
import yacs.config
import yaml

import detlab.config
from detlab.config import config
from detlab.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
from tests.limits import run_limited


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


def section_of(cfg, dotted_key):
    """The section that holds a key, and the key's own name."""
    *parents, leaf = dotted_key.split(".")
    return functools.reduce(lambda section, part: section[part], parents, cfg), leaf


# ------------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("SOLVER.BASE_LR", "0.5", 0.5),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.BASE_LR", "1e-3", 0.001),
        ("SOLVER.MAX_ITER", "7", 7),
        ("SOLVER.STEPS", "(1, 2)", (1, 2)),
        ("SOLVER.STEPS", "[1, 2]", (1, 2)),
        ("SOLVER.STEPS", (), ()),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.1", 0.1),
        ("DATASETS.TRAIN", "('a', 'b')", ("a", "b")),
        ("MODEL.PIXEL_MEAN", "(1.0, 2.0)", [1.0, 2.0]),
        ("MODEL.MASK_ON", "True", True),
        ("MODEL.MASK_ON", "true", True),
        ("MODEL.MASK_ON", "false", False),
        ("MODEL.WEIGHTS", "", ""),
        ("MODEL.WEIGHTS", "None", None),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", "'quoted'", "quoted"),
        ("OUTPUT_DIR", "a/b-c", "a/b-c"),
    ],
)
def test_an_override_takes_the_type_of_its_default(key, text, value):
    cfg = get_cfg()
    cfg.merge_from_list([key, text])
    node = functools.reduce(lambda section, part: section[part], key.split("."), cfg)
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("DATASETS.TRAIN", "coco", r"DATASETS\.TRAIN expects a value of type tuple.*'coco'.*write \('coco',\)"),
        ("SOLVER.STEPS", "30", r"write \(30,\)"),
        ("SOLVER.STEPS", "(1,2", r"got '\(1,2' in the overrides, which spells no list; write \"\(1, 2\)\""),
        ("DATASETS.TRAIN", "a,b", r"which spells no list; write \"\('a', 'b'\)\""),
        ("DATASETS.TRAIN", "(a,)", r"write \"\('a',\)\""),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32],[64]", "spells no list; close each bracket, and put texts in quotes"),
        ("SOLVER.MAX_ITER", "1e4", r"got '1e4' in the overrides; write 10000"),
        ("SOLVER.MAX_ITER", "10k", r"got '10k' in the overrides$"),
        ("SOLVER.BASE_LR", "0,1", "the decimal sign is a point"),
        ("SOLVER.GAMMA", "1" + "0" * 400, r"SOLVER\.GAMMA is a number of 1329 bits in the overrides; a float ends at"),
        ("MODEL.PIXEL_STD", "1.0", r"write \[1\.0\]"),
        ("MODEL.MASK_ON", "yes", r"MODEL\.MASK_ON expects .*bool.*True or False"),
        ("MODEL.MASK_ON", "1", r"MODEL\.MASK_ON"),
        ("SOLVER.MAX_ITER", "1.5", r"SOLVER\.MAX_ITER expects a value of type int such as 40000, got '1\.5'"),
        ("SOLVER.MAX_ITER", "many", r"SOLVER\.MAX_ITER"),
        ("SOLVER.MAX_ITER", True, r"SOLVER\.MAX_ITER"),
        ("MODEL", "x", r"MODEL expects a section with keys such as"),
        ("MODEL.RPN", None, r"MODEL\.RPN expects a section"),
        ("MODEL.WEIGHTS", {"a": 1}, r"MODEL\.WEIGHTS"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_key_value_and_cure(key, text, message):
    with pytest.raises(ValueError, match=message):
        get_cfg().merge_from_list([key, text])


def test_an_unknown_override_names_the_nearest_keys():
    with pytest.raises(KeyError) as error:
        get_cfg().merge_from_list(["SOLVER.BASE_LRR", "1"])
    assert str(error.value).startswith("unknown config key 'SOLVER.BASE_LRR' in the overrides; did you mean")
    assert "'SOLVER.BASE_LR'" in str(error.value)


@pytest.mark.parametrize("key", ["model.mask_on", "MODEL.MASK_ON.DEEPER", "MASK_ON"])
def test_an_unknown_override_is_named_as_it_was_written(key):
    with pytest.raises((KeyError, ValueError), match=key.partition(".DEEPER")[0]):
        get_cfg().merge_from_list([key, "True"])


def test_the_wrong_case_finds_the_right_key():
    with pytest.raises(KeyError, match=r"MODEL\.MASK_ON"):
        get_cfg().merge_from_list(["model.mask_on", "True"])


@pytest.mark.parametrize("overrides", [["SOLVER.BASE_LR"], ["SOLVER.BASE_LR=1", "2"], ["--resume", "1"], [1, 2]])
def test_overrides_that_are_no_pairs_are_refused(overrides):
    with pytest.raises(ValueError, match="KEY VALUE pairs"):
        get_cfg().merge_from_list(overrides)


def test_a_key_that_another_key_follows_is_the_one_without_a_value():
    with pytest.raises(ValueError, match=r"the config key 'SOLVER\.BASE_LR' has no value"):
        get_cfg().merge_from_list(["SEED", "1", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "10"])


@pytest.mark.parametrize(
    "key, here",
    [
        ("solver.base_lr", "did you mean 'SOLVER.BASE_LR'"),
        ("optim_wrapper.optimizer.lr", "here it is 'SOLVER.BASE_LR'"),
        ("lr0", "here it is 'SOLVER.BASE_LR'"),
        ("epochs", "here it is 'SOLVER.MAX_ITER', training is counted in iterations of SOLVER.IMS_PER_BATCH images"),
        ("train_cfg.max_epochs", "here it is 'SOLVER.MAX_ITER'"),
        ("data.samples_per_gpu", "here it is 'SOLVER.IMS_PER_BATCH', which counts the images of all processes"),
        ("batch", "here it is 'SOLVER.IMS_PER_BATCH'"),
        ("imgsz", "here it is 'INPUT.MIN_SIZE_TRAIN', with INPUT.MAX_SIZE_TRAIN"),
        ("workers", "here it is 'DATALOADER.NUM_WORKERS'"),
        ("work_dir", "here it is 'OUTPUT_DIR'"),
        ("load_from", "here it is 'MODEL.WEIGHTS'"),
        ("device", "did you mean 'MODEL.DEVICE'"),
        ("model.roi_head.bbox_head.num_classes", "did you mean 'MODEL.ROI_HEADS.NUM_CLASSES'"),
    ],
)
def test_a_key_in_small_letters_or_of_another_trainer_is_answered_with_the_one_of_here(key, here):
    with pytest.raises(KeyError) as error:
        get_cfg().merge_from_list([key, "1"])
    assert f"unknown config key '{key}' in the overrides; {here}" in str(error.value)


def test_a_bad_override_changes_nothing():
    cfg = get_cfg()
    with pytest.raises(KeyError):
        cfg.merge_from_list(["SOLVER.MAX_ITER", "7", "SOLVER.TYPO", "1"])
    with pytest.raises(ValueError):
        cfg.merge_from_list(["SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "fast"])
    assert cfg == get_cfg()


def test_a_section_can_be_overridden_by_a_dictionary():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RPN", "{'NMS_THRESH': 0.6}"])
    assert cfg.MODEL.RPN.NMS_THRESH == 0.6 and cfg.MODEL.RPN.HEAD_NAME == "StandardRPNHead"


# ---------------------------------------------------------------------------------------------------------- files


def test_a_file_changes_what_it_names_and_nothing_else(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "SOLVER:\n  BASE_LR: 1e-2\nDATASETS:\n  TRAIN: [x]\n  TEST: ('y',)\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (0.01, ("x",), ("y",))
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.001, "DATASETS.TRAIN", (), "DATASETS.TEST", ()])
    assert cfg == get_cfg()


def test_every_unknown_key_of_a_file_is_named_with_its_full_path(write):
    path = write("a.yaml", "MODEL: {RPN: {NMS_TRESH: 1.0}}\nSOLVER: {LR: 1.0}\nMDOEL: {A: 1, B: 2}\n")
    with pytest.raises(KeyError) as error:
        get_cfg().merge_from_file(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and all(path in line for line in lines)
    assert "'MODEL.RPN.NMS_TRESH'" in lines[0] and "did you mean 'MODEL.RPN.NMS_THRESH'" in lines[0]
    assert "'MDOEL'" in lines[2] and "'MODEL'" in lines[2]


@pytest.mark.parametrize(
    "text",
    [
        "OUTPUT_DIR: !!python/object/apply:os.system ['touch {mark}']",
        "OUTPUT_DIR: !!python/object/new:os.system ['touch {mark}']",
        "OUTPUT_DIR: !!python/name:os.system",
        'OUTPUT_DIR: !!python/object/apply:eval [\'open("{mark}", "w")\']',
    ],
)
@pytest.mark.parametrize("allow_unsafe", [True, False])
def test_a_file_that_would_run_code_is_refused_even_when_asked(write, tmp_path, text, allow_unsafe):
    mark = tmp_path / "ran"
    path = write("a.yaml", text.format(mark=mark))
    cfg = get_cfg()
    with pytest.raises(ValueError, match=r"a\.yaml cannot be read as settings.*Python objects are refused"):
        cfg.merge_from_file(path, allow_unsafe=allow_unsafe)
    with pytest.raises(ValueError, match="refused"):
        CfgNode.load_yaml_with_base(path, allow_unsafe=allow_unsafe)
    assert not mark.exists() and cfg == get_cfg()


def test_a_key_given_twice_counts_the_last_time_and_is_warned_of(write, caplog):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "SOLVER:\n  BASE_LR: 1.0\nSOLVER:\n  MAX_ITER: 5\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (get_cfg().SOLVER.BASE_LR, 5)
    assert "a.yaml line 3 repeats the key 'SOLVER'" in caplog.text


def test_sizes_by_formula_and_python_tuples_are_read(write):
    text = "INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ['[int(x * 0.1 * 1024) for x in range(1, 4)]']\n"
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", text + "SOLVER: {STEPS: !!python/tuple [1, 2]}\n"))
    assert cfg.INPUT.MIN_SIZE_TRAIN == (102, 204, 307) and cfg.SOLVER.STEPS == (1, 2)


@pytest.mark.parametrize("text", ["1: {A: 2}", "MODEL: {1.5: x}", "on: 3", "MODEL: {~: 1}"])
def test_a_key_that_is_no_text_is_refused(write, text):
    with pytest.raises(ValueError, match=r"a\.yaml has the key .*, which is no text; write it in quotes"):
        get_cfg().merge_from_file(write("a.yaml", text))


def test_a_python_config_is_sent_to_the_program_that_takes_it(write):
    path = write("model.py", "model = dict()\n")
    with pytest.raises(ValueError, match=r"model\.py is a Python config.*tools/lazyconfig_train_net\.py"):
        get_cfg().merge_from_file(path)


def test_yaml_aliases_and_merge_keys_work(write):
    text = "SOLVER: &s {BASE_LR: 0.5, GAMMA: 0.2}\nINPUT: {MIN_SIZE_TRAIN: &sizes [1, 2], CROP: {SIZE: *sizes}}\n"
    loaded = CfgNode.load_yaml_with_base(write("a.yaml", text + "OTHER: {<<: *s, GAMMA: 0.3}\n"))
    assert loaded["OTHER"] == {"BASE_LR": 0.5, "GAMMA": 0.3}
    assert loaded["INPUT"]["CROP"]["SIZE"] == [1, 2]


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a\n- b\n", "should hold sections of settings, but is a list"),
        ("just text", "is a str"),
        ("A: [1,\nB: {", "cannot be read as settings"),
        ("_BASE_: 3", "_BASE_ in .* should be a path"),
        ("MODEL:\n", "MODEL expects a section"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        get_cfg().merge_from_file(write("a.yaml", text))


def test_an_empty_file_changes_nothing(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "# nothing yet\n"))
    assert cfg == get_cfg()


def test_a_date_stays_text(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "OUTPUT_DIR: 2024-05-01\n"))
    assert cfg.OUTPUT_DIR == "2024-05-01"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist"):
        get_cfg().merge_from_file(str(tmp_path / "gone.yaml"))


# ---------------------------------------------------------------------------------------------------------- bases


@pytest.mark.parametrize(
    "base, reason",
    [("link.yaml", "symbolic links"), ("x" * 5000, "too long"), ("top.yaml/x.yaml", "ot a dir"), ("pipe", "no file")],
    ids=["link to itself", "long name", "below a file", "pipe"],
)
def test_a_base_that_cannot_be_read_is_refused_in_a_short_sentence(write, tmp_path, base, reason):
    (tmp_path / "link.yaml").symlink_to("link.yaml")
    os.mkfifo(tmp_path / "pipe")
    outcome = run_limited(CfgNode.load_yaml_with_base, write("top.yaml", f"_BASE_: {base}\n"), seconds=10)
    assert outcome.error.startswith("ValueError") and reason in outcome.error and len(outcome.error) < 700, outcome


def test_of_many_unknown_keys_the_first_are_named_in_a_moment(write):
    path = write("a.yaml", "\n".join(f"unknown_key_{i}: 1" for i in range(20_000)))
    outcome = run_limited(get_cfg().merge_from_file, path, seconds=20)
    assert outcome.error.startswith("UnknownKeyError"), outcome
    with pytest.raises(KeyError, match="and 19980 more unknown keys") as caught:
        get_cfg().merge_from_file(path)
    assert "'unknown_key_19'" in str(caught.value) and "'unknown_key_20'" not in str(caught.value)


def test_a_version_that_is_a_long_text_is_refused_in_a_short_sentence(write):
    path = write("a.yaml", f"VERSION: {'(' * 90_000}\n")
    with pytest.raises(ValueError, match="VERSION must be a whole number") as caught:
        get_cfg().merge_from_file(path)
    assert len(str(caught.value)) < 500


def test_a_base_is_found_beside_the_file_and_lies_below_it(write):
    write("bases/low.yaml", "SOLVER: {BASE_LR: 0.5, MAX_ITER: 5}\nMODEL: {MASK_ON: true}\n")
    write("bases/mid.yaml", "_BASE_: low.yaml\nSOLVER: {MAX_ITER: 6}\n")
    path = write("top.yaml", "_BASE_: bases/mid.yaml\nSOLVER: {MAX_ITER: 7, STEPS: [1]}\n")
    loaded = CfgNode.load_yaml_with_base(path)
    assert loaded == {"SOLVER": {"BASE_LR": 0.5, "MAX_ITER": 7, "STEPS": [1]}, "MODEL": {"MASK_ON": True}}


def test_of_several_bases_later_ones_win(write):
    write("a.yaml", "SOLVER: {BASE_LR: 0.1, GAMMA: 0.1}\n")
    write("b.yaml", "SOLVER: {BASE_LR: 0.2}\n")
    loaded = CfgNode.load_yaml_with_base(write("c.yaml", "_BASE_: [a.yaml, ./b.yaml]\n"))
    assert loaded == {"SOLVER": {"BASE_LR": 0.2, "GAMMA": 0.1}}


def test_two_bases_may_share_a_base(write):
    write("root.yaml", "SEED: 1\n")
    write("a.yaml", "_BASE_: root.yaml\n")
    write("b.yaml", "_BASE_: root.yaml\nSEED: 2\n")
    assert CfgNode.load_yaml_with_base(write("c.yaml", "_BASE_: [a.yaml, b.yaml]\n")) == {"SEED": 2}


def test_a_base_may_be_absolute_or_in_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    absolute = write("home.yaml", "SEED: 3\n")
    assert CfgNode.load_yaml_with_base(write("x/a.yaml", "_BASE_: ~/home.yaml\n")) == {"SEED": 3}
    assert CfgNode.load_yaml_with_base(write("x/b.yaml", f"_BASE_: {absolute}\n")) == {"SEED": 3}


def test_bases_in_a_circle_are_refused(write):
    write("x/a.yaml", "_BASE_: ../x/b.yaml\n")
    with pytest.raises(ValueError, match=r"circle: .*b\.yaml -> .*a\.yaml -> .*b\.yaml"):
        CfgNode.load_yaml_with_base(write("x/b.yaml", "_BASE_: a.yaml\n"))


def test_a_missing_base_is_named_with_the_file_that_wants_it(write):
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, the _BASE_ of .*a\.yaml, does not exist"):
        CfgNode.load_yaml_with_base(write("a.yaml", "_BASE_: gone.yaml\n"))


def test_a_section_that_a_base_refers_to_twice_changes_in_one_place_only(write):
    write("low.yaml", "A: &shared {k: 1}\nB: *shared\n")
    loaded = CfgNode.load_yaml_with_base(write("top.yaml", "_BASE_: low.yaml\nA: {k: 2}\n"))
    assert loaded == {"A": {"k": 2}, "B": {"k": 1}}


def test_bases_that_double_at_every_step_are_refused(write):
    write("f0.yaml", "SEED: 1\n")
    for level in range(1, 30):
        write(f"f{level}.yaml", f"_BASE_: [f{level - 1}.yaml, ./f{level - 1}.yaml]\n")
    with pytest.raises(ValueError, match=r"f29\.yaml has more than \d+ files below it"):
        CfgNode.load_yaml_with_base(str(write("f29.yaml", "_BASE_: [f28.yaml, f28.yaml]\n")))


def test_a_section_cannot_replace_a_value_of_its_base(write):
    write("low.yaml", "MODEL: {WEIGHTS: a}\n")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is a section in .*top\.yaml"):
        CfgNode.load_yaml_with_base(write("top.yaml", "_BASE_: low.yaml\nMODEL: {WEIGHTS: {A: 1}}\n"))


def test_a_base_has_no_meaning_among_other_settings():
    with pytest.raises(ValueError, match="_BASE_"):
        get_cfg().merge_from_other_cfg(CfgNode({"_BASE_": "a.yaml"}))
    with pytest.raises(ValueError, match="_BASE_"):
        get_cfg().merge_from_list(["_BASE_", "a.yaml"])


# ----------------------------------------------------------------------------------------------------------- node


def test_a_config_is_a_node_of_fvcore_and_yacs():
    cfg = get_cfg()
    assert isinstance(cfg, fvcore.common.config.CfgNode) and isinstance(cfg.MODEL, yacs.config.CfgNode)
    assert type(cfg.MODEL.RPN) is CfgNode


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, CfgNode.clone, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_and_pickles_are_equal_and_as_frozen(duplicate, frozen):
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER = 12
    if frozen:
        cfg.freeze()
    other = duplicate(cfg)
    assert other == cfg and type(other.MODEL.RPN) is CfgNode
    assert other.is_frozen() is frozen and other.MODEL.RPN.is_frozen() is frozen
    other.defrost()
    other.MODEL.RPN.IOU_LABELS.append(5)
    assert cfg.MODEL.RPN.IOU_LABELS == [0, -1, 1]


def test_a_frozen_config_takes_no_change(write):
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="MAX_ITER"):
        cfg.SOLVER.MAX_ITER = 3
    with pytest.raises(AttributeError, match="defrost"):
        cfg.merge_from_list(["SOLVER.MAX_ITER", 3])
    with pytest.raises(AttributeError, match="defrost"):
        cfg.merge_from_file(write("a.yaml", "SEED: 3\n"))
    assert cfg == get_cfg()


def test_reading_a_setting_that_is_not_there_names_the_nearest():
    cfg = get_cfg()
    with pytest.raises(AttributeError, match=r"no 'BASE_LRR'; did you mean 'BASE_LR'"):
        _ = cfg.SOLVER.BASE_LRR
    assert not hasattr(cfg, "MY_SECTION") and cfg.get("MY_SECTION", 3) == 3


@pytest.mark.parametrize(
    "key, given, kept",
    [
        ("SOLVER.STEPS", [1, 2], (1, 2)),
        ("SOLVER.STEPS", 7, (7,)),
        ("DATASETS.TRAIN", "mine", ("mine",)),
        ("INPUT.MIN_SIZE_TRAIN", 800, (800,)),
        ("MODEL.RPN.IN_FEATURES", ("p2", "p3"), ["p2", "p3"]),
        ("SOLVER.BASE_LR", 1, 1.0),
        ("SOLVER.MAX_ITER", 9e4, 90000),
        ("SOLVER.MAX_ITER", np.int64(5), 5),
        ("SOLVER.BASE_LR", np.float32(0.5), 0.5),
        ("MODEL.PIXEL_MEAN", np.array([1.0, 2.0]), [1.0, 2.0]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [(np.int64(8), 16), [32]], [(8, 16), [32]]),
        ("MODEL.MASK_ON", 1, True),
        ("OUTPUT_DIR", Path("a") / "b", os.path.join("a", "b")),
        ("MODEL.WEIGHTS", None, None),
        ("SOLVER.WEIGHT_DECAY_BIAS", 0.5, 0.5),
    ],
)
def test_an_assignment_keeps_the_type_of_its_setting(key, given, kept):
    cfg = get_cfg()
    section, leaf = section_of(cfg, key)
    setattr(section, leaf, given)
    assert section[leaf] == kept and type(section[leaf]) is type(kept)
    yaml.safe_load(cfg.dump())


@pytest.mark.parametrize(
    "key, given, message",
    [
        ("SOLVER.MAX_ITER", "10", r"SOLVER\.MAX_ITER expects a value of type int .*got '10'; write the number without"),
        ("SOLVER.MAX_ITER", 1.5, r"SOLVER\.MAX_ITER expects"),
        ("SOLVER.MAX_ITER", True, r"SOLVER\.MAX_ITER expects"),
        ("SOLVER.BASE_LR", "1e-3", r"SOLVER\.BASE_LR expects"),
        ("SOLVER.STEPS", "30", r"SOLVER\.STEPS expects .*write"),
        ("MODEL.MASK_ON", "yes", r"MODEL\.MASK_ON expects .*True or False"),
        ("MODEL.RPN", None, r"MODEL\.RPN expects a section with keys such as"),
        ("MODEL.DEVICE", CfgNode({"A": 1}), r"MODEL\.DEVICE expects"),
        ("MODEL.RPN.HEAD_NAME", object(), r"MODEL\.RPN\.HEAD_NAME expects"),
        ("MODEL.MY_THING", object(), r"MODEL\.MY_THING cannot hold <object .* of type object"),
    ],
)
def test_an_assignment_of_another_type_is_refused_with_the_full_key(key, given, message):
    cfg = get_cfg()
    with pytest.raises(ValueError, match=message):
        setattr(*section_of(cfg, key), given)
    assert cfg == get_cfg()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, CfgNode.clone, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_know_the_names_of_their_sections(duplicate):
    cfg = duplicate(get_cfg())
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES expects"):
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = "3"
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES expects"):
        cfg.MODEL.ROI_HEADS.clone().NUM_CLASSES = "3"


def test_trees_of_ones_own_are_not_judged(caplog):
    cfg = CfgNode({"MAX_ITER": 3, "SOLVER": {"BASE_LR": 1.0}})
    cfg.MAX_ITER = "many"
    cfg.MAX_ITERS = 4
    cfg.SOLVER.merge_from_list(["BASE_LR", -1.0])
    assert cfg == {"MAX_ITER": "many", "MAX_ITERS": 4, "SOLVER": {"BASE_LR": -1.0}} and not caplog.text


def test_a_dictionary_becomes_a_section_that_knows_its_name():
    cfg = get_cfg()
    cfg.MODEL.MY_HEAD = {"INNER": {"WIDTH": 3}}
    assert type(cfg.MODEL.MY_HEAD.INNER) is CfgNode
    with pytest.raises(ValueError, match=r"MODEL\.MY_HEAD\.INNER\.WIDTH expects"):
        cfg.MODEL.MY_HEAD.INNER.WIDTH = "3"


@pytest.fixture
def nothing_named_yet(monkeypatch):
    monkeypatch.setattr(config, "_named_new_keys", set())


@pytest.mark.parametrize("name, meant", [("LR", "BASE_LR"), ("MAX_ITERS", "MAX_ITER"), ("STEP", "STEPS")])
@pytest.mark.usefixtures("nothing_named_yet")
def test_a_new_key_that_looks_like_a_slip_is_taken_with_one_warning(caplog, name, meant):
    for _ in range(2):
        cfg = get_cfg()
        setattr(cfg.SOLVER, name, 0.1)
        assert cfg.SOLVER[name] == 0.1
    assert len(caplog.records) == 1
    assert f"SOLVER.{name} is a new key" in caplog.text and f"did you mean '{meant}'?" in caplog.text


@pytest.mark.usefixtures("nothing_named_yet")
def test_a_new_key_after_a_file_was_merged_is_warned_of(write, caplog):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "SEED: 3\n"))
    cfg.clone().MODEL.MY_HEAD = CfgNode()
    assert "MODEL.MY_HEAD is a new key" in caplog.text and "before files are merged" in caplog.text


@pytest.mark.usefixtures("nothing_named_yet")
def test_keys_that_known_projects_add_are_no_slips(shared_dir, caplog):
    for project in json.loads((shared_dir / "compat" / "projects_configs.json").read_text()).values():
        cfg = get_cfg()
        for key, value in project["defaults"].items():
            section = cfg
            for part in key.split(".")[:-1]:
                if part not in section:
                    setattr(section, part, CfgNode())
                section = section[part]
            setattr(section, key.rpartition(".")[2], value)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "merge",
    [
        lambda cfg, write: cfg.merge_from_list(["MODEL.RPN.POSITIVE_FRACTION", 3.0, "SOLVER.BASE_LR", -1.0]),
        lambda cfg, write: cfg.merge_from_file(
            write("bad.yaml", "MODEL: {RPN: {POSITIVE_FRACTION: 3}}\nSOLVER: {BASE_LR: -1, MAX_ITER: 7}\n")
        ),
    ],
    ids=["overrides", "file"],
)
def test_values_out_of_their_limits_are_named_with_their_origin_and_nothing_is_set(write, merge):
    cfg = get_cfg()
    with pytest.raises(ValueError) as error:
        merge(cfg, write)
    first, second = str(error.value).splitlines()
    assert first.startswith("MODEL.RPN.POSITIVE_FRACTION must be a share in [0, 1], got 3.0 in ")
    assert second.startswith("SOLVER.BASE_LR must be a number from 0 on, got -1.0 in ")
    assert all(line.endswith(("the overrides", "bad.yaml")) for line in (first, second))
    assert cfg == get_cfg()


def test_a_section_that_is_merged_into_keeps_its_limits():
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE must be .*got 'gpu'"):
        get_cfg().MODEL.merge_from_list(["DEVICE", "gpu"])


def test_code_may_add_keys_and_files_may_then_set_them(write):
    cfg = get_cfg()
    cfg.MODEL.MY_HEAD = CfgNode({"WIDTH": 3})
    cfg.merge_from_file(write("a.yaml", "MODEL: {MY_HEAD: {WIDTH: 5}}\n"))
    assert cfg.MODEL.MY_HEAD.WIDTH == 5


def test_a_node_that_allows_new_keys_takes_them(write):
    cfg = CfgNode(new_allowed=True)
    cfg.merge_from_file(write("a.yaml", "A: {B: 1}\nC: [1]\n"))
    assert cfg.A.B == 1 and cfg.C == [1]


def test_renamed_and_deprecated_keys_are_honoured():
    cfg = get_cfg()
    cfg.register_renamed_key("SOLVER.RATE", "SOLVER.BASE_LR")
    cfg.register_deprecated_key("SOLVER.OLD")
    cfg.merge_from_list(["SOLVER.OLD", 1])
    with pytest.raises(KeyError, match=r"SOLVER\.RATE was renamed to SOLVER\.BASE_LR"):
        cfg.merge_from_list(["SOLVER.RATE", 1.0])


def test_merging_another_config_copies_its_values():
    source, target = get_cfg(), get_cfg()
    source.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    target.merge_from_other_cfg(source)
    source.MODEL.PIXEL_MEAN.append(4.0)
    assert target.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0]


def test_a_dumped_config_merges_back(write):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", (1, 2), "MODEL.WEIGHTS", "üñ", "SOLVER.WEIGHT_DECAY_BIAS", 0.5])
    other = get_cfg()
    other.merge_from_file(write("dump.yaml", cfg.dump()))
    assert other.dump() == cfg.dump()
    assert other.SOLVER == cfg.SOLVER, "lists come back as tuples where the default is one"
    assert yaml.safe_load(cfg.dump(default_flow_style=True, sort_keys=False)) == yaml.safe_load(cfg.dump())


def test_the_global_config_holds_a_copy():
    cfg = get_cfg()
    cfg.GLOBAL.HACK = 2.0
    set_global_cfg(cfg)
    try:
        assert detlab.config.global_cfg is global_cfg
        assert global_cfg.GLOBAL.HACK == 2.0
        cfg.OUTPUT_DIR = "elsewhere"
        assert global_cfg.OUTPUT_DIR == "./output"
    finally:
        set_global_cfg(CfgNode())


def test_importing_the_package_leaves_torch_and_omegaconf_alone():
    code = "import sys, detlab.config; print([m for m in ('torch', 'omegaconf', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------------- configurable


class Head:
    @configurable
    def __init__(self, width, *, depth=2, extra=None):
        """Makes a head."""
        self.values = (width, depth, extra)

    @classmethod
    def from_config(cls, cfg, channels=1):
        return {"width": cfg.WIDTH * channels, "depth": cfg.get("DEPTH", 2)}


class DeepHead(Head):
    @classmethod
    def from_config(cls, cfg, channels=1):
        return {**super().from_config(cfg, channels), "depth": 9}


class OwnInit(Head):
    @configurable
    def __init__(self, *, name, **kwargs):
        super().__init__(**kwargs)
        self.name = name

    @classmethod
    def from_config(cls, cfg):
        return {"name": cfg.NAME, **super().from_config(cfg)}


class PlainInit(Head):
    def __init__(self, cfg, channels):
        super().__init__(cfg, channels)


CFG = CfgNode({"WIDTH": 4, "NAME": "head"})


def test_explicit_arguments_pass_through():
    assert Head(3).values == (3, 2, None)
    assert Head(width=3, depth=5).values == (3, 5, None)
    assert Head.__init__.__doc__ == "Makes a head."


def test_a_config_is_read_by_from_config():
    assert Head(CFG).values == (4, 2, None)
    assert Head(CFG, 3).values == (12, 2, None)
    assert Head(CFG, channels=3).values == (12, 2, None)
    assert Head(cfg=CFG).values == (4, 2, None)
    assert Head(channels=2, cfg=CFG).values == (8, 2, None)


def test_other_keywords_replace_or_add_to_the_result():
    assert Head(CFG, depth=7, extra="x").values == (4, 7, "x")
    assert Head(CFG, channels=2, width=1).values == (1, 2, None)


def test_a_keyword_that_nobody_takes_is_refused():
    with pytest.raises(TypeError, match="wdith"):
        Head(CFG, wdith=3)


def test_subclasses_replace_from_config_or_the_constructor():
    assert DeepHead(CFG).values == (4, 9, None)
    own = OwnInit(CFG, extra=1)
    assert own.values == (4, 2, 1) and own.name == "head"
    assert OwnInit(name="n", width=1).values == (1, 2, None)
    assert PlainInit(CFG, 2).values == (8, 2, None)


def test_a_from_config_with_open_keywords_gets_them_all():
    class Open:
        @configurable
        def __init__(self, a, b):
            self.values = (a, b)

        @classmethod
        def from_config(cls, cfg, **kwargs):
            return {"a": cfg.WIDTH, **kwargs}

    assert Open(CFG, b=3).values == (4, 3)


def test_other_kinds_of_config_count_too():
    from omegaconf import OmegaConf

    assert Head(OmegaConf.create({"WIDTH": 6})).values == (6, 2, None)
    assert Head(yacs.config.CfgNode({"WIDTH": 7})).values == (7, 2, None)
    assert Head(fvcore.common.config.CfgNode({"WIDTH": 8})).values == (8, 2, None)
    assert Head({"WIDTH": 4}).values == ({"WIDTH": 4}, 2, None)


def test_a_missing_from_config_is_explained():
    class Bare:
        @configurable
        def __init__(self, a):
            pass

    with pytest.raises(AttributeError, match="Bare was given a config, but has no from_config"):
        Bare(CFG)


def test_a_from_config_that_is_no_class_method_is_explained():
    class Wrong:
        @configurable
        def __init__(self, a):
            pass

        def from_config(self, cfg):
            return {}

    with pytest.raises(TypeError, match=r"Wrong\.from_config must be a class method"):
        Wrong(CFG)


def test_a_from_config_without_cfg_is_explained():
    class Wrong:
        @configurable
        def __init__(self, a):
            pass

        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(TypeError, match="must take 'cfg' as its first argument"):
        Wrong(CFG)


def test_a_from_config_that_gives_no_dict_is_explained():
    class Wrong:
        @configurable
        def __init__(self, a):
            pass

        @classmethod
        def from_config(cls, cfg):
            return [1]

    with pytest.raises(TypeError, match="must give a dict of constructor arguments, got list"):
        Wrong(CFG)


def test_a_function_can_be_configurable():
    @configurable(from_config=lambda cfg, scale=1: {"a": cfg.WIDTH * scale})
    def build(a, b=2):
        """Builds."""
        return a, b

    assert build(1) == (1, 2) and build(CFG) == (4, 2)
    assert build(CFG, 2, b=5) == (8, 5) and build(cfg=CFG, scale=3) == (12, 2)
    assert build.__name__ == "build" and build.__doc__ == "Builds."
    assert build.from_config(CFG) == {"a": 4}


def test_wrong_uses_of_the_decorator_are_explained():
    def build(a):
        return a

    with pytest.raises(TypeError, match="belongs on __init__"):
        configurable(build)
    with pytest.raises(TypeError, match="needs from_config="):
        configurable()
    with pytest.raises(TypeError, match="must be a function"):
        configurable(from_config="x")
