"""VOC's protocol on annotations small enough to count by hand, and on the real ones."""

import math

import numpy as np
import pytest
import torch

from detlab.data.catalog import MetadataCatalog
from detlab.evaluation import pascal_voc_evaluation
from detlab.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator, parse_rec, voc_ap, voc_eval
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances

OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("000001\n000002\n")
    objects = {
        "000001": [("cat", 0, 11, 11, 30, 30), ("cat", 1, 51, 51, 70, 70), ("dog", 0, 1, 1, 10, 10)],
        "000002": [("cat", 0, 5, 5, 24, 24)],
    }
    for image_id, entries in objects.items():
        text = "".join(OBJECT.format(*entry) for entry in entries)
        (tmp_path / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{text}</annotation>")
    return tmp_path


@pytest.fixture
def voc(folder):
    MetadataCatalog.get("voc_test").set(
        dirname=str(folder), split="val", year=2012, thing_classes=["cat", "dog", "bird"]
    )
    yield "voc_test"
    MetadataCatalog.remove("voc_test")


def feed(evaluator, by_image):
    evaluator.reset()
    for image_id, rows in by_image.items():
        instances = Instances(
            (100, 100), pred_boxes=Boxes(torch.tensor([row[1] for row in rows]).reshape(-1, 4).float())
        )
        instances.scores = torch.tensor([row[2] for row in rows])
        instances.pred_classes = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


PERFECT = {
    # Boxes of the model are half-open and counted from 0.
    "000001": [(0, [10, 10, 30, 30], 0.9), (1, [0, 0, 10, 10], 0.8)],
    "000002": [(0, [4, 4, 24, 24], 0.7)],
}


def test_perfect_detections_reach_a_hundred_and_absent_classes_do_not_count(voc):
    metrics = feed(PascalVOCDetectionEvaluator(voc), PERFECT)
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "AP-cat", "AP-dog")] == pytest.approx([100] * 5)
    assert math.isnan(metrics["AP-bird"])


def test_difficult_objects_count_neither_way_and_repeats_are_wrong(voc):
    difficult = {**PERFECT, "000001": [*PERFECT["000001"], (0, [50, 50, 70, 70], 0.95)]}
    assert feed(PascalVOCDetectionEvaluator(voc), difficult)["AP50"] == pytest.approx(100)
    repeated = {**PERFECT, "000001": [*PERFECT["000001"], (0, [10, 10, 30, 31], 0.8)]}
    # Right, wrong, right: precision 1 up to half of the recall, then 2/3.
    assert feed(PascalVOCDetectionEvaluator(voc), repeated)["AP-cat"] < 100
    assert feed(PascalVOCDetectionEvaluator(voc), repeated)["AP50"] == pytest.approx((100 * (1 + 2 / 3) / 2 + 100) / 2)


def test_no_detections_give_zero(voc):
    assert feed(PascalVOCDetectionEvaluator(voc), {"000001": [], "000002": []})["AP"] == 0


def test_bad_input_is_named(voc, folder):
    with pytest.raises(ValueError, match="'000009'"):
        feed(PascalVOCDetectionEvaluator(voc), {"000009": [(0, [0, 0, 1, 1], 0.5)]})
    MetadataCatalog.get("voc_1999").set(dirname=str(folder), split="val", year=1999, thing_classes=["cat"])
    with pytest.raises(ValueError, match="1999"):
        PascalVOCDetectionEvaluator("voc_1999")
    MetadataCatalog.remove("voc_1999")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2, None])
def test_boxes_and_scores_that_are_not_finite_are_refused_with_the_image(voc, value, place):
    evaluator = PascalVOCDetectionEvaluator(voc)
    box, score = [10.0, 10, 30, 30], 0.9
    if place is None:
        score = value
    else:
        box[place] = value
    field = "scores" if place is None else "pred_boxes"
    with pytest.raises(ValueError, match=f"detection 1 in image '000001' has {field} .*{value}.* not finite"):
        feed(evaluator, {"000001": [(0, [0, 0, 1, 1], 0.5), (0, box, score)]})


@pytest.mark.parametrize("index", [3, 9, -1])
def test_a_class_that_the_data_set_does_not_have_is_refused_with_the_image(voc, index):
    with pytest.raises(ValueError, match=f"predicted class {index} in image 000001, but 'voc_test' has classes 0 to 2"):
        feed(PascalVOCDetectionEvaluator(voc), {"000001": [(index, [0, 0, 1, 1], 0.5)]})


def test_the_result_files_of_the_development_kit_are_read(folder):
    lines = ["000001 0.9 11 11 30 30", "000001 0.8 11 11 30 30", "000002 0.7 5 5 24 24"]
    (folder / "det_cat.txt").write_text("\n".join(lines))
    paths = (str(folder / "det_{}.txt"), str(folder / "Annotations" / "{}.xml"))
    recall, precision, ap = voc_eval(*paths, str(folder / "ImageSets" / "Main" / "val.txt"), "cat")
    assert recall.tolist() == [0.5, 0.5, 1] and precision.tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert ap == pytest.approx((1 + 2 / 3) / 2)


