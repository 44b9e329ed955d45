"""Every key of a yaml config with its default value: the one place where a default is written.

``get_cfg()`` turns ``DEFAULTS`` into a fresh ``CfgNode``. The value of a key also fixes its type: a later value must be
of the same type, where a list and a tuple count as one and an int may stand for a float. ``None`` accepts any type.
What a key may hold beyond that, and how keys go together, stands in ``detlab.config.constraints``.

Unless a comment says otherwise, sizes are in pixels, ``SIZE`` pairs are (height, width), iteration counts are in
optimizer steps, thresholds on overlaps and scores lie in [0, 1], and ``*_TRAIN`` / ``*_TEST`` pairs are used in
training and in inference respectively.
"""

from __future__ import annotations

from typing import Any

# Box deltas are predicted in units of these: (dx, dy, dw, dh) are multiplied by them before the loss.
_UNIT_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

INPUT: dict[str, Any] = {
    # Order of an image's channels as the model sees them: "BGR", "RGB", "L" (grey) or "YUV-BT.601".
    # PIXEL_MEAN and PIXEL_STD follow the same order.
    "FORMAT": "BGR",
    # How instance masks travel to the model: "polygon" or "bitmask".
    "MASK_FORMAT": "polygon",
    # Length of the shorter edge after resizing. Training draws one entry ("choice"), or a number between the two
    # entries ("range"), for each image. 0 in MIN_SIZE_TEST turns resizing off.
    "MIN_SIZE_TRAIN": (800,),
    "MIN_SIZE_TRAIN_SAMPLING": "choice",
    "MIN_SIZE_TEST": 800,
    # Upper bound of the longer edge; the shorter one gives way.
    "MAX_SIZE_TRAIN": 1333,
    "MAX_SIZE_TEST": 1333,
    # "horizontal", "vertical" or "none"; an image is mirrored with probability 1/2.
    "RANDOM_FLIP": "horizontal",
    # Random crops before resizing. TYPE says what SIZE means: "relative" (share of the image), "relative_range"
    # (a share drawn between SIZE and 1), "absolute" (pixels) or "absolute_range" (pixels between the two numbers).
    "CROP": {
        "ENABLED": False,
        "TYPE": "relative_range",
        "SIZE": [0.9, 0.9],
    },
}

