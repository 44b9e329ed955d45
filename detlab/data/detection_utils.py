"""From dataset dictionaries to what a model trains on: checks, annotations under transforms, ``Instances``.

Shapes: N objects, K keypoints, P corners of a polygon, H x W pixels. An annotation is a dictionary with ``bbox``,
``bbox_mode``, ``category_id``, and where there are such, ``segmentation`` (polygons, RLE, or a bitmap) and
``keypoints`` (x, y, visibility, ...). Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from fvcore.transforms.transform import CropTransform, HFlipTransform, Transform, TransformList, VFlipTransform

from detlab.config.config import CfgNode
from detlab.data.catalog import Metadata, MetadataCatalog
from detlab.data.transforms.augmentation import Augmentation
from detlab.data.transforms.augmentation_impl import RandomFlip, ResizeShortestEdge
from detlab.data.transforms.polygons import transform_polygons
from detlab.structures.boxes import Boxes, BoxMode
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints
from detlab.structures.masks import BitMasks, PolygonMasks
from detlab.structures.rotated_boxes import RotatedBoxes
from detlab.utils.image import convert_image_to_rgb, convert_PIL_to_numpy, read_image
from detlab.utils.mask_codes import checked_objects, decode_rle, draw_polygons

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "annotations_to_instances_rotated",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_bbox",
    "get_fed_loss_cls_weights",
    "read_image",
    "transform_annotations",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
    "transform_proposals",
]

Annotation: TypeAlias = dict[str, Any]
Transforms: TypeAlias = "Transform | Sequence[Transform]"


# ------------------------------------------------------------------------------------------------------------ images


class SizeMismatchError(ValueError):
    """An image has another size than its dataset says."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compares an image with the ``width`` and ``height`` of its dictionary; fills in what is missing there.

    Args:
        dataset_dict: of the image; changed if it does not have the size.
        image: (H, W, ...).

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.get("width", width), dataset_dict.get("height", height))
    if expected != (width, height):
        hint = "correct the annotations, or replace the image"
        if expected == (height, width):
            hint = (
                "width and height are swapped, so it was probably annotated without its EXIF orientation; remove that "
                "from the file, or annotate it upright"
            )
        raise SizeMismatchError(
            f"image {dataset_dict.get('file_name', '(no file_name)')!r} is {width} wide and {height} high, but its "
            f"dataset says {expected[0]} wide and {expected[1]} high: {hint}"
        )
    dataset_dict["width"], dataset_dict["height"] = width, height


# ------------------------------------------------------------------------------------- annotations through transforms


def get_bbox(annotation: Annotation) -> Any:
    """The box of an annotation as x1, y1, x2, y2 in pixels, in the container it comes in.

    Raises:
        ValueError: ``bbox`` or ``bbox_mode`` is missing or wrong.
    """
    for key in ("bbox", "bbox_mode"):
        if annotation.get(key) is None:
            raise ValueError(f"an annotation has no {key!r}; it has {_shorten(annotation)}")
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if len(box) != (5 if mode == BoxMode.XYWHA_ABS else 4):
        raise ValueError(f"a 'bbox' has {len(box)} numbers, which bbox_mode {BoxMode(mode).name} does not: {box}")
    return BoxMode.convert(box, mode, BoxMode.XYXY_ABS)


def _shorten(annotation: Annotation) -> str:
    text = ", ".join(f"{key}: {value!r}" for key, value in annotation.items() if key != "segmentation")
    return "{" + (text if len(text) <= 200 else text[:197] + "...") + "}"