def test_an_annotation_file_is_parsed_as_it_is(folder):
    first = parse_rec(str(folder / "Annotations" / "000001.xml"))[1]
    assert first == {"name": "cat", "pose": "Left", "truncated": 0, "difficult": 1, "bbox": [51, 51, 70, 70]}


def test_an_annotation_file_that_was_written_anew_is_read_anew_and_else_kept(voc, folder):
    path = folder / "Annotations" / "000002.xml"
    kept = parse_rec(str(path))
    assert parse_rec(str(path)) is kept
    assert feed(PascalVOCDetectionEvaluator(voc), PERFECT)["AP50"] == pytest.approx(100)
    path.write_text(path.read_text().replace("cat", "bird"))
    assert [entry["name"] for entry in parse_rec(str(path))] == ["bird"]
    assert feed(PascalVOCDetectionEvaluator(voc), PERFECT)["AP-bird"] == 0


def test_no_more_annotation_files_are_kept_than_the_largest_split_has():
    limit = pascal_voc_evaluation._parse_rec.cache_info().maxsize
    assert limit is not None and 11540 <= limit <= 100_000


def test_a_broken_annotation_file_is_named(voc, folder):
    broken = folder / "Annotations" / "000002.xml"
    broken.write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(ValueError, match=r"000002\.xml: <object> has no <bndbox/xmin>"):
        feed(PascalVOCDetectionEvaluator(voc), PERFECT)
    broken.unlink()
    with pytest.raises(FileNotFoundError, match=r"000002\.xml does not exist"):
        feed(PascalVOCDetectionEvaluator(voc), PERFECT)


@pytest.mark.parametrize(
    "line",
    [
        "000001 0.9 11 11 30",
        "000001",
        "000001 high 1 1 2 2",
        "000001 0.9 1 1 2 2 3",
        "000001 nan 1 1 2 2",
        "000001 0.9 1 inf 2 2",
    ],
)
def test_a_line_that_is_no_detection_is_named(folder, line):
    (folder / "det_cat.txt").write_text(f"000001 0.9 11 11 30 30\n{line}\n")
    paths = (str(folder / "det_{}.txt"), str(folder / "Annotations" / "{}.xml"))
    with pytest.raises(ValueError, match=rf"line 2 of .*det_cat\.txt is '{line}'; a detection is"):
        voc_eval(*paths, str(folder / "ImageSets" / "Main" / "val.txt"), "cat")


def slow_area(recall, precision):
    """Area under the envelope, summed rectangle by rectangle over all recalls."""
    total, previous = 0.0, 0.0
    for r in sorted(set(recall)):
        total += (r - previous) * max(p for q, p in zip(recall, precision) if q >= r)
        previous = r
    return total


def test_the_average_precision_equals_the_plain_sum():
    rng = np.random.default_rng(0)
    for _ in range(20):
        hits = rng.random(30) < 0.5
        recall, precision = np.cumsum(hits) / 20, np.cumsum(hits) / np.arange(1, 31)
        assert voc_ap(recall, precision) == pytest.approx(slow_area(recall, precision))
        eleven = [max([p for r, p in zip(recall, precision) if r >= t], default=0) for t in np.arange(0, 1.1, 0.1)]
        assert voc_ap(recall, precision, use_07_metric=True) == pytest.approx(sum(eleven) / 11)
    assert voc_ap(np.zeros(0), np.zeros(0)) == 0


def test_the_real_annotations_as_detections_reach_a_hundred(shared_dir):
    folder = shared_dir / "datasets" / "VOC2007"
    names = ["person", "car", "chair"]
    MetadataCatalog.get("voc_real").set(dirname=str(folder), split="val", year=2007, thing_classes=names)
    try:
        by_image = {}
        for image_id in (folder / "ImageSets" / "Main" / "val.txt").read_text().split()[::1]:
            if not (folder / "Annotations" / f"{image_id}.xml").exists():
                continue
            entries = [e for e in parse_rec(str(folder / "Annotations" / f"{image_id}.xml")) if e["name"] in names]
            corners = [(np.array(e["bbox"]) - [1, 1, 0, 0]).tolist() for e in entries]
            by_image[image_id] = [(names.index(e["name"]), box, 0.9) for e, box in zip(entries, corners)]
        metrics = feed(PascalVOCDetectionEvaluator("voc_real"), by_image)
        assert [metrics["AP50"], metrics["AP-person"]] == pytest.approx([100, 100])
    finally:
        MetadataCatalog.remove("voc_real")


def test_names_of_metrics_are_known_beforehand(voc):
    evaluator = PascalVOCDetectionEvaluator(voc)
    assert evaluator.metric_names() == {
        task: tuple(name for name in metrics if "-" not in name) for task, metrics in evaluator.evaluate().items()
    }