DATASETS: dict[str, Any] = {
    # Registered names; several training sets are concatenated, several test sets are evaluated one by one.
    "TRAIN": (),
    "TEST": (),
    # One proposal file for each data set above, read when MODEL.LOAD_PROPOSALS is on; the best-scored TOPK are kept.
    "PROPOSAL_FILES_TRAIN": (),
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

DATALOADER: dict[str, Any] = {
    # Worker processes of each training process; 0 loads in the training process itself.
    "NUM_WORKERS": 4,
    # Batches hold either landscape or portrait images only, which saves padding.
    "ASPECT_RATIO_GROUPING": True,
    # "TrainingSampler" (shuffled, endless), "RepeatFactorTrainingSampler" (rare classes more often) or
    # "RandomSubsetTrainingSampler".
    "SAMPLER_TRAIN": "TrainingSampler",
    # For RepeatFactorTrainingSampler: classes in a smaller share of images than this are repeated, by the square
    # root of the ratio or by the ratio itself.
    "REPEAT_THRESHOLD": 0.0,
    "REPEAT_SQRT": True,
    # For RandomSubsetTrainingSampler: the share of all images that it uses, in (0, 1].
    "RANDOM_SUBSET_RATIO": 1.0,
    # Training skips images that carry no usable annotation.
    "FILTER_EMPTY_ANNOTATIONS": True,
}

RESNETS: dict[str, Any] = {
    # 18, 34, 50, 101 or 152 layers.
    "DEPTH": 50,
    # Maps to hand on: "stem", "res2" ... "res5", or "linear" for a classifier.
    "OUT_FEATURES": ["res4"],
    # Groups of the 3x3 convolutions, and channels of each in res2; 32 and 8 make a ResNeXt 32x8d.
    "NUM_GROUPS": 1,
    "WIDTH_PER_GROUP": 64,
    # "FrozenBN", "BN", "SyncBN", "GN", "LN" or "" (none).
    "NORM": "FrozenBN",
    # Where a bottleneck takes its stride: in the first 1x1 convolution (MSRA weights) or in the 3x3 one (torchvision).
    "STRIDE_IN_1X1": True,
    # 2 keeps res5 at stride 16 with dilated convolutions.
    "RES5_DILATION": 1,
    "RES2_OUT_CHANNELS": 256,
    "STEM_OUT_CHANNELS": 64,
    # Deformable 3x3 convolutions in res2, res3, res4, res5; modulated ones also weigh each sample.
    "DEFORM_ON_PER_STAGE": [False, False, False, False],
    "DEFORM_MODULATED": False,
    "DEFORM_NUM_GROUPS": 1,
}

ANCHOR_GENERATOR: dict[str, Any] = {
    "NAME": "DefaultAnchorGenerator",
    # Square roots of the anchors' areas, one list for each feature map; a single list serves all maps.
    "SIZES": [[32, 64, 128, 256, 512]],
    # Height over width, one list for each feature map; a single list serves all maps.
    "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    # Degrees counter-clockwise, for RotatedAnchorGenerator.
    "ANGLES": [[-90, 0, 90]],
    # Where the first anchor's centre lies, as a share of the stride in [0, 1).
    "OFFSET": 0.0,
}

RPN: dict[str, Any] = {
    "HEAD_NAME": "StandardRPNHead",
    "IN_FEATURES": ["res4"],
    # Output channels of the hidden 3x3 convolutions; -1 keeps the input's number.
    "CONV_DIMS": [-1],
    # Anchors over the image's edge by more than this are left out of training; -1 keeps them all.
    "BOUNDARY_THRESH": -1,
    # Overlaps that cut anchors into background, ignored and foreground, and the labels of the three.
    "IOU_THRESHOLDS": [0.3, 0.7],
    "IOU_LABELS": [0, -1, 1],
    # Anchors sampled for the loss, and the largest share of foreground among them.
    "BATCH_SIZE_PER_IMAGE": 256,
    "POSITIVE_FRACTION": 0.5,
    # "smooth_l1", "giou", "diou" or "ciou".
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "BBOX_REG_LOSS_WEIGHT": 1.0,
    "BBOX_REG_WEIGHTS": _UNIT_WEIGHTS,
    # Where smooth L1 turns from a parabola into a line; 0 is plain L1.
    "SMOOTH_L1_BETA": 0.0,
    # Weight of both RPN losses.
    "LOSS_WEIGHT": 1.0,
    # Best-scored anchors of each feature map that enter suppression, and proposals of each image that leave it.
    "PRE_NMS_TOPK_TRAIN": 12000,
    "PRE_NMS_TOPK_TEST": 6000,
    "POST_NMS_TOPK_TRAIN": 2000,
    "POST_NMS_TOPK_TEST": 1000,
    "NMS_THRESH": 0.7,
}

ROI_HEADS: dict[str, Any] = {
    "NAME": "Res5ROIHeads",
    # Foreground classes; background comes on top.
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["res4"],
    # As in RPN, for proposals.
    "IOU_THRESHOLDS": [0.5],
    "IOU_LABELS": [0, 1],
    "BATCH_SIZE_PER_IMAGE": 512,
    "POSITIVE_FRACTION": 0.25,
    # Detections below this score are dropped; low values help average precision, at some cost in time.
    "SCORE_THRESH_TEST": 0.05,
    "NMS_THRESH_TEST": 0.5,
    # Adds the ground-truth boxes to the proposals in training.
    "PROPOSAL_APPEND_GT": True,
}

ROI_BOX_HEAD: dict[str, Any] = {
    # A registered head, such as "FastRCNNConvFCHead"; Res5ROIHeads brings its own.
    "NAME": "",
    "NUM_CONV": 0,
    "CONV_DIM": 256,
    "NUM_FC": 0,
    "FC_DIM": 1024,
    # Norm of the convolutions; "" is none.
    "NORM": "",
    # Side of the pooled square; samples of each bin along one axis, where 0 adapts to the box;
    # "ROIAlignV2" aligns by half a pixel, "ROIAlign" does not, "ROIPool" and "ROIAlignRotated" exist as well.
    "POOLER_RESOLUTION": 14,
    "POOLER_SAMPLING_RATIO": 0,
    "POOLER_TYPE": "ROIAlignV2",
    # "smooth_l1", "giou", "diou" or "ciou".
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "BBOX_REG_LOSS_WEIGHT": 1.0,
    "BBOX_REG_WEIGHTS": _ROI_WEIGHTS,
    "SMOOTH_L1_BETA": 0.0,
    # One set of deltas for all classes instead of one for each.
    "CLS_AGNOSTIC_BBOX_REG": False,
    # The mask and keypoint heads train on the boxes just predicted instead of on the proposals.
    "TRAIN_ON_PRED_BOXES": False,
    # A sigmoid for each class instead of one softmax over all.
    "USE_SIGMOID_CE": False,
    # Federated loss (CenterNet2, LVIS): the loss of each step looks at NUM_CLASSES classes, drawn by the POWER of their
    # image frequency. Needs USE_SIGMOID_CE.
    "USE_FED_LOSS": False,
    "FED_LOSS_NUM_CLASSES": 50,
    "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
}

ROI_BOX_CASCADE_HEAD: dict[str, Any] = {
    # One entry for each stage; the first overlap must be the one in ROI_HEADS.IOU_THRESHOLDS.
    "IOUS": (0.5, 0.6, 0.7),
    "BBOX_REG_WEIGHTS": (
        _ROI_WEIGHTS,
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    ),
}

ROI_MASK_HEAD: dict[str, Any] = {
    "NAME": "MaskRCNNConvUpsampleHead",
    "NUM_CONV": 0,
    "CONV_DIM": 256,
    "NORM": "",
    # One mask for all classes instead of one for each.
    "CLS_AGNOSTIC_MASK": False,
    # As in ROI_BOX_HEAD; the predicted mask has twice this side.
    "POOLER_RESOLUTION": 14,
    "POOLER_SAMPLING_RATIO": 0,
    "POOLER_TYPE": "ROIAlignV2",
}

ROI_KEYPOINT_HEAD: dict[str, Any] = {
    "NAME": "KRCNNConvDeconvUpsampleHead",
    "NUM_KEYPOINTS": 17,
    "CONV_DIMS": (512,) * 8,
    # As in ROI_BOX_HEAD.
    "POOLER_RESOLUTION": 14,
    "POOLER_SAMPLING_RATIO": 0,
    "POOLER_TYPE": "ROIAlignV2",
    # Training skips images with fewer visible keypoints than this.
    "MIN_KEYPOINTS_PER_IMAGE": 1,
    "LOSS_WEIGHT": 1.0,
    # Divides by the visible keypoints of the batch; otherwise by as many as the batch could hold at most, so that
    # images with few keypoints weigh less.
    "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
}

RETINANET: dict[str, Any] = {
    # Foreground classes.
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    # Hidden convolutions of each of the two towers, and their norm.
    "NUM_CONVS": 4,
    "NORM": "",
    # Foreground probability that the classifier's bias starts from.
    "PRIOR_PROB": 0.01,
    "IOU_THRESHOLDS": [0.4, 0.5],
    "IOU_LABELS": [0, -1, 1],
    "FOCAL_LOSS_GAMMA": 2.0,
    "FOCAL_LOSS_ALPHA": 0.25,
    # "smooth_l1" or "giou".
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "BBOX_REG_WEIGHTS": _UNIT_WEIGHTS,
    "SMOOTH_L1_LOSS_BETA": 0.1,
    # Candidates of each feature map above SCORE_THRESH_TEST that enter suppression.
    "SCORE_THRESH_TEST": 0.05,
    "TOPK_CANDIDATES_TEST": 1000,
    "NMS_THRESH_TEST": 0.5,
}

SEM_SEG_HEAD: dict[str, Any] = {
    "NAME": "SemSegFPNHead",
    "IN_FEATURES": ["p2", "p3", "p4", "p5"],
    # Pixels of this label take no part in the loss.
    "IGNORE_VALUE": 255,
    # COCO's 53 stuff classes and one for all things.
    "NUM_CLASSES": 54,
    "CONVS_DIM": 128,
    "NORM": "GN",
    # All maps are brought to this stride before they are added up.
    "COMMON_STRIDE": 4,
    "LOSS_WEIGHT": 1.0,
}

PANOPTIC_FPN: dict[str, Any] = {
    # Weight of every loss of the instance branch; SEM_SEG_HEAD.LOSS_WEIGHT weighs the other one.
    "INSTANCE_LOSS_WEIGHT": 1.0,
    # How instances and stuff become one panoptic map.
    "COMBINE": {
        "ENABLED": True,
        # An instance hidden behind earlier ones by more than this share is dropped.
        "OVERLAP_THRESH": 0.5,
        # Stuff segments of fewer pixels are dropped.
        "STUFF_AREA_LIMIT": 4096,
        "INSTANCES_CONFIDENCE_THRESH": 0.5,
    },
}

MODEL: dict[str, Any] = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    # "cuda", "cuda:1", "cpu", "mps".
    "DEVICE": "cuda",
    # Compile the training forward of a two-stage model with torch.compile: minutes at the start, faster steps after.
    "COMPILE": False,
    # Memory layout of the weights, and so of the feature maps: "channels_last", "contiguous", or "auto": channels-last
    # on a CPU, and on a GPU that computes in half precision. Results differ by rounding only.
    "LAYOUT": "auto",
    # Initial weights: a path, a URL, "detectron2://..." (the reference's zoo) or "torchvision://..."; "" starts from
    # random numbers.
    "WEIGHTS": "",
    "MASK_ON": False,
    "KEYPOINT_ON": False,
    # Reads DATASETS.PROPOSAL_FILES_* instead of running a proposal network.
    "LOAD_PROPOSALS": False,
    # Subtracted from, then divided into, pixel values in 0..255, in INPUT.FORMAT's order. MSRA's ResNets were trained
    # without division; torchvision's expect (57.375, 57.120, 58.395).
    "PIXEL_MEAN": [103.53, 116.28, 123.675],
    "PIXEL_STD": [1.0, 1.0, 1.0],
    "BACKBONE": {
        "NAME": "build_resnet_backbone",
        # 0 trains everything, 1 freezes the stem, 2 also res2, up to 5 for res4.
        "FREEZE_AT": 2,
        # "bfloat16" or "float16" runs the backbone alone in half precision, in training and inference; its weights and
        # the feature maps that it hands on stay float32. "" computes as the rest, see SOLVER.AMP. On a CPU it pays
        # where there are instructions for the type (bfloat16: AVX512-BF16, AMX).
        "DTYPE": "",
    },
    "RESNETS": RESNETS,
    "FPN": {
        # Bottom-up maps, finest first.
        "IN_FEATURES": [],
        "OUT_CHANNELS": 256,
        # "" or "GN".
        "NORM": "",
        # "sum" or "avg" of the lateral and the upsampled map.
        "FUSE_TYPE": "sum",
    },
    "ANCHOR_GENERATOR": ANCHOR_GENERATOR,
    "PROPOSAL_GENERATOR": {
        # "RPN", "RRPN" (rotated) or "PrecomputedProposals".
        "NAME": "RPN",
        # Proposals with a shorter side are dropped.
        "MIN_SIZE": 0,
    },
    "RPN": RPN,
    "ROI_HEADS": ROI_HEADS,
    "ROI_BOX_HEAD": ROI_BOX_HEAD,
    "ROI_BOX_CASCADE_HEAD": ROI_BOX_CASCADE_HEAD,
    "ROI_MASK_HEAD": ROI_MASK_HEAD,
    "ROI_KEYPOINT_HEAD": ROI_KEYPOINT_HEAD,
    "SEM_SEG_HEAD": SEM_SEG_HEAD,
    "PANOPTIC_FPN": PANOPTIC_FPN,
    "RETINANET": RETINANET,
}