def transform_instance_annotations(
    annotation: Annotation,
    transforms: Transforms,
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> Annotation:
    """Applies transforms to one annotation, in place. For those of a whole image see :func:`transform_annotations`.

    Args:
        annotation: ``bbox`` becomes xyxy, cut at the image's border; ``segmentation`` stays polygons, or becomes an
            (H, W) bitmap if it was no polygon; ``keypoints`` become (K, 3).
        transforms: one or a list.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`.

    Returns:
        The annotation.
    """
    changed = transform_annotations([annotation], transforms, image_size, keypoint_hflip_indices=keypoint_hflip_indices)
    annotation.update(changed[0])
    return annotation


def transform_annotations(
    annotations: Sequence[Annotation],
    transforms: Transforms,
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> list[Annotation]:
    """Applies transforms to all annotations of an image, which takes one call for all boxes, all corners, all points.

    A box that was empty, inverted or not finite comes out as zeros, which :func:`filter_empty_instances` removes.

    Args:
        annotations: N; not changed.
        transforms: one or a list.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`.

    Returns:
        New annotations, as :func:`transform_instance_annotations` describes them.

    Raises:
        ValueError: an annotation lacks its box, or something in it does not fit the image or the dataset.
    """
    steps = _as_list(transforms)
    changed = [dict(annotation) for annotation in annotations]
    boxes = _transform_boxes([get_bbox(a) for a in annotations], steps, image_size)
    for own, box in zip(changed, boxes):
        own.update(bbox=box, bbox_mode=BoxMode.XYXY_ABS)
    masked = [own for own in changed if "segmentation" in own]
    if masked:
        segmentations = _transform_segmentations([own["segmentation"] for own in masked], steps, image_size)
        for own, segmentation in zip(masked, segmentations):
            own["segmentation"] = segmentation
    pointed = [own for own in changed if "keypoints" in own]
    if pointed:
        points = _stack_keypoints([own["keypoints"] for own in pointed])
        for own, moved in zip(pointed, _transform_keypoints(points, steps, image_size, keypoint_hflip_indices)):
            own["keypoints"] = moved
    return changed


def _as_list(transforms: Transforms) -> TransformList:
    if isinstance(transforms, TransformList):
        return transforms
    return TransformList(list(transforms) if isinstance(transforms, (list, tuple)) else [transforms])


def _transform_boxes(boxes: list[Any], transforms: TransformList, image_size: tuple[int, int]) -> np.ndarray:
    """N boxes xyxy -> (N, 4) float64, inside the image."""
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    is_sound = np.isfinite(corners).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    unsound = np.flatnonzero(~is_sound)
    corners[unsound] = 0.0
    height, width = image_size
    moved = transforms.apply_box(corners).clip(0, [width, height, width, height])
    # Set again after the move: turned corners give an empty box a size.
    moved[unsound] = 0.0
    return moved


# -------------------------------------------------------------------------------------------------------------- masks


def _transform_segmentations(segmentations: list[Any], transforms: TransformList, image_size: tuple[int, int]) -> list:
    """N polygon lists, RLEs or bitmaps -> polygons as flat arrays, or (H, W) bitmaps for the other two."""
    are_polygons = [isinstance(segmentation, (list, tuple)) for segmentation in segmentations]
    listed = [s for s, is_list in zip(segmentations, are_polygons) if is_list]
    objects = checked_objects(listed, lambda _: "'segmentation'")
    moved = iter(transform_polygons([[polygon.reshape(-1, 2) for polygon in own] for own in objects], transforms))
    return [
        [polygon.reshape(-1) for polygon in next(moved)]
        if is_list
        else _transform_bitmap(_to_bitmap(segmentation), transforms, image_size)
        for segmentation, is_list in zip(segmentations, are_polygons)
    ]


def _to_bitmap(segmentation: Any) -> np.ndarray:
    """An RLE of the COCO format, compressed or not, or a bitmap -> (H, W) uint8."""
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return segmentation.astype(np.uint8, copy=False)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        shape = f" of shape {segmentation.shape}" if isinstance(segmentation, np.ndarray) else ""
        raise ValueError(
            "'segmentation' is a list of polygons [[x0, y0, ...], ...], an RLE {'size': [height, width], 'counts': "
            f"...}}, or an array (H, W); got {type(segmentation).__name__}{shape}"
        )
    return decode_rle(segmentation, where="'segmentation'")


def _transform_bitmap(bitmap: np.ndarray, transforms: TransformList, image_size: tuple[int, int]) -> np.ndarray:
    moved = transforms.apply_segmentation(bitmap)
    if moved.shape != tuple(image_size):
        raise ValueError(
            f"a mask in 'segmentation' is {bitmap.shape[1]} wide and {bitmap.shape[0]} high, which the image is not: "
            f"after the transforms it has height and width {moved.shape}, the image {tuple(image_size)}"
        )
    return moved


# ---------------------------------------------------------------------------------------------------------- keypoints


def transform_keypoint_annotations(
    keypoints: Any,
    transforms: Transforms,
    image_size: tuple[int, int],
    keypoint_hflip_indices: np.ndarray | None = None,
) -> np.ndarray:
    """Applies transforms to the keypoints of one object.

    A point that leaves the image gets visibility 0; points with visibility 0 get the coordinates 0, 0.

    Args:
        keypoints: x, y, visibility, x, ... flat, or (K, 3).
        transforms: one or a list.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`; applied if the image was mirrored an odd
            number of times, in either direction.

    Returns:
        (K, 3) float64.

    Raises:
        ValueError: the number of values is not a multiple of 3, or not that of the flip indices; or the image was
            mirrored and there are no flip indices.
    """
    points = _stack_keypoints([keypoints])
    return _transform_keypoints(points, _as_list(transforms), image_size, keypoint_hflip_indices)[0]


def _stack_keypoints(keypoints: list[Any]) -> np.ndarray:
    """N objects' keypoints -> (N, K, 3) float64."""
    counts = {np.size(own) for own in keypoints}
    if len(counts) > 1 or min(counts) % 3:
        raise ValueError(
            f"'keypoints' are x, y, visibility for each point, equally many in all annotations; the numbers of values "
            f"are {[np.size(own) for own in keypoints]}"
        )
    return np.array(keypoints, dtype=np.float64).reshape(len(keypoints), -1, 3)


def _transform_keypoints(
    keypoints: np.ndarray, transforms: TransformList, image_size: tuple[int, int], flip_indices: Any
) -> np.ndarray:
    """(N, K, 3) -> (N, K, 3), new memory."""
    num_objects, num_points, _ = keypoints.shape
    if flip_indices is not None and len(flip_indices) != num_points:
        raise ValueError(
            f"an annotation has {num_points} keypoints, but its dataset's metadata (keypoint_names) name "
            f"{len(flip_indices)}; they must be equally many"
        )
    points = transforms.apply_coords(keypoints[:, :, :2].reshape(-1, 2)).reshape(num_objects, num_points, 2)
    height, width = image_size
    inside = ((points >= 0) & (points <= [width, height])).all(axis=2)
    visibility = np.where(inside, keypoints[:, :, 2], 0)
    moved = np.concatenate([points, visibility[:, :, None]], axis=2)
    if _is_mirrored(transforms):
        if flip_indices is None:
            raise ValueError(
                "keypoints of a mirrored image need to know which of them are left and right: give "
                "keypoint_hflip_indices (see create_keypoint_hflip_indices), or do not flip (INPUT.RANDOM_FLIP none)"
            )
        moved = moved[:, np.asarray(flip_indices)]
    moved[moved[:, :, 2] == 0] = 0
    return moved


def _is_mirrored(transforms: TransformList) -> bool:
    """Whether left and right hands look exchanged. Upside down they do, too: it is a mirror image, turned."""
    return sum(isinstance(t, (HFlipTransform, VFlipTransform)) for t in transforms.transforms) % 2 == 1


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """Which keypoint stands at each place in a mirror image, where left ones become right ones.

    Args:
        dataset_names: one or several, whose metadata ``keypoint_names`` (K names) and ``keypoint_flip_map`` (pairs of
            them) agree.

    Returns:
        K indices.

    Raises:
        AttributeError: a dataset has no such metadata.
        ValueError: they do not agree, or the pairs name what ``keypoint_names`` does not have.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    partner = {a: b for pair in metadata.keypoint_flip_map for a, b in (pair, pair[::-1])}
    position = {name: index for index, name in enumerate(metadata.keypoint_names)}
    unknown = sorted(set(partner) - set(position))
    if unknown:
        raise ValueError(
            f"keypoint_flip_map of dataset {names[0]!r} names {unknown}, which are not among its keypoint_names "
            f"{list(position)}"
        )
    return [position[partner.get(name, name)] for name in metadata.keypoint_names]


# ---------------------------------------------------------------------------------------------------------- instances


def annotations_to_instances(
    annos: Sequence[Annotation], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Gathers the annotations of an image in the form that models train on.

    Args:
        annos: N, as :func:`transform_instance_annotations` leaves them.
        image_size: (height, width).
        mask_format: ``"polygon"`` or ``"bitmask"``.

    Returns:
        ``Instances`` with ``gt_boxes``, ``gt_classes`` (N,) int64, and if the annotations have them, ``gt_masks``
        (``PolygonMasks`` or ``BitMasks``) and ``gt_keypoints``.

    Raises:
        ValueError: an annotation lacks something, or masks cannot be had in that format.
    """
    target = Instances(image_size)
    boxes = np.array([get_bbox(a) for a in annos], dtype=np.float32).reshape(-1, 4)
    target.gt_boxes = Boxes(torch.from_numpy(boxes))
    target.gt_classes = torch.tensor(_values_of("category_id", annos), dtype=torch.int64)
    if any("segmentation" in a for a in annos):
        target.gt_masks = _to_masks(_values_of("segmentation", annos), image_size, mask_format)
    if any("keypoints" in a for a in annos):
        target.gt_keypoints = Keypoints(_stack_keypoints(_values_of("keypoints", annos)))
    return target


def annotations_to_instances_rotated(annos: Sequence[Annotation], image_size: tuple[int, int]) -> Instances:
    """Gathers annotations with rotated boxes.

    Args:
        annos: N, with ``bbox`` (center x, center y, width, height, angle) in pixels and degrees.
        image_size: (height, width); boxes that are almost upright are cut there.

    Returns:
        ``Instances`` with ``gt_boxes`` (``RotatedBoxes``) and ``gt_classes`` (N,) int64.

    Raises:
        ValueError: an annotation lacks something, or its box is not of 5 numbers.
    """
    boxes = _values_of("bbox", annos)
    wrong = next((box for box in boxes if len(box) != 5), None)
    if wrong is not None:
        raise ValueError(f"a rotated 'bbox' is center x, center y, width, height, angle; got {wrong}")
    target = Instances(image_size)
    target.gt_boxes = RotatedBoxes(torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 5)))
    target.gt_boxes.clip(image_size)
    target.gt_classes = torch.tensor(_values_of("category_id", annos), dtype=torch.int64)
    return target


