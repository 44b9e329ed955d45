"""One folder for the built-in datasets, whoever asks."""

import subprocess
import sys

import pytest

from detlab.data.datasets import annotation_file, lvis, shapes
from detlab.data.datasets.root_folder import datasets_root


@pytest.mark.parametrize("value", [None, "", "  "])
def test_an_empty_variable_counts_as_unset(value, monkeypatch):
    if value is None:
        monkeypatch.delenv("DETLAB_DATASETS", raising=False)
    else:
        monkeypatch.setenv("DETLAB_DATASETS", value)
    assert datasets_root() == "datasets"


def test_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DETLAB_DATASETS", "~/data")
    assert datasets_root() == "/home/someone/data"


def test_an_empty_variable_draws_and_looks_for_nothing_in_the_current_folder(tmp_path, monkeypatch, project_root):
    monkeypatch.setenv("DETLAB_DATASETS", "")
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    code = "from detlab.data import MetadataCatalog; print(MetadataCatalog.get('shapes_train').image_root)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "datasets/shapes/train", run.stderr
    drawn = []
    monkeypatch.setattr(shapes, "generate_shapes", lambda root, **_: drawn.append(root))
    monkeypatch.setattr(sys, "argv", ["shapes"])
    shapes.main()
    assert drawn == ["datasets/shapes"]
    with pytest.raises(FileNotFoundError, match=r"but datasets/lvis/lvis_v9\*\.json is empty"):
        lvis.get_lvis_instances_meta("lvis_v9")
    with pytest.raises(FileNotFoundError, match=r"\(now not set: \./datasets\)"):
        annotation_file.read_annotations(str(tmp_path / "a.json"))