SOLVER: dict[str, Any] = {
    # "SGD" or "AdamW".
    "OPTIMIZER": "SGD",
    "MAX_ITER": 40000,
    # Images of one step over all processes.
    "IMS_PER_BATCH": 16,
    # The number of processes these settings were made for. When it is neither 0 nor the number in use, the default
    # trainer scales batch size, learning rate, schedule and periods by the ratio.
    "REFERENCE_WORLD_SIZE": 0,
    "BASE_LR": 0.001,
    # Learning rate at the end of a cosine schedule.
    "BASE_LR_END": 0.0,
    # "WarmupMultiStepLR", "WarmupCosineLR" or "WarmupStepWithFixedGammaLR".
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    # Iterations at which the learning rate is multiplied by GAMMA.
    "STEPS": (30000,),
    "GAMMA": 0.1,
    # For WarmupStepWithFixedGammaLR: decays over the whole run.
    "NUM_DECAYS": 3,
    # The learning rate starts at this share of its value and reaches it after WARMUP_ITERS, "linear" or "constant".
    "WARMUP_FACTOR": 0.001,
    "WARMUP_ITERS": 1000,
    "WARMUP_METHOD": "linear",
    # Squeezes the schedule into the iterations after warm-up instead of covering its first part.
    "RESCALE_INTERVAL": False,
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "WEIGHT_DECAY": 0.0001,
    # Weight decay of norm layers, and of biases (None: as WEIGHT_DECAY).
    "WEIGHT_DECAY_NORM": 0.0,
    "WEIGHT_DECAY_BIAS": None,
    # Learning rate of biases, relative to the rest.
    "BIAS_LR_FACTOR": 1.0,
    "CLIP_GRADIENTS": {
        "ENABLED": False,
        # "value" clips each entry, "norm" each parameter's gradient, "full_model" all gradients together.
        "CLIP_TYPE": "value",
        "CLIP_VALUE": 1.0,
        # The p of the norm; float("inf") is allowed.
        "NORM_TYPE": 2.0,
    },
    # Training in mixed precision. PRECISION: "float16" or "bfloat16"; "" is float16 on a GPU, bfloat16 on the CPU.
    "AMP": {"ENABLED": False, "PRECISION": ""},
    "CHECKPOINT_PERIOD": 5000,
}