def _values_of(key: str, annotations: Sequence[Annotation]) -> list[Any]:
    for index, annotation in enumerate(annotations):
        if annotation.get(key) is None:
            raise ValueError(
                f"annotation {index} of {len(annotations)} has no {key!r}; each needs one. It has "
                f"{_shorten(annotation)}"
            )
    return [annotation[key] for annotation in annotations]


def _to_masks(segmentations: list[Any], image_size: tuple[int, int], mask_format: str) -> PolygonMasks | BitMasks:
    if mask_format == "polygon":
        other = next((s for s in segmentations if not isinstance(s, (list, tuple))), None)
        if other is not None:
            raise ValueError(
                f"a 'segmentation' is no list of polygons but {type(other).__name__} (an RLE or bitmap); set "
                "INPUT.MASK_FORMAT to 'bitmask'"
            )
        return PolygonMasks(segmentations)
    if mask_format == "bitmask":
        return BitMasks(torch.from_numpy(_draw_masks(segmentations, image_size)))
    raise ValueError(f"mask_format (INPUT.MASK_FORMAT) is 'polygon' or 'bitmask'; got {mask_format!r}")


def _draw_masks(segmentations: list[Any], image_size: tuple[int, int]) -> np.ndarray:
    """N polygon lists, RLEs or bitmaps -> (N, H, W) bool."""
    height, width = image_size
    bitmaps = np.zeros((len(segmentations), height, width), dtype=bool)
    drawn = [i for i, segmentation in enumerate(segmentations) if isinstance(segmentation, (list, tuple))]
    if drawn:
        polygons = checked_objects([segmentations[i] for i in drawn], lambda _: "'segmentation'", are_moved=True)
        bitmaps[drawn] = draw_polygons(polygons, height, width)
    for i in set(range(len(segmentations))) - set(drawn):
        bitmap = _to_bitmap(segmentations[i])
        if bitmap.shape != (height, width):
            raise ValueError(
                f"a mask in 'segmentation' has height and width {bitmap.shape}, but its image {tuple(image_size)}"
            )
        bitmaps[i] = bitmap
    return bitmaps


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Removes objects of which nothing is left.

    Args:
        instances: N objects with ``gt_boxes``, maybe ``gt_masks``.
        by_box: remove boxes that are not wider and higher than ``box_threshold``, or not finite.
        by_mask: remove empty masks, if there are masks.
        box_threshold: in pixels.
        return_mask: also return which objects were kept.

    Returns:
        The kept objects; with ``return_mask`` also (N,) bool.

    Raises:
        ValueError: nothing to go by was chosen.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances goes by boxes, by masks or both; got by_box=False and by_mask=False")
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
        keep &= instances.gt_boxes.tensor.isfinite().all(dim=1)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    kept = instances if bool(keep.all()) else instances[keep]
    return (kept, keep) if return_mask else kept


