# ruff: noqa: F401 - the imported names are the config
from detlab.config import LazyCall as L
from detlab.modeling.meta_arch.rcnn import ProposalNetwork

from .faster_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, optimizer, train
from .faster_rcnn_R_50_FPN_1x import model as _detector

model = L(ProposalNetwork)(
    backbone=_detector.backbone,
    proposal_generator=_detector.proposal_generator,
    pixel_mean=_detector.pixel_mean,
    pixel_std=_detector.pixel_std,
)
# More proposals of an image are kept than a second stage would look at.
model.proposal_generator.post_nms_topk = (1000, 2000)
