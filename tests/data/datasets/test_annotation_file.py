import pytest

from detlab.data.datasets.annotation_file import read_annotations


def test_a_missing_file_says_where_datasets_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DETLAB_DATASETS", "/data/here")
    with pytest.raises(FileNotFoundError, match=r"a\.json does not exist; built-in datasets .*/data/here"):
        read_annotations(str(tmp_path / "a.json"))
