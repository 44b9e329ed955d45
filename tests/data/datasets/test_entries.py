import math

import pytest

from detlab.data.datasets.entries import Dropped, Entries, are_within, is_number, shown


def test_values_that_are_long_or_deep_are_cut_short():
    deep = []
    for _ in range(100):
        deep = [deep]
    for value in (deep, "x" * 10_000, list(range(10_000)), {str(n): n for n in range(1000)}):
        assert len(shown(value)) < 200
    assert shown([1, "a", None]) == "[1, 'a', None]"


@pytest.mark.parametrize("row", [[math.nan], [math.inf, -math.inf], [1e10], [10**400], ["1"], [None], [[1]], [{}]])
def test_rows_of_anything_but_numbers_within_the_limit_are_noticed(row):
    assert not are_within([[1, 2.5], row], 1e9)
    assert are_within([[1, 2.5], [-1e9]], 1e9) and are_within([], 1e9) and are_within([[]], 1e9)


def test_numbers_are_told_from_all_else():
    assert all(map(is_number, (1, 1.5, -0.0, math.nan, math.inf)))
    assert not any(map(is_number, (True, None, "1", [1], 10**400, 1j)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, r"'things' in the file should be a list of things, but is {}"),
        (None, "should be a list of things, but is None"),
        ([{}, 5], "thing number 1 of 'things' in the file should be an object with keys and values, but is 5"),
    ],
)
def test_what_is_no_list_of_dictionaries_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Entries(entries, "thing", "the file", "things")


def things(*values, key="id"):
    return Entries([{key: value} for value in values], "category", "the file")


def test_whole_floats_among_ids_become_whole_in_the_entries_too():
    entries = things(1, 2.0)
    assert entries.check_ids("id", "an id") == [1, 2]
    assert type(entries.all[1]["id"]) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1, None), "category number 1 in the file has 'id': None; an id is a whole number"),
        ((1, True), "category True in the file has 'id': True"),
        ((1.5,), "'id': 1.5"),
        ((math.nan,), "'id': nan"),
        (([],), r"'id': \[\]"),
        ((1, "2"), "'id': '2'; others are like 1; let all be numbers, or all be text"),
        ((1, 2**63), "'id': 9223372036854775808; an id is a whole number below"),
    ],
)
def test_ids_that_cannot_be_compared_or_counted_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        things(*values).check_ids("id", "an id")


def test_doubles_are_counted_with_examples():
    with pytest.raises(ValueError, match=r"2 ids of categories in the file occur more than once \(such as 1, 'a'\)"):
        things().check_unique([1, "a", 1, "a", 2])


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800", 5, None])
def test_text_that_no_file_can_be_named_by_is_refused(text):
    with pytest.raises(ValueError, match=r"category number 1 in the file has 'name': .*; a name is a text"):
        things("good", text, key="name").check_text("name", "a name")
    assert things("bär", "クラス", key="name").check_text("name", "a name") == ["bär", "クラス"]


def test_what_is_dropped_is_counted_with_the_first_examples(caplog):
    dropped = Dropped()
    for number in range(5):
        dropped.add("odd ones", lambda number=number: f"number {number}")
    dropped.warn("the file")
    assert caplog.messages == ["Left out 5 odd ones in the file (number 0; number 1; number 2)"]