TEST: dict[str, Any] = {
    # Evaluates every so many iterations; 0 only at the end.
    "EVAL_PERIOD": 0,
    # Rows of [task, metric, value, tolerance] that the final results are held against.
    "EXPECTED_RESULTS": [],
    "DETECTIONS_PER_IMAGE": 100,
    # One number for each keypoint type, needed for data sets that are not COCO's 17 person keypoints.
    "KEYPOINT_OKS_SIGMAS": [],
    # Test-time augmentation: every size, with and without a horizontal flip.
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        "MAX_SIZE": 4000,
        "FLIP": True,
    },
    # Re-estimates batch-norm statistics over so many batches before an evaluation.
    "PRECISE_BN": {
        "ENABLED": False,
        "NUM_ITER": 200,
    },
}

DEFAULTS: dict[str, Any] = {
    # Version of the key names; files of older versions are upgraded when they are read.
    "VERSION": 2,
    "MODEL": MODEL,
    "INPUT": INPUT,
    "DATASETS": DATASETS,
    "DATALOADER": DATALOADER,
    "SOLVER": SOLVER,
    "TEST": TEST,
    # Checkpoints, logs, metrics and evaluation results.
    "OUTPUT_DIR": "./output",
    # Seed of everything random; negative draws one.
    "SEED": -1,
    # Lets cuDNN time its kernels, which pays when image sizes vary little.
    "CUDNN_BENCHMARK": False,
    # "highest", "high" or "medium", as in torch.set_float32_matmul_precision; "" leaves torch's setting.
    "FLOAT32_PRECISION": "",
    # Draws training samples every so many iterations; 0 never.
    "VIS_PERIOD": 0,
    # Room for quick experiments in library code, through detlab.config.global_cfg.
    "GLOBAL": {"HACK": 1.0},
}
