"""Descriptions of calls become their results."""

import dataclasses
import datetime
import fractions
import functools
from collections import Counter

import pytest
from omegaconf import DictConfig, OmegaConf

from detlab.config.instantiate import dump_dataclass, instantiate
from detlab.config.lazy import LazyCall as L


@dataclasses.dataclass
class Point:
    x: int
    y: int = 2


@dataclasses.dataclass
class Line:
    start: Point
    others: list[Point]
    label: str = "line"


def keep(**kwargs):
    return kwargs


def pair(first, second=0):
    return first, second


def pair_with(second):
    return functools.partial(pair, second=second)


def test_a_description_is_called_with_its_arguments():
    assert instantiate(L(fractions.Fraction)(numerator=3, denominator=6)) == fractions.Fraction(1, 2)


def test_a_target_may_be_a_dotted_name_in_a_plain_dict():
    assert instantiate({"_target_": "datetime.timedelta", "days": 2}) == datetime.timedelta(days=2)


def test_inner_descriptions_come_first_also_in_lists_and_tuples():
    config = L(keep)(a=L(pair)(first=1), b=[L(pair)(first=2), 3], c={"_target_": pair, "first": 4})
    assert instantiate(config) == {"a": (1, 0), "b": [(2, 0), 3], "c": (4, 0)}
    assert instantiate({"_target_": keep, "t": ({"_target_": pair, "first": 1}, 5)}) == {"t": ((1, 0), 5)}


def test_lists_and_tuples_arrive_as_plain_ones():
    result = instantiate(L(keep)(sizes=[[1], [2]], flat=(1, 2)))
    assert result["sizes"] == [[1], [2]] and type(result["sizes"]) is type(result["sizes"][0]) is list
    # Before omegaconf 2.4 a tuple becomes a list.
    assert tuple(result["flat"]) == (1, 2) and type(result["flat"]) in (tuple, list)


def test_references_are_followed():
    config = L(keep)(n=5, inner=L(pair)(first="${..n}"), copy="${.inner}")
    assert instantiate(config) == {"n": 5, "inner": (5, 0), "copy": (5, 0)}


def test_what_describes_no_call_is_given_back():
    config = OmegaConf.create({"a": 1})
    assert instantiate(config) is config
    assert instantiate({"a": {"b": 1}}) == {"a": {"b": 1}} and instantiate("text") == "text"
    thing = object()
    assert instantiate(thing) is thing


def test_recursion_can_be_switched_off():
    result = instantiate(L(keep)(_recursive_=False, inner=L(pair)(first=1)))
    assert isinstance(result["inner"], DictConfig) and result["inner"]._target_ is pair


def test_a_target_may_itself_be_described():
    assert instantiate({"_target_": {"_target_": pair_with, "second": 5}, "first": 1}) == (1, 5)


def test_instantiating_leaves_the_config_alone():
    config = L(keep)(inner=L(pair)(first=1))
    assert instantiate(config) == instantiate(config)
    assert config._target_ is keep and config.inner._target_ is pair


def test_objects_travel_through_configs():
    counter = Counter("aab")
    config = L(pair)(first=counter)
    config.second = datetime.date
    first, second = instantiate(config)
    assert first == counter and second is datetime.date


def test_a_misspelt_argument_names_target_and_nearest_argument():
    with pytest.raises(TypeError, match=r"pair cannot be called as configured: .*'secnd'; did you mean 'second'\?"):
        instantiate(L(pair)(first=1, secnd=2))


def test_a_missing_argument_names_the_target():
    with pytest.raises(TypeError, match=r"pair cannot be called as configured: missing a required argument: 'first'"):
        instantiate(L(pair)())


def test_a_type_error_inside_the_target_stays_as_it_is():
    def broken(a):
        return a + "x"

    with pytest.raises(TypeError, match="unsupported operand"):
        instantiate(L(broken)(a=1))


def test_a_target_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="is not callable"):
        instantiate({"_target_": 3})
    with pytest.raises(TypeError, match="is not callable"):
        instantiate({"_target_": "math.pi"})


def test_a_target_that_does_not_exist_is_named():
    with pytest.raises(ImportError, match=r"detlab\.nothing\.Here"):
        instantiate({"_target_": "detlab.nothing.Here"})


def test_dataclasses_come_back_from_descriptions():
    line = Line(Point(1), [Point(2, 3), Point(4)])
    description = dump_dataclass(line)
    assert description["_target_"].endswith("Line") and description["others"][0]["y"] == 3
    description["_target_"], description["start"]["_target_"] = Line, Point
    for other in description["others"]:
        other["_target_"] = Point
    assert instantiate(description) == line


def test_dataclass_values_and_targets_survive_a_config():
    config = L(keep)(point=Point(7), lazy=L(Point)(x=1))
    config.point.y = 9
    assert instantiate(config["point"]) == Point(7, 9)
    assert config.lazy._target_.endswith(".Point")


@pytest.mark.parametrize("value", [Point, 3, {"x": 1}])
def test_only_dataclass_instances_can_be_dumped(value):
    with pytest.raises(TypeError, match="instance of a dataclass"):
        dump_dataclass(value)
