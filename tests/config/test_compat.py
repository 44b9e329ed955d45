"""Older key names are brought up to date, and back."""

import logging

import pytest

from detlab.config.compat import ConverterV1, ConverterV2, downgrade_config, guess_version, upgrade_config
from detlab.config.config import CfgNode, get_cfg


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_old_names_in_a_file_without_version_are_understood(tmp_path, caplog):
    text = "MODEL: {WEIGHT: a.pth, ROI_HEADS: {NMS: 0.4}}\nTEST: {AUG_ON: true, DETECTIONS_PER_IMG: 7}\n"
    cfg = get_cfg()
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_file(write(tmp_path, text))
    assert cfg.MODEL.WEIGHTS == "a.pth" and cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.4
    assert cfg.TEST.AUG.ENABLED is True and cfg.TEST.DETECTIONS_PER_IMAGE == 7
    assert cfg.VERSION == 2 and set(cfg) == set(get_cfg())
    assert "MODEL.WEIGHT" in caplog.text and "version 1" in caplog.text


def test_a_file_of_a_stated_old_version_is_upgraded(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path, "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: MyHead}, WEIGHT: b}\n"))
    assert (cfg.MODEL.RPN.HEAD_NAME, cfg.MODEL.WEIGHTS, cfg.VERSION) == ("MyHead", "b", 2)


def test_a_file_of_the_latest_version_may_not_use_old_names(tmp_path):
    with pytest.raises(KeyError, match=r"MODEL\.WEIGHT'.*MODEL\.WEIGHTS"):
        get_cfg().merge_from_file(write(tmp_path, "VERSION: 2\nMODEL: {WEIGHT: b}\n"))


def test_a_file_of_the_future_is_refused(tmp_path):
    with pytest.raises(ValueError, match="version 3"):
        get_cfg().merge_from_file(write(tmp_path, "VERSION: 3\n"))


@pytest.mark.parametrize("architecture", ["GeneralizedRCNN", "RetinaNet"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_down_and_up_again_is_the_same_config(version, architecture):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.WEIGHTS = "x.pth"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[1, 2], [3, 4]]
    old = downgrade_config(cfg, version)
    assert old["VERSION"] == version
    assert upgrade_config(old) == cfg


def test_downgrading_uses_the_old_names():
    old = downgrade_config(get_cfg(), 0)
    assert old.MODEL.RPN_HEAD.NAME == "StandardRPNHead" and "HEAD_NAME" not in old.MODEL.RPN
    assert old.MODEL.WEIGHT == "" and "WEIGHTS" not in old.MODEL
    assert old.MODEL.RPN.ANCHOR_SIZES == old.MODEL.RETINANET.ANCHOR_SIZES == [[32, 64, 128, 256, 512]]


def test_conversion_leaves_its_input_alone_and_keeps_it_frozen():
    cfg = get_cfg()
    cfg.freeze()
    old = downgrade_config(cfg, 1)
    assert cfg == get_cfg() and old.is_frozen() and old.MODEL.is_frozen()


@pytest.mark.parametrize(
    "section, other, architecture",
    [("RPN", "RETINANET", None), ("RETINANET", "RPN", None), ("RETINANET", "RPN", "RetinaNet")],
)
def test_the_anchors_that_count_become_the_anchors(section, other, architecture):
    cfg = CfgNode({"MODEL": {section: {"ANCHOR_SIZES": [[8]]}}, "VERSION": 1})
    if architecture:
        cfg.MODEL.META_ARCHITECTURE = architecture
        cfg.MODEL[other] = CfgNode({"ANCHOR_SIZES": [[99]]})
    new = upgrade_config(cfg)
    assert new.MODEL.ANCHOR_GENERATOR.SIZES == [[8]]
    assert section not in new.MODEL and other not in new.MODEL


def test_versions_that_make_no_sense_are_refused():
    cfg = get_cfg()
    with pytest.raises(ValueError, match="version 2 to version 7"):
        upgrade_config(cfg, 7)
    with pytest.raises(ValueError, match="version 2 to version 1"):
        upgrade_config(cfg, 1)
    with pytest.raises(ValueError, match="version 2 to version -1"):
        downgrade_config(cfg, -1)


def test_the_newest_version_is_guessed_for_a_file_with_nothing_old():
    assert guess_version(CfgNode({"MODEL": {"WEIGHTS": ""}}), "f.yaml") == 2
    assert guess_version(CfgNode({"MODEL": {"RPN_HEAD": {"NAME": ""}}}), "f.yaml") == 0
    assert guess_version(CfgNode({"MODEL": {"RPN": {"ANCHOR_SIZES": []}}}), "f.yaml") == 1


def test_every_new_name_exists():
    cfg = get_cfg()
    for converter in (ConverterV1, ConverterV2):
        for old, new in converter.RENAMES.items():
            node = cfg
            for part in new.split("."):
                assert part in node, f"{old} is renamed to {new}, which does not exist"
                node = node[part]
