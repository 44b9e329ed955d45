"""Region proposal network (Ren et al. 2015).

Shapes: N images, L feature levels, C channels, A anchors per cell, Hl x Wl cells of level l, Pl = Hl * Wl * A anchors
of level l, S anchors of all levels, P proposals.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.layers.wrappers import Conv2d
from detlab.modeling.anchor_generator import build_anchor_generator
from detlab.modeling.box_regression import Box2BoxTransform, dense_box_regression_loss
from detlab.modeling.dense_prediction import best_of_levels, flatten_cells, inside_images, label_boxes
from detlab.modeling.feature_shapes import select_features
from detlab.modeling.losses import masked_binary_cross_entropy
from detlab.modeling.matcher import Matcher
from detlab.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detlab.modeling.proposal_generator.proposal_utils import select_proposals
from detlab.modeling.sampling import draw_balanced
from detlab.modeling.suppression import sizes_tensor
from detlab.modeling.weight_init import normal_init
from detlab.structures.boxes import Boxes
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances
from detlab.structures.object_batch import (
    ImageSizes,
    StepNotes,
    as_batch,
    gather_places,
    padded,
    takes_padded,
    with_notes,
)
from detlab.utils.registry import Registry

__all__ = ["RPN", "RPN_HEAD_REGISTRY", "StandardRPNHead", "build_rpn_head"]

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """Modules ``(cfg, input_shape)`` that map L feature maps to two lists of L maps each:
objectness logits (N, A, Hl, Wl) and box offsets (N, A * box_dim, Hl, Wl)."""


def build_rpn_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """The head that ``cfg.MODEL.RPN.HEAD_NAME`` names."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


