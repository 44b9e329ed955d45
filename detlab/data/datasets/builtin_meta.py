"""Facts of the public datasets: categories with their ids and colours, keypoints, and the metadata made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "ADE20K_SEM_SEG_CATEGORIES",
    "CITYSCAPES_CATEGORIES",
    "COCO_CATEGORIES",
    "COCO_PERSON_KEYPOINT_FLIP_MAP",
    "COCO_PERSON_KEYPOINT_NAMES",
    "KEYPOINT_CONNECTION_RULES",
    "SHAPES_CATEGORIES",
    "SHAPES_KEYPOINT_NAMES",
    "builtin_metadata",
]

# Each entry: the id in the dataset's files, the colour (red, green, blue as hexadecimal digits), the name.
_COCO_THINGS = """
1 dc143c person; 2 770b20 bicycle; 3 00008e car; 4 0000e6 motorcycle; 5 6a00e4 airplane; 6 003c64 bus;
7 005064 train; 8 000046 truck; 9 0000c0 boat; 10 faaa1e traffic light; 11 64aa1e fire hydrant;
13 dcdc00 stop sign; 14 af74af parking meter; 15 fa001e bench; 16 a52a2a bird; 17 ff4dff cat; 18 00e2fc dog;
19 b6b6ff horse; 20 005200 sheep; 21 78a69d cow; 22 6e4c00 elephant; 23 ae39ff bear; 24 c76400 zebra;
25 480076 giraffe; 27 ffb3f0 backpack; 28 007d5c umbrella; 31 d10097 handbag; 32 bcd0b6 tie; 33 00dcb0 suitcase;
34 ff63a4 frisbee; 35 5c0049 skis; 36 8581ff snowboard; 37 4eb4ff sports ball; 38 00e400 kite;
39 aefff3 baseball bat; 40 2d59ff baseball glove; 41 868667 skateboard; 42 9194ae surfboard;
43 ffd0ba tennis racket; 44 c5e2ff bottle; 46 ab8601 wine glass; 47 6d3f36 cup; 48 cf8aff fork; 49 97005f knife;
50 09503d spoon; 51 546933 bowl; 52 4a4169 banana; 53 a6c466 apple; 54 d0c3d2 sandwich; 55 ff6d41 orange;
56 008f95 broccoli; 57 b300c2 carrot; 58 d1636a hot dog; 59 057900 pizza; 60 e3ffcd donut; 61 93bad0 cake;
62 994501 chair; 63 035fa1 couch; 64 a3ff00 potted plant; 65 7700aa bed; 67 00b6c7 dining table;
70 00a578 toilet; 72 b78258 tv; 73 5f2000 laptop; 74 827287 mouse; 75 6e8185 remote; 76 a64a76 keyboard;
77 db8eb9 cell phone; 78 4fd272 microwave; 79 b25a3e oven; 80 41460f toaster; 81 7fa773 sink;
82 3b696a refrigerator; 84 8e6c2d book; 85 c4ac00 clock; 86 5f3650 vase; 87 804cff scissors;
88 c93901 teddy bear; 89 f6007a hair drier; 90 bfa2d0 toothbrush
"""

_COCO_STUFF = """
92 ffff80 banner; 93 93d3cb blanket; 95 966464 bridge; 100 a8abac cardboard; 107 9270c6 counter;
109 d2aa64 curtain; 112 5c8859 door-stuff; 118 da58b8 floor-wood; 119 f18100 flower; 122 d911ff fruit;
125 7c4ab5 gravel; 128 464646 house; 130 ffe4ff light; 133 9ad000 mirror-stuff; 138 c1005c net;
141 4c5b71 pillow; 144 ffb4c3 platform; 145 6a9ab0 playingfield; 147 e6968c railroad; 148 3c8fff river;
149 804080 road; 151 5c5237 roof; 154 fed47c sand; 155 494dae sea; 156 ffa062 shelf; 159 ffffff snow;
161 68546d stairs; 166 a9a483 tent; 168 e1c7ff towel; 171 89364a wall-brick; 175 879edf wall-stone;
176 07f6e7 wall-tile; 177 6bffc8 wall-wood; 178 3a2995 water-other; 180 b7798e window-blind;
181 ff4961 window-other; 184 6b8e23 tree-merged; 185 be9999 fence-merged; 186 928b8d ceiling-merged;
187 4682b4 sky-other-merged; 188 86c79c cabinet-merged; 189 d1e28c table-merged; 190 60246c floor-other-merged;
191 606060 pavement-merged; 192 40aa40 mountain-merged; 193 98fb98 grass-merged; 194 d0e5e4 dirt-merged;
195 cebaab paper-merged; 196 98a140 food-other-merged; 197 747000 building-other-merged; 198 00728f rock-merged;
199 66669c wall-other-merged; 200 fa8dff rug-merged
"""

# Cityscapes writes two more ids: the one of label files, then the "train id" of what is evaluated.
_CITYSCAPES_STUFF = """
7 0 804080 road; 8 1 f423e8 sidewalk; 11 2 464646 building; 12 3 66669c wall; 13 4 be9999 fence; 17 5 999999 pole;
19 6 faaa1e traffic light; 20 7 dcdc00 traffic sign; 21 8 6b8e23 vegetation; 22 9 98fb98 terrain; 23 10 4682b4 sky
"""

_CITYSCAPES_THINGS = """
24 11 dc143c person; 25 12 ff0000 rider; 26 13 00008e car; 27 14 000046 truck; 28 15 003c64 bus; 31 16 005064 train;
32 17 0000e6 motorcycle; 33 18 770b20 bicycle
"""

# The data set that this package draws itself.
_SHAPES_THINGS = "1 e6194b circle; 2 f0c808 rectangle; 3 3cb44b triangle; 4 4363d8 star; 5 c832e6 cross"
_SHAPES_STUFF = "6 96b4d2 sky; 7 5a8c96 water; 8 aa9678 sand"

_ADE20K_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track,
apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike,
cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen,
blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor,
bulletin board, shower, radiator, glass, clock, flag
"""

