"""A data set that is drawn, not downloaded: coloured shapes in front of sky, water and sand.

Boxes, polygons, crowds, keypoints (the corners of triangles), semantic and panoptic maps, as files in COCO's format.
The same arguments give the same annotations on every platform: geometry is computed in integers, randomness comes from
numpy's frozen legacy generator. ``python -m detlab.data.datasets.shapes [ROOT]`` draws it ahead of its first use.

Shapes of arrays: H x W pixels, P points. Points are (x, y); outlines are in hundredths of a pixel, traced boundaries in
halves.
"""

from __future__ import annotations

import argparse
import colorsys
import contextlib
import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detlab.data.datasets.builtin_meta import SHAPES_CATEGORIES, SHAPES_KEYPOINT_NAMES
from detlab.data.datasets.root_folder import datasets_root
from detlab.utils.file_io import locked, read_json, write_json

__all__ = ["ensure_shapes", "generate_shapes"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
PARAMETERS_FILE = "parameters.json"
SPLITS = ("train", "val")

THINGS = [category for category in SHAPES_CATEGORIES if category["isthing"]]
STUFF = [category for category in SHAPES_CATEGORIES if not category["isthing"]]

SUBPIXELS = 100  # per pixel, in outlines
OBJECTS_PER_IMAGE = (2, 6)
DIAMETERS = (22.0, 90.0)  # pixels
LEAST_VISIBLE_SHARE = 0.6
PLACEMENTS_TRIED = 12
LARGEST_TILT = math.radians(25)
PORTRAIT_SHARE = 0.2
CROWD_SHARE = 0.06
OUTLINE_TOLERANCE = 1  # half pixels between a simplified boundary and the traced one
JPEG_QUALITY = 92


class Random:
    """Numbers that never change with numpy's version or the platform."""

    def __init__(self, *seeds: int):
        self._state = np.random.RandomState(seeds)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._state.random_sample())

    def integer(self, low: int, high: int) -> int:
        """In [low, high]."""
        return low + int(self._state.random_sample() * (high - low + 1))

    def noise(self, *shape: int) -> np.ndarray:
        """Uniform in [-1, 1)."""
        return self._state.random_sample(shape) * 2 - 1


class Canvas(NamedTuple):
    """One picture in the making."""

    pixels: np.ndarray  # (H, W, 3) float, RGB in [0, 1]
    stuff: np.ndarray  # (H, W) index into STUFF


class Object(NamedTuple):
    """A shape in a picture."""

    category: dict[str, Any]
    mask: np.ndarray  # (H, W) bool: what is visible of it
    area_alone: int  # pixels it would cover if nothing hid it
    corners: np.ndarray  # (P, 2) its outline
    iscrowd: bool


# ------------------------------------------------------------------------------------------------------- geometry


