"""Datasets get the evaluator their metadata ask for."""

import pytest

from detlab.config.config import get_cfg
from detlab.data.catalog import MetadataCatalog
from detlab.evaluation.build import build_evaluator
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlab.evaluation.sem_seg_evaluation import SemSegEvaluator


@pytest.fixture
def kind():
    def register(**values):
        MetadataCatalog.get("build_test").set(**values)
        return "build_test"

    yield register
    MetadataCatalog.remove("build_test")


def test_coco_data_sets_get_cocos_evaluator_and_the_configs_sigmas(kind):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.TEST.KEYPOINT_OKS_SIGMAS = "somewhere", [0.1, 0.2]
    evaluator = build_evaluator(cfg, kind(evaluator_type="coco"))
    assert type(evaluator) is COCOEvaluator
    assert evaluator._kpt_oks_sigmas == (0.1, 0.2) and evaluator._output_dir.split("/") == ["somewhere", "inference"]
    assert build_evaluator(cfg, "build_test", "elsewhere")._output_dir == "elsewhere"


def test_other_kinds_get_theirs(kind):
    name = kind(evaluator_type="sem_seg", stuff_classes=["a"], ignore_label=255)
    assert type(build_evaluator(get_cfg(), name)) is SemSegEvaluator
    MetadataCatalog.remove(name)
    name = kind(evaluator_type="pascal_voc", dirname=".", split="val", year=2007, thing_classes=["a"])
    assert type(build_evaluator(get_cfg(), name)) is PascalVOCDetectionEvaluator


def test_a_kind_without_an_evaluator_says_which_there_are_and_what_to_do(kind):
    with pytest.raises(ValueError, match=r"evaluator_type 'lvis'; .*\['coco', 'pascal_voc', 'sem_seg'\].*of your own"):
        build_evaluator(get_cfg(), kind(evaluator_type="lvis"))


def test_a_data_set_that_names_no_kind_is_told_how(kind):
    with pytest.raises(ValueError, match=r"no evaluator_type.*set\(evaluator_type='coco'\)"):
        build_evaluator(get_cfg(), kind(thing_classes=["a"]))
