"""What a training needs is found out before its model is built; what a subclass builds itself is left to it."""

import functools
import logging
import os
import subprocess
import sys
import traceback

import pytest
from torch import nn

from detlab.config.config import get_cfg
from detlab.config.constraints import LIMITS, check_config
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.coco import register_coco_instances
from detlab.data.datasets.shapes import generate_shapes
from detlab.engine.defaults import DefaultTrainer
from tests.engine.toys import ToyLoader, ToyModel
from tests.limits import MEBIBYTE, run_limited
from tests.modeling.tiny import tiny_config


@pytest.fixture(autouse=True)
def logger_as_before():
    """A trainer sets the logger of the package up, after which tests of messages would see none."""
    logger = logging.getLogger("detlab")
    before = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate, logger.handlers = before[0], before[2]
    logger.setLevel(before[1])


class WithoutModel(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        pytest.fail("the model was built")


def config(tmp_path, settings):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", ("shapes_train",)])
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    return cfg


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"DATASETS.TRAIN": ()}, ValueError, "no dataset is named; set DATASETS.TRAIN"),
        (
            {"DATASETS.TRAIN": ("shapes_trian",)},
            KeyError,
            "'shapes_trian' is not registered. Did you mean 'shapes_train'",
        ),
        (
            {"DATALOADER.SAMPLER_TRAIN": "Sampler"},
            ValueError,
            "SAMPLER_TRAIN is 'Sampler'; it can be 'TrainingSampler', ",
        ),
        ({"SOLVER.OPTIMIZER": "Adam"}, ValueError, "SOLVER.OPTIMIZER='Adam' is unknown; it is 'SGD' or 'AdamW'"),
        ({"SOLVER.NESTEROV": True, "SOLVER.MOMENTUM": 0.0}, ValueError, "SOLVER.NESTEROV needs a momentum"),
        (
            {"SOLVER.LR_SCHEDULER_NAME": "Cosine"},
            ValueError,
            "LR_SCHEDULER_NAME='Cosine' is unknown; it is one of Warm",
        ),
        ({"SOLVER.STEPS": (0, 5)}, ValueError, r"cannot fall at iterations \[0, 5\]"),
        ({"SOLVER.GAMMA": 1e300, "SOLVER.STEPS": (1, 2)}, ValueError, r"SOLVER.GAMMA=1e\+300 multiplied 2 times is no"),
        (
            {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.BASE_LR_END": 1.0},
            ValueError,
            "SOLVER.BASE_LR_END=1.0 must lie between",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_model_is_built(tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        WithoutModel(config(tmp_path, settings))


def test_a_trainer_that_builds_its_parts_itself_is_not_asked_for_names(tmp_path):
    class Own(DefaultTrainer):
        @classmethod
        def build_model(cls, cfg):
            return ToyModel()

        @classmethod
        def build_train_loader(cls, cfg):
            return ToyLoader()

        @staticmethod
        def build_optimizer(cfg, model: nn.Module):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.OPTIMIZER = "SGD"
            return DefaultTrainer.build_optimizer(cfg, model)

        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
            return super().build_lr_scheduler(cfg, optimizer)

    names = {"DATASETS.TRAIN": (), "DATALOADER.SAMPLER_TRAIN": "Mine", "SOLVER.OPTIMIZER": "Lion"}
    trainer = Own(config(tmp_path, {**names, "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR"}))
    assert trainer.scheduler.get_last_lr()


# ------------------------------------------------------------------------------------------------------- odd values

ODD_VALUES = [None, "text", -1, 0, 2**70, [], (), [0], [-1]]
SENTENCES = (ValueError, KeyError, FileNotFoundError, FloatingPointError)


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(str(folder), num_train=4, num_val=2, image_size=(64, 80))
    for split in ("train", "val"):
        register_coco_instances(
            f"odd_{split}", {}, str(folder / f"annotations/instances_{split}.json"), str(folder / split)
        )
    yield ("odd_train",), ("odd_val",)
    for split in ("train", "val"):
        DatasetCatalog.remove(f"odd_{split}")
        MetadataCatalog.remove(f"odd_{split}")


def trainable(data, output_dir):
    cfg = tiny_config(masks=True)
    train, test = data
    settings = {
        "DATASETS.TRAIN": train,
        "DATASETS.TEST": test,
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.ROI_HEADS.NUM_CLASSES": 5,
        "OUTPUT_DIR": str(output_dir),
        "SEED": 1,
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": 1,
        "SOLVER.WARMUP_ITERS": 0,
    }
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    return cfg


def train_with(cfg):
    """Trains and evaluates; an error that is no sentence of this package becomes an ``AssertionError``."""
    try:
        DefaultTrainer(cfg).train()
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        is_own = os.path.join("detlab", "") in innermost.filename
        assert is_own and isinstance(error, SENTENCES), f"{innermost.filename}: {error!r}"
        raise


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in LIMITS if key not in ("OUTPUT_DIR", "GLOBAL.HACK", "VERSION")])
def test_a_training_with_an_odd_value_runs_or_says_a_sentence(key, tiny_data, tmp_path):
    *parents, leaf = key.split(".")
    for value in ODD_VALUES:
        cfg = trainable(tiny_data, tmp_path)
        section = functools.reduce(lambda node, part: node[part], parents, cfg)
        try:
            setattr(section, leaf, value)
            check_config(cfg)
        except ValueError:
            continue
        outcome = run_limited(train_with, cfg, seconds=120, more_bytes=4096 * MEBIBYTE)
        assert not outcome.died and not outcome.error.startswith("AssertionError"), (key, value, outcome.error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"SEED": 2**63 - 1, "TEST.EVAL_PERIOD": 2**63 - 1, "VIS_PERIOD": 2**63 - 1},
        {"SOLVER.CHECKPOINT_PERIOD": 2**63 - 1, "SOLVER.WARMUP_ITERS": 2**63 - 1, "SOLVER.STEPS": (2**63 - 1,)},
        {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 2**24, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 2**24},
        {"MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2**63 - 1, "MODEL.RPN.PRE_NMS_TOPK_TEST": 2**63 - 1},
        {"MODEL.RPN.POST_NMS_TOPK_TRAIN": 10**6, "MODEL.RPN.POST_NMS_TOPK_TEST": 10**6},
        {"TEST.DETECTIONS_PER_IMAGE": 10**6, "MODEL.RPN.BOUNDARY_THRESH": 2**31},
        {"INPUT.MAX_SIZE_TRAIN": 2**63 - 1, "INPUT.MAX_SIZE_TEST": 2**63 - 1},
        {"SOLVER.LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS": 10_000},
        {"MODEL.BACKBONE.FREEZE_AT": 2**63 - 1, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": -(2**63) + 1},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_largest_values_that_are_allowed_run_or_say_a_sentence(settings, tiny_data, tmp_path):
    cfg = trainable(tiny_data, tmp_path)
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    outcome = run_limited(train_with, cfg, seconds=120, more_bytes=4096 * MEBIBYTE)
    assert not outcome.died and not outcome.error.startswith("AssertionError"), outcome.error


@pytest.mark.slow
def test_a_training_whose_warnings_are_errors_runs_to_its_last_metric(tiny_data, tmp_path, project_root):
    annotations = MetadataCatalog.get("odd_val").json_file
    module = tmp_path / "data.py"
    module.write_text(
        "from detlab.data.datasets.coco import register_coco_instances\n"
        f"register_coco_instances('odd_val', {{}}, {annotations!r}, {MetadataCatalog.get('odd_val').image_root!r})\n"
    )
    cfg = trainable((("odd_val",), ("odd_val",)), tmp_path / "out")
    cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MASK_FORMAT = 1, "bitmask"
    (tmp_path / "config.yaml").write_text(cfg.dump())
    command = [sys.executable, "-W", "error", str(project_root / "tools" / "train_net.py"), "--import", str(module)]
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    run = subprocess.run(
        [*command, "--config-file", str(tmp_path / "config.yaml")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Evaluation results for segm" in run.stdout + run.stderr
