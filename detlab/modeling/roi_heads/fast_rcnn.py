"""Classifying and refining proposals (Fast R-CNN, Girshick 2015).

Shapes: N images, P proposals per image, R proposals of the whole batch, K classes (the background comes last, at K),
Kb box predictions of a proposal (K, or 1 if all classes share one), D detections kept per image.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from detlab.config.config import configurable
from detlab.layers import _ops
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.box_regression import Box2BoxTransform, box_regression_loss
from detlab.modeling.loss_normalizer import mean_over_ranks
from detlab.modeling.proposal_generator.proposal_utils import clip_boxes_to_images, image_sizes_tensor
from detlab.modeling.weight_init import normal_init
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.utils.events import log_scalars

__all__ = [
    "Detections",
    "FastRCNNOutputLayers",
    "fast_rcnn_inference",
    "fast_rcnn_inference_single_image",
    "select_detections",
]


class Detections(NamedTuple):
    """A fixed number of detections for each image, best first; past the image's count they are padding."""

    boxes: Tensor  # (N, D, 4) xyxy in pixels, 0 in the padding
    scores: Tensor  # (N, D), 0 in the padding
    classes: Tensor  # (N, D) int64, 0 in the padding
    rows: Tensor  # (N, D) int64: the proposal each came from
    counts: Tensor  # (N,) int64


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
) -> Detections:
    """Clip, drop low scores, suppress overlaps within each class, keep the best.

    Args:
        boxes: (N, P, Kb, 4) xyxy.
        scores: (N, P, K) probabilities without the background; a padded proposal has -inf.
        image_sizes: (N, 2), height and width.
        score_thresh: only higher scores are detections.
        nms_thresh: a box that overlaps a better one of its class by more than this IoU goes.
        max_detections: D.

    Rows with a number that is not finite are dropped.
    """
    num_images, num_proposals, num_classes = scores.shape
    finite = boxes.isfinite().all(-1).all(-1) & scores.isfinite().all(-1)
    boxes = clip_boxes_to_images(boxes, image_sizes).expand(-1, -1, num_classes, -1).reshape(num_images, -1, 4)
    is_candidate = (scores > score_thresh) & finite[..., None]
    candidates = scores.float().masked_fill(~is_candidate, -math.inf).flatten(1)
    classes = torch.arange(num_classes, device=scores.device).repeat(num_proposals).expand(num_images, -1)
    kept, counts = _ops.nms_fixed(boxes, candidates, classes, nms_thresh, max_detections)
    valid = torch.arange(max_detections, device=scores.device) < counts[:, None]
    return Detections(
        boxes=boxes.gather(1, kept[..., None].expand(-1, -1, 4)).masked_fill(~valid[..., None], 0.0),
        scores=candidates.gather(1, kept).masked_fill(~valid, 0.0),
        classes=(kept % num_classes).masked_fill(~valid, 0),
        rows=(kept // num_classes).masked_fill(~valid, 0),
        counts=counts,
    )


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """The detections of each image.

    Args:
        boxes: N tensors (P, Kb * 4) xyxy, P differing between images.
        scores: N tensors (P, K + 1), the background last.
        image_shapes: N times (height, width).
        score_thresh: see :func:`select_detections`.
        nms_thresh: see :func:`select_detections`.
        topk_per_image: detections kept; below 0 all.

    Returns:
        N instances with ``pred_boxes``, ``scores`` and ``pred_classes``, by falling score, and N index tensors that
        say from which proposal each came.
    """
    padded_boxes = _stack_padded([b.unflatten(1, (-1, 4)) for b in boxes], 0.0)
    padded_scores = _stack_padded([s[:, :-1] for s in scores], -math.inf)
    max_detections = topk_per_image if topk_per_image >= 0 else padded_scores[0].numel()
    sizes = image_sizes_tensor(image_shapes, padded_boxes)
    found = select_detections(padded_boxes, padded_scores, sizes, score_thresh, nms_thresh, max_detections)
    return detections_to_instances(found, image_shapes)


def _stack_padded(rows_of_images: list[Tensor], value: float) -> Tensor:
    """N tensors (P, ...) of differing P as one (N, max(P, 1), ...), filled up with ``value``."""
    stacked = pad_sequence(rows_of_images, batch_first=True, padding_value=value)
    if stacked.shape[1] > 0:
        return stacked
    return stacked.new_full((stacked.shape[0], 1, *stacked.shape[2:]), value)


def detections_to_instances(
    found: Detections, image_shapes: list[tuple[int, int]]
) -> tuple[list[Instances], list[Tensor]]:
    """The valid detections of each image, and the proposals they came from."""
    instances, rows = [], []
    for i, (size, count) in enumerate(zip(image_shapes, found.counts.tolist())):
        instances.append(
            Instances(
                size,
                pred_boxes=Boxes(found.boxes[i, :count]),
                scores=found.scores[i, :count],
                pred_classes=found.classes[i, :count],
            )
        )
        rows.append(found.rows[i, :count])
    return instances, rows


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """:func:`fast_rcnn_inference` of one image."""
    instances, rows = fast_rcnn_inference([boxes], [scores], [image_shape], score_thresh, nms_thresh, topk_per_image)
    return instances[0], rows[0]


def classification_statistics(pred_logits: Tensor, gt_classes: Tensor) -> dict[str, Tensor]:
    """How well R proposals are classified, as 0-dim tensors.

    Args:
        pred_logits: (R, K + 1).
        gt_classes: (R,), K for the background.
    """
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    is_object = (gt_classes >= 0) & (gt_classes < background)
    correct = predicted == gt_classes
    num_objects = is_object.sum().clamp(min=1)
    return {
        "fast_rcnn/cls_accuracy": correct.sum() / max(gt_classes.numel(), 1),
        "fast_rcnn/fg_cls_accuracy": (correct & is_object).sum() / num_objects,
        "fast_rcnn/false_negative": ((predicted == background) & is_object).sum() / num_objects,
    }


def _class_weights_from_config(cfg) -> Callable[[], Tensor]:
    """How often the training images show each class decides how often the federated loss draws it."""
    from detlab.data.detection_utils import get_fed_loss_cls_weights

    power = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
    return partial(get_fed_loss_cls_weights, dataset_names=cfg.DATASETS.TRAIN, freq_weight_power=power)


class FastRCNNOutputLayers(nn.Module):
    """Linear layers for class scores and box offsets, their losses, and the detections they give.

    Args:
        input_shape: of a proposal's features; an int is a number of channels.
        box2box_transform: how offsets move proposals.
        num_classes: K.
        test_score_thresh: see :func:`select_detections`.
        test_nms_thresh: see :func:`select_detections`.
        test_topk_per_image: D.
        cls_agnostic_bbox_reg: predict one box for all classes.
        smooth_l1_beta: see :func:`box_regression_loss`.
        box_reg_loss_type: see :func:`box_regression_loss`.
        loss_weight: one number, or one for each of ``loss_cls`` and ``loss_box_reg``.
        use_fed_loss: score only some classes of each batch (federated loss, Zhou et al. 2021); needs sigmoid.
        use_sigmoid_ce: independent class probabilities instead of a softmax.
        get_fed_loss_cls_weights: gives the (K,) weights by which those classes are drawn.
        fed_loss_num_classes: how many are drawn.

    Raises:
        ValueError: if the federated loss is wanted without sigmoid or without weights.
    """

    fed_loss_cls_weights: Tensor

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable | None = None,
        fed_loss_num_classes: int = 50,
    ) -> None:
        super().__init__()
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        self.num_classes = num_classes
        width = math.prod((input_shape.channels or 1, input_shape.height or 1, input_shape.width or 1))
        box_dim = len(box2box_transform.weights)
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, (1 if cls_agnostic_bbox_reg else num_classes) * box_dim)
        normal_init(self.cls_score, std=0.01)
        normal_init(self.bbox_pred, std=0.001)
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_fed_loss = use_fed_loss
        self.use_sigmoid_ce = use_sigmoid_ce
        self.fed_loss_num_classes = fed_loss_num_classes
        if use_fed_loss:
            self._set_up_federated_loss(get_fed_loss_cls_weights)

    def _set_up_federated_loss(self, get_weights: Callable | None) -> None:
        if not self.use_sigmoid_ce:
            raise ValueError("the federated loss scores classes one by one; set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True")
        if get_weights is None:
            raise ValueError("use_fed_loss needs get_fed_loss_cls_weights, a callable that gives a weight per class")
        weights = get_weights()
        if len(weights) != self.num_classes:
            raise ValueError(f"the federated loss has weights for {len(weights)} of {self.num_classes} classes")
        self.register_buffer("fed_loss_cls_weights", weights)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        settings = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=settings.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": settings.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": settings.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": settings.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": settings.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": settings.USE_FED_LOSS,
            "use_sigmoid_ce": settings.USE_SIGMOID_CE,
            "get_fed_loss_cls_weights": _class_weights_from_config(cfg) if settings.USE_FED_LOSS else None,
            "fed_loss_num_classes": settings.FED_LOSS_NUM_CLASSES,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, C, ...) to class logits (R, K + 1) and box offsets (R, Kb * 4)."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """The losses ``loss_cls`` and ``loss_box_reg``.

        Args:
            predictions: what :meth:`forward` gave.
            proposals: with ``proposal_boxes``, ``gt_classes`` and, where an image has objects, ``gt_boxes``.
        """
        logits, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        log_scalars(**classification_statistics(logits.detach(), gt_classes))
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = torch.cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        losses = {
            "loss_cls": self._classification_loss(logits, gt_classes),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _classification_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if self.use_sigmoid_ce:
            return self.sigmoid_cross_entropy_loss(logits, gt_classes)
        # Summing an empty batch gives 0 that still reaches the parameters, where a mean would give NaN.
        total = F.cross_entropy(logits.float(), gt_classes, reduction="sum")
        return total / mean_over_ranks(gt_classes.numel(), logits)

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross entropy of every class, over all classes or those the federated loss draws.

        Args:
            pred_class_logits: (R, K + 1); the background's column takes no part.
            gt_classes: (R,).
        """
        if pred_class_logits.numel() == 0:
            return pred_class_logits.sum() * 0.0
        targets = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(pred_class_logits.dtype)
        loss = F.binary_cross_entropy_with_logits(pred_class_logits[:, :-1], targets, reduction="none")
        if self.use_fed_loss:
            drawn = self.get_fed_loss_classes(
                gt_classes, self.fed_loss_num_classes, self.num_classes, self.fed_loss_cls_weights
            )
            weight = torch.zeros(self.num_classes + 1, dtype=loss.dtype, device=loss.device)
            weight[drawn] = 1.0
            loss = loss * weight[:-1]
        return loss.sum() / mean_over_ranks(gt_classes.numel(), loss)

    def get_fed_loss_classes(
        self, gt_classes: Tensor, num_fed_loss_classes: int, num_classes: int, weight: Tensor
    ) -> Tensor:
        """The classes of the batch, filled up to ``num_fed_loss_classes`` with others drawn by ``weight`` (K,)."""
        present = gt_classes.unique()
        missing = num_fed_loss_classes - len(present)
        if missing <= 0:
            return present
        chances = weight.new_ones(num_classes + 1)
        chances[:num_classes] = weight.float().clone()
        chances[num_classes] = 0
        chances[present] = 0
        return torch.cat((present, torch.multinomial(chances, missing, replacement=False)))

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """The regression loss of the proposals that are objects, divided by the number of all proposals.

        Fast R-CNN trains every object equally, whatever image it is in; dividing by the objects of an image would not.

        Args:
            proposal_boxes: (R, 4).
            gt_boxes: (R, 4); read for objects only.
            pred_deltas: (R, Kb * 4).
            gt_classes: (R,).
        """
        box_dim = proposal_boxes.shape[1]
        rows = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero().squeeze(1)
        deltas = pred_deltas.unflatten(1, (-1, box_dim))
        columns = gt_classes[rows] if deltas.shape[1] > 1 else torch.zeros_like(rows)
        total = box_regression_loss(
            self.box2box_transform,
            self.box_reg_loss_type,
            pred_deltas=deltas[rows, columns],
            src_boxes=proposal_boxes[rows],
            target_boxes=gt_boxes[rows],
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return total / mean_over_ranks(gt_classes.numel(), total)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """See :func:`fast_rcnn_inference`.

        Args:
            predictions: what :meth:`forward` gave.
            proposals: with ``proposal_boxes``.
        """
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def detect(
        self, predictions: tuple[Tensor, Tensor], boxes: Tensor, valid: Tensor, image_sizes: Tensor
    ) -> Detections:
        """The tensor core of :meth:`inference`.

        Args:
            predictions: what :meth:`forward` gave for N * P proposals.
            boxes: (N, P, 4), the proposals.
            valid: (N, P), which of them are not padding.
            image_sizes: (N, 2), height and width.
        """
        logits, deltas = predictions
        num_images, num_proposals = valid.shape
        decoded = self.box2box_transform.apply_deltas(deltas.unflatten(0, (num_images, num_proposals)), boxes)
        scores = self._probabilities(logits).unflatten(0, (num_images, num_proposals))[..., :-1]
        return select_detections(
            decoded.unflatten(-1, (-1, 4)),
            scores.masked_fill(~valid[..., None], -math.inf),
            image_sizes,
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """The decoded boxes of each image, N tensors (P, Kb * 4)."""
        if not proposals:
            return []
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        decoded = self.box2box_transform.apply_deltas(predictions[1], boxes)
        return list(decoded.split([len(p) for p in proposals]))

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """Of each proposal the box decoded for its ``gt_classes``, N tensors (P, 4); any box for the background."""
        if not proposals:
            return []
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        decoded = self.box2box_transform.apply_deltas(predictions[1], boxes).unflatten(1, (-1, boxes.shape[1]))
        classes = torch.cat([p.gt_classes for p in proposals]).clamp(0, decoded.shape[1] - 1)
        chosen = decoded[torch.arange(len(decoded), device=decoded.device), classes]
        return list(chosen.split([len(p) for p in proposals]))

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """The class probabilities of each image, N tensors (P, K + 1)."""
        return list(self._probabilities(predictions[0]).split([len(p) for p in proposals]))

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.use_sigmoid_ce else logits.float().softmax(dim=-1)
