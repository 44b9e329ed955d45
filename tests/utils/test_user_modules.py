"""The user's files and modules load once, under names that every process knows."""

import multiprocessing
import os
import pickle
import sys

import pytest

from detlab.utils import user_modules
from detlab.utils.user_modules import import_user_modules, is_of_user_module


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


def test_a_file_is_one_module_by_path_and_by_name(tmp_path):
    file = write(tmp_path / "part_of_two_names.py", "class Part:\n    pass\n")
    (by_path,) = import_user_modules([file])
    import part_of_two_names as by_name

    assert by_name is by_path and by_path.Part.__module__.startswith(user_modules.__name__)
    assert by_path.__spec__.name == by_path.__name__, "its own spec is kept"
    assert import_user_modules([file])[0] is by_path


def test_a_file_that_was_imported_by_name_is_not_run_again(tmp_path, monkeypatch):
    file = write(tmp_path / "part_by_name_first.py", "class Part:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import part_by_name_first

    assert import_user_modules([file])[0] is part_by_name_first


def test_a_link_to_a_file_is_the_same_module(tmp_path):
    file = write(tmp_path / "linked_part.py", "")
    (tmp_path / "another_name.py").symlink_to(file)
    first, second = import_user_modules([file, str(tmp_path / "another_name.py")])
    assert first is second


def test_a_module_of_a_package_is_one_by_path_and_by_name(tmp_path, monkeypatch):
    (tmp_path / "a_users_package").mkdir()
    write(tmp_path / "a_users_package" / "__init__.py", "")
    file = write(tmp_path / "a_users_package" / "heads.py", "class Head:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (by_path,) = import_user_modules([file])
    from a_users_package import heads

    assert heads is by_path


def test_a_neighbour_of_the_same_name_elsewhere_is_another_module(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    other = write(tmp_path / "elsewhere" / "part_of_one_name.py", "place = 'elsewhere'\n")
    write(tmp_path / "part_of_one_name.py", "place = 'here'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (by_path,) = import_user_modules([other])
    import part_of_one_name

    assert (by_path.place, part_of_one_name.place) == ("elsewhere", "here")


def test_an_error_inside_a_file_comes_through_under_its_other_name(tmp_path):
    file = write(tmp_path / "part_that_breaks.py", "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_user_modules([file])
    with pytest.raises(ZeroDivisionError):
        import part_that_breaks  # noqa: F401


def _same_module_under_both_names(name, path):
    import importlib

    by_name = importlib.import_module(name)
    return by_name is import_user_modules([path])[0]


@pytest.mark.parametrize("order", ["path first", "name first"])
def test_a_spawned_process_has_one_module_as_well(tmp_path, monkeypatch, order):
    stem = f"part_for_workers_{order[:4]}"
    file = write(tmp_path / f"{stem}.py", "class Mapper:\n    def __call__(self, x):\n        return x * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if order == "name first":
        __import__(stem)
    (module,) = import_user_modules([file])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(module.Mapper(), [1]) == [2]
        assert pool.apply(_same_module_under_both_names, (stem, file))


def test_names_below_what_was_imported_are_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr("detlab.utils.user_modules._imported", set())
    monkeypatch.setattr("detlab.utils.user_modules._stems", set())
    (module,) = import_user_modules([write(tmp_path / "own_parts.py", "class Part:\n    pass\n")])
    import_user_modules(["xml.dom"])
    assert is_of_user_module(f"{module.__name__}.Part") and is_of_user_module("xml.dom.minidom.parse")
    assert not is_of_user_module("xml.sax.parse") and not is_of_user_module("xml.dom")
    assert not is_of_user_module("own_parts.Part") and is_of_user_module("own_parts.Part", or_called_like_one=True)
