"""Heads that look at each proposal: classify, refine, outline.

Shapes: N images, P proposals, S sampled proposals and D detections of each image, R rows of the whole batch (see
``modeling/packing.py``), K classes (the background is class K).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.backbone.resnet import BottleneckBlock, ResNet
from detlab.modeling.dense_prediction import label_boxes
from detlab.modeling.feature_shapes import select_features
from detlab.modeling.loss_normalizer import exchange_normalizers
from detlab.modeling.matcher import Matcher
from detlab.modeling.packing import Rows, lay_out, rows_of, unpad_for
from detlab.modeling.poolers import ROIPooler
from detlab.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detlab.modeling.roi_heads.box_head import build_box_head
from detlab.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, predictor_takes_padded
from detlab.modeling.roi_heads.keypoint_head import build_keypoint_head
from detlab.modeling.roi_heads.mask_head import build_mask_head
from detlab.modeling.sampling import Drawn, draw_balanced, subsample_labels
from detlab.structures.boxes import Boxes
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances
from detlab.structures.keypoints import keypoints_to_heatmap
from detlab.structures.object_batch import (
    ObjectBatch,
    as_batch,
    as_list,
    assign,
    notes_of,
    padded,
    takes_padded,
    valid_parts,
    with_notes,
)
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


def select_foreground_proposals(
    proposals: Sequence[Instances], bg_label: int
) -> tuple[Sequence[Instances], Sequence[Tensor]]:
    """The proposals that are objects.

    Args:
        proposals: N instances with ``gt_classes``.
        bg_label: the class of the background; -1 is no object either.

    Returns:
        N instances, and of each image the (P,) bool mask that chose them.
    """
    batch = as_batch(proposals)
    return _foreground_of(batch, bg_label), valid_parts(_is_foreground(batch, bg_label), batch)


def _foreground_of(batch: ObjectBatch, bg_label: int) -> ObjectBatch:
    """:func:`select_foreground_proposals` without the masks, for which one has to wait."""
    objects = batch.where(_is_foreground(batch, bg_label))
    return objects if batch.num_leading is None else objects.first(batch.num_leading)


def _is_foreground(batch: ObjectBatch, bg_label: int) -> Tensor:
    classes = batch.tensor("gt_classes")
    return batch.valid & (classes != -1) & (classes != bg_label)


def select_proposals_with_visible_keypoints(proposals: Sequence[Instances]) -> Sequence[Instances]:
    """The proposals in which at least one labelled keypoint lies; others would teach the keypoint head nothing.

    Args:
        proposals: N instances with ``proposal_boxes`` and ``gt_keypoints``.
    """
    batch = as_batch(proposals)
    if not batch.has("gt_keypoints"):
        return batch
    boxes = batch.tensor("proposal_boxes")[:, :, None]  # N, P, 1, 4
    points = batch.tensor("gt_keypoints")  # N, P, J, 3
    inside = ((points[..., :2] >= boxes[..., :2]) & (points[..., :2] <= boxes[..., 2:])).all(dim=-1)
    selected = batch.where((inside & (points[..., 2] >= 1)).any(dim=2))
    batch.notes.measured["keypoint_head/num_fg_samples"] = selected.valid.sum() / max(len(batch), 1)
    return selected


def _num_keypoints(objects: ObjectBatch) -> Tensor:
    """How many labelled keypoints lie in their proposals, 0-dim."""
    if not objects.has("gt_keypoints"):
        return objects.valid.new_zeros((), dtype=torch.int64)
    boxes, points = objects.tensor("proposal_boxes"), objects.tensor("gt_keypoints")
    inside = keypoints_to_heatmap(points.flatten(0, 1), boxes.flatten(0, 1), 1).valid
    return (inside & objects.valid.flatten()[:, None]).sum()


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

    @padded
    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> Sequence[Instances]:
        """Label the proposals of each image and draw those that are trained on, objects first.

        Args:
            proposals: N instances with ``proposal_boxes`` and ``objectness_logits``.
            targets: N instances with ``gt_boxes``, ``gt_classes`` and perhaps more fields named ``gt_...``.

        Returns:
            N instances with ``proposal_boxes``, ``gt_classes`` (K for the background) and, where the image has
            objects, the other ``gt_...`` fields of the object each proposal overlaps most.
        """
        truth = as_batch(targets)
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(truth, proposals)
        batch = as_batch(proposals)
        matches, labels = label_boxes(self.proposal_matcher, batch.tensor("proposal_boxes"), truth)
        truth.require("gt_classes")
        gt_classes = truth.tensor("gt_classes") if truth.has("gt_classes") else torch.zeros_like(truth.valid).long()
        if takes_padded(self._sample_proposals):
            classes = self._proposal_classes(matches, labels, gt_classes, truth.valid)
            classes = classes.masked_fill(~batch.valid, -1)
            drawn = draw_balanced(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
            classes = classes.gather(1, drawn.places)
        else:
            drawn, classes = self._sample_each_image(batch, matches, labels, valid_parts(gt_classes, truth))
        sampled = batch.take(drawn.places, drawn.valid)
        sampled.set("gt_classes", classes)
        sampled.refer_to(truth, matches.gather(1, drawn.places))
        if takes_padded(self._sample_proposals):
            sampled.num_leading = int(self.batch_size_per_image * self.positive_fraction)
        sampled.notes.measured |= self._sampling_statistics(sampled)
        return sampled

    def _proposal_classes(self, matches: Tensor, labels: Tensor, gt_classes: Tensor, gt_valid: Tensor) -> Tensor:
        """The class that each proposal should have, (N, P): that of its object, K for the background, -1 for none."""
        classes = gt_classes.gather(1, matches)
        is_object = (labels == 1) & gt_valid.any(dim=1, keepdim=True)
        return torch.where(is_object, classes, self.num_classes).masked_fill(labels == -1, -1)

    @padded
    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The drawn proposals of one image, and their classes. An override of this is called for each image.

        Args:
            matched_idxs: (P,) row of the ground truth of each proposal.
            matched_labels: (P,) 1 object, 0 background, -1 ignored.
            gt_classes: (M,) classes of the ground truth.
        """
        # With a place more, which is not valid, so that there is one in an image without objects.
        valid = torch.arange(len(gt_classes) + 1, device=gt_classes.device)[None] < len(gt_classes)
        own_classes = F.pad(gt_classes, (0, 1))[None]
        classes = self._proposal_classes(matched_idxs[None], matched_labels[None], own_classes, valid)[0]
        chosen = torch.cat(
            subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        )
        return chosen, classes[chosen]

    def _sample_each_image(
        self, batch: ObjectBatch, matches: Tensor, labels: Tensor, gt_classes: list[Tensor]
    ) -> tuple[Drawn, Tensor]:
        """What an override of :meth:`_sample_proposals` draws, (N, S), and the classes (N, S)."""
        places, classes = [], []
        for i, positions in enumerate(batch.positions()):
            own = torch.arange(batch.num_places, device=batch.device)[positions]
            chosen, own_classes = self._sample_proposals(matches[i][positions], labels[i][positions], gt_classes[i])
            places.append(own[chosen])
            classes.append(own_classes)
        valid = pad_sequence([torch.ones_like(own, dtype=torch.bool) for own in places], batch_first=True)
        return Drawn(pad_sequence(places, batch_first=True), valid), pad_sequence(classes, batch_first=True)

    def _sampled_for_losses(
        self, proposals: Sequence[Instances], targets: Sequence[Instances], with_keypoints: bool
    ) -> ObjectBatch:
        """What :meth:`label_and_sample_proposals` or an override gives, with what the losses are divided by.

        Args:
            proposals: see there.
            targets: likewise.
            with_keypoints: also count the keypoints in the boxes.
        """
        given = with_notes(proposals, notes_of(proposals))
        sampled = with_notes(self.label_and_sample_proposals(given, targets), notes_of(given))
        batch = as_batch(sampled)
        objects = _foreground_of(batch, self.num_classes)
        counts = {"proposals": batch.valid.sum(), "objects": objects.valid.sum()}
        if with_keypoints:  # also where no image of this rank has any: all ranks exchange the same counts
            counts["keypoints"] = _num_keypoints(objects)
        batch.notes.normalizers |= exchange_normalizers(counts)
        return batch

    def _sampling_statistics(self, sampled: ObjectBatch) -> dict[str, Tensor]:
        """The mean numbers of objects and of background proposals of an image."""
        num_images = max(len(sampled), 1)
        num_objects = _is_foreground(sampled, self.num_classes).sum() / num_images
        num_boxes = sampled.valid.sum() / num_images
        return {"roi_head/num_fg_samples": num_objects, "roi_head/num_bg_samples": num_boxes - num_objects}

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: Sequence[Instances],
        targets: Sequence[Instances] | None = None,
    ) -> tuple[Sequence[Instances], dict[str, Tensor]]:
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


