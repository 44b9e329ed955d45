"""Names lead to objects, and failures explain themselves."""

import collections
import sys

import pytest
from fvcore.common.registry import Registry as FvcoreRegistry

from detlab.utils.registry import Registry, is_registered, locate, qualified_name


@pytest.fixture
def registry():
    made = Registry("BACKBONE")

    @made.register()
    def build_resnet_backbone():
        return "resnet"

    return made


def test_a_registered_function_is_found_by_its_name(registry):
    assert registry.get("build_resnet_backbone")() == "resnet"
    assert "build_resnet_backbone" in registry
    assert isinstance(registry, FvcoreRegistry)


def test_every_way_of_registering_gives_the_definition_back():
    registry = Registry("PARTS")

    @registry.register
    class Plain:
        pass

    @registry.register()
    class Called:
        pass

    assert registry.register(dict) is dict
    assert (Plain, Called) == (registry.get("Plain"), registry.get("Called"))


def test_an_unknown_name_is_explained(registry):
    with pytest.raises(KeyError) as error:
        registry.get("build_resnet_backbon")
    message = str(error.value)
    assert message.startswith("'build_resnet_backbon' is not registered"), "it is not quoted once more"
    assert "BACKBONE" in message and "'build_resnet_backbon'" in message
    assert "Did you mean 'build_resnet_backbone'" in message and "imported" in message


def test_a_name_that_is_still_to_come_says_so_until_it_is_registered(registry):
    registry.expect(build_mvit_backbone="the multiscale vision transformer")
    words = r"'build_mvit_backbone' \(the multiscale vision transformer\) is not part of detlab yet.*BACKBONE has: "
    with pytest.raises(KeyError, match=words):
        registry.get("build_mvit_backbone")

    @registry.register()
    def build_mvit_backbone():
        return "own"

    assert registry.get("build_mvit_backbone")() == "own"


def test_running_a_definition_again_replaces_it(registry):
    def define(value):
        class Head:
            number = value

        return Head

    registry.register(define(1))
    registry.register(define(2))
    assert registry.get("Head").number == 2


def test_another_object_under_a_taken_name_is_refused(registry):
    def build_resnet_backbone():
        return "mine"

    with pytest.raises(ValueError, match="already has a 'build_resnet_backbone'"):
        registry.register(build_resnet_backbone)


@pytest.mark.parametrize("obj", [collections.OrderedDict, locate, Registry.get])
def test_a_qualified_name_leads_back(obj):
    assert locate(qualified_name(obj)) == obj


@pytest.mark.parametrize("obj", [lambda: 0, 3])
def test_what_has_no_path_says_so(obj):
    with pytest.raises(ValueError, match="no importable path"):
        qualified_name(obj)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_package.thing", "no module 'no_such_package'"),
        ("collections.NoSuchThing", "has no member 'NoSuchThing'"),
        ("collections..abc", "not a dotted path"),
        ("", "not a dotted path"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(name, complaint):
    with pytest.raises(ImportError, match=complaint):
        locate(name)


def test_the_error_of_a_broken_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_module_for_locate.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        locate("broken_module_for_locate.Thing")
    assert "broken_module_for_locate" not in sys.modules


def test_whether_something_is_registered_is_asked_by_its_qualified_name():
    registry = Registry("PARTS_THAT_ARE_ASKED_FOR")

    @registry.register()
    class Asked:
        pass

    assert is_registered(f"{__name__}.{Asked.__qualname__}")
    assert not is_registered("Asked") and not is_registered(f"{__name__}.Other")
