"""Limits accept what they describe."""

import math

import pytest

from detlab.config.limits import Anything, Each, Interval, OneOf, Optional, PerLevel, Text


@pytest.mark.parametrize(
    "limit, inside, outside, words",
    [
        (Interval(0, 1), [0, 1, 0.5], [-0.1, 1.1, True, "0", None, math.nan, math.inf], "a number in [0, 1]"),
        (Interval(0, 1, open_low=True, open_high=True), [0.5], [0, 1], "a number in (0, 1)"),
        (Interval(1, whole=True), [1, 2**63 - 1], [0, 1.0, 2**63, math.inf], "a whole number from 1 on"),
        (Interval(0, open_low=True, infinite=True), [math.inf], [-math.inf, math.nan, 0], "a number above 0 (inf"),
        (Interval(high=1, open_high=True, noun="a score"), [-5], [1], "a score below 1"),
        (Interval(1, whole=True, also=-1, meaning="all"), [-1, 1], [0, -2], "from 1 on, or -1 (all)"),
        (Interval(whole=True), [-5, -(2**62)], [-(2**70), None], "a whole number"),
        (Interval(0), [1e308, 2**70], [10**400, -(10**400)], "a number from 0 on"),
        (Anything("whatever it is"), [None, 3, "x", []], [], "whatever it is"),
        (OneOf(("a", "b", "c")), ["a", "c"], ["A", "", None], "'a', 'b' or 'c'"),
        (OneOf((0, 1)), [0, 1], [True, 1.0], "0 or 1"),
        (OneOf(("one",)), ["one"], ["two"], "'one'"),
        (Text(), ["a", " \n"], ["", None, 3], "a text that is not empty"),
        (Text("x+", "some x"), ["xx"], ["xxy", "yx"], "some x"),
        (Optional(Interval(0), "as it is"), [None, 0], [-1], "a number from 0 on, or None (as it is)"),
        (Each(Interval(0), at_least=1), [[0], (1, 2)], [[], [-1], "12", 3, {}], "a list of at least 1 entry, each a"),
        (Each(Interval(), counts=(4, 5)), [[1] * 4, (1,) * 5], [[1] * 3], "a list of 4 or 5 entries, each a number"),
        (Each(Interval(), rising=True), [[], [1, 1, 2]], [[2, 1]], "each a number and none below the one before it"),
        (PerLevel(Interval(0)), [[1, 2], [[1], (2, 3)]], [[], [[]], [[1], []], [[1], 2], [[-1]]], "a list for each"),
    ],
)
def test_a_limit_accepts_what_it_describes(limit, inside, outside, words):
    assert all(limit.accepts(value) for value in inside)
    assert not any(limit.accepts(value) for value in outside)
    assert words in limit.describe()
