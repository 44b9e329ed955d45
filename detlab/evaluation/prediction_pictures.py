"""Pictures of saved predictions beside their ground truth, one by one or many on a sheet."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.entries import Entries, are_within, is_number
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances
from detlab.utils.colormap import colormap
from detlab.utils.file_io import read_json, write_atomically
from detlab.utils.image import read_image
from detlab.utils.mask_codes import MAX_COORDINATE, checked_polygons, checked_rle
from detlab.utils.visualizer import ColorMode, GenericMask, Visualizer

BACKGROUND = 255
GAP = 8


def read_results(json_file: str) -> dict[Any, list[dict[str, Any]]]:
    """The predictions of a COCO results file by image id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a list of predictions, or one of them lacks its image, category or score, or has
            something else in the place of a box, mask or keypoints; the message names the file and the prediction.
    """
    content = read_json(json_file, "file of results")
    if not isinstance(content, list):
        raise ValueError(f"{json_file} is not in COCO's results format: a list of predictions with an image_id each")
    results = Entries(content, "prediction", json_file)
    results.check_ids("image_id", "the id of an image")
    results.check_ids("category_id", "the id of a category")
    scores = results.check_types("score", (int, float), "it is a number")
    results.refuse_first("score", scores, lambda score: is_number(score) and math.isfinite(score), "it is finite")
    _check_numbers(results, "bbox", lambda n: n == 4, "a box is [x, y, width, height]")
    _check_numbers(
        results, "keypoints", lambda n: n > 0 and n % 3 == 0, "keypoints are [x, y, score, x, y, score, ...]"
    )
    # null stands for nothing.
    for result in results.all:
        for key in [key for key in ("bbox", "segmentation", "keypoints") if result.get(key, 0) is None]:
            del result[key]
    by_image = defaultdict(list)
    for place, result in enumerate(results.all):
        if "segmentation" in result:
            result["segmentation"] = _checked_mask(result["segmentation"], f"{results.name_of(place)} in {json_file}")
        by_image[result["image_id"]].append(result)
    return dict(by_image)


def _check_numbers(results: Entries, key: str, is_length: Callable[[int], bool], cure: str) -> None:
    values = results.check_types(key, (list,), cure, optional=True)
    results.refuse_first(
        key, values, lambda row: row is None or (is_length(len(row)) and are_within([row], MAX_COORDINATE)), cure
    )


def _checked_mask(mask: Any, where: str) -> Any:
    if isinstance(mask, list):
        checked_polygons(mask, where)
        return mask
    return checked_rle(mask, where=where)


def results_to_instances(
    results: Iterable[Mapping[str, Any]],
    image_size_hw: tuple[int, int],
    category_to_class: Mapping[int, int] | None = None,
    score_thresh: float = 0.0,
) -> Instances:
    """Detections from COCO results of one image: what ``instances_to_coco_json`` makes, turned back.

    Args:
        results: with ``score``, ``category_id``, and any of ``bbox``, ``segmentation``, ``keypoints``.
        image_size_hw: height, width.
        category_to_class: from category ids of the data set to class indices; None: they are the same.
        score_thresh: lower ones are left out.

    Raises:
        ValueError: a category id that is not among those of the data set.
    """
    kept = [result for result in results if result["score"] >= score_thresh]
    categories = [result["category_id"] for result in kept]
    if category_to_class is not None:
        if unknown := set(categories) - set(category_to_class):
            raise ValueError(f"category ids {sorted(unknown)} are not of this data set; was another one predicted on?")
        categories = [category_to_class[category] for category in categories]
    instances = Instances(image_size_hw)
    instances.scores = torch.tensor([result["score"] for result in kept])
    instances.pred_classes = torch.tensor(categories, dtype=torch.int64)
    masks = [GenericMask(result["segmentation"], *image_size_hw) for result in kept if "segmentation" in result]
    if kept and len(masks) == len(kept):
        instances.pred_masks = torch.from_numpy(np.stack([mask.mask for mask in masks])).bool()
    if all("bbox" in result for result in kept):
        boxes = np.array([result["bbox"] for result in kept], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    if kept and all("keypoints" in result for result in kept):
        keypoints = np.array([result["keypoints"] for result in kept], dtype=np.float32).reshape(len(kept), -1, 3)
        keypoints[:, :, :2] += 0.5
        instances.pred_keypoints = torch.from_numpy(keypoints)
    return instances


def draw_beside_truth(
    dataset_dict: Mapping[str, Any], predictions: Instances, metadata: Any, scale: float = 1.0
) -> np.ndarray:
    """One picture, the ground truth left, the predictions right: (H, W, 3) uint8 RGB.

    Args:
        dataset_dict: of the image, with ``file_name`` and ``annotations``.
        predictions: see ``Visualizer.draw_instance_predictions``.
        metadata: of the data set. Classes have its ``thing_colors``, or else a colour of their own.
        scale: size of the picture relative to the image.
    """
    image = read_image(dataset_dict["file_name"], "RGB")
    metadata = _with_class_colors(metadata)
    truth = Visualizer(image, metadata, scale, ColorMode.SEGMENTATION)
    predicted = Visualizer(image, metadata, scale, ColorMode.SEGMENTATION)
    left = truth.draw_dataset_dict({"annotations": dataset_dict.get("annotations", ())}).get_image()
    right = predicted.draw_instance_predictions(predictions, alpha=0.5).get_image()
    gap = np.full((left.shape[0], GAP, 3), BACKGROUND, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _with_class_colors(metadata: Any) -> Any:
    names = metadata.get("thing_classes")
    if metadata.get("thing_colors") is not None or names is None:
        return metadata
    palette = colormap(rgb=True)
    colors = [palette[index % len(palette)].tolist() for index in range(len(names))]
    shown = ("thing_classes", "keypoint_names", "keypoint_connection_rules")
    return {"thing_colors": colors, **{key: metadata.get(key) for key in shown}}


def pictures_of_results(
    dataset_name: str, results_file: str, *, num: int | None = None, score_thresh: float = 0.5, width: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures as of ``draw_beside_truth``, with the file name of each image.

    Args:
        dataset_name: a registered data set.
        results_file: predictions on it, ``coco_instances_results.json`` of ``COCOEvaluator``.
        num: how many, spread evenly over the data set; None for all.
        score_thresh: predictions scored lower are not drawn.
        width: of each half in pixels; None for that of the image.

    Raises:
        ValueError: the file predicts on images that the data set does not have.
    """
    results = read_results(results_file)
    images = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if unknown := set(results) - {image["image_id"] for image in images}:
        raise ValueError(
            f"{results_file} has predictions on {len(unknown)} images that {dataset_name!r} does not have, as image_id "
            f"{sorted(unknown, key=str)[:5]}; name the data set that was predicted on"
        )
    if num is not None and num < len(images):
        images = [images[index * len(images) // num] for index in range(num)]
    for image in images:
        height_width = _size_of(image)
        predictions = results_to_instances(
            results.get(image["image_id"], ()),
            height_width,
            metadata.get("thing_dataset_id_to_contiguous_id"),
            score_thresh,
        )
        scale = 1.0 if width is None else width / height_width[1]
        yield image["file_name"], draw_beside_truth(image, predictions, metadata, scale)


def _size_of(image: Mapping[str, Any]) -> tuple[int, int]:
    if "height" in image and "width" in image:
        return image["height"], image["width"]
    height, width = read_image(image["file_name"], "RGB").shape[:2]
    return height, width


def contact_sheet(pictures: Sequence[np.ndarray], num_columns: int, titles: Sequence[str] = ()) -> np.ndarray:
    """Many pictures in rows on one.

    Args:
        pictures: (H, W, 3) uint8 RGB, of any sizes.
        num_columns: in a row.
        titles: written in equal parts of the width of each column, above the first row.
    """
    if not pictures:
        raise ValueError("there are no pictures to put on a sheet; is the data set empty?")
    rows = [pictures[start : start + num_columns] for start in range(0, len(pictures), num_columns)]
    widths = [max(row[column].shape[1] for row in rows if column < len(row)) for column in range(len(rows[0]))]
    strips = [_title_strip(widths, titles)] if titles else []
    for row in rows:
        height = max(picture.shape[0] for picture in row)
        cells = [_padded(picture, height, width) for picture, width in zip(row, widths)]
        blanks = [_padded(np.zeros((0, 0, 3), np.uint8), height, width) for width in widths[len(row) :]]
        strips.append(_joined(cells + blanks, axis=1))
    return _joined(strips, axis=0)


def _title_strip(widths: Sequence[int], titles: Sequence[str]) -> np.ndarray:
    strips = []
    for width in widths:
        visualizer = Visualizer(np.full((24, width, 3), BACKGROUND, dtype=np.uint8))
        for index, title in enumerate(titles):
            visualizer.draw_text(title, ((index + 0.5) * width / len(titles), 3), font_size=14, color="w")
        strips.append(visualizer.get_output().get_image())
    return _joined(strips, axis=1)


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    cell = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    cell[: picture.shape[0], : picture.shape[1]] = picture
    return cell


def _joined(pictures: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Side by side (``axis`` 1) or below each other (0), with gaps two wide."""
    shape = list(pictures[0].shape)
    shape[axis] = 2 * GAP
    gap = np.full(shape, BACKGROUND, dtype=np.uint8)
    separated = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(separated, axis=axis)


def write_montage(
    dataset_name: str,
    results_file: str,
    output_file: str,
    *,
    num: int = 8,
    num_columns: int = 2,
    score_thresh: float = 0.5,
    width: int = 400,
) -> None:
    """One sheet of predictions beside their ground truth; see ``pictures_of_results``.

    Args:
        output_file: a .png or .jpg; its directory is made if need be.
        num_columns: pairs in a row.
        width: of one image in pixels.
    """
    pairs = pictures_of_results(dataset_name, results_file, num=num, score_thresh=score_thresh, width=width)
    titles = ("ground truth", f"predictions scored {score_thresh:.0%} or more")
    write_picture(contact_sheet([picture for _, picture in pairs], num_columns, titles), output_file)


def write_picture(picture: np.ndarray, path: str) -> None:
    """(H, W, 3) uint8 RGB as the format of the suffix; a missing directory is made."""
    from PIL import Image

    with write_atomically(path) as file:
        Image.fromarray(picture).save(file, format=Image.registered_extensions()[os.path.splitext(path)[1].lower()])
