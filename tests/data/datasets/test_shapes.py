import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets import shapes
from detlab.data.datasets.builtin_meta import SHAPES_KEYPOINT_NAMES
from detlab.data.datasets.shapes import ensure_shapes, generate_shapes
from detlab.data.datasets.shapes_catalog import register_all_shapes

# Of the annotations that generate_shapes(root, num_train=24, num_val=4, seed=5) writes: the same on every platform.
ANNOTATIONS_DIGEST = "e58f6c881a0076aaa71b58e5556c9848a75ed170a5e8a3cc1d785ceddd8622a5"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small data set; gives its folder."""
    root = tmp_path_factory.mktemp("datasets") / "shapes"
    generate_shapes(str(root), num_train=24, num_val=4, seed=5)
    return root


def read(root, kind, split="train"):
    return json.loads((root / "annotations" / f"{kind}_{split}.json").read_text())


def pixels(root, folder, name):
    return np.asarray(Image.open(root / folder / name)).astype(int)


def decoded(annotation, image):
    height, width = image["height"], image["width"]
    segmentation = annotation["segmentation"]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(_as_list(segmentation), height, width))) > 0


def _as_list(segmentation):
    return segmentation if isinstance(segmentation, list) else [segmentation]


def objects_of(content):
    images = {image["id"]: image for image in content["images"]}
    return [(annotation, images[annotation["image_id"]]) for annotation in content["annotations"]]


def test_annotations_have_the_same_bytes_everywhere(drawn):
    files = sorted((drawn / "annotations").iterdir())
    assert [file.name for file in files] == [
        f"{kind}_{split}.json" for kind in ("instances", "keypoints", "panoptic") for split in ("train", "val")
    ]
    assert hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() == ANNOTATIONS_DIGEST


def test_the_seed_decides_the_pictures(tmp_path, drawn):
    generate_shapes(str(tmp_path / "again"), num_train=2, num_val=1, seed=5)
    generate_shapes(str(tmp_path / "other"), num_train=2, num_val=1, seed=6)
    first = (drawn / "train/000001.jpg").read_bytes()
    assert (tmp_path / "again/train/000001.jpg").read_bytes() == first
    assert (tmp_path / "other/train/000001.jpg").read_bytes() != first


def test_polygons_describe_the_visible_pixels(drawn):
    panoptic = {entry["image_id"]: entry for entry in read(drawn, "panoptic")["annotations"]}
    content = read(drawn, "instances")
    assert len(content["images"]) == 24 and len(content["annotations"]) > 60
    for annotation, image in objects_of(content):
        entry = panoptic[image["id"]]
        colors = pixels(drawn, "panoptic_train", entry["file_name"])
        ids = colors @ [1, 256, 256**2]
        same = [
            s for s in entry["segments_info"] if s["bbox"] == annotation["bbox"] and s["area"] == annotation["area"]
        ]
        visible = ids == same[0]["id"]
        assert same[0]["category_id"] == annotation["category_id"] and visible.sum() == annotation["area"]
        described = decoded(annotation, image)
        overlap = (visible & described).sum() / (visible | described).sum()
        assert overlap == 1 if annotation["iscrowd"] else overlap > 0.9
        rows, columns = np.nonzero(visible)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_every_kind_of_annotation_occurs(drawn):
    counts = Counter(annotation["category_id"] for annotation in read(drawn, "instances")["annotations"])
    assert set(counts) == {1, 2, 3, 4, 5}
    crowds = [a for a in read(drawn, "instances")["annotations"] if a["iscrowd"]]
    assert crowds and all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    sizes = {(image["height"], image["width"]) for image in read(drawn, "instances")["images"]}
    assert sizes == {(160, 208), (208, 160)}


def test_keypoints_are_the_corners_of_triangles(drawn):
    content = read(drawn, "keypoints")
    (category,) = content["categories"]
    assert tuple(category["keypoints"]) == SHAPES_KEYPOINT_NAMES
    seen = Counter()
    for annotation, image in objects_of(content):
        top, left, right = np.reshape(annotation["keypoints"], (3, 3)).tolist()
        seen.update(point[2] for point in (top, left, right))
        if all(point[2] for point in (top, left, right)):
            assert left[0] < right[0] and top[1] < min(left[1], right[1])
        assert annotation["num_keypoints"] == sum(point[2] > 0 for point in (top, left, right))
        x, y, width, height = annotation["bbox"]
        for px, py, visibility in (top, left, right):
            assert visibility == 0 or (-0.5 <= px < image["width"] - 0.5 and -0.5 <= py < image["height"] - 0.5)
            assert visibility != 2 or (x - 2 <= px <= x + width + 1 and y - 2 <= py <= y + height + 1)
    assert seen[2] > 10


def test_maps_cover_every_pixel(drawn):
    for image in read(drawn, "instances")["images"]:
        stem = image["file_name"].removesuffix(".jpg")
        stuff = pixels(drawn, "stuff_train", f"{stem}.png")
        ids = pixels(drawn, "panoptic_train", f"{stem}.png") @ [1, 256, 256**2]
        assert stuff.shape == ids.shape == (image["height"], image["width"])
        entry = next(e for e in read(drawn, "panoptic")["annotations"] if e["image_id"] == image["id"])
        assert sum(segment["area"] for segment in entry["segments_info"]) == ids.size
        category = {segment["id"]: segment["category_id"] for segment in entry["segments_info"]}
        expected = np.vectorize(lambda number, category=category: max(category[number] - 5, 0))(ids)
        assert (stuff == expected).all()


def test_drawing_again_changes_nothing_and_other_arguments_are_refused(drawn):
    before = os.stat(drawn / "train/000001.jpg").st_mtime_ns
    generate_shapes(str(drawn), num_train=24, num_val=4, seed=5)
    ensure_shapes(str(drawn))
    assert os.stat(drawn / "train/000001.jpg").st_mtime_ns == before
    with pytest.raises(ValueError, match=r"was not drawn with .*'seed': 6"):
        generate_shapes(str(drawn), num_train=24, num_val=4, seed=6)
    with pytest.raises(ValueError, match="at least one picture"):
        generate_shapes(str(drawn), num_train=0)


def test_a_drawing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(str(tmp_path / "shapes"), num_train=1, num_val=1)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []


def test_processes_that_want_it_at_once_draw_it_once(tmp_path, caplog):
    root = str(tmp_path / "shapes")
    options = {"num_train": 2, "num_val": 1}
    with caplog.at_level(logging.INFO):
        threads = [threading.Thread(target=generate_shapes, args=(root,), kwargs=options) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caplog.text.count("Drawing the data set shapes") == 1 and os.path.isdir(root)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shapes.tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot be drawn into .*\$DETLAB_DATASETS"):
        generate_shapes(str(tmp_path / "shapes"))


def test_all_names_load(drawn, empty_catalogs):
    for _ in range(2):
        register_all_shapes(str(drawn.parent))
    for split, count in (("train", 24), ("val", 4)):
        for name in (f"shapes_{split}", f"shapes_keypoints_{split}", f"shapes_{split}_panoptic"):
            assert len(DatasetCatalog.get(name)) == count
        both = DatasetCatalog.get(f"shapes_{split}_panoptic_separated")
        assert all("annotations" in image and "sem_seg_file_name" in image for image in both)
        assert len(DatasetCatalog.get(f"shapes_{split}_panoptic_stuffonly")) == count
    keypoints = MetadataCatalog.get("shapes_keypoints_train")
    assert keypoints.keypoint_flip_map == (("left", "right"),)
    assert MetadataCatalog.get("shapes_train").thing_classes == ["circle", "rectangle", "triangle", "star", "cross"]


def test_loading_draws_what_is_missing(tmp_path, empty_catalogs, monkeypatch):
    drawn_into = []
    monkeypatch.setattr(shapes, "generate_shapes", drawn_into.append)
    register_all_shapes(str(tmp_path))
    assert not drawn_into
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get("shapes_train")
    assert drawn_into == [str(tmp_path / "shapes")]


def test_it_can_be_drawn_from_the_command_line(tmp_path, project_root):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "detlab.data.datasets.shapes"]
    arguments = [str(tmp_path / "shapes"), "--num-train", "2", "--num-val", "1"]
    run = subprocess.run([*command, *arguments], cwd=project_root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(os.listdir(tmp_path / "shapes" / "train")) == 2


# ------------------------------------------------------------------------------------------------------- geometry


def random_mask(seed):
    return np.random.default_rng(seed).random((9, 11)) < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_boundaries_enclose_exactly_the_mask(seed):
    mask = random_mask(seed)
    doubled = [loop.astype(float) for loop in shapes._boundaries(mask)]
    # The middles of pixel sides, joined, cut each corner of a pixel or add it; what they enclose has the right sign.
    x, y = np.meshgrid(np.arange(11) * 2 + 1, np.arange(9) * 2 + 1)
    winding = sum(_winding(loop, x, y) for loop in doubled)
    assert (winding == mask).all()


def _winding(loop, x, y):
    """How often a closed line goes around each of some points, clockwise in image coordinates."""
    total = np.zeros(x.shape)
    for (ax, ay), (bx, by) in zip(loop, np.roll(loop, -1, axis=0)):
        one, other = np.arctan2(ay - y, ax - x), np.arctan2(by - y, bx - x)
        total += (other - one + np.pi) % (2 * np.pi) - np.pi
    return np.round(total / (2 * np.pi)).astype(int)


def test_one_piece_without_holes_is_simple():
    ring = np.ones((3, 3), dtype=bool)
    assert shapes._is_simple(ring)
    ring[1, 1] = False
    assert not shapes._is_simple(ring)
    assert not shapes._is_simple(np.eye(2, dtype=bool))


def test_pixels_are_inside_if_their_centre_is():
    square = np.array([[100, 100], [350, 100], [350, 249], [100, 249]])
    mask = shapes._rasterized(square, 5, 6)
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:2, 1:3] = True
    assert (mask == expected).all()
    beyond = shapes._rasterized(np.array([[-500, -500], [2000, -500], [2000, 2000], [-500, 2000]]), 5, 6)
    assert beyond.all()


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_decode_to_the_mask(seed):
    mask = random_mask(seed)
    mask[0, 0] = seed % 2
    rle = shapes._run_lengths(mask)
    assert (coco_mask.decode(coco_mask.frPyObjects(rle, *mask.shape)) == mask).all()


def test_simplified_outlines_stay_close():
    rows, columns = np.mgrid[:60, :60]
    disc = (rows - 30) ** 2 + (columns - 30) ** 2 < 26**2
    outline = shapes._boundaries(disc)[0]
    simple = shapes._simplified(outline)
    assert len(simple) < len(outline) / 4
    area = abs(np.sum(simple[:, 0] * np.roll(simple[:, 1], -1) - np.roll(simple[:, 0], -1) * simple[:, 1])) / 8
    assert abs(area / disc.sum() - 1) < 0.02
