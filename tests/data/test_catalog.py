import copy
import functools
import pickle

import numpy as np
import pytest

from detlab.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, _DatasetCatalog, same_content


def load(path, scale=1):
    return [{"file_name": path, "scale": scale}]


def closure_over(value):
    return lambda: load(value)


@pytest.fixture
def catalog():
    return _DatasetCatalog()


def test_a_registered_dataset_is_loaded_by_name(catalog):
    catalog.register("mine", lambda: load("a"))
    assert catalog.get("mine") == [{"file_name": "a", "scale": 1}]
    assert catalog.list() == ["mine"] and "mine" in catalog and len(catalog) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: closure_over("a"),
        lambda: functools.partial(load, "a", scale=2),
        lambda: closure_over(np.arange(3)),
        lambda: load,
    ],
    ids=["closure", "partial", "closure over an array", "function"],
)
def test_the_same_loader_can_be_registered_twice(catalog, make):
    catalog.register("mine", make())
    catalog.register("mine", make())
    assert catalog.list() == ["mine"]


def test_a_cell_that_is_run_again_registers_the_same_loader(catalog):
    cell = "def load_mine():\n    return [{'file_name': PATH}]\n"
    first, moved = {"PATH": "a"}, {"PATH": "a"}
    exec(compile(cell, "cell 1", "exec"), first)
    exec(compile("\n\n" + cell, "cell 7", "exec"), moved)
    catalog.register("mine", first["load_mine"])
    catalog.register("mine", moved["load_mine"])
    edited = {"PATH": "b"}
    exec(compile(cell, "cell 1", "exec"), edited)
    with pytest.raises(ValueError, match="already registered"):
        catalog.register("mine", edited["load_mine"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (closure_over("a"), closure_over("b")),
        (functools.partial(load, "a"), functools.partial(load, "b")),
        (functools.partial(load, "a"), functools.partial(load, "a", scale=2)),
        (lambda: load("a"), lambda: load("a", scale=1)),
        (closure_over(1), closure_over(True)),
        (closure_over(np.arange(3)), closure_over(np.arange(4))),
    ],
)
def test_a_different_loader_under_a_taken_name_is_refused(catalog, one, other):
    catalog.register("mine", one)
    with pytest.raises(ValueError, match=r"'mine' is already registered.*DatasetCatalog\.remove"):
        catalog.register("mine", other)
    assert catalog["mine"] is one


def test_functions_that_call_each_other_are_compared():
    def recursive(n):
        return recursive(n - 1) if n else 0

    def make():
        def inner(n):
            return inner(n - 1) if n else 0

        return inner

    assert same_content(make(), make()) and not same_content(make(), recursive)


def test_an_unknown_name_is_answered_with_the_nearest_and_the_hint_rather_than_with_all(catalog):
    for name in ("cells_train", "cells_val", *(f"zebra_{i}" for i in range(50))):
        catalog.register(name, lambda: load("a"))
    with pytest.raises(KeyError) as error:
        catalog.get("cells_trian")
    message = str(error.value)
    assert message.startswith("dataset 'cells_trian' is not registered. Did you mean 'cells_train'")
    assert "--import" in message and "52 names" in message and "zebra" not in message
    with pytest.raises(KeyError, match=r"'mine' is not registered\. If it is yours.*--import"):
        catalog.get("mine")


def test_removed_and_popped_datasets_are_gone(catalog):
    catalog.register("a", lambda: load("a"))
    catalog.register("b", lambda: load("b"))
    catalog.remove("a")
    assert catalog.pop("b")() == load("b") and catalog.pop("b", None) is None
    with pytest.raises(KeyError, match="'a' is not registered"):
        catalog.remove("a")
    catalog.register("c", lambda: load("c"))
    catalog.clear()
    assert not catalog


@pytest.mark.parametrize(
    ("name", "func", "error"), [("", load, ValueError), (3, load, ValueError), ("a", 3, TypeError)]
)
def test_what_is_no_name_or_no_function_is_refused(catalog, name, func, error):
    with pytest.raises(error):
        catalog.register(name, func)


def test_metadata_are_set_once():
    metadata = Metadata(name="mine").set(thing_classes=["a"])
    metadata.thing_classes = ["a"]
    with pytest.raises(ValueError, match=r"\['a'\] and cannot become \['b'\]"):
        metadata.thing_classes = ["b"]
    assert metadata.thing_classes == ["a"] and metadata.as_dict() == {"name": "mine", "thing_classes": ["a"]}


def test_missing_metadata_name_what_is_there():
    metadata = Metadata(name="mine", thing_classes=[])
    assert metadata.get("stuff_classes") is None and metadata.get("stuff_classes", 3) == 3
    assert not hasattr(metadata, "stuff_classes")
    with pytest.raises(AttributeError, match="'mine' have no 'stuff_classes'; they have: name, thing_classes"):
        metadata.stuff_classes  # noqa: B018


def test_deferred_metadata_are_found_out_once_when_asked_for():
    calls = []

    def find():
        calls.append(1)
        return {"thing_classes": ["a"], "other": 1}

    metadata = Metadata(name="mine").defer(["thing_classes", "counts"], find)
    assert metadata.get("evaluator_type") is None and not calls
    assert metadata.thing_classes == ["a"] and metadata.get("counts") is None
    assert metadata.as_dict() == {"name": "mine", "thing_classes": ["a"]} and calls == [1]


def test_metadata_that_are_set_are_not_deferred():
    metadata = Metadata(name="mine", thing_classes=["a"]).defer(["thing_classes", "year"], lambda: 1 / 0)
    metadata.year = 2007
    assert metadata.thing_classes == ["a"] and metadata.as_dict()["year"] == 2007


def test_metadata_can_be_copied_and_pickled():
    metadata = Metadata(name="mine", thing_classes=["a"])
    assert pickle.loads(pickle.dumps(metadata)) == copy.deepcopy(metadata) == metadata


def test_asking_for_metadata_makes_them():
    try:
        metadata = MetadataCatalog.get("test_catalog_dataset")
        assert metadata is MetadataCatalog.get("test_catalog_dataset") and metadata.name == "test_catalog_dataset"
        assert "test_catalog_dataset" in MetadataCatalog.list()
    finally:
        MetadataCatalog.remove("test_catalog_dataset")
    with pytest.raises(KeyError, match="test_catalog_dataset"):
        MetadataCatalog.remove("test_catalog_dataset")
    with pytest.raises(ValueError, match="non-empty"):
        MetadataCatalog.get("")


def test_catalogs_show_their_names():
    assert "coco_2017_val" in str(DatasetCatalog) or not DatasetCatalog