def _numbered(name: str, layers: Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(f"{name}{i}", layer) for i, layer in enumerate(layers)]


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """Shared 3x3 convolutions, then 1x1 convolutions for objectness and offsets, the same for all levels.

    Args:
        in_channels: C of every feature map.
        num_anchors: A.
        box_dim: values of one box: 4, or 5 for rotated ones.
        conv_dims: output channels of the shared convolutions, -1 for ``in_channels``.

    Raises:
        ValueError: if ``conv_dims`` is empty or has a number that cannot be a number of channels.
    """

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)
    ) -> None:
        super().__init__()
        widths = [in_channels if dim == -1 else dim for dim in conv_dims]
        if not widths or min(widths) <= 0:
            raise ValueError(f"MODEL.RPN.CONV_DIMS holds channel numbers, or -1 for the input's; got {list(conv_dims)}")
        convs = [
            Conv2d(c, d, kernel_size=3, padding=1, activation=F.relu_) for c, d in zip([in_channels, *widths], widths)
        ]
        self.conv = convs[0] if len(convs) == 1 else nn.Sequential(OrderedDict(_numbered("conv", convs)))
        self.objectness_logits = nn.Conv2d(widths[-1], num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(widths[-1], num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                normal_init(layer, std=0.01)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(f"the RPN head is shared by all levels, which must have equal channels; got {channels}")
        generator: Any = build_anchor_generator(cfg, input_shape)
        num_anchors = set(generator.num_anchors)
        if len(num_anchors) != 1:
            raise ValueError(
                f"the RPN head is shared by all levels, which need equal anchors per cell; got {num_anchors}"
            )
        return {
            "in_channels": channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps (N, C, Hl, Wl) to L logits (N, A, Hl, Wl) and L offsets (N, A * box_dim, Hl, Wl)."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(h) for h in hidden], [self.anchor_deltas(h) for h in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Scores and refines anchors, and passes on the best.

    Args:
        in_features: names of the feature maps used.
        head: see :data:`RPN_HEAD_REGISTRY`.
        anchor_generator: see :data:`ANCHOR_GENERATOR_REGISTRY`.
        anchor_matcher: labels anchors by their overlap with ground truth.
        box2box_transform: how offsets move anchors.
        batch_size_per_image: anchors of an image that take part in the loss.
        positive_fraction: the most of them that are positive.
        pre_nms_topk: (training, inference): boxes of each level that enter the suppression.
        post_nms_topk: (training, inference): P.
        nms_thresh: IoU of the suppression.
        min_box_size: proposals must be wider and higher, in pixels of the network's input.
        anchor_boundary_thresh: anchors that leave the image by more than this take no part in the loss; below 0 all do.
        loss_weight: one number, or one for each of ``loss_rpn_cls`` and ``loss_rpn_loc``.
        box_reg_loss_type: see :func:`box_regression_loss`.
        smooth_l1_beta: see :func:`box_regression_loss`.
    """

    rpn_head: Any  # what the registries give
    anchor_generator: Any

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: int = -1,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        settings = cfg.MODEL.RPN
        shapes = list(select_features(input_shape, settings.IN_FEATURES, "MODEL.RPN.IN_FEATURES").values())
        return {
            "in_features": settings.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(settings.IOU_THRESHOLDS, settings.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=settings.BBOX_REG_WEIGHTS),
            "batch_size_per_image": settings.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": settings.POSITIVE_FRACTION,
            "pre_nms_topk": (settings.PRE_NMS_TOPK_TRAIN, settings.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (settings.POST_NMS_TOPK_TRAIN, settings.POST_NMS_TOPK_TEST),
            "nms_thresh": settings.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": settings.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": settings.LOSS_WEIGHT,
                "loss_rpn_loc": settings.BBOX_REG_LOSS_WEIGHT * settings.LOSS_WEIGHT,
            },
            "box_reg_loss_type": settings.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": settings.SMOOTH_L1_BETA,
        }

    @padded
    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: Sequence[Instances] | None = None
    ) -> tuple[Sequence[Instances], dict[str, Tensor]]:
        """Propose boxes, and in training measure the losses.

        Args:
            images: the padded batch.
            features: maps (N, C, Hl, Wl) by name.
            gt_instances: in training, with ``gt_boxes``.

        Returns:
            N instances with ``proposal_boxes`` and ``objectness_logits``; losses ``loss_rpn_cls``, ``loss_rpn_loc``.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.predict_anchors(maps)
        losses, notes = {}, StepNotes()
        if self.training:
            if gt_instances is None:
                raise ValueError("training the RPN needs gt_instances with 'gt_boxes'")
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
            notes.measured |= _anchor_statistics(gt_labels)
        proposals = self.predict_proposals(anchors, logits, deltas, images.image_sizes)
        return with_notes(proposals, notes), losses

    def predict_anchors(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps to L logits (N, Pl) and L offsets (N, Pl, box_dim), ordered as the anchors are."""
        logits, deltas = self.rpn_head(maps)
        box_dim = self.anchor_generator.box_dim
        return [flatten_cells(x, 1).squeeze(-1) for x in logits], [flatten_cells(x, box_dim) for x in deltas]

    @padded
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: Sequence[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of each image, and choose those that take part in the loss.

        Args:
            anchors: L :class:`Boxes`, the same for all images.
            gt_instances: N instances with ``gt_boxes``.

        Returns:
            N labels (S,) int8: 1 positive, 0 negative, -1 not in the loss; and N matched boxes (S, 4), which mean
            something only where the label is 1.
        """
        targets = as_batch(gt_instances)
        all_anchors = torch.cat([boxes.tensor for boxes in anchors])
        matches, labels = label_boxes(self.anchor_matcher, all_anchors, targets)
        if self.anchor_boundary_thresh >= 0:
            sizes = sizes_tensor(targets.image_sizes, all_anchors)
            labels = labels.masked_fill(~inside_images(all_anchors, sizes, self.anchor_boundary_thresh), -1)
        if takes_padded(self._subsample_labels):
            labels = self._subsample_labels(labels)
        else:
            labels = torch.stack([self._subsample_labels(own) for own in labels])
        return list(labels.unbind()), list(gather_places(targets.tensor("gt_boxes"), matches).unbind())

    @padded
    def _subsample_labels(self, label: Tensor) -> Tensor:
        """Labels (N, S), or (S,) of one image, with -1 for every anchor that was not drawn."""
        labels = label.view(-1, label.shape[-1])
        drawn = draw_balanced(labels, self.batch_size_per_image, self.positive_fraction, 0)
        kept = labels.gather(1, drawn.places).masked_fill(~drawn.valid, -1)
        return torch.full_like(labels, -1).scatter(1, drawn.places, kept).view(label.shape)

    @padded
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Objectness and regression losses, divided by the number of anchors asked for.

        Args:
            anchors: L :class:`Boxes`.
            pred_objectness_logits: L tensors (N, Pl).
            gt_labels: N tensors (S,), see :meth:`label_and_sample_anchors`.
            pred_anchor_deltas: L tensors (N, Pl, box_dim).
            gt_boxes: N tensors (S, box_dim).
        """
        labels = torch.stack(list(gt_labels))
        objectness = masked_binary_cross_entropy(torch.cat(pred_objectness_logits, dim=1), labels == 1, labels >= 0)
        localization = dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            labels == 1,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        normalizer = self.batch_size_per_image * len(gt_labels)
        losses = {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @padded
    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: ImageSizes,
    ) -> Sequence[Instances]:
        """Decode the best anchors of each level and suppress overlaps; no gradient flows through the boxes.

        Args:
            anchors: L :class:`Boxes`.
            pred_objectness_logits: L tensors (N, Pl).
            pred_anchor_deltas: L tensors (N, Pl, box_dim).
            image_sizes: N times (height, width).
        """

        def decode(level: int, deltas: Tensor, places: Tensor) -> Tensor:
            return self.box2box_transform.apply_deltas(deltas, anchors[level].tensor[places])

        topk, num_proposals = self.pre_nms_topk[self.training], self.post_nms_topk[self.training]
        candidates = best_of_levels(pred_objectness_logits, pred_anchor_deltas, topk, decode)
        return select_proposals(candidates, image_sizes, self.nms_thresh, num_proposals, self.min_box_size)


def _anchor_statistics(gt_labels: Sequence[Tensor]) -> dict[str, Tensor]:
    labels = torch.stack(list(gt_labels))
    return {
        "rpn/num_pos_anchors": (labels == 1).sum() / len(labels),
        "rpn/num_neg_anchors": (labels == 0).sum() / len(labels),
    }