def _regular(count: int, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    """Points around a circle, the first at the top; their distances from the centre cycle through ``radii``."""
    turns = [2 * math.pi * k / count - math.pi / 2 for k in range(count)]
    return [(radii[k % len(radii)] * math.cos(t), radii[k % len(radii)] * math.sin(t)) for k, t in enumerate(turns)]


def _rectangle(half_height: float) -> list[tuple[float, float]]:
    return [(-0.9, -half_height), (0.9, -half_height), (0.9, half_height), (-0.9, half_height)]


def _cross(arm: float = 0.32) -> list[tuple[float, float]]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _outline(kind: str, random: Random) -> list[tuple[float, float]]:
    """Points of a shape of radius 1 around the origin."""
    if kind == "rectangle":
        return _rectangle(random.uniform(0.5, 0.9))
    fixed = {"circle": _regular(32), "triangle": _regular(3), "star": _regular(10, (1.0, 0.45)), "cross": _cross()}
    return fixed[kind]


def _placed(points: list[tuple[float, float]], center: tuple[float, float], radius: float, tilt: float) -> np.ndarray:
    """(P, 2) int: the outline turned by ``tilt`` radians, scaled and moved."""
    cos, sin = radius * math.cos(tilt), radius * math.sin(tilt)
    placed = [(center[0] + cos * x - sin * y, center[1] + sin * x + cos * y) for x, y in points]
    return np.array([[round(SUBPIXELS * x), round(SUBPIXELS * y)] for x, y in placed], dtype=np.int64)


def _rasterized(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) bool: pixels whose centre is inside, by the even-odd rule, in integers and therefore exact."""
    mask = np.zeros((height, width), dtype=bool)
    x1, y1 = np.clip(corners.min(axis=0) // SUBPIXELS, 0, (width, height))
    x2, y2 = np.clip(corners.max(axis=0) // SUBPIXELS + 1, 0, (width, height))
    center = SUBPIXELS // 2
    px = np.arange(x1, x2)[None, :] * SUBPIXELS + center
    py = np.arange(y1, y2)[:, None] * SUBPIXELS + center
    window = np.zeros((y2 - y1, x2 - x1), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
        crosses = (ay > py) != (by > py)
        side = (px - ax) * (by - ay) - (bx - ax) * (py - ay)
        window ^= crosses & ((side < 0) == (by > ay))
    mask[y1:y2, x1:x2] = window
    return mask


def _boundaries(mask: np.ndarray) -> list[np.ndarray]:
    """Every closed boundary of a mask as (P, 2) int points in half pixels: the middles of the pixel sides it follows.

    Outer boundaries run clockwise, those of holes the other way. Pixels that touch at a corner only are apart.
    """
    padded = np.pad(mask, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Sides of pixels, walked so that the mask is on the right-hand side.
    for (dy, dx), (start, end) in {
        (-1, 0): ((0, 0), (1, 0)),
        (0, 1): ((1, 0), (1, 1)),
        (1, 0): ((1, 1), (0, 1)),
        (0, -1): ((0, 1), (0, 0)),
    }.items():
        outside = ~np.roll(padded, (-dy, -dx), axis=(0, 1))
        ys, xs = np.nonzero(padded & outside)
        for x, y in zip((xs - 1).tolist(), (ys - 1).tolist()):
            steps.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    return [_walk(steps) for _ in iter(lambda: bool(steps), False)]


def _walk(steps: dict[tuple[int, int], list[tuple[int, int]]]) -> np.ndarray:
    """Takes one closed walk out of ``steps``."""
    start = min(steps)
    here, heading = start, (0, 0)
    middles = []
    while True:
        following = steps[here]
        # Where two pixels touch at a corner, turning right stays with the pixel that the walk is at.
        right = (here[0] - heading[1], here[1] + heading[0])
        there = right if right in following else following[0]
        following.remove(there)
        if not following:
            del steps[here]
        middles.append((here[0] + there[0], here[1] + there[1]))
        here, heading = there, (there[0] - here[0], there[1] - here[1])
        if here == start:
            return np.array(middles, dtype=np.int64)


def _is_simple(mask: np.ndarray) -> bool:
    """Whether a mask is one piece without holes, so that a single polygon can describe it."""
    return len(_boundaries(mask)) == 1


def _simplified(points: np.ndarray) -> np.ndarray:
    """Leaves out points of a closed boundary that lie within ``OUTLINE_TOLERANCE`` of the line between their kept
    neighbours (Douglas and Peucker); in integers and therefore exact."""
    ring = np.concatenate([points, points[:1]])
    farthest = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    kept = {0, farthest}
    spans = [(0, farthest), (farthest, len(points))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        along = ring[last] - ring[first]
        away = ring[first + 1 : last] - ring[first]
        distance = np.abs(along[0] * away[:, 1] - along[1] * away[:, 0])  # times the length of the line
        worst = int(distance.argmax())
        if distance[worst] ** 2 > OUTLINE_TOLERANCE**2 * int((along**2).sum()):
            middle = first + 1 + worst
            kept.add(middle)
            spans += [(first, middle), (middle, last)]
    return points[sorted(kept)]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding: columns one after the other, the first run being of zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, mask.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


# -------------------------------------------------------------------------------------------------------- drawing


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _background(height: int, width: int, random: Random) -> Canvas:
    """Sky above sand, in half of the pictures with water between them."""
    rows, columns = np.mgrid[0:height, 0:width]
    slope = random.integer(-20, 20)
    horizon = rows * 100 - columns * slope
    shore = random.integer(30, 75) * height
    surface = shore - random.integer(15, 30) * height * random.integer(0, 1)
    stuff = np.where(horizon < surface, 0, np.where(horizon < shore, 1, 2))
    ramp = (rows / height)[..., None]
    sky = _rgb(random.uniform(0.55, 0.62), 0.25, random.uniform(0.7, 0.9)) * (1 - 0.25 * ramp)
    waves = np.where((rows + columns // 6) % 10 < 4, 0.9, 1.0)[..., None]
    water = _rgb(random.uniform(0.48, 0.56), 0.35, random.uniform(0.45, 0.6)) * waves
    grains = 1 + 0.18 * random.noise(height, width)[..., None]
    sand = _rgb(random.uniform(0.08, 0.13), 0.25, random.uniform(0.55, 0.75)) * grains
    return Canvas(np.choose(stuff[..., None], (sky, water, sand)), stuff)


def _fill_color(category: dict[str, Any], random: Random) -> np.ndarray:
    """A class has a hue that it strays from: colour is a hint, the outline decides."""
    red, green, blue = (channel / 255 for channel in category["color"])
    hue = colorsys.rgb_to_hsv(red, green, blue)[0]
    return _rgb(hue + random.uniform(-0.07, 0.07), random.uniform(0.65, 1.0), random.uniform(0.6, 1.0))


def _paint(canvas: Canvas, mask: np.ndarray, color: np.ndarray, random: Random) -> None:
    """Fills a shape with one of three textures and gives it a dark rim."""
    height, width = mask.shape
    rows, columns = np.mgrid[0:height, 0:width]
    textures = (
        np.ones(mask.shape),
        np.where((rows + columns) % 12 < 6, 1.0, 0.8),
        1 + 0.12 * random.noise(height, width),
    )
    texture = textures[random.integer(0, len(textures) - 1)]
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    shade = np.where(inner, texture, 0.45)[..., None]
    canvas.pixels[mask] = (color * shade)[mask]


def _propose(height: int, width: int, random: Random) -> Object:
    """A whole shape at a random place, its centre inside the picture."""
    category = THINGS[random.integer(0, len(THINGS) - 1)]
    low, high = (math.log(diameter / 2) for diameter in DIAMETERS)
    radius = math.exp(random.uniform(low, high))
    margin = 0.6 * radius
    center = random.uniform(margin, width - margin), random.uniform(margin, height - margin)
    tilt = random.uniform(-LARGEST_TILT, LARGEST_TILT)
    corners = _placed(_outline(category["name"], random), center, radius, tilt)
    mask = _rasterized(corners, height, width)
    return Object(category, mask, int(mask.sum()), corners, iscrowd=False)


def _hide_behind(objects: list[Object], front: np.ndarray) -> list[Object] | None:
    """The objects less what ``front`` covers; None if one of them would be hidden too much or torn apart."""
    behind = []
    for obj in objects:
        if not (obj.mask & front).any():
            behind.append(obj)
            continue
        visible = obj.mask & ~front
        if obj.iscrowd or visible.sum() < LEAST_VISIBLE_SHARE * obj.area_alone or not _is_simple(visible):
            return None
        behind.append(obj._replace(mask=visible))
    return behind


def _draw_crowd(canvas: Canvas, random: Random) -> Object:
    """Many circles too small to be told apart, in one corner of the picture."""
    height, width = canvas.stuff.shape
    left, top = random.integer(0, width - 50), random.integer(0, height - 40)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(25):
        center = random.uniform(left + 5, left + 45), random.uniform(top + 5, top + 35)
        circle = _rasterized(_placed(_regular(12), center, random.uniform(2.5, 4.5), 0.0), height, width)
        _paint(canvas, circle, _fill_color(THINGS[0], random), random)
        mask |= circle
    return Object(THINGS[0], mask, int(mask.sum()), np.zeros((0, 2), dtype=np.int64), iscrowd=True)


def _draw_scene(height: int, width: int, random: Random) -> tuple[Canvas, list[Object]]:
    """A picture and what is in it, from the back to the front."""
    canvas = _background(height, width, random)
    objects = [_draw_crowd(canvas, random)] if random.uniform(0, 1) < CROWD_SHARE else []
    wanted = random.integer(*OBJECTS_PER_IMAGE)
    for _ in range(wanted):
        for _ in range(PLACEMENTS_TRIED):
            proposed = _propose(height, width, random)
            behind = _hide_behind(objects, proposed.mask) if _is_simple(proposed.mask) else None
            if behind is not None:
                _paint(canvas, proposed.mask, _fill_color(proposed.category, random), random)
                objects = [*behind, proposed]
                break
    canvas.pixels[:] += 0.03 * random.noise(height, width, 3)
    return canvas, objects


# ---------------------------------------------------------------------------------------------------- annotations


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width and height of the pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def _instance(obj: Object) -> dict[str, Any]:
    if obj.iscrowd:
        segmentation: Any = _run_lengths(obj.mask)
    else:
        segmentation = [(_simplified(_boundaries(obj.mask)[0]) / 2).ravel().tolist()]
    return {
        "category_id": obj.category["id"],
        "bbox": _box(obj.mask),
        "area": int(obj.mask.sum()),
        "iscrowd": int(obj.iscrowd),
        "segmentation": segmentation,
    }


def _keypoints(obj: Object) -> dict[str, Any]:
    """COCO's triples x, y, visibility (2 seen, 1 hidden, 0 outside) of a triangle's corners: top, left, right."""
    height, width = obj.mask.shape
    top = int(obj.corners[:, 1].argmin())
    left, right = sorted({0, 1, 2} - {top}, key=lambda corner: int(obj.corners[corner, 0]))
    middle = obj.corners.sum(axis=0)  # of three corners
    triples: list[float] = []
    for corner in (top, left, right):
        x, y = (int(v) for v in obj.corners[corner])
        # A corner is seen if the pixel a little inside of it is.
        column, row = (int((9 * 3 * v + m) // (30 * SUBPIXELS)) for v, m in zip((x, y), middle))
        if not (0 <= x < width * SUBPIXELS and 0 <= y < height * SUBPIXELS):
            triples += [0, 0, 0]
        else:
            # Files name the pixel, whose centre lies half a pixel further.
            triples += [round(x / SUBPIXELS - 0.5, 2), round(y / SUBPIXELS - 0.5, 2), 2 if obj.mask[row, column] else 1]
    return {"keypoints": triples, "num_keypoints": sum(v > 0 for v in triples[2::3])}


def _panoptic_map(canvas: Canvas, objects: list[Object]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(H, W) segment ids and what each stands for: stuff first, then objects."""
    ids = canvas.stuff + 1
    categories = [(category, 0) for category in STUFF]
    for obj in objects:
        categories.append((obj.category, int(obj.iscrowd)))
        ids = np.where(obj.mask, len(categories), ids)
    segments = []
    for number, (category, iscrowd) in enumerate(categories, 1):
        mask = ids == number
        if mask.any():
            numbers = {"id": number, "category_id": category["id"], "iscrowd": iscrowd}
            segments.append({**numbers, "bbox": _box(mask), "area": int(mask.sum())})
    return ids, segments


def _stuff_map(canvas: Canvas, objects: list[Object]) -> np.ndarray:
    """(H, W) uint8: 0 for things, stuff from 1 on."""
    things = np.logical_or.reduce([obj.mask for obj in objects]) if objects else np.zeros(canvas.stuff.shape, bool)
    return np.where(things, 0, canvas.stuff + 1).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------- files


class _SplitWriter:
    """Writes the pictures of one split as they come and its annotations in the end."""

    def __init__(self, root: str, split: str):
        self.root, self.split = root, split
        self.images: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] = []
        self.keypoints: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        for folder in (split, f"panoptic_{split}", f"stuff_{split}", "annotations"):
            os.makedirs(os.path.join(root, folder), exist_ok=True)

    def add(self, image_id: int, canvas: Canvas, objects: list[Object]) -> None:
        stem = f"{image_id:06d}"
        pixels = (canvas.pixels.clip(0, 1) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(self._path(self.split, f"{stem}.jpg"), quality=JPEG_QUALITY)
        ids, segments = _panoptic_map(canvas, objects)
        colors = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
        Image.fromarray(colors).save(self._path(f"panoptic_{self.split}", f"{stem}.png"))
        Image.fromarray(_stuff_map(canvas, objects)).save(self._path(f"stuff_{self.split}", f"{stem}.png"))
        height, width = ids.shape
        self.images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        self.panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
        for obj in objects:
            self._add_object(image_id, obj)

    def _add_object(self, image_id: int, obj: Object) -> None:
        annotation = {"id": len(self.instances) + 1, "image_id": image_id, **_instance(obj)}
        self.instances.append(annotation)
        if obj.category["name"] == "triangle":
            self.keypoints.append({**annotation, "category_id": 1, **_keypoints(obj)})

    def _path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def write_annotations(self) -> None:
        things = [{"id": c["id"], "name": c["name"], "supercategory": "shape"} for c in THINGS]
        triangle = next(category for category in things if category["name"] == "triangle")
        skeleton = {"keypoints": list(SHAPES_KEYPOINT_NAMES), "skeleton": [[1, 2], [1, 3], [2, 3]]}
        everything = [{k: c[k] for k in ("id", "name", "isthing", "color")} for c in SHAPES_CATEGORIES]
        self._write("instances", self.instances, things)
        self._write("keypoints", self.keypoints, [{**triangle, "id": 1, **skeleton}])
        self._write("panoptic", self.panoptic, everything)

    def _write(self, kind: str, annotations: list[dict[str, Any]], categories: list[dict[str, Any]]) -> None:
        content = {
            "info": {"description": f"shapes: drawn by detlab, format {FORMAT_VERSION}"},
            "images": self.images,
            "annotations": annotations,
            "categories": categories,
        }
        write_json(self._path("annotations", f"{kind}_{self.split}.json"), content)


def generate_shapes(
    root: str,
    num_train: int = 400,
    num_val: int = 80,
    image_size: tuple[int, int] = (160, 208),
    seed: int = 0,
) -> None:
    """Draws the data set into a new folder, which appears whole or not at all.

    It holds ``<split>/*.jpg``, ``annotations/{instances,keypoints,panoptic}_<split>.json``, ``panoptic_<split>/*.png``
    and ``stuff_<split>/*.png``, where a split is ``train`` or ``val``. If the folder holds what these arguments draw,
    nothing is done. Concurrent processes on one machine draw it once.

    Args:
        root: the folder; its parent is made if needed.
        num_train: pictures in ``train``.
        num_val: pictures in ``val``.
        image_size: (height, width) in pixels; one in five pictures has them swapped.
        seed: the same seed draws the same pictures, and the first ones of a split do not depend on its length.

    Raises:
        ValueError: the arguments make no sense, or ``root`` holds something else.
        PermissionError: the folder cannot be written.
    """
    parameters = {
        "format": FORMAT_VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "seed": seed,
    }
    if num_train < 1 or num_val < 1 or min(image_size) < 64:
        raise ValueError(f"at least one picture in each split, of 64 x 64 pixels or more, not {parameters}")
    root = os.path.abspath(root)
    with _writing_explained(root), locked(root):
        if not os.path.exists(root):
            _draw_into_place(root, parameters)
            return
    if _parameters_of(root) != parameters:
        raise ValueError(
            f"{root} exists, but was not drawn with {parameters} (it says {_parameters_of(root)}); "
            "delete it or choose another folder"
        )


def ensure_shapes(root: str) -> None:
    """Draws the data set with the usual arguments if ``root`` does not exist; what is there is taken as it is."""
    if not os.path.exists(root):
        generate_shapes(root)


@contextlib.contextmanager
def _writing_explained(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(
            f"the data set shapes cannot be drawn into {root} ({error.strerror}); let $DETLAB_DATASETS name a folder "
            "that can be written"
        ) from None


def _parameters_of(root: str) -> dict[str, Any] | None:
    path = os.path.join(root, PARAMETERS_FILE)
    return read_json(path) if os.path.isfile(path) else None


def _draw_into_place(root: str, parameters: dict[str, Any]) -> None:
    count = parameters["num_train"] + parameters["num_val"]
    logger.info(f"Drawing the data set shapes, {count} pictures, into {root}")
    unfinished = tempfile.mkdtemp(dir=os.path.dirname(root), prefix=f".{os.path.basename(root)}.")
    try:
        first_id = 1
        for number, split in enumerate(SPLITS):
            writer = _SplitWriter(unfinished, split)
            _draw_split(writer, number, first_id, parameters[f"num_{split}"], parameters)
            first_id += parameters[f"num_{split}"]
        write_json(os.path.join(unfinished, PARAMETERS_FILE), parameters)
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, root)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _draw_split(writer: _SplitWriter, split_number: int, first_id: int, count: int, parameters: dict[str, Any]) -> None:
    for place in range(count):
        random = Random(parameters["seed"], split_number, place)
        height, width = parameters["image_size"]
        if random.uniform(0, 1) < PORTRAIT_SHARE:
            height, width = width, height
        writer.add(first_id + place, *_draw_scene(height, width, random))
    writer.write_annotations()


def main() -> None:
    """Draws the data set where the built-in names look for it, or into the folder given."""
    default = os.path.join(datasets_root(), "shapes")
    parser = argparse.ArgumentParser(description="Draw the data set that shapes_train and shapes_val name.")
    parser.add_argument("root", nargs="?", default=default, help="folder to make (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=400, help="pictures to train on")
    parser.add_argument("--num-val", type=int, default=80, help="pictures to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    generate_shapes(args.root, num_train=args.num_train, num_val=args.num_val, seed=args.seed)
    logger.info(f"{args.root} holds the data set shapes")


if __name__ == "__main__":
    main()