# ---------------------------------------------------------------------------------------------------------- proposals


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: Transforms,
    *,
    proposal_topk: int,
    min_box_size: int = 0,
) -> None:
    """Turns the precomputed proposals of an image into ``Instances``, in place.

    ``proposal_boxes`` (N, 4), or rotated (N, 5), ``proposal_bbox_mode`` and ``proposal_objectness_logits`` (N,), best
    first, are replaced by ``proposals`` with the fields ``proposal_boxes`` and ``objectness_logits``. Without
    ``proposal_boxes`` nothing happens.

    Args:
        dataset_dict: of the image.
        image_shape: (height, width) after the transforms.
        transforms: one or a list.
        proposal_topk: how many to keep.
        min_box_size: boxes must be wider and higher than this, in pixels.

    Raises:
        ValueError: there are not as many boxes as logits.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    mode = dataset_dict.pop("proposal_bbox_mode", BoxMode.XYXY_ABS)
    given = np.array(dataset_dict.pop("proposal_boxes")).reshape(-1, 5 if mode == BoxMode.XYWHA_ABS else 4)
    corners = BoxMode.convert(given, mode, BoxMode.XYXY_ABS)
    logits = torch.tensor(np.array(dataset_dict.pop("proposal_objectness_logits"), dtype=np.float32))
    if len(corners) != len(logits):
        raise ValueError(f"{len(corners)} proposal_boxes but {len(logits)} proposal_objectness_logits")
    boxes = Boxes(torch.tensor(_as_list(transforms).apply_box(corners), dtype=torch.float32))
    boxes.clip(image_shape)
    keep = boxes.nonempty(threshold=min_box_size).nonzero()[:proposal_topk, 0]
    dataset_dict["proposals"] = Instances(image_shape, proposal_boxes=boxes[keep], objectness_logits=logits[keep])


# ------------------------------------------------------------------------------------------------- metadata and config


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Makes sure that datasets that are trained on together say the same.

    Args:
        key: of their metadata.
        dataset_names: at least one.

    Raises:
        ValueError: there are none, or they disagree.
        AttributeError: one has no such metadata.
    """
    if not dataset_names:
        raise ValueError(f"no dataset to take {key!r} from; name at least one (DATASETS.TRAIN)")
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values):
        if value != values[0]:
            raise ValueError(
                f"datasets that are used together need the same {key!r}; {dataset_names[0]!r} has {values[0]}, "
                f"{name!r} has {value}"
            )


