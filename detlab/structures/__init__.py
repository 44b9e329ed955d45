"""Containers for what is known or predicted about images and the objects in them."""

from detlab.structures.boxes import (
    Boxes,
    BoxMode,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances
from detlab.structures.keypoints import Keypoints, heatmaps_to_keypoints
from detlab.structures.masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask
from detlab.structures.packed_polygons import PackedPolygons
from detlab.structures.rotated_boxes import RotatedBoxes
from detlab.structures.rotated_boxes import pairwise_iou as pairwise_iou_rotated

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "Keypoints",
    "PackedPolygons",
    "PolygonMasks",
    "ROIMasks",
    "RotatedBoxes",
    "heatmaps_to_keypoints",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_iou_rotated",
    "pairwise_point_box_distance",
    "polygons_to_bitmask",
]
