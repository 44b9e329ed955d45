"""The user's files and modules load once, under names that every process knows."""

import multiprocessing
import os
import pickle
import sys

import pytest

from detlab.utils import user_modules
from detlab.utils.user_modules import import_user_modules


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv(user_modules.FILES_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_file_is_run_once_and_can_import_its_neighbour(tmp_path):
    write(tmp_path / "neighbour_of_part.py", "value = 41\n")
    file = write(tmp_path / "part.py", "import neighbour_of_part\nruns = []\nvalue = neighbour_of_part.value + 1\n")
    (first,) = import_user_modules([file])
    first.runs.append(1)
    (second,) = import_user_modules([file])
    assert second is first and second.value == 42


def test_files_of_one_name_do_not_collide_nor_hide_packages(tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(write(tmp_path / folder / "json.py", f"name = {folder!r}\n"))
    first, second = import_user_modules(files)
    assert (first.name, second.name) == ("a", "b")
    import json

    assert json.dumps([1]) == "[1]"


def test_dotted_names_are_imported():
    assert import_user_modules(["collections.abc"])[0] is sys.modules["collections.abc"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no/such/file.py", "there is no such file"),
        ("no_such_module.part", "PYTHONPATH"),
        ("some/folder", "ends in .py"),
    ],
)
def test_what_is_missing_is_named(name, complaint):
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match=complaint) as error:
        import_user_modules([name])
    assert name in str(error.value)


def test_an_error_inside_the_file_comes_through(tmp_path):
    with pytest.raises(ZeroDivisionError):
        import_user_modules([write(tmp_path / "broken.py", "1 / 0\n")])
    with pytest.raises(ModuleNotFoundError, match="a_missing_dependency"):
        import_user_modules([write(tmp_path / "needy.py", "import a_missing_dependency\n")])


def test_a_spawned_process_unpickles_the_users_classes(tmp_path):
    file = write(tmp_path / "mapper.py", "class Mapper:\n    def __call__(self, x):\n        return x * 2\n")
    (module,) = import_user_modules([file])
    assert pickle.loads(pickle.dumps(module.Mapper))().__class__ is module.Mapper
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(module.Mapper(), [1, 2]) == [2, 4]
    assert os.environ[user_modules.FILES_VARIABLE] == file
