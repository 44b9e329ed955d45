"""Drawing of annotations and predictions on images.

Shapes: N objects in an image of H x W pixels, J keypoints. Coordinates are pixels of the image, colours are what
matplotlib takes: names, or (r, g, b) within 0 and 1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks, PolygonMasks, ROIMasks
from detlab.structures.rotated_boxes import RotatedBoxes
from detlab.utils import _drawing
from detlab.utils._canvas import VisImage
from detlab.utils._drawing import Color
from detlab.utils._generic_mask import GenericMask, Part, middle_of_longest_run, trace
from detlab.utils.colormap import random_color
from detlab.utils.image import read_image, read_label_map

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

KEYPOINT_THRESHOLD = 0.05
STUFF_EDGE_COLOR = (1.0, 1.0, 240.0 / 255)
CROWD_SUFFIX = "|crowd"


class ColorMode(enum.Enum):
    """How objects are coloured."""

    IMAGE = 0
    """A random colour for each object, on the image."""
    SEGMENTATION = 1
    """Objects of one class in shades of the class's colour, ``thing_colors`` of the metadata."""
    IMAGE_BW = 2
    """As ``IMAGE``, with everything that no mask covers in grey."""


class Visualizer:
    """Draws on one image.

    The ``draw_*`` methods for whole results (``draw_instance_predictions``, ``draw_dataset_dict`` ...) choose colours,
    labels and sizes; they are made of the small ones (``draw_box``, ``draw_polygon``, ``draw_text`` ...). Each draws on
    top of what is there and returns ``output``: ``get_image()`` and ``save()`` of that give the picture.

    Args:
        img_rgb: (H, W, 3), RGB, uint8 or float in ``[0, 255]``.
        metadata: of the dataset, for names and colours of classes and keypoints: ``MetadataCatalog.get(name)``, or a
            dict with ``thing_classes``, ``thing_colors``, ``stuff_classes`` ... None: numbers for names.
        scale: size of the picture relative to the image.
        instance_mode: how to colour objects.
        font_size_scale: factor of the font's size.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        img_rgb = np.asarray(img_rgb)
        if img_rgb.ndim != 3 or img_rgb.shape[2] != 3:
            raise ValueError(f"a picture to draw on is (H, W, 3), RGB; got an array of {img_rgb.shape}")
        self.img = np.clip(img_rgb, 0, 255).astype(np.uint8)
        self.metadata = {} if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.keypoint_threshold = KEYPOINT_THRESHOLD
        self._instance_mode = instance_mode
        side = np.sqrt(self.output.height * self.output.width)
        self._font_size = max(side / 50, 10 / scale) * font_size_scale
        self._jitter = np.random.default_rng(0)

    def draw_instance_predictions(
        self, predictions: Instances, jittering: bool = True, *, alpha: float | None = None
    ) -> VisImage:
        """Draw detections.

        Args:
            predictions: with any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks``, ``pred_keypoints``.
            jittering: in the segmentation mode, vary the class's colour from object to object.
            alpha: opacity of the masks, 0 to 1; None for one that suits the mode.
        """
        predictions = predictions.to("cpu")
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        masks = self._predicted_masks(predictions) if predictions.has("pred_masks") else None
        colors, usual_alpha = None, 0.5
        if self._instance_mode == ColorMode.SEGMENTATION and classes is not None and self._colors("thing"):
            colors = [self._class_color("thing", c, jittering) for c in classes]
            usual_alpha = 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.grey_out_but(masks or [])
            usual_alpha = 0.3
        return self.overlay_instances(
            boxes=predictions.pred_boxes if predictions.has("pred_boxes") else None,
            labels=self.prediction_labels(predictions),
            masks=masks,
            keypoints=predictions.pred_keypoints if predictions.has("pred_keypoints") else None,
            assigned_colors=colors,
            alpha=usual_alpha if alpha is None else alpha,
        )

    def draw_target_instances(self, targets: Instances) -> VisImage:
        """Draw objects as the data loader gives them to a model.

        Args:
            targets: with any of ``gt_boxes``, ``gt_classes``, ``gt_masks``, ``gt_keypoints``.
        """
        targets = targets.to("cpu")
        classes = targets.gt_classes.tolist() if targets.has("gt_classes") else None
        colors = None
        if self._instance_mode == ColorMode.SEGMENTATION and classes is not None and self._colors("thing"):
            colors = [self._class_color("thing", c, jitter=True) for c in classes]
        return self.overlay_instances(
            boxes=targets.gt_boxes if targets.has("gt_boxes") else None,
            labels=self._labels(classes, None),
            masks=targets.gt_masks if targets.has("gt_masks") else None,
            keypoints=targets.gt_keypoints if targets.has("gt_keypoints") else None,
            assigned_colors=colors,
        )

    def draw_sem_seg(
        self,
        sem_seg: torch.Tensor | np.ndarray,
        area_threshold: float | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Color | None = STUFF_EDGE_COLOR,
    ) -> VisImage:
        """Draw a label map, large classes first.

        Args:
            sem_seg: (H, W) class indices; those without a name in the metadata (ignored ones) are not drawn.
            area_threshold: parts with fewer pixels are not drawn.
            alpha: opacity, 0 to 1.
            draw_text: write the names.
            edge_color: of the outlines; None for none.
        """
        labels = _to_numpy(sem_seg)
        names = self.metadata.get("stuff_classes")
        present, areas = np.unique(labels, return_counts=True)
        for label in present[np.argsort(-areas, kind="stable")].tolist():
            if label < 0 or (names is not None and label >= len(names)):
                continue
            name = str(label) if names is None else names[label]
            self.draw_binary_mask(
                labels == label,
                self._class_color("stuff", label),
                edge_color=edge_color,
                text=name if draw_text else None,
                alpha=alpha,
                area_threshold=area_threshold or 0,
            )
        return self.output

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.7,
        *,
        thing_colors: Callable[[list[np.ndarray], list[int]], Sequence[Color]] | None = None,
    ) -> VisImage:
        """Draw stuff, and things on top of it.

        Args:
            panoptic_seg: (H, W) segment ids, 0 or absent from ``segments_info`` for none.
            segments_info: ``id``, ``category_id`` (class index), ``isthing``, optionally ``score``, ``iscrowd`` of each
                segment. None: the ids are class * ``label_divisor`` of the metadata + number, negative for none.
            area_threshold: parts of stuff with fewer pixels are not drawn.
            alpha: opacity, 0 to 1.
            thing_colors: chooses colours of things by their (H, W) masks and classes; None: shades of the class's.
        """
        ids = _to_numpy(panoptic_seg)
        segments = self._segments_of(ids) if segments_info is None else segments_info
        masks = {segment["id"]: ids == segment["id"] for segment in segments}
        segments = [segment for segment in segments if masks[segment["id"]].any()]
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.grey_out_but([GenericMask(masks[segment["id"]], *ids.shape) for segment in segments])
        names = self.metadata.get("stuff_classes")
        for segment in (s for s in segments if not s["isthing"]):
            label = segment["category_id"]
            self.draw_binary_mask(
                masks[segment["id"]],
                self._class_color("stuff", label),
                edge_color=STUFF_EDGE_COLOR,
                text=str(label) if names is None else names[label],
                alpha=alpha,
                area_threshold=area_threshold or 0,
            )
        things = [segment for segment in segments if segment["isthing"]]
        if not things:
            return self.output
        classes = [segment["category_id"] for segment in things]
        scores = [segment["score"] for segment in things] if all("score" in s for s in things) else None
        return self.overlay_instances(
            masks=[GenericMask(masks[segment["id"]], *ids.shape) for segment in things],
            labels=self._labels(classes, scores, [s.get("iscrowd", 0) for s in things]),
            assigned_colors=(
                [self._class_color("thing", c, jitter=True) for c in classes]
                if thing_colors is None
                else thing_colors([masks[segment["id"]] for segment in things], classes)
            ),
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def _segments_of(self, ids: np.ndarray) -> list[dict[str, Any]]:
        divisor = self.metadata.get("label_divisor")
        if divisor is None:
            raise ValueError("panoptic ids without segments_info are read by label_divisor, which the metadata lack")
        things = set((self.metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        labels = {i: i // divisor for i in np.unique(ids).tolist() if i >= 0}
        return [{"id": i, "category_id": label, "isthing": label in things} for i, label in labels.items()]

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draw what the standard dataset format says of an image: objects, label map, panoptic segments.

        Args:
            dic: a dataset dict, of this image.
        """
        annotations = dic.get("annotations")
        if annotations:
            self._draw_annotations(annotations)
        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            sem_seg = read_label_map(dic["sem_seg_file_name"])
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        panoptic = dic.get("pan_seg")
        if panoptic is None and "pan_seg_file_name" in dic:
            panoptic = _ids_of_colors(read_image(dic["pan_seg_file_name"]))
        if panoptic is not None:
            self.draw_panoptic_seg(panoptic, dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    def _draw_annotations(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        classes = [annotation["category_id"] for annotation in annotations]
        colors = None
        if self._instance_mode == ColorMode.SEGMENTATION and self._colors("thing"):
            colors = [self._class_color("thing", c, jitter=True) for c in classes]
        boxes = None
        if all("bbox" in annotation for annotation in annotations):
            boxes = np.array([_absolute_box(annotation) for annotation in annotations])
        masks, keypoints = None, None
        if any(annotation.get("segmentation") for annotation in annotations):
            masks = [annotation.get("segmentation") or [] for annotation in annotations]
        lengths = {len(annotation.get("keypoints") or ()) for annotation in annotations} - {0}
        if lengths:
            empty = [0.0] * max(lengths)
            keypoints = np.array([a.get("keypoints") or empty for a in annotations]).reshape(len(annotations), -1, 3)
        self.overlay_instances(
            boxes=boxes,
            labels=self._labels(classes, None, [annotation.get("iscrowd", 0) for annotation in annotations]),
            masks=masks,
            keypoints=keypoints,
            assigned_colors=colors,
        )

    def overlay_instances(
        self,
        *,
        boxes: Boxes | RotatedBoxes | torch.Tensor | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw objects, the large ones first so that the small ones stay visible.

        Args:
            boxes: (N, 4) x0, y0, x1, y1, or rotated ones (N, 5).
            labels: texts, one for each object.
            masks: ``BitMasks``, ``PolygonMasks``, (N, H, W), or a list of anything that ``GenericMask`` takes.
            keypoints: ``Keypoints`` or (N, J, 3): x, y, and a score or visibility.
            assigned_colors: one for each object; None: random ones.
            alpha: opacity of the masks, 0 to 1.

        Raises:
            ValueError: not as many of one as of another.
        """
        corners = None if boxes is None else _box_array(boxes)
        shapes = None if masks is None else self._generic_masks(masks)
        points = None if keypoints is None else _to_numpy(getattr(keypoints, "tensor", keypoints)).astype(float)
        num_objects = _common_length(
            boxes=corners, labels=labels, masks=shapes, keypoints=points, assigned_colors=assigned_colors
        )
        if corners is not None and len(corners) and corners.shape[1] == 5:
            return self.overlay_rotated_instances(corners, labels, assigned_colors)
        colors = assigned_colors or [random_color(rgb=True, maximum=1) for _ in range(num_objects)]
        if corners is None and shapes is not None:
            corners_of_masks = np.array([shape.bbox() for shape in shapes]).reshape(-1, 4)
        else:
            corners_of_masks = np.zeros((num_objects, 4)) if corners is None else corners
        areas = (corners_of_masks[:, 2:] - corners_of_masks[:, :2]).prod(axis=1)
        order = np.argsort(-areas, kind="stable").tolist()
        for index in order:
            if corners is not None:
                self.draw_box(corners[index], edge_color=colors[index])
            if shapes is not None:
                self._draw_parts(shapes[index].parts, colors[index], colors[index], alpha)
        if points is not None:
            for index in order:
                self.draw_and_connect_keypoints(points[index])
        if labels is not None and (corners is not None or shapes is not None):
            for index in order:
                self._draw_label(labels[index], corners_of_masks[index], colors[index])
        return self.output

    def overlay_rotated_instances(
        self,
        boxes: RotatedBoxes | torch.Tensor | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Color] | None = None,
    ) -> VisImage:
        """Draw rotated boxes, the large ones first.

        Args:
            boxes: (N, 5) centre x, centre y, width, height, degrees counter-clockwise.
            labels: texts, one for each box.
            assigned_colors: one for each box; None: random ones.
        """
        array = np.zeros((0, 5)) if boxes is None else _box_array(boxes)
        _common_length(boxes=array, labels=labels, assigned_colors=assigned_colors)
        colors = assigned_colors or [random_color(rgb=True, maximum=1) for _ in array]
        for index in np.argsort(-array[:, 2] * array[:, 3], kind="stable").tolist():
            label = None if labels is None else labels[index]
            self.draw_rotated_box_with_label(array[index], edge_color=colors[index], label=label)
        return self.output

    def draw_and_connect_keypoints(self, keypoints: torch.Tensor | np.ndarray) -> VisImage:
        """Draw the keypoints of one object and the lines of ``keypoint_connection_rules`` between them.

        For COCO persons, lines from the nose to the middle of the shoulders and on to the middle of the hips too.

        Args:
            keypoints: (J, 3): x, y, score; those scored less than ``keypoint_threshold`` are not drawn.
        """
        points = _to_numpy(keypoints)
        names = self.metadata.get("keypoint_names") or [str(index) for index in range(len(points))]
        visible = {
            name: (float(x), float(y)) for name, (x, y, score) in zip(names, points) if score > self.keypoint_threshold
        }
        for start, end, color in self.metadata.get("keypoint_connection_rules") or ():
            if start in visible and end in visible:
                (x0, y0), (x1, y1) = visible[start], visible[end]
                self.draw_line([x0, x1], [y0, y1], color=tuple(channel / 255.0 for channel in color))
        self._draw_spine(visible)
        for position in visible.values():
            self.draw_circle(position, color=(1.0, 0.2, 0.2))
        return self.output

    def _draw_spine(self, visible: Mapping[str, tuple[float, float]]) -> None:
        def middle(part: str) -> np.ndarray | None:
            sides = [visible.get(f"{side}_{part}") for side in ("left", "right")]
            return None if None in sides else np.mean(np.array(sides), axis=0)

        neck, pelvis = middle("shoulder"), middle("hip")
        if neck is None:
            return
        ends = [visible.get("nose"), None if pelvis is None else pelvis]
        for end in ends:
            if end is not None:
                self.draw_line([end[0], neck[0]], [end[1], neck[1]], color=(1.0, 0.2, 0.2))

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write ``text`` with its upper edge at ``position``.

        Args:
            text: what to write.
            position: x, y.
            font_size: in pixels of the image; None for one that fits the image.
            color: made lighter where it could not be read.
            horizontal_alignment: ``"center"``, ``"left"`` or ``"right"`` of the text is at x.
            rotation: degrees, counter-clockwise.
        """
        _drawing.draw_text(
            self.output,
            text,
            position,
            font_size=font_size or self._font_size,
            color=color,
            horizontal_alignment=horizontal_alignment,
            rotation=rotation,
        )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of (x0, y0, x1, y1)."""
        _drawing.draw_rectangle(
            self.output, box_coord, color=edge_color, width=self._line_width, alpha=alpha, style=line_style
        )
        return self.output

    def draw_rotated_box_with_label(
        self,
        rotated_box: Sequence[float],
        alpha: float = 0.5,
        edge_color: Color = "g",
        line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:
        """Draw a rotated box; its upper side, which tells which way it is turned, is dashed.

        Args:
            rotated_box: centre x, centre y, width, height, degrees counter-clockwise.
            alpha: kept for compatibility; the lines are opaque.
            edge_color: of the lines and the label.
            line_style: of the three other sides.
            label: written at the upper left corner.
        """
        corners = _drawing.rotated_corners(*(float(value) for value in rotated_box))
        for index, (start, end) in enumerate(zip(corners, np.roll(corners, -1, axis=0))):
            style = "--" if index == 0 else line_style
            self.draw_line([start[0], end[0]], [start[1], end[1]], color=edge_color, linestyle=style)
        if label is not None:
            self.draw_text(label, corners[0], color=edge_color, horizontal_alignment="left", rotation=rotated_box[4])
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Color, radius: float = 3) -> VisImage:
        """Draw a disc around (x, y)."""
        _drawing.draw_disc(self.output, circle_coord, radius=radius, color=color)
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through the points (x_data[i], y_data[i]); the width is in pixels of the image."""
        width = self._line_width if linewidth is None else linewidth
        _drawing.draw_line(self.output, x_data, y_data, color=color, width=width, style=linestyle)
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: torch.Tensor | np.ndarray,
        color: Color | None = None,
        *,
        edge_color: Color | None = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float = 10,
    ) -> VisImage:
        """Fill a mask, and outline it.

        Args:
            binary_mask: (H, W), zero or not.
            color: of the filling; None for a random one.
            edge_color: of the outline; None for that of the filling.
            text: written inside the mask.
            alpha: opacity of the filling, 0 to 1.
            area_threshold: connected parts with fewer pixels are not drawn.
        """
        color = random_color(rgb=True, maximum=1) if color is None else color
        mask = _to_numpy(binary_mask)
        parts = [part for part in trace(mask) if part.area >= area_threshold]
        self._draw_parts(parts, color, color if edge_color is None else edge_color, alpha)
        if text is not None and parts:
            self.draw_text(text, middle_of_longest_run(mask), color=color)
        return self.output

    def draw_soft_mask(
        self,
        soft_mask: torch.Tensor | np.ndarray,
        color: Color | None = None,
        *,
        text: str | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Lay a colour over the image, the thicker the higher the mask.

        Args:
            soft_mask: (H, W) in [0, 1].
            color: None for a random one.
            text: written where the mask is above one half.
            alpha: opacity where the mask is 1.
        """
        color = random_color(rgb=True, maximum=1) if color is None else color
        mask = _to_numpy(soft_mask)
        _drawing.draw_soft_mask(self.output, mask, color=color, alpha=alpha)
        if text is not None and (mask > 0.5).any():
            self.draw_text(text, middle_of_longest_run(mask > 0.5), color=color)
        return self.output

    def draw_polygon(
        self,
        segment: torch.Tensor | np.ndarray | Sequence[Sequence[float]],
        color: Color,
        edge_color: Color | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Fill a polygon of (P, 2) corners, and outline it, in the filling's colour if no other is given."""
        part = Part(_to_numpy(segment).astype(float).reshape(-1, 2), [])
        self._draw_parts([part], color, color if edge_color is None else edge_color, alpha)
        return self.output

    def get_output(self) -> VisImage:
        """What has been drawn so far."""
        return self.output

    @property
    def _line_width(self) -> float:
        return self._font_size / 7

    def _draw_parts(self, parts: Iterable[Part], color: Color, edge_color: Color, alpha: float) -> None:
        width = self._font_size / 14
        _drawing.draw_parts(self.output, parts, color=color, edge_color=edge_color, alpha=alpha, width=width)

    def _draw_label(self, label: str, box_xyxy: np.ndarray, color: Color) -> None:
        sides = np.maximum(box_xyxy[2:] - box_xyxy[:2], 0)
        share_of_side = np.sqrt(sides.prod() / (self.output.height * self.output.width))
        font_size = self._font_size * float(np.clip(8 * share_of_side, 0.75, 1))
        place = _drawing.label_place(box_xyxy.tolist(), font_size, self.output.height)
        _drawing.draw_text(
            self.output,
            label,
            place.position,
            font_size=font_size,
            color=color,
            horizontal_alignment="left",
            vertical_alignment=place.vertical_alignment,
        )

    def _labels(
        self, classes: Sequence[int] | None, scores: Sequence[float] | None, is_crowd: Sequence[int] | None = None
    ) -> list[str] | None:
        if classes is None and scores is None:
            return None
        names = self.metadata.get("thing_classes")
        texts = [""] * len(scores or ())
        if classes is not None:
            texts = [names[c] if names is not None and 0 <= c < len(names) else str(c) for c in classes]
        if scores is not None:
            texts = [f"{text} {score * 100:.0f}%".lstrip() for text, score in zip(texts, scores)]
        if is_crowd is not None:
            texts = [text + CROWD_SUFFIX if crowd else text for text, crowd in zip(texts, is_crowd)]
        return texts

    def _colors(self, kind: str) -> Sequence[Sequence[float]] | None:
        return self.metadata.get(f"{kind}_colors")

    def _class_color(self, kind: str, label: int, jitter: bool = False) -> tuple[float, ...]:
        table = self._colors(kind)
        if table is None or label >= len(table):
            return tuple(random_color(rgb=True, maximum=1).tolist())
        color = tuple(channel / 255.0 for channel in table[label])
        return _drawing.jittered(color, self._jitter) if jitter else color

    def grey_out_but(self, masks: Iterable[GenericMask]) -> None:
        """Takes the image's colours away wherever no mask is."""
        covered = np.zeros(self.img.shape[:2], dtype=bool)
        for mask in masks:
            covered |= mask.mask.astype(bool)
        grey = self.img.astype(float).mean(axis=2, keepdims=True).repeat(3, axis=2)
        self.output.reset_image(np.where(covered[:, :, None], self.img, grey))

    def prediction_labels(self, predictions: Instances) -> list[str] | None:
        """Names of the classes and scores in percent, as far as there are any."""
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        return self._labels(classes, predictions.scores.tolist() if predictions.has("scores") else None)

    def _predicted_masks(self, predictions: Instances) -> list[GenericMask]:
        masks = predictions.pred_masks
        if isinstance(masks, ROIMasks):
            masks = masks.to_bitmasks(predictions.pred_boxes.tensor, self.output.height, self.output.width)
        return self._generic_masks(masks)

    def _generic_masks(self, masks: Any) -> list[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor
        if isinstance(masks, torch.Tensor):
            masks = masks.numpy(force=True)
        height, width = self.output.height, self.output.width
        return [mask if isinstance(mask, GenericMask) else GenericMask(_plain(mask), height, width) for mask in masks]


def _plain(mask: Any) -> Any:
    return mask.numpy(force=True) if isinstance(mask, torch.Tensor) else mask


def _to_numpy(values: Any) -> np.ndarray:
    return values.numpy(force=True) if isinstance(values, torch.Tensor) else np.asarray(values)


def _box_array(boxes: Boxes | Keypoints | torch.Tensor | np.ndarray) -> np.ndarray:
    return _to_numpy(getattr(boxes, "tensor", boxes)).astype(float)


def _absolute_box(annotation: Mapping[str, Any]) -> list[float]:
    """x0, y0, x1, y1, or the five numbers of a rotated box."""
    box = [float(value) for value in annotation["bbox"]]
    return box if len(box) == 5 else list(BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS))


def _common_length(**parts: Sequence[Any] | np.ndarray | None) -> int:
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"objects to draw come in different numbers: {lengths}")
    return next(iter(lengths.values()), 0)


def _ids_of_colors(pixels: np.ndarray) -> np.ndarray:
    """Segment ids that COCO's panoptic files keep as base 256 digits in (H, W, 3) RGB."""
    return pixels[:, :, :3].astype(np.int64) @ np.array([1, 256, 256 * 256])
