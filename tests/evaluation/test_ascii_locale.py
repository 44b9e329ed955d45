"""Names beyond ASCII, from the annotations to the results, on a machine that is set to ASCII."""

import json
import os
import subprocess
import sys

NAME = "bär"
CONTENT = {
    "images": [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 20, 10], "area": 200, "iscrowd": 0}],
    "categories": [{"id": 5, "name": NAME}, {"id": 6, "name": "ours"}],
}
XML = (
    "<annotation><size><width>60</width><height>40</height></size><object><name>bär</name><bndbox><xmin>2</xmin>"
    "<ymin>3</ymin><xmax>21</xmax><ymax>12</ymax></bndbox></object></annotation>"
)
SCRIPT = """
import json, locale, sys
import torch
from detlab.data.build import get_detection_dataset_dicts
from detlab.data.catalog import MetadataCatalog
from detlab.data.datasets.coco import convert_to_coco_json, register_coco_instances
from detlab.data.datasets.pascal_voc import register_pascal_voc
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlab.structures.boxes import Boxes
from detlab.structures.instances import Instances

assert locale.getpreferredencoding(False) != "UTF-8", "this machine has no ASCII locale"
folder = sys.argv[1]
register_coco_instances("coco_named", {}, f"{folder}/named.json", folder)
register_pascal_voc("voc_named", folder, "val", 2012, ["b\\u00e4r"])
results = {}
for name, evaluator in (
    ("coco_named", lambda: COCOEvaluator("coco_named", distributed=False, output_dir=folder)),
    ("voc_named", lambda: PascalVOCDetectionEvaluator("voc_named")),
):
    (image,) = get_detection_dataset_dicts(name)
    instances = Instances((40, 60), pred_boxes=Boxes(torch.tensor([[1.0, 2, 21, 12]])), scores=torch.ones(1))
    instances.pred_classes = torch.tensor([0])
    evaluator = evaluator()
    evaluator.reset()
    evaluator.process([image], [{"instances": instances}])
    results[name] = evaluator.evaluate()
convert_to_coco_json("coco_named", f"{folder}/written.json")
with open(f"{folder}/results.json", "wb") as file:
    file.write(json.dumps(results).encode())
"""


def test_class_names_beyond_ascii_are_loaded_evaluated_and_written_under_an_ascii_locale(tmp_path):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "named.json").write_text(json.dumps(CONTENT, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "ImageSets/Main/val.txt").write_text("000001 und größer\n", encoding="utf-8")
    (tmp_path / "Annotations/000001.xml").write_text(XML, encoding="utf-8")
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=ascii_only,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )

    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["coco_named"]["bbox"][f"AP-{NAME}"] > 99 and results["voc_named"]["bbox"][f"AP-{NAME}"] > 99
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 1
    assert json.loads((tmp_path / "written.json").read_text())["categories"][0]["name"] == NAME
