"""Heads that look at each proposal: classify, refine, outline.

Shapes: N images, R proposals of the whole batch, P proposals and D detections of each image, K classes (the background
is class K), M x M the masks' resolution.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.backbone.resnet import BottleneckBlock, ResNet
from detlab.modeling.feature_shapes import select_features
from detlab.modeling.matcher import Matcher
from detlab.modeling.poolers import ROIPooler
from detlab.modeling.proposal_generator.proposal_utils import Proposals, add_ground_truth_to_proposals
from detlab.modeling.roi_heads.box_head import build_box_head
from detlab.modeling.roi_heads.fast_rcnn import Detections, FastRCNNOutputLayers
from detlab.modeling.roi_heads.keypoint_head import build_keypoint_head
from detlab.modeling.roi_heads.mask_head import build_mask_head, select_class_masks
from detlab.modeling.sampling import subsample_labels
from detlab.structures.boxes import Boxes, pairwise_iou
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances
from detlab.utils.events import log_scalars
from detlab.utils.registry import Registry

__all__ = [
    "ROI_HEADS_REGISTRY",
    "ROIHeads",
    "Res5ROIHeads",
    "StandardROIHeads",
    "build_roi_heads",
    "select_foreground_proposals",
    "select_proposals_with_visible_keypoints",
]

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """Modules ``(cfg, input_shape)``, see :class:`ROIHeads` for how they are called."""
ROI_HEADS_REGISTRY.expect(CascadeROIHeads="the heads of Cascade R-CNN", RROIHeads="heads for rotated boxes")


def build_roi_heads(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The heads that ``cfg.MODEL.ROI_HEADS.NAME`` names, for a backbone of ``input_shape``."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(proposals: list[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """The proposals that are objects.

    Args:
        proposals: N instances with ``gt_classes``.
        bg_label: the class of the background; -1 is no object either.

    Returns:
        N instances, and of each image the (P,) bool mask that chose them.
    """
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[mask.nonzero().squeeze(1)] for p, mask in zip(proposals, masks)], masks


def select_proposals_with_visible_keypoints(proposals: list[Instances]) -> list[Instances]:
    """The proposals in which at least one labelled keypoint lies; others would teach the keypoint head nothing.

    Args:
        proposals: N instances with ``proposal_boxes`` and ``gt_keypoints``.
    """
    selected = []
    for own in proposals:
        boxes = own.proposal_boxes.tensor[:, None]  # P, 1, 4
        points = own.gt_keypoints.tensor  # P, K, 3
        inside = ((points[..., :2] >= boxes[..., :2]) & (points[..., :2] <= boxes[..., 2:])).all(dim=-1)
        has_visible = (inside & (points[..., 2] >= 1)).any(dim=1)
        selected.append(own[has_visible.nonzero().squeeze(1)])
    log_scalars(**{"keypoint_head/num_fg_samples": sum(map(len, selected)) / max(len(selected), 1)})
    return selected


class FixedPredictions(NamedTuple):
    """What the tensor core of the heads gives: D entries for each image, of which ``detections.counts`` are valid."""

    detections: Detections
    masks: Tensor | None  # (N, D, M, M) probabilities


class ROIHeads(nn.Module):
    """What all heads share: matching proposals with ground truth and drawing those that are trained on.

    A subclass fills in :meth:`forward`.

    Args:
        num_classes: K.
        batch_size_per_image: proposals of an image that take part in the losses.
        positive_fraction: the most of them that are objects.
        proposal_matcher: labels proposals by their overlap with ground truth.
        proposal_append_gt: also train on the ground-truth boxes themselves.
    """

    @configurable
    def __init__(
        self, *, num_classes, batch_size_per_image, positive_fraction, proposal_matcher, proposal_append_gt=True
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg) -> dict:
        settings = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": settings.NUM_CLASSES,
            "batch_size_per_image": settings.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": settings.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(settings.IOU_THRESHOLDS, settings.IOU_LABELS, allow_low_quality_matches=False),
            "proposal_append_gt": settings.PROPOSAL_APPEND_GT,
        }

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Label the proposals of each image and draw those that are trained on, objects first.

        Args:
            proposals: N instances with ``proposal_boxes`` and ``objectness_logits``.
            targets: N instances with ``gt_boxes``, ``gt_classes`` and perhaps more fields named ``gt_...``.

        Returns:
            N instances with ``proposal_boxes``, ``gt_classes`` (K for the background) and, where the image has
            objects, the other ``gt_...`` fields of the object each proposal overlaps most.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled = [self._label_and_sample(p, t) for p, t in zip(proposals, targets)]
        num_objects = sum((p.gt_classes < self.num_classes).sum() for p in sampled) / max(len(sampled), 1)
        num_boxes = sum(map(len, sampled)) / max(len(sampled), 1)
        log_scalars(**{"roi_head/num_fg_samples": num_objects, "roi_head/num_bg_samples": num_boxes - num_objects})
        return sampled

    def _label_and_sample(self, proposals: Instances, target: Instances) -> Instances:
        overlaps = pairwise_iou(target.gt_boxes, proposals.proposal_boxes)
        matches, labels = self.proposal_matcher(overlaps)
        chosen, classes = self._sample_proposals(matches, labels, target.gt_classes)
        sampled = proposals[chosen]
        sampled.gt_classes = classes
        if len(target) > 0:
            objects = matches[chosen]
            for name, values in target.get_fields().items():
                if name.startswith("gt_") and not sampled.has(name):
                    sampled.set(name, values[objects])
        return sampled

    def _sample_proposals(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor):
        """The drawn proposals, and their classes.

        Args:
            matched_idxs: (P,) row of the ground truth of each proposal.
            matched_labels: (P,) 1 object, 0 background, -1 ignored.
            gt_classes: (M,) classes of the ground truth.
        """
        if gt_classes.numel() > 0:
            classes = gt_classes[matched_idxs]
            classes = torch.where(matched_labels == 1, classes, self.num_classes)
            classes = torch.where(matched_labels == -1, -1, classes)
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        drawn = subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        chosen = torch.cat(drawn)
        return chosen, classes[chosen]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Train on, or detect in, the proposals.

        Args:
            images: the padded batch.
            features: maps (N, C, Hl, Wl) by name.
            proposals: N instances with ``proposal_boxes`` and ``objectness_logits``.
            targets: in training, N instances with ``gt_boxes``, ``gt_classes`` and what else the heads want.

        Returns:
            In training the labelled proposals and the losses by name; else the detections and no losses.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")


def _levels(input_shape: dict[str, ShapeSpec], names: list[str]) -> tuple[int, tuple[float, ...]]:
    """The common number of channels of these maps, and the scale of each."""
    shapes = select_features(input_shape, names, "MODEL.ROI_HEADS.IN_FEATURES").values()
    channels = {shape.channels or 0 for shape in shapes}
    if len(channels) != 1:
        raise ValueError(f"ROI heads pool maps of equal channels, but {list(names)} have {sorted(channels)}")
    return channels.pop(), tuple(1.0 / (shape.stride or 1) for shape in shapes)


def _flat_rois(boxes: Tensor) -> Tensor:
    """(N, P, 4) -> (N * P, 5) with the image's index in front."""
    num_images, num_boxes, _ = boxes.shape
    images = torch.arange(num_images, dtype=boxes.dtype, device=boxes.device)
    return torch.cat((images[:, None, None].expand(-1, num_boxes, -1), boxes), dim=-1).flatten(0, 1)


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Independent heads for boxes, masks and keypoints, each with a pooler of its own.

    Args:
        box_in_features: names of the maps the box head pools from.
        box_pooler: for the box head.
        box_head: from pooled features to a vector.
        box_predictor: from the vector to scores and offsets, with losses and inference.
        mask_in_features: likewise for masks, None without.
        mask_pooler: None gives the mask head the maps themselves.
        mask_head: None without masks.
        keypoint_in_features: likewise for keypoints.
        keypoint_pooler: likewise.
        keypoint_head: None without keypoints.
        train_on_pred_boxes: train masks and keypoints in the refined boxes rather than the proposals.
        kwargs: see :class:`ROIHeads`.
    """

    box_pooler: Any  # parts are what registries and callers give
    box_head: Any
    box_predictor: Any
    mask_in_features: Any
    mask_pooler: Any
    mask_head: Any
    keypoint_in_features: Any
    keypoint_pooler: Any
    keypoint_head: Any

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_in_features: list[str] | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        self.keypoint_on = keypoint_in_features is not None
        if self.keypoint_on:
            self.keypoint_in_features = keypoint_in_features
            self.keypoint_pooler = keypoint_pooler
            self.keypoint_head = keypoint_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        arguments = super().from_config(cfg)
        arguments["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        arguments |= cls._init_box_head(cfg, input_shape)
        arguments |= cls._init_mask_head(cfg, input_shape)
        arguments |= cls._init_keypoint_head(cfg, input_shape)
        return arguments

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        names, settings = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
        pooler, shape = _build_pooler(settings, input_shape, names)
        head = build_box_head(cfg, shape)
        return {
            "box_in_features": names,
            "box_pooler": pooler,
            "box_head": head,
            "box_predictor": FastRCNNOutputLayers(cfg, head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        if not cfg.MODEL.MASK_ON:
            return {}
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, shape = _build_pooler(cfg.MODEL.ROI_MASK_HEAD, input_shape, names)
        return {"mask_in_features": names, "mask_pooler": pooler, "mask_head": build_mask_head(cfg, shape)}

    @classmethod
    def _init_keypoint_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        if not cfg.MODEL.KEYPOINT_ON:
            return {}
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, shape = _build_pooler(cfg.MODEL.ROI_KEYPOINT_HEAD, input_shape, names)
        return {
            "keypoint_in_features": names,
            "keypoint_pooler": pooler,
            "keypoint_head": build_keypoint_head(cfg, shape),
        }

    def forward(self, images, features, proposals, targets=None):
        """See :meth:`ROIHeads.forward`; masks and keypoints are predicted for the detected boxes."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        if targets is None:
            raise ValueError("training needs targets: each input must have 'instances' with its ground truth")
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Masks and keypoints for boxes that are known, in inference.

        Args:
            features: maps by name.
            instances: with ``pred_boxes`` and ``pred_classes``.

        Returns:
            The instances with ``pred_masks`` and ``pred_keypoints`` where the heads for them exist.
        """
        assert not self.training
        instances = self._forward_mask(features, instances)
        return self._forward_keypoint(features, instances)

    def detect(self, features: dict[str, Tensor], proposals: Proposals, image_sizes: Tensor) -> FixedPredictions:
        """The tensor core of inference: fixed numbers of boxes in and out, no branch on a value.

        Args:
            features: maps (N, C, Hl, Wl) by name.
            proposals: P for each image.
            image_sizes: (N, 2), height and width.
        """
        pooled = self.box_pooler.pool([features[f] for f in self.box_in_features], _flat_rois(proposals.boxes))
        predictions = self.box_predictor(self.box_head(pooled))
        found = self.box_predictor.detect(predictions, proposals.boxes, proposals.valid, image_sizes)
        return FixedPredictions(found, self._detect_masks(features, found) if self.mask_on else None)

    def _detect_masks(self, features: dict[str, Tensor], found: Detections) -> Tensor:
        maps = [features[f] for f in self.mask_in_features]
        logits = self.mask_head.layers(self.mask_pooler.pool(maps, _flat_rois(found.boxes)))
        masks = select_class_masks(logits, found.classes.flatten()).float().sigmoid()
        return masks.unflatten(0, found.scores.shape)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        """The losses of the box head in training, else the detections."""
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            self._move_to_predicted_boxes(predictions, proposals)
        return losses

    @torch.no_grad()
    def _move_to_predicted_boxes(self, predictions, proposals: list[Instances]) -> None:
        boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for own, own_boxes in zip(proposals, boxes):
            own.proposal_boxes = Boxes(own_boxes)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        """The losses of the mask head in training, else the instances with ``pred_masks``."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        x = self._region_features(features, self.mask_in_features, self.mask_pooler, instances)
        return self.mask_head(x, instances)

    def _forward_keypoint(self, features: dict[str, Tensor], instances: list[Instances]):
        """The losses of the keypoint head in training, else the instances with ``pred_keypoints``."""
        if not self.keypoint_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            instances = [x if len(x) == 0 else select_proposals_with_visible_keypoints([x])[0] for x in instances]
        x = self._region_features(features, self.keypoint_in_features, self.keypoint_pooler, instances)
        return self.keypoint_head(x, instances)

    def _region_features(self, features, names: list[str], pooler: ROIPooler | None, instances: list[Instances]):
        """What a head sees of the boxes: pooled features, or all maps by name where it has no pooler."""
        if pooler is None:
            return {name: features[name] for name in names}
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        return pooler([features[name] for name in names], boxes)