_KEYPOINTS_OF_A_SIDE = "eye ear shoulder elbow wrist hip knee ankle"

_CONNECTIONS = """
nose left_eye, nose right_eye, left_eye right_eye, left_eye left_ear, right_eye right_ear, left_ear left_shoulder,
right_ear right_shoulder, left_shoulder right_shoulder, left_shoulder left_elbow, right_shoulder right_elbow,
left_elbow left_wrist, right_elbow right_wrist, left_shoulder left_hip, right_shoulder right_hip, left_hip right_hip,
left_hip left_knee, right_hip right_knee, left_knee left_ankle, right_knee right_ankle
"""
_LEFT_COLOR, _RIGHT_COLOR, _MIDDLE_COLOR = (255, 128, 0), (51, 153, 255), (102, 204, 102)


def _entries(table: str, separator: str = ";") -> list[str]:
    return [entry.strip() for entry in table.split(separator)]


def _rgb(digits: str) -> list[int]:
    return list(bytes.fromhex(digits))


def _coco_category(entry: str, isthing: int) -> dict[str, Any]:
    number, color, name = entry.split(maxsplit=2)
    return {"id": int(number), "name": name, "color": _rgb(color), "isthing": isthing}


def _cityscapes_category(entry: str, isthing: int) -> dict[str, Any]:
    number, train_id, color, name = entry.split(maxsplit=3)
    numbers = {"id": int(number), "trainId": int(train_id)}
    return {**numbers, "name": name, "color": _rgb(color), "isthing": isthing}


def _connection(entry: str) -> tuple[str, str, tuple[int, int, int]]:
    start, end = entry.split()
    sides = {name.partition("_")[0] for name in (start, end)} & {"left", "right"}
    if len(sides) == 2:
        return start, end, _MIDDLE_COLOR
    return start, end, _LEFT_COLOR if "left" in sides else _RIGHT_COLOR


COCO_CATEGORIES: list[dict[str, Any]] = [
    *(_coco_category(entry, 1) for entry in _entries(_COCO_THINGS)),
    *(_coco_category(entry, 0) for entry in _entries(_COCO_STUFF)),
]
"""80 things, then 53 stuff classes of COCO panoptic, each in the order of ids: id, name, color (RGB), isthing."""

CITYSCAPES_CATEGORIES: list[dict[str, Any]] = [
    *(_cityscapes_category(entry, 0) for entry in _entries(_CITYSCAPES_STUFF)),
    *(_cityscapes_category(entry, 1) for entry in _entries(_CITYSCAPES_THINGS)),
]
"""The 19 evaluated classes of Cityscapes in the order of their train ids: id, trainId, name, color (RGB), isthing."""

SHAPES_CATEGORIES: list[dict[str, Any]] = [
    *(_coco_category(entry, 1) for entry in _entries(_SHAPES_THINGS)),
    *(_coco_category(entry, 0) for entry in _entries(_SHAPES_STUFF)),
]
"""5 things, then 3 stuff classes of the generated ``shapes``: id, name, color (RGB), isthing."""

SHAPES_KEYPOINT_NAMES: tuple[str, ...] = ("top", "left", "right")
"""The corners of a triangle, as seen in the image."""

ADE20K_SEM_SEG_CATEGORIES: list[str] = _entries(_ADE20K_NAMES, ",")
"""The 150 classes of the ADE20K scene parsing challenge, by the first of each one's names."""

COCO_PERSON_KEYPOINT_NAMES: tuple[str, ...] = (
    "nose",
    *(f"{side}_{part}" for part in _KEYPOINTS_OF_A_SIDE.split() for side in ("left", "right")),
)
COCO_PERSON_KEYPOINT_FLIP_MAP: tuple[tuple[str, str], ...] = tuple(
    (f"left_{part}", f"right_{part}") for part in _KEYPOINTS_OF_A_SIDE.split()
)
KEYPOINT_CONNECTION_RULES: list[tuple[str, str, tuple[int, int, int]]] = [
    _connection(entry) for entry in _entries(_CONNECTIONS, ",")
]
"""What to draw between two visible keypoints: (name, name, RGB); the person's left, right and middle differ."""


