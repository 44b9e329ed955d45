"""What a training needs is found out before its model is built; what a subclass builds itself is left to it."""

import pytest
from torch import nn

from detlab.config.config import get_cfg
from detlab.engine.defaults import DefaultTrainer
from tests.engine.toys import ToyLoader, ToyModel


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
