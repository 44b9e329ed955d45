"""Classifying and refining proposals (Fast R-CNN, Girshick 2015).

Shapes: N images, P proposals per image, R rows of the whole batch (its proposals; perhaps with padding, see
``modeling/packing.py``), K classes (the background comes last, at K), Kb box predictions of a proposal (K, or 1 if all
classes share one), D detections kept per image.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.box_regression import Box2BoxTransform, box_regression_loss
from detlab.modeling.loss_normalizer import normalizer_of
from detlab.modeling.losses import class_cross_entropy, every_class_cross_entropy
from detlab.modeling.packing import rows_of
from detlab.modeling.suppression import keep_best_boxes, sizes_tensor
from detlab.modeling.weight_init import normal_init
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.structures.object_batch import (
    ImageSizes,
    ObjectBatch,
    PartsOnDemand,
    as_batch,
    padded,
    takes_padded,
    valid_parts,
    with_notes,
)
from detlab.utils.events import log_scalars

__all__ = [
    "FastRCNNOutputLayers",
    "fast_rcnn_inference",
    "fast_rcnn_inference_single_image",
    "predictor_takes_padded",
    "select_detections",
]

# What a predictor is asked for in training and in inference, by one stage or by one of its own methods.
_ASKED_FOR = {
    True: ("losses", "box_reg_loss", "sigmoid_cross_entropy_loss", "predict_boxes_for_gt_classes"),
    False: ("inference", "predict_boxes", "predict_probs"),
}


def predictor_takes_padded(predictor: nn.Module, training: bool) -> bool:
    """Whether everything that a predictor does after its forward takes padded batches: no method was overridden that
    expects a row for each proposal and nothing else."""
    methods = [getattr(predictor, name) for name in _ASKED_FOR[training] if hasattr(predictor, name)]
    return all(takes_padded(method) for method in methods)


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_sizes: ImageSizes,
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
) -> tuple[ObjectBatch, Tensor]:
    """Clip, drop low scores, suppress overlaps within each class, keep the best.

    Args:
        boxes: (N, P, Kb, 4) xyxy.
        scores: (N, P, K) probabilities without the background; a padded proposal has -inf.
        image_sizes: of the images.
        score_thresh: only higher scores are detections.
        nms_thresh: a box that overlaps a better one of its class by more than this IoU goes.
        max_detections: D.

    Returns:
        D detections of each image with ``pred_boxes``, ``scores`` and ``pred_classes``, best first, zeros where they
        are not valid; and the proposal that each came from, (N, D) int64. Proposals with a number that is not finite
        give none.
    """
    num_images, num_proposals, num_classes = scores.shape
    finite = boxes.isfinite().all(-1).all(-1) & scores.isfinite().all(-1)
    is_candidate = (scores > score_thresh) & finite[..., None]
    candidates = scores.float().masked_fill(~is_candidate, -math.inf).flatten(1)
    classes = torch.arange(num_classes, device=scores.device).repeat(num_proposals).expand(num_images, -1)
    every_box = boxes.expand(-1, -1, num_classes, -1).reshape(num_images, -1, 4)
    sizes = sizes_tensor(image_sizes, boxes)
    kept = keep_best_boxes(every_box, candidates, classes, sizes, nms_thresh, max_detections, are_finite=True)
    fields = {
        "pred_boxes": kept.boxes,
        "scores": kept.scores,
        "pred_classes": (kept.rows % num_classes).masked_fill(~kept.valid, 0),
    }
    detections = ObjectBatch(image_sizes, kept.valid, fields, {"pred_boxes": Boxes})
    return detections, (kept.rows // num_classes).masked_fill(~kept.valid, 0)


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Sequence[Instances], list[Tensor]]:
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
    if not boxes:
        return [], []
    proposals = as_batch([Instances(s, boxes=b, scores=p) for s, b, p in zip(image_shapes, boxes, scores)])
    padded_scores = proposals.tensor("scores")[..., :-1].masked_fill(~proposals.valid[..., None], -math.inf)
    max_detections = topk_per_image if topk_per_image >= 0 else padded_scores[0].numel()
    detections, rows = select_detections(
        proposals.tensor("boxes").unflatten(-1, (-1, 4)),
        padded_scores,
        image_shapes,
        score_thresh,
        nms_thresh,
        max_detections,
    )
    return detections, valid_parts(rows, detections)


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
        gt_classes: (R,), K for the background, -1 for rows that do not count.
    """
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    is_object = (gt_classes >= 0) & (gt_classes < background)
    correct = predicted == gt_classes
    num_objects = is_object.sum().clamp(min=1)
    return {
        "fast_rcnn/cls_accuracy": correct.sum() / (gt_classes >= 0).sum().clamp(min=1),
        "fast_rcnn/fg_cls_accuracy": (correct & is_object).sum() / num_objects,
        "fast_rcnn/false_negative": ((predicted == background) & is_object).sum() / num_objects,
    }


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Log :func:`classification_statistics`, for losses of one's own that are written for the reference."""
    measured = classification_statistics(pred_logits.detach(), gt_classes)
    log_scalars(**{name.replace("fast_rcnn", prefix, 1): value for name, value in measured.items()})


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

    @padded
    def losses(self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]) -> dict[str, Tensor]:
        """The losses ``loss_cls`` and ``loss_box_reg``.

        Args:
            predictions: what :meth:`forward` gave.
            proposals: with ``proposal_boxes``, ``gt_classes`` and, where an image has objects, ``gt_boxes``.
        """
        logits, deltas = predictions
        batch = as_batch(proposals)
        rows = rows_of(batch)
        gt_classes = rows.take(batch.tensor("gt_classes").masked_fill(~batch.valid, -1))
        boxes = batch.tensor("proposal_boxes")
        gt_boxes = batch.tensor("gt_boxes") if batch.has("gt_boxes") else boxes
        notes = batch.notes
        notes.measured |= classification_statistics(logits.detach(), gt_classes)
        share = _num_counted(gt_classes) / normalizer_of(notes, "proposals", (gt_classes >= 0).sum())
        losses = {
            "loss_cls": self._classification_loss(logits, gt_classes) * share,
            "loss_box_reg": self.box_reg_loss(rows.take(boxes), rows.take(gt_boxes), deltas, gt_classes) * share,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _classification_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if self.use_sigmoid_ce:
            return self.sigmoid_cross_entropy_loss(logits, gt_classes)
        return class_cross_entropy(logits, gt_classes) / _num_counted(gt_classes)

    @padded
    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross entropy of every class, over all classes or those the federated loss draws.

        Args:
            pred_class_logits: (R, K + 1); the background's column takes no part.
            gt_classes: (R,); rows of -1 do not count.

        Returns:
            The sum divided by the number of rows that count.
        """
        classes = torch.arange(self.num_classes, device=gt_classes.device)
        logits = pred_class_logits[:, :-1]
        counts = (gt_classes >= 0)[:, None].expand_as(logits)
        if self.use_fed_loss:
            counts = counts & self._federated_classes(gt_classes)
        total = every_class_cross_entropy(logits, gt_classes[:, None] == classes, counts)
        return total / _num_counted(gt_classes)

    def _federated_classes(self, gt_classes: Tensor) -> Tensor:
        """(K,) bool: the classes that the federated loss scores."""
        arguments = (self.fed_loss_num_classes, self.num_classes, self.fed_loss_cls_weights)
        if takes_padded(self.get_fed_loss_classes):
            return _draw_classes(gt_classes, *arguments)[:-1]
        drawn = self.get_fed_loss_classes(gt_classes[gt_classes >= 0], *arguments)
        chosen = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=gt_classes.device)
        return chosen.index_fill(0, drawn, True)[:-1]

    @padded
    def get_fed_loss_classes(
        self, gt_classes: Tensor, num_fed_loss_classes: int, num_classes: int, weight: Tensor
    ) -> Tensor:
        """The classes of the batch, filled up to ``num_fed_loss_classes`` with others drawn by ``weight`` (K,)."""
        return _draw_classes(gt_classes, num_fed_loss_classes, num_classes, weight).nonzero().squeeze(1)

    @padded
    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """The regression loss of the proposals that are objects, divided by the number of all proposals.

        Fast R-CNN trains every object equally, whatever image it is in; dividing by the objects of an image would not.

        Args:
            proposal_boxes: (R, 4).
            gt_boxes: (R, 4); read for objects only.
            pred_deltas: (R, Kb * 4).
            gt_classes: (R,), K for the background; rows of -1 do not count.
        """
        is_object = (gt_classes >= 0) & (gt_classes < self.num_classes)
        total = box_regression_loss(
            self.box2box_transform,
            self.box_reg_loss_type,
            pred_deltas=_of_class(pred_deltas.unflatten(1, (-1, proposal_boxes.shape[1])), gt_classes),
            src_boxes=proposal_boxes,
            target_boxes=gt_boxes,
            smooth_l1_beta=self.smooth_l1_beta,
            counts=is_object,
        )
        return total / _num_counted(gt_classes)

    @padded
    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[Sequence[Instances], Sequence[Tensor]]:
        """The detections of each image, and from which proposal each came; see :func:`fast_rcnn_inference`.

        Args:
            predictions: what :meth:`forward` gave.
            proposals: with ``proposal_boxes``. Who passes a list gets a list of index tensors.
        """
        thresholds = (self.test_score_thresh, self.test_nms_thresh)
        if not (takes_padded(self.predict_boxes) and takes_padded(self.predict_probs)):
            boxes, probs = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
            sizes = [p.image_size for p in proposals]
            return fast_rcnn_inference(boxes, probs, sizes, *thresholds, self.test_topk_per_image)
        batch = as_batch(proposals)
        decoded = self._decode(predictions[1], batch)
        scores = rows_of(batch).put(self._probabilities(predictions[0]))[..., :-1]
        scores = scores.masked_fill(~batch.valid[..., None], -math.inf)
        limit = self.test_topk_per_image if self.test_topk_per_image >= 0 else scores[0].numel()
        detections, rows = select_detections(decoded, scores, batch.image_sizes, *thresholds, limit)
        origins = PartsOnDemand(rows, detections) if batch is proposals else valid_parts(rows, detections)
        return with_notes(detections, batch.notes), origins

    @padded
    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]) -> list[Tensor]:
        """The decoded boxes of each image, N tensors (P, Kb * 4)."""
        if len(proposals) == 0:
            return []
        batch = as_batch(proposals)
        return valid_parts(self._decode(predictions[1], batch).flatten(2), batch)

    @padded
    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> list[Tensor]:
        """Of each proposal the box decoded for its ``gt_classes``, N tensors (P, 4); any box for the background."""
        if len(proposals) == 0:
            return []
        batch = as_batch(proposals)
        return valid_parts(self.decode_boxes_of_gt_classes(predictions, batch), batch)

    def decode_boxes_of_gt_classes(self, predictions: tuple[Tensor, Tensor], proposals: ObjectBatch) -> Tensor:
        """:meth:`predict_boxes_for_gt_classes` as (N, P, 4)."""
        decoded = self._decode(predictions[1], proposals)
        chosen = _of_class(decoded.flatten(0, 1), proposals.tensor("gt_classes").flatten())
        return chosen.unflatten(0, proposals.valid.shape)

    def _decode(self, deltas: Tensor, proposals: ObjectBatch) -> Tensor:
        """The decoded boxes (N, P, Kb, 4)."""
        boxes = proposals.tensor("proposal_boxes")
        decoded = self.box2box_transform.apply_deltas(rows_of(proposals).put(deltas), boxes)
        return decoded.unflatten(-1, (-1, boxes.shape[-1]))

    @padded
    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]) -> list[Tensor]:
        """The class probabilities of each image, N tensors (P, K + 1)."""
        batch = as_batch(proposals)
        return valid_parts(rows_of(batch).put(self._probabilities(predictions[0])), batch)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.use_sigmoid_ce else logits.float().softmax(dim=-1)


def _num_counted(gt_classes: Tensor) -> Tensor:
    """How many rows count, at least 1."""
    return (gt_classes >= 0).sum().clamp(min=1)


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    """Of ``values`` (R, Kb, D) those of ``classes`` (R,), as (R, D); the only ones if Kb is 1."""
    index = classes.clamp(0, values.shape[1] - 1)[:, None, None].expand(-1, 1, values.shape[2])
    return values.gather(1, index).squeeze(1)


def _draw_classes(gt_classes: Tensor, num_drawn: int, num_classes: int, weight: Tensor) -> Tensor:
    """(K + 1,) bool: the classes of the batch, filled up to ``num_drawn`` with others drawn by ``weight`` (K,).

    Dividing weights by exponential variates and taking the largest draws without replacement (Efraimidis and Spirakis,
    Weighted random sampling with a reservoir, 2006).
    """
    every_class = torch.arange(num_classes + 1, device=gt_classes.device)
    present = (gt_classes[:, None] == every_class).any(dim=0)
    chances = torch.cat((weight.float(), weight.new_zeros(1, dtype=torch.float32))).masked_fill(present, 0.0)
    order = (chances / torch.empty_like(chances).exponential_()).argsort(descending=True)
    rank = torch.empty_like(order).scatter(0, order, every_class)
    return present | ((rank < num_drawn - present.sum()) & (chances > 0))
