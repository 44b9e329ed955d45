"""Datasets get the evaluator their metadata ask for."""

from pathlib import Path

import pytest
import torch

from detlab.config.config import get_cfg
from detlab.config.lazy import LazyConfig
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.evaluation.build import MAKERS, build_evaluator
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlab.evaluation.sem_seg_evaluation import SemSegEvaluator
from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from detlab.utils.user_modules import import_user_modules

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


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


def test_without_an_output_directory_nothing_is_left(kind):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = ""
    assert build_evaluator(cfg, kind(evaluator_type="coco"))._output_dir is None


def test_a_data_set_that_names_no_kind_but_has_boxes_of_classes_gets_cocos(kind, tmp_path):
    box = {"bbox": [1.0, 1.0, 2.0, 2.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    image = {"file_name": "a.png", "height": 8, "width": 8, "image_id": 3}
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    DatasetCatalog.register("build_test", lambda: [image, {**image, "image_id": 4, "annotations": [box]}])
    try:
        with pytest.raises(ValueError, match="no evaluator_type"):
            build_evaluator(cfg, "build_test")
        evaluator = build_evaluator(cfg, kind(thing_classes=["a"]))
        assert type(evaluator) is COCOEvaluator
        instances = Instances((8, 8))
        instances.pred_boxes, instances.scores = Boxes(torch.tensor([[1.0, 1.0, 3.0, 3.0]])), torch.ones(1)
        instances.pred_classes = torch.zeros(1, dtype=torch.int64)
        evaluator.reset()
        evaluator.process([{"image_id": 4}], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("build_test")


# The data sets of shipped configs whose evaluators are still to be written; it may only become shorter.
WITHOUT_EVALUATOR = {
    "cityscapes_fine_instance_seg_val": "the evaluator of Cityscapes instances",
    "coco_2017_val_100_panoptic_separated": "the evaluator of panoptic quality",
    "coco_2017_val_panoptic_separated": "the evaluator of panoptic quality",
    "lvis_v0.5_val": "the evaluator of LVIS",
    "lvis_v1_val": "the evaluator of LVIS",
}


def _test_sets_of_shipped_configs():
    """Name of each test set -> a config that has it."""
    found = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        cfg = get_cfg()
        cfg.merge_from_file(str(path))
        found.update((name, path) for name in cfg.DATASETS.TEST)
    for path in sorted(CONFIGS.glob("*-*/*.py")):
        names = LazyConfig.load(str(path)).dataloader.test.dataset.names
        found.update((name, path) for name in ([names] if isinstance(names, str) else names))
    return found


def test_every_shipped_config_can_be_evaluated_or_is_listed_with_what_is_missing():
    import_user_modules([str(path) for path in CONFIGS.glob("quick_start/*.py")])
    found = _test_sets_of_shipped_configs()
    assert len(found) >= 10
    kinds = {name: MetadataCatalog.get(name).get("evaluator_type") for name in found}
    lacking = {name: f"{kinds[name]}, of {found[name].name}" for name in found if kinds[name] not in MAKERS}
    assert lacking.keys() == WITHOUT_EVALUATOR.keys(), lacking


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
