"""Yaml is read as plain data, within bounds, and what is refused is named."""

import os

import pytest
import yaml

from detlab.config.yaml_files import load_yaml, read_yaml
from tests.config.fuzz_target import TARGET
from tests.fuzz import fuzz
from tests.limits import MEBIBYTE, run_limited


def laughs(levels, of="[x, x]", more="[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]"):
    lines = [f"a0: &a0 {of}"]
    lines += [f"a{level}: &a{level} {more.format(f'*a{level - 1}')}" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, value",
    [
        ("a: !!python/tuple [1, [2, 3]]", {"a": (1, [2, 3])}),
        ("a: !!python/str 5\nb: !!python/unicode x\nc: !!python/none ''", {"a": "5", "b": "x", "c": None}),
        ("a: !!python/list [1]\nb: !!python/dict {x: !!python/int '3'}", {"a": [1], "b": {"x": 3}}),
        ("a: !!python/object/apply:eval ['int(1024 * 1.5)']", {"a": 1536}),
        ('a: !!python/object/apply:eval ["[64 * x for x in range(2, 5)]"]', {"a": [128, 192, 256]}),
        ("a: =\nb: 2024-01-01", {"a": "=", "b": "2024-01-01"}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("# nothing", None),
        ("a: 0x10\nb: 1_000\nc: .inf\nd: ~", {"a": 16, "b": 1000, "c": float("inf"), "d": None}),
    ],
)
def test_habits_of_configs_are_read_as_the_data_they_mean(text, value):
    found = load_yaml(text, "a.yaml")
    assert found == value and repr(found) == repr(value)


def test_a_key_given_twice_is_a_warning_with_its_line_and_the_last_counts(caplog):
    assert load_yaml("A: {x: 1}\nB: 2\nA:\n  y: 3\n  y: 4\n", "some.yaml") == {"A": {"y": 4}, "B": 2}
    assert "some.yaml line 3 repeats the key 'A'; the last one counts" in caplog.text
    assert "some.yaml line 5 repeats the key 'y'" in caplog.text


def test_of_many_repeated_keys_a_few_are_named(caplog):
    load_yaml("A: 1\n" * 1000, "a.yaml")
    assert len(caplog.records) == 6 and "repeats 994 keys more" in caplog.text


def test_what_a_merge_key_brings_is_no_repetition(caplog):
    text = "x: {deep: &d {<<: {k: 1}, k: 2}}\ny: {<<: *d, k: 3}\n"
    assert load_yaml(text, "a.yaml")["y"] == {"k": 3}
    assert caplog.text == ""


BOMBS = {
    "billion laughs": laughs(20),
    "billion laughs of mappings": laughs(20, "{x: 1}", "{{p: {0}, q: {0}, r: {0}, s: {0}}}"),
    "laughs of merge keys": laughs(30, "{x: 1}", "{{<<: [{0}, {0}, {0}]}}"),
    "a ladder of references": laughs(5000, "[x]", "[{0}]"),
    "itself": "a: &a [*a]",
    "itself by a mapping": "a: &a {b: {c: *a}}",
    "deep lists": "[" * 100_000,
    "deep lists that close": "[" * 900 + "]" * 900,
    "deep mappings": "{a: " * 100_000,
    "deep by indentation": "\n".join(" " * i + "a:" for i in range(2000)),
    "many values": "[" + "1," * 500_000 + "]",
    "a huge number": "a: " + "9" * 1_000_000,
    "a huge number in base 60": "a: 1" + ":1" * 500_000,
    "a huge float": "a: " + "9" * 1_000_000 + ".0",
    "a huge tagged number": "a: !!python/long '" + "9" * 1_000_000 + "'",
    "too long": "# " + "x" * 5_000_000,
    "many formulas": "\n".join(f"a{i}: !!python/object/apply:eval ['[x for x in range(9999)]']" for i in range(9000)),
    "a formula that grows": "a: !!python/object/apply:eval ['9 ** 9 ** 9']",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_by_name_within_time_and_memory(tmp_path, text):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    outcome = run_limited(read_yaml, str(path), seconds=20, more_bytes=10 * len(text) + 64 * MEBIBYTE)
    assert outcome.error.startswith("ValueError") and "bomb.yaml" in outcome.error, outcome
    assert len(outcome.error) < 500


@pytest.mark.parametrize("base", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_the_base_loaders_know_no_more_tags_than_ours(base):
    # Data that only the base understands (binary, sets, dates) must have been left out on purpose.
    left_out = {"binary", "timestamp", "omap", "pairs", "set"}
    known = {str(tag).rpartition(":")[2] for tag in base.yaml_constructors if tag}
    assert known == left_out | {"null", "bool", "int", "float", "str", "seq", "map"}


@pytest.mark.parametrize(
    "content, words",
    [
        (b"a: !!binary aGVsbG8=", "tag '!!binary', which is no plain data"),
        (b"a: !!set {x}", "'!!set'"),
        (b"a: !!timestamp 2024-01-01", "'!!timestamp'"),
        (b"a: !mine 5", "'!mine'"),
        (b"a: !!python/object:os.x {}", "Python objects are refused"),
        (b"a: !!python/module:os ''", "Python objects are refused"),
        (b"a: !!python/object/apply:eval {args: ['1']}", "Python objects are refused"),
        (b"a: !!python/object/apply:eval [1, 2]", "Python objects are refused"),
        (b"a: !!python/object/apply:builtins.eval ['1']", "Python objects are refused"),
        (b"a: !!int x", "invalid literal"),
        (b"a: 1\n---\nb: 2", "single document"),
        (b"a\0b: 1", "#x0000"),
        (b"? [a, b]\n: 1", "unhashable"),
        (b"\xff\xfe\x00a", "no text in UTF-8"),
        (b"a: *nothing", "undefined alias"),
        (b"\x89PNG\r\n\x1a\n", "no text in UTF-8"),
    ],
)
def test_what_is_no_plain_data_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_yaml(str(path))
    assert "odd.yaml" in str(error.value)


def test_a_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="is no file but a folder"):
        read_yaml(str(tmp_path))


def read_pipe(path):
    os.mkfifo(path)
    read_yaml(path)


def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path):
    for outcome in (run_limited(read_pipe, str(tmp_path / "a.yaml"), seconds=10), run_limited(read_yaml, "/dev/zero")):
        assert outcome.error.startswith("ValueError") and "is no file but a folder, pipe or device" in outcome.error


def test_a_path_that_cannot_be_opened_is_refused_in_a_short_sentence(tmp_path):
    (tmp_path / "link.yaml").symlink_to("link.yaml")
    (tmp_path / "file.py").write_text("")
    for name, reason in {"link.yaml": "symbolic links", "x" * 5000: "too long", "file.py/a.yaml": "ot a dir"}.items():
        with pytest.raises(ValueError, match=f"cannot be read as settings: .*{reason}") as caught:
            read_yaml(str(tmp_path / name))
        assert len(str(caught.value)) < 600


def test_damaged_configs_end_in_a_documented_refusal(tmp_path):
    outcomes, complaints = fuzz(TARGET, tmp_path, seed=5, cases=150)
    assert not complaints, complaints[0]
    assert {"ValueError", "UnknownKeyError"} <= set(outcomes)