def _pool(
    pooler: nn.Module, maps: list[Tensor], instances: Sequence[Instances], field: str, head: nn.Module | None = None
) -> Tensor:
    """The pooled features (R, C, h, w) of the boxes in a field, for a head that is run on them."""
    batch = as_batch(instances)
    boxes = batch.tensor(field)
    rows = lay_out(batch, head, must_be_exact=not takes_padded(pooler))
    if takes_padded(pooler):
        return pooler(maps, rows.rois(boxes))
    kind: Any = batch.kind(field)
    return pooler(maps, [kind(own) for own in valid_parts(boxes, batch)])


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
        if not settings.POOLER_TYPE:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.POOLER_TYPE is empty, but the box head needs pooled features; use ROIAlignV2"
            )
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

    @padded
    def forward(self, images, features, proposals, targets=None):
        """See :meth:`ROIHeads.forward`; masks and keypoints are predicted for the detected boxes."""
        if not self.training:
            given = proposals if takes_padded(self._forward_box) else as_list(proposals)
            return self.forward_with_given_boxes(features, self._forward_box(features, given)), {}
        if targets is None:
            raise ValueError("training needs targets: each input must have 'instances' with its ground truth")
        proposals = self._sampled_for_losses(proposals, targets, self.keypoint_on and not self.train_on_pred_boxes)
        if not all(map(takes_padded, (self._forward_box, self._forward_mask, self._forward_keypoint))):
            # One list for all of them: what the first takes out is not there for the next.
            proposals = as_list(proposals)
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    @padded
    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: Sequence[Instances]
    ) -> Sequence[Instances]:
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

    @padded
    def _forward_box(self, features: dict[str, Tensor], proposals: Sequence[Instances]):
        """The losses of the box head in training, else the detections."""
        what_follows = self.box_predictor.losses if self.training else self.box_predictor.inference
        given = unpad_for(predictor_takes_padded(self.box_predictor, self.training), proposals)
        maps = [features[name] for name in self.box_in_features]
        pooled = _pool(self.box_pooler, maps, given, "proposal_boxes", self.box_head)
        predictions = self.box_predictor(self.box_head(pooled))
        if not self.training:
            return what_follows(predictions, given)[0]
        losses = what_follows(predictions, given)
        if self.train_on_pred_boxes:
            self._move_to_predicted_boxes(predictions, given, proposals)
        return losses

    @torch.no_grad()
    def _move_to_predicted_boxes(self, predictions, given: Sequence[Instances], proposals: Sequence[Instances]) -> None:
        """Give ``proposals`` the boxes that were predicted for them as they were ``given`` to the predictor."""
        if isinstance(given, ObjectBatch):
            boxes = self.box_predictor.decode_boxes_of_gt_classes(predictions, given)
            assign(proposals, given, "proposal_boxes", boxes, given.kind("proposal_boxes"))
            return
        for own, own_boxes in zip(given, self.box_predictor.predict_boxes_for_gt_classes(predictions, given)):
            own.proposal_boxes = Boxes(own_boxes)

    @padded
    def _forward_mask(self, features: dict[str, Tensor], instances: Sequence[Instances]):
        """The losses of the mask head in training, else the instances with ``pred_masks``."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances = _foreground_of(as_batch(instances), self.num_classes)
        given = unpad_for(takes_padded(self.mask_head), instances)
        x = self._region_features(features, self.mask_in_features, self.mask_pooler, given, self.mask_head)
        return self.mask_head(x, given)

    @padded
    def _forward_keypoint(self, features: dict[str, Tensor], instances: Sequence[Instances]):
        """The losses of the keypoint head in training, else the instances with ``pred_keypoints``."""
        if not self.keypoint_on:
            return {} if self.training else instances
        if self.training:
            instances = _foreground_of(as_batch(instances), self.num_classes)
            instances = select_proposals_with_visible_keypoints(instances)
        given = unpad_for(takes_padded(self.keypoint_head), instances)
        x = self._region_features(features, self.keypoint_in_features, self.keypoint_pooler, given, self.keypoint_head)
        return self.keypoint_head(x, given)

    def _region_features(self, features, names: list[str], pooler, instances: Sequence[Instances], head: nn.Module):
        """What a head sees of the boxes: pooled features, or all maps by name where it has no pooler."""
        if pooler is None:
            return {name: features[name] for name in names}
        field = "proposal_boxes" if self.training else "pred_boxes"
        return _pool(pooler, [features[name] for name in names], instances, field, head)


def _build_pooler(settings, input_shape: dict[str, ShapeSpec], names: list[str]) -> tuple[ROIPooler | None, Any]:
    """The pooler that a head's ``POOLER_...`` settings describe, and the shape of what it pools.

    Without a ``POOLER_TYPE`` there is none, and the head sees the maps, whose shapes come by name.
    """
    if not settings.POOLER_TYPE:
        return None, select_features(input_shape, names, "MODEL.ROI_HEADS.IN_FEATURES")
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

    @padded
    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes] | Tensor) -> Tensor:
        """What all heads see of boxes: (R, C, h, w) of N :class:`Boxes`, or of (R, 5) regions as poolers take them."""
        return self.res5(self.pooler(features, boxes))

    def _transform(self, features: dict[str, Tensor], instances: Sequence[Instances], field: str) -> Tensor:
        maps, batch = [features[name] for name in self.in_features], as_batch(instances)
        is_padded = takes_padded(self._shared_roi_transform) and takes_padded(self.pooler)
        rows = lay_out(batch, self.res5, must_be_exact=not is_padded)
        boxes = batch.tensor(field)
        if is_padded:
            return self._shared_roi_transform(maps, rows.rois(boxes))
        return self._shared_roi_transform(maps, [Boxes(own) for own in valid_parts(boxes, batch)])

    @padded
    def forward(self, images, features, proposals, targets=None):
        """See :meth:`ROIHeads.forward`."""
        if self.training:
            if targets is None:
                raise ValueError("training needs targets: each input must have 'instances' with its ground truth")
            proposals = self._sampled_for_losses(proposals, targets, with_keypoints=False)
        what_follows = self.box_predictor.losses if self.training else self.box_predictor.inference
        given = unpad_for(predictor_takes_padded(self.box_predictor, self.training), proposals)
        region_features = self._transform(features, given, "proposal_boxes")
        predictions = self.box_predictor(region_features.mean(dim=(2, 3)))
        if not self.training:
            detections, _ = what_follows(predictions, given)
            return self.forward_with_given_boxes(features, detections), {}
        losses = what_follows(predictions, given)
        if self.mask_on:
            losses.update(self._mask_losses(region_features, as_batch(given)))
        return proposals, losses

    def _mask_losses(self, region_features: Tensor, proposals: ObjectBatch) -> dict[str, Tensor]:
        """The mask head on the rows of ``region_features`` that are objects."""
        objects = _foreground_of(proposals, self.num_classes)
        rows = lay_out(objects, self.mask_head, must_be_exact=not takes_padded(self.mask_head))
        chosen = rows.take(_row_numbers(rows_of(proposals))[:, : objects.num_places])
        return self.mask_head(region_features[chosen], unpad_for(takes_padded(self.mask_head), objects))

    @padded
    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: Sequence[Instances]
    ) -> Sequence[Instances]:
        """See :meth:`StandardROIHeads.forward_with_given_boxes`."""
        assert not self.training
        if not self.mask_on:
            return instances
        given = unpad_for(takes_padded(self.mask_head), instances)
        return self.mask_head(self._transform(features, given, "pred_boxes"), given)


def _row_numbers(rows: Rows) -> Tensor:
    """(N, P) int64: the row of each place."""
    return rows.put(torch.arange(len(rows.counts), device=rows.valid.device))