def _numbered(categories: list[dict[str, Any]], first: int = 0) -> dict[int, int]:
    """Id in the dataset's files -> class index, counted from ``first``."""
    return {category["id"]: index for index, category in enumerate(categories, first)}


def _column(categories: list[dict[str, Any]], key: str) -> list[Any]:
    return [category[key] for category in categories]


def _split(categories: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(things, stuff)."""
    return [c for c in categories if c["isthing"]], [c for c in categories if not c["isthing"]]


def _instances(categories: list[dict[str, Any]]) -> dict[str, Any]:
    things, _ = _split(categories)
    return {
        "thing_classes": _column(things, "name"),
        "thing_colors": _column(things, "color"),
        "thing_dataset_id_to_contiguous_id": _numbered(things),
    }


def _panoptic_standard(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """One numbering for all classes, things first."""
    names, colors = _column(categories, "name"), _column(categories, "color")
    things, stuff = _split(categories)
    return {
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_classes": names,
        "stuff_colors": colors,
        "thing_dataset_id_to_contiguous_id": _numbered(things),
        "stuff_dataset_id_to_contiguous_id": _numbered(stuff, first=len(things)),
    }


def _panoptic_separated(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Semantic maps of this form label every thing 0 and stuff from 1 on."""
    _, stuff = _split(categories)
    return {
        **_instances(categories),
        "stuff_classes": ["things", *_column(stuff, "name")],
        "stuff_colors": [[82, 18, 128], *_column(stuff, "color")],
        "stuff_dataset_id_to_contiguous_id": {0: 0, **_numbered(stuff, first=1)},
    }


def _coco_person() -> dict[str, Any]:
    return {
        "thing_classes": ["person"],
        "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
        "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
        "keypoint_connection_rules": KEYPOINT_CONNECTION_RULES,
    }


def _shapes_keypoints() -> dict[str, Any]:
    top, left, right = SHAPES_KEYPOINT_NAMES
    return {
        "thing_classes": ["triangle"],
        "keypoint_names": SHAPES_KEYPOINT_NAMES,
        "keypoint_flip_map": ((left, right),),
        "keypoint_connection_rules": [
            (top, left, _LEFT_COLOR),
            (top, right, _RIGHT_COLOR),
            (left, right, _MIDDLE_COLOR),
        ],
    }


def _cityscapes() -> dict[str, Any]:
    return {
        "thing_classes": _column(_split(CITYSCAPES_CATEGORIES)[0], "name"),
        "stuff_classes": _column(CITYSCAPES_CATEGORIES, "name"),
    }


def _cityscapes_panoptic() -> dict[str, Any]:
    names, colors = _column(CITYSCAPES_CATEGORIES, "name"), _column(CITYSCAPES_CATEGORIES, "color")
    by_id = {category["id"]: category["trainId"] for category in CITYSCAPES_CATEGORIES}
    things = {category["id"] for category in _split(CITYSCAPES_CATEGORIES)[0]}
    return {
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_classes": names,
        "stuff_colors": colors,
        "thing_dataset_id_to_contiguous_id": {k: v for k, v in by_id.items() if k in things},
        "stuff_dataset_id_to_contiguous_id": {k: v for k, v in by_id.items() if k not in things},
    }


_METADATA_OF: dict[str, Callable[[], dict[str, Any]]] = {
    "coco": lambda: _instances(COCO_CATEGORIES),
    "coco_person": _coco_person,
    "coco_panoptic_standard": lambda: _panoptic_standard(COCO_CATEGORIES),
    "coco_panoptic_separated": lambda: _panoptic_separated(COCO_CATEGORIES),
    "cityscapes": _cityscapes,
    "cityscapes_panoptic": _cityscapes_panoptic,
    "ade20k_sem_seg": lambda: {"stuff_classes": list(ADE20K_SEM_SEG_CATEGORIES)},
    "shapes": lambda: _instances(SHAPES_CATEGORIES),
    "shapes_keypoints": _shapes_keypoints,
    "shapes_panoptic_standard": lambda: _panoptic_standard(SHAPES_CATEGORIES),
    "shapes_panoptic_separated": lambda: _panoptic_separated(SHAPES_CATEGORIES),
}


def builtin_metadata(kind: str) -> dict[str, Any]:
    """Metadata of one family of built-in datasets, as a new dictionary.

    Args:
        kind: ``coco``, ``coco_person``, ``coco_panoptic_standard``, ``coco_panoptic_separated``, ``cityscapes``,
            ``cityscapes_panoptic``, ``ade20k_sem_seg``, or one of ``shapes`` (as for COCO, with ``shapes_keypoints``).

    Raises:
        KeyError: another kind.
    """
    if kind not in _METADATA_OF:
        raise KeyError(f"no built-in metadata {kind!r}; there are {', '.join(_METADATA_OF)}")
    return _METADATA_OF[kind]()
