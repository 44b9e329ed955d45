"""A config whose models are small enough to build and run in a test."""

import torch

from detlab.config import get_cfg
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import PolygonMasks


def tiny_config(meta_arch="GeneralizedRCNN", *, masks=False, keypoints=False):
    """A two-stage FPN model of about a million parameters on the CPU."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.DEVICE", "cpu",
            "MODEL.META_ARCHITECTURE", meta_arch,
            "MODEL.MASK_ON", masks,
            "MODEL.KEYPOINT_ON", keypoints,
            "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
            "MODEL.BACKBONE.FREEZE_AT", 0,
            "MODEL.RESNETS.DEPTH", 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
            "MODEL.RESNETS.NORM", "GN",
            "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"],
            "MODEL.FPN.IN_FEATURES", ["res2", "res3"],
            "MODEL.FPN.OUT_CHANNELS", 16,
            "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]],
            "MODEL.RPN.IN_FEATURES", ["p2", "p3"],
            "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"],
            "MODEL.ROI_HEADS.NUM_CLASSES", 3,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
            "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
            "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
            "MODEL.ROI_MASK_HEAD.CONV_DIM", 16,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7,
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [16],
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 5,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
            "MODEL.RPN.POST_NMS_TOPK_TEST", 30,
            "TEST.DETECTIONS_PER_IMAGE", 10,
            "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"],
            "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
        ]
    )  # fmt: skip
    return cfg


def tiny_c4_config():
    """A two-stage model of one map, whose heads share the last stage of the backbone; with masks."""
    cfg = tiny_config(masks=True)
    cfg.merge_from_list(
        [
            "MODEL.BACKBONE.NAME", "build_resnet_backbone",
            "MODEL.RESNETS.DEPTH", 50,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
            "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
            "MODEL.RESNETS.OUT_FEATURES", ["res4"],
            "MODEL.RESNETS.NORM", "",
            "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]],
            "MODEL.RPN.IN_FEATURES", ["res4"],
            "MODEL.ROI_HEADS.NAME", "Res5ROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 8,
            "MODEL.ROI_MASK_HEAD.NUM_CONV", 0,
        ]
    )  # fmt: skip
    return cfg


def tiny_batch(sizes=((64, 96), (80, 64)), num_objects=(2, 0)):
    """Training inputs with boxes, masks and keypoints; an image may have no objects."""
    torch.manual_seed(0)
    batch = []
    for (height, width), count in zip(sizes, num_objects):
        low = torch.rand(count, 2) * 20
        boxes = torch.cat((low, low + 15 + torch.rand(count, 2) * 20), dim=1)
        corners = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy().astype("float64")] for box in boxes]
        points = torch.cat((boxes[:, None, :2] + torch.rand(count, 5, 2) * 10, torch.full((count, 5, 1), 2.0)), dim=-1)
        labels = Instances(
            (height, width),
            gt_boxes=Boxes(boxes),
            gt_classes=torch.randint(0, 3, (count,)),
            gt_masks=PolygonMasks(corners),
            gt_keypoints=Keypoints(points),
        )
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        sem_seg = torch.randint(0, 54, (height, width))
        batch.append(
            {"image": image, "instances": labels, "sem_seg": sem_seg, "height": 2 * height, "width": 2 * width}
        )
    return batch
