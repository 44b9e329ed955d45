"""Text is UTF-8 on every machine: nothing is opened in the encoding of the locale."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("detlab/**/*.py"), *ROOT.glob("tools/*.py"), ROOT / "setup.py"])
# `open` of these takes no encoding.
OTHER_OPENERS = ("Image", "os", "webbrowser", "tarfile", "zipfile")


def text_calls_without_encoding(source: str) -> list[int]:
    """Lines that open, read or write a text file and do not say in which encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        says_encoding = any(keyword.arg in ("encoding", None) for keyword in node.keywords)
        if name in ("read_text", "write_text") and isinstance(function, ast.Attribute) and not says_encoding:
            lines.append(node.lineno)
        if name in ("open", "fdopen", "NamedTemporaryFile") and owner not in OTHER_OPENERS and not says_encoding:
            constants = [
                a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)
            ]
            modes = [value for value in constants if isinstance(value, str) and set(value) <= set("rwaxbt+")]
            is_binary = "b" in modes[-1] if modes else name == "NamedTemporaryFile"
            # A mode that the caller chose, or one put together here.
            is_unknown = any(isinstance(a, ast.JoinedStr) or getattr(a, "id", "") == "mode" for a in node.args)
            if not is_binary and not is_unknown:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_opened_with_an_encoding(path):
    assert text_calls_without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "call",
    ["open(p)", 'PathManager.open(p, "r")', 'open(p, "w")', "path.open()", "path.read_text()", "path.write_text(t)"],
)
def test_a_call_without_encoding_is_found(call):
    assert text_calls_without_encoding(f"x = 1\n{call}\n") == [2]


@pytest.mark.parametrize("call", ['open(p, "rb")', 'open(p, encoding="utf-8")', "Image.open(p)", 'path.open("wb")'])
def test_other_calls_are_let_through(call):
    assert text_calls_without_encoding(call) == []
