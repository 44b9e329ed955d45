"""What a user gives to --import: a data set, a backbone, ROI heads and hooks, known to no other file.

Environment variables say where the pictures are, and after which iteration the process kills itself.
"""

import os
import signal

from torch import nn

from detlab.data.datasets.coco import register_coco_instances
from detlab.engine.hooks import EVALUATION_HOOK_REGISTRY, HOOK_REGISTRY
from detlab.engine.train_loop import HookBase
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.build import BACKBONE_REGISTRY
from detlab.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detlab.utils.comm import is_main_process

PICTURES = os.environ["USER_MODULE_PICTURES"]


def output_dir(cfg):
    """Of a yaml or a Python config."""
    return cfg.OUTPUT_DIR if "OUTPUT_DIR" in cfg else cfg.train.output_dir


for split in ("train", "val"):
    register_coco_instances(
        f"user_{split}", {}, f"{PICTURES}/annotations/instances_{split}.json", f"{PICTURES}/{split}"
    )


@BACKBONE_REGISTRY.register()
class TwoMaps(Backbone):
    """A few convolutions, two maps."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self._out_features = ["p2", "p3"]
        self._out_feature_channels = {"p2": 8, "p3": 8}
        self._out_feature_strides = {"p2": 4, "p3": 8}
        self.stem = nn.Sequential(nn.Conv2d(input_shape.channels, 8, 7, stride=4, padding=3), nn.ReLU())
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x):
        low = self.norm(self.stem(x / 100))
        return {"p2": low, "p3": self.down(low)}


@ROI_HEADS_REGISTRY.register()
class RandomlyDeafROIHeads(StandardROIHeads):
    """Drops features at random, so that a resumed run has to draw the same numbers."""

    def forward(self, images, features, proposals, targets=None):
        if self.training:
            features = {name: nn.functional.dropout(value, 0.2) for name, value in features.items()}
        return super().forward(images, features, proposals, targets)


@HOOK_REGISTRY.register()
class WriteIterations(HookBase):
    """Leaves a line for each iteration, and kills the process after a certain one."""

    def __init__(self, trainer):
        self.path = os.path.join(output_dir(trainer.cfg), "iterations.txt")
        self.last = int(os.environ.get("USER_MODULE_KILL_AFTER", "-1"))

    def after_step(self):
        with open(self.path, "a") as file:
            file.write(f"{self.trainer.iter}\n")
        if self.trainer.iter == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


@EVALUATION_HOOK_REGISTRY.register()
def note_results(trainer):
    """A hook that sees what the evaluation has put."""

    class NoteResults(HookBase):
        def after_train(self):
            if not is_main_process():
                return
            value, _ = self.trainer.storage.latest().get("bbox/AP", (None, 0))
            with open(os.path.join(output_dir(trainer.cfg), "results.txt"), "w") as file:
                file.write(str(value))

    return NoteResults()
