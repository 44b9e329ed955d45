"""A Python config of a tiny model, for the pictures of user_module.py."""

import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler

from detlab.config import LazyCall as L
from detlab.data.build import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detlab.data.dataset_mapper import DatasetMapper
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.modeling.meta_arch.build import build_model
from detlab.solver.build import get_default_optimizer_params
from tests.modeling.tiny import tiny_config


def tiny_model(num_classes):
    """The model of the user's module."""
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME = "TwoMaps"
    cfg.MODEL.ROI_HEADS.NAME = "RandomlyDeafROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return build_model(cfg)


model = L("tests.engine.lazy_tiny.tiny_model")(num_classes=5)
optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0), lr=0.01, momentum=0.9
)
lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[4, 6])
dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="user_train"),
        mapper=L(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR"),
        total_batch_size=2,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="user_val", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR"),
    ),
    "evaluator": L(COCOEvaluator)(dataset_name="${..test.dataset.names}", tasks=("bbox",)),
}
train = {
    "output_dir": "",
    "init_checkpoint": "",
    "max_iter": 6,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False},
    "checkpointer": {"period": 2, "max_to_keep": 2},
    "eval_period": 0,
    "log_period": 2,
    "device": "cpu",
    "seed": 3,
}
