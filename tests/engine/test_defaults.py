"""The shop window."""

import ast
import importlib
import json
from pathlib import Path

import pytest

from detlab.engine import defaults


@pytest.mark.parametrize("name", defaults.__all__)
def test_what_the_window_shows_is_what_its_file_makes(name):
    shown = getattr(defaults, name)
    made_in = importlib.import_module(shown.__module__)
    assert made_in is not defaults
    assert shown is getattr(made_in, name)
    assert name in made_in.__all__


def test_the_window_shows_all_names_of_the_reference(shared_dir):
    recorded = json.loads((shared_dir / "compat" / "api.json").read_text())["detlab.engine.defaults"]
    assert set(recorded) <= set(defaults.__all__)


def test_the_window_holds_no_code():
    docstring, *body = ast.parse(Path(defaults.__file__).read_text()).body
    assert isinstance(docstring, ast.Expr)
    *imports, names = body
    assert {type(node) for node in imports} == {ast.ImportFrom}
    assert isinstance(names, ast.Assign) and ast.unparse(names.targets[0]) == "__all__"
    assert ast.literal_eval(names.value) == sorted(defaults.__all__)
