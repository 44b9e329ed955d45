"""Learning-rate schedules in units of "1x": 90,000 steps of 16 images, about 12 epochs of COCO.

Short schedules decay after 6/9 and 8/9 of the run, long ones 60,000 and 20,000 steps before its end.
"""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from detlab.config import LazyCall as L
from detlab.solver.lr_scheduler import WarmupParamScheduler

_STEPS_1X = 90000
_WARMUP_STEPS = 1000


def default_X_scheduler(num_X):
    """A warm-up and two decays by ten over ``num_X`` times 90,000 steps, relative to the run's length."""
    total = num_X * _STEPS_1X
    decays = [total * 6 // 9, total * 8 // 9] if num_X <= 2 else [total - 60000, total - 20000]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[*decays, total]),
        warmup_length=_WARMUP_STEPS / total,
        warmup_method="linear",
        warmup_factor=0.001,
    )


lr_multiplier_1x = default_X_scheduler(1)
lr_multiplier_2x = default_X_scheduler(2)
lr_multiplier_3x = default_X_scheduler(3)
lr_multiplier_6x = default_X_scheduler(6)
lr_multiplier_9x = default_X_scheduler(9)