def get_fed_loss_cls_weights(dataset_names: str | Sequence[str], freq_weight_power: float = 1.0) -> torch.Tensor:
    """How likely each class is to be drawn as a negative of the federated loss (Zhou et al. 2021).

    Args:
        dataset_names: one or several, whose metadata have ``class_image_count``: for each class a dictionary with its
            ``id`` and the ``image_count`` of images that show it.
        freq_weight_power: exponent on these counts.

    Returns:
        (num_classes,) float32, in order of the ids.

    Raises:
        AttributeError: a dataset has no such metadata.
        ValueError: they do not agree.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("class_image_count", names)
    metadata: Metadata = MetadataCatalog.get(names[0])
    by_id = sorted(metadata.class_image_count, key=lambda entry: entry["id"])
    return torch.tensor([float(entry["image_count"]) for entry in by_id]) ** freq_weight_power


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: Annotation
) -> CropTransform:
    """A random crop that holds the center of an object.

    Args:
        crop_size: (height, width) of the crop.
        image_size: (height, width) of the image.
        instance: an annotation of the object.

    Raises:
        ValueError: the crop is larger than the image, or the object's center lies outside of it.
    """
    crop_hw, image_hw = np.array(crop_size, dtype=int), np.array(image_size, dtype=int)
    x1, y1, x2, y2 = get_bbox(instance)
    center = np.array([(y1 + y2) / 2, (x1 + x2) / 2])
    if (crop_hw > image_hw).any():
        raise ValueError(f"a crop of height and width {tuple(crop_size)} does not fit into an image of {image_size}")
    if not ((center >= 0) & (center <= image_hw)).all():
        raise ValueError(
            f"the center of bbox {instance['bbox']} is not in the image of height and width {tuple(image_size)}"
        )
    lowest = np.maximum(np.ceil(center).astype(int) - crop_hw, 0)
    highest = np.minimum(np.floor(center).astype(int), image_hw - crop_hw)
    top, left = np.random.randint(lowest, highest + 1).tolist()
    return CropTransform(left, top, int(crop_hw[1]), int(crop_hw[0]), int(image_hw[1]), int(image_hw[0]))


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[Augmentation]:
    """The augmentations that ``cfg.INPUT`` asks for: resizing, and flips in training.

    ``INPUT.CROP`` is not among them; ``DatasetMapper`` puts it in front.

    Raises:
        ValueError: ``INPUT.RANDOM_FLIP`` is not one of none, horizontal, vertical.
    """
    if not is_train:
        return [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[Augmentation] = [
        ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is none, horizontal or vertical; got {flip!r}")
    if flip != "none":
        augmentations.append(RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


build_transform_gen = build_augmentation