def _build_pooler(settings, input_shape: dict[str, ShapeSpec], names: list[str]) -> tuple[ROIPooler, ShapeSpec]:
    """The pooler that a head's ``POOLER_...`` settings describe, and the shape of what it pools."""
    channels, scales = _levels(input_shape, names)
    size = settings.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=size,
        scales=scales,
        sampling_ratio=settings.POOLER_SAMPLING_RATIO,
        pooler_type=settings.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=channels, width=size, height=size)


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """The C4 form: pooled features go through the backbone's last stage, whose output both heads share.

    Args:
        in_features: the name of the one map pooled from.
        pooler: for all heads.
        res5: the last stage.
        box_predictor: see :class:`StandardROIHeads`.
        mask_head: None without masks.
        kwargs: see :class:`ROIHeads`.
    """

    mask_head: Any  # what the registry gives

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = nn.Sequential(*res5) if isinstance(res5, list | tuple) else res5
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if self.mask_on:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.KEYPOINT_ON:
            raise ValueError("Res5ROIHeads has no keypoint head; use MODEL.ROI_HEADS.NAME StandardROIHeads")
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(names) != 1:
            raise ValueError(f"Res5ROIHeads pools from one map; MODEL.ROI_HEADS.IN_FEATURES names {list(names)}")
        pooler, _ = _build_pooler(cfg.MODEL.ROI_BOX_HEAD, input_shape, names)
        res5, channels = cls._build_res5_block(cfg)
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // 2
        arguments = super().from_config(cfg) | {
            "in_features": names,
            "pooler": pooler,
            "res5": res5,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels, height=1, width=1)),
        }
        if cfg.MODEL.MASK_ON:
            arguments["mask_head"] = build_mask_head(cfg, ShapeSpec(channels=channels, width=size, height=size))
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Module, int]:
        """The stage that ``cfg.MODEL.RESNETS`` describes as the fourth, and its output channels."""
        settings = cfg.MODEL.RESNETS
        if settings.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError("the stage inside Res5ROIHeads cannot be deformable; clear DEFORM_ON_PER_STAGE[-1]")
        channels = settings.RES2_OUT_CHANNELS * 8
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=channels // 2,
            out_channels=channels,
            bottleneck_channels=settings.NUM_GROUPS * settings.WIDTH_PER_GROUP * 8,
            num_groups=settings.NUM_GROUPS,
            norm=settings.NORM,
            stride_in_1x1=settings.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), channels

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        return self.res5(self.pooler(features, boxes))

    def forward(self, images, features, proposals, targets=None):
        """See :meth:`ROIHeads.forward`."""
        if self.training:
            if targets is None:
                raise ValueError("training needs targets: each input must have 'instances' with its ground truth")
            proposals = self.label_and_sample_proposals(proposals, targets)
        maps = [features[name] for name in self.in_features]
        region_features = self._shared_roi_transform(maps, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(region_features.mean(dim=(2, 3)))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            objects, masks = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(region_features[torch.cat(masks).nonzero().squeeze(1)], objects))
        return [], losses

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """See :meth:`StandardROIHeads.forward_with_given_boxes`."""
        assert not self.training
        if not self.mask_on:
            return instances
        maps = [features[name] for name in self.in_features]
        return self.mask_head(self._shared_roi_transform(maps, [x.pred_boxes for x in instances]), instances)
