"""Configs as Python files: running, importing, changing, saving."""

import dataclasses
import logging
import sys

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from detlab.config.instantiate import instantiate
from detlab.config.lazy import LazyCall as L
from detlab.config.lazy import LazyConfig
from detlab.config.yaml_files import read_yaml
from detlab.layers.shape_spec import ShapeSpec
from detlab.utils.registry import Registry
from detlab.utils.user_modules import import_user_modules
from tests.limits import run_limited


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


@pytest.fixture
def zoo(write):
    """A small folder of configs that import each other; gives the path of the top one."""
    write("common/train.py", "train = dict(max_iter=5, amp=dict(enabled=False))\nLIST = [1]\nname = 'x'\n")
    write(
        "common/models/net.py",
        "from detlab.config import LazyCall as L\nfrom fractions import Fraction\n"
        "from ..train import train as _train\n"
        "model = L(Fraction)(numerator='${.denominator}', denominator=_train.max_iter)\n",
    )
    return write(
        "tasks/top.py",
        "from ..common.train import train\nfrom ..common.models.net import model\n"
        "from ..common import train as module\n"
        "train.max_iter = 9\n_hidden = dict(a=1)\nnumber = 3\nplain = dict(a=[1, 2])\n",
    )


# -------------------------------------------------------------------------------------------------------- calls


def test_a_call_is_written_down_and_can_be_changed():
    config = L(range)(start=1)
    assert isinstance(config, DictConfig) and config._target_ is range and config.start == 1
    config.start = 2
    config.update(stop=5)
    assert dict(config) == {"_target_": range, "start": 2, "stop": 5}


def test_a_call_needs_something_to_call():
    with pytest.raises(TypeError, match="needs a callable or the dotted name of one, got 3"):
        L(3)


def test_a_call_takes_any_object():
    thing = object()
    assert L("builtins.dict")(a=thing, b=[thing]).b[0] is thing


# ------------------------------------------------------------------------------------------------------- loading


def test_a_file_gives_its_public_configs(zoo):
    config = LazyConfig.load(zoo)
    assert set(config) == {"train", "model", "plain"}
    assert config.train == {"max_iter": 9, "amp": {"enabled": False}}
    assert instantiate(config.model) == 1 and config.model.denominator == 5


def test_names_can_be_asked_for(zoo):
    assert LazyConfig.load(zoo, "number") == 3
    train, hidden = LazyConfig.load(zoo, ("train", "_hidden"))
    assert train.max_iter == 9 and hidden.a == 1 and isinstance(hidden, DictConfig)
    assert LazyConfig.load(zoo, ("number",)) == (3,)


def test_a_name_that_is_not_there_is_refused(zoo):
    with pytest.raises(KeyError, match="defines no 'modle'; did you mean 'model'"):
        LazyConfig.load(zoo, "modle")


def test_every_load_and_import_starts_afresh(zoo, write):
    other = write("tasks/other.py", "from .top import train\nfrom ..common.train import train as fresh\n")
    first = LazyConfig.load(other)
    assert first.train.max_iter == 9 and first.fresh.max_iter == 5
    first.train.amp.enabled = True
    assert LazyConfig.load(other).train.amp.enabled is False


def test_modules_and_packages_and_stars_can_be_imported(zoo, write):
    write("package/__init__.py", "a = dict(x=1)\n")
    write("package/sub.py", "b = dict(x=2)\n")
    path = write(
        "tasks/all.py",
        "from ..common import train as t\nfrom ..package import a, sub\nfrom ..package.sub import *\n"
        "from . import top\n"
        "c = dict(values=[t.train.max_iter, a.x, sub.b.x, b.x, top.number])\n",
    )
    assert LazyConfig.load(path).c["values"] == [5, 1, 2, 2, 3]


def test_imports_inside_functions_are_relative_to_the_file(write):
    write("low.py", "value = dict(x=1)\n")
    path = write("top.py", "def later():\n    from .low import value\n    return value\nresult = later()\n")
    assert LazyConfig.load(path).result.x == 1


def test_other_imports_are_untouched(write):
    path = write(
        "top.py", "import os.path\nfrom collections import OrderedDict as od\na = dict(x=os.path.join('b', 'c'))\n"
    )
    assert LazyConfig.load(path).a.x == "b/c"
    import json.decoder

    assert json.decoder is sys.modules["json.decoder"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("from .gone import x", r"imports \.gone, but .*gone\.py does not exist"),
        ("from ..gone.deep import x", r"imports \.\.gone\.deep"),
        ("from .low import missing", "missing"),
        ("from . import gone", "gone"),
    ],
)
def test_an_import_that_leads_nowhere_is_explained(write, text, message):
    write("low.py", "value = dict(x=1)\n")
    with pytest.raises(ImportError, match=message):
        LazyConfig.load(write("top.py", text))


def test_configs_that_import_each_other_in_a_circle_are_refused(write):
    write("a.py", "from .b import x\n")
    with pytest.raises(ImportError, match=r"circle: .*b\.py -> .*a\.py -> .*b\.py"):
        LazyConfig.load(write("b.py", "from .a import y\nx = dict()\n"))


def test_a_file_of_another_kind_is_refused(write):
    with pytest.raises(ValueError, match=r"should end in \.py or \.yaml"):
        LazyConfig.load(write("a.json", "{}"))


def test_load_rel_starts_at_the_file_that_calls(write):
    write("x/low.py", "value = dict(x=1)\n")
    path = write("top.py", "from detlab.config import LazyConfig\nvalue = LazyConfig.load_rel('x/low.py', 'value')\n")
    assert LazyConfig.load(path).value.x == 1
    with pytest.raises(ValueError, match="is no file"):
        exec(compile("LazyConfig.load_rel('a.py')", "<string>", "exec"))


def test_a_config_file_may_define_dataclasses_and_functions(write):
    path = write(
        "top.py",
        "from __future__ import annotations\nimport dataclasses\nfrom detlab.config import LazyCall as L\n"
        "@dataclasses.dataclass\nclass P:\n    x: int = 1\n"
        "def double(v):\n    return 2 * v\n"
        "doubled = L(double)(v=4)\n",
    )
    assert instantiate(LazyConfig.load(path).doubled) == 8


def test_yaml_is_read_safely(write):
    path = write("a.yaml", "model: {_target_: torch.nn.Flatten, start_dim: '${train.n}'}\ntrain: {n: 3}\n")
    config = LazyConfig.load(path)
    assert instantiate(config.model).start_dim == instantiate(LazyConfig.load(path, "model")).start_dim == 3
    with pytest.raises(ValueError, match="refused"):
        LazyConfig.load(write("b.yaml", "a: !!python/object/apply:os.getcwd []\n"))
    with pytest.raises(ValueError, match="should hold named configs"):
        LazyConfig.load(write("c.yaml", "[1]"))


def test_yaml_bombs_are_refused_by_name(write):
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
    with pytest.raises(ValueError, match=r"laughs\.yaml .* more than \d+ values"):
        LazyConfig.load(write("laughs.yaml", laughs))


@pytest.mark.parametrize("content", [b"x = dict()\0", b"\xff\xfe", b"x = " + b"-" * 200_000 + b"1"])
def test_a_file_that_is_no_python_text_is_refused_by_name(tmp_path, content):
    path = tmp_path / "binary.py"
    path.write_bytes(content)
    outcome = run_limited(LazyConfig.load, str(path))
    assert outcome.is_refusal and "binary.py" in outcome.error


def test_a_folder_is_no_config(tmp_path):
    for name in ("folder.py", "folder.yaml"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=name):
            LazyConfig.load(str(tmp_path / name))


def test_what_a_users_file_registers_does_not_meet_itself(write, monkeypatch):
    monkeypatch.delenv("DETLAB_USER_FILES", raising=False)
    monkeypatch.setattr("sys.path", list(sys.path))
    registry = Registry("PARTS_OF_LAZY_TEST")
    monkeypatch.setattr(sys.modules[__name__], "PARTS", registry, raising=False)
    code = f"from {__name__} import PARTS\n\n@PARTS.register()\nclass Part:\n    pass\n\nx = dict(width=2)\n"
    path = write("my_lazy_parts.py", code)
    (module,) = import_user_modules([path])
    by_name = LazyConfig.load(write("a.py", "from my_lazy_parts import Part\nmodel = dict(part=Part)\n"))
    beside = LazyConfig.load(write("b.py", "from .my_lazy_parts import Part, x\nmodel = dict(part=Part, x=x)\n"))
    assert registry.get("Part") is module.Part is by_name.model.part is beside.model.part
    assert beside.model.x.width == 2 and LazyConfig.load(path).x.width == 2


# -------------------------------------------------------------------------------------------------------- saving


def add(a, b=0):
    return a + b


@dataclasses.dataclass
class Shape:
    width: int = 3


def test_a_saved_config_loads_back_as_the_same_calls(tmp_path, caplog):
    config = OmegaConf.create(
        {
            "model": L(ShapeSpec)(channels=L(torch.nn.Flatten)(start_dim=2), stride=4, width="${.stride}"),
            "more": {"pair": (1, 2), "spec": ShapeSpec(5)},
            "train": {"flag": True, "none": None, "rate": 1e-7, "text": "ünï: x"},
        },
        flags={"allow_objects": True},
    )
    path = str(tmp_path / "saved.yaml")
    LazyConfig.save(config, path)
    loaded = LazyConfig.load(path)
    assert loaded.train == config.train and list(loaded) == ["model", "more", "train"]
    assert loaded.model._target_ == "detlab.layers.shape_spec.ShapeSpec"
    assert OmegaConf.to_container(loaded.model)["width"] == "${.stride}" and loaded.more.pair == [1, 2]
    again = str(tmp_path / "again.yaml")
    LazyConfig.save(loaded, again)
    assert (tmp_path / "saved.yaml").read_text() == (tmp_path / "again.yaml").read_text()
    model = instantiate(loaded.model)
    assert model.channels.start_dim == 2 and model.stride == model.width == 4
    assert instantiate(loaded.more.spec) == ShapeSpec(5)


def test_what_cannot_be_saved_is_named(tmp_path, caplog):
    path = str(tmp_path / "saved.yaml")
    config = L(lambda x: x)(x=object(), items=[1, len], good=2.5)
    with caplog.at_level(logging.WARNING):
        LazyConfig.save(config, path)
    assert "cfg._target_, cfg.x, cfg.items[1]" in caplog.text
    assert read_yaml(path)["good"] == 2.5


def test_saving_what_loads_back_says_nothing(tmp_path, caplog):
    LazyConfig.save({"a": L(dataclasses.replace)(obj=1)}, str(tmp_path / "a.yaml"))
    assert caplog.text == ""


# ---------------------------------------------------------------------------------------------------------- to_py


def test_a_config_reads_as_python():
    config = OmegaConf.create(
        {
            "train": {"n": 3, "name": "x"},
            "model": L("a.b.Net")(sizes=[1, 2], inner=L(dict)(k=None)),
            "not id": {"a b": 1},
        },
        flags={"allow_objects": True},
    )
    assert LazyConfig.to_py(config["train"]) == "cfg.n = 3\ncfg.name = 'x'\n"
    text = LazyConfig.to_py(config.model, prefix="cfg.model.")
    assert text == "cfg.model = a.b.Net(sizes=[1, 2], inner=builtins.dict(k=None))\n"
    assert "{'a b': 1}" in LazyConfig.to_py(config)


def test_a_dataclass_reads_as_the_call_that_makes_it():
    text = LazyConfig.to_py(L("pkg.f")(shape=Shape(4)))
    assert text.startswith("cfg = pkg.f(shape=") and text.endswith("test_lazy.Shape(width=4))\n")


def test_long_calls_are_broken_into_lines():
    config = OmegaConf.create({"net": L("pkg.Net")(first="a" * 60, second=["b" * 60], third=1)})
    assert LazyConfig.to_py(config) == (
        f"cfg.net = pkg.Net(\n    first='{'a' * 60}',\n    second=['{'b' * 60}'],\n    third=1,\n)\n"
    )


# ------------------------------------------------------------------------------------------------------ overrides


@pytest.fixture
def config():
    return OmegaConf.create(
        {"train": {"n": 3, "name": "x", "amp": {"on": False}}, "model": L(add)(a=1), "items": [L(add)(a=1), 2]},
        flags={"allow_objects": True},
    )


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("train.n=4", "train.n", 4),
        ("train.n=1e-3", "train.n", 1e-3),
        ("train.n=null", "train.n", None),
        ("train.name=a=b c", "train.name", "a=b c"),
        ("train.name=", "train.name", ""),
        ("train.name='4'", "train.name", "4"),
        ("train.name=[1,2]", "train.name", [1, 2]),
        ("train.name=(1, 2.5)", "train.name", (1, 2.5)),
        ("train.name=(odd", "train.name", "(odd"),
        ("train.name={a: 1}", "train.name", {"a": 1}),
        ("train.name=s3://a:b", "train.name", "s3://a:b"),
        ("train.amp.on=true", "train.amp.on", True),
        ("model.b=2", "model.b", 2),
        ("model._target_=math.hypot", "model._target_", "math.hypot"),
        ("items.0.b=7", "items[0].b", 7),
        ("items.1=7", "items[1]", 7),
        ("+train.new=1", "train.new", 1),
        ("+new.deep.key=1", "new.deep.key", 1),
        ("++train.n=5", "train.n", 5),
    ],
)
def test_an_override_sets_a_value(config, override, key, value):
    assert LazyConfig.apply_overrides(config, [override]) is config
    found = OmegaConf.select(config, key)
    # Before omegaconf 2.4 a tuple becomes a list.
    assert (tuple(found) if isinstance(value, tuple) else found) == value


def test_overrides_are_made_in_order_and_can_remove(config):
    LazyConfig.apply_overrides(config, ["train.n=1", "train.n=2", "~train.name", "~items.1"])
    assert config.train == {"n": 2, "amp": {"on": False}} and len(config["items"]) == 1


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.nn=1", r"unknown config key 'train\.nn'; did you mean 'train\.n'.*write \+train\.nn=1"),
        ("trian.n=1", r"unknown config key 'trian\.n'; did you mean 'train\.n'"),
        ("model.c=1", r"unknown config key 'model\.c'"),
        ("~train.gone", r"unknown config key 'train\.gone'"),
        ("items.5=1", r"unknown config key 'items\.5'"),
        ("train.n.deeper=1", "train.n is the value 3, no section"),
    ],
)
def test_an_override_of_an_unknown_key_is_refused(config, override, message):
    with pytest.raises(KeyError, match=message):
        LazyConfig.apply_overrides(config, [override])


@pytest.mark.parametrize("override", ["train.n", "~train.n=1", "=1", "train n=1", ""])
def test_what_is_no_override_is_refused(config, override):
    with pytest.raises(ValueError, match="cannot read the override"):
        LazyConfig.apply_overrides(config, [override])


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "[" * 5000, "'" * 99_999, "${oc.env:HOME", "!!python/x", "&a [*a]", "\0"],
    ids=["digits", "brackets", "quotes", "reference", "tag", "itself", "nul"],
)
def test_a_value_that_cannot_be_read_is_refused_in_a_short_sentence(config, value):
    with pytest.raises(ValueError, match="cannot read the override") as caught:
        LazyConfig.apply_overrides(config, [f"train.n={value}"])
    assert type(caught.value) is ValueError and len(str(caught.value)) < 500


@pytest.mark.parametrize("index", ["9" * 5000, "²"])
def test_an_index_that_is_none_is_an_unknown_key(config, index):
    with pytest.raises(KeyError, match="unknown config key") as caught:
        LazyConfig.apply_overrides(config, [f"items.{index}=1"])
    assert len(str(caught.value)) < 1000


def test_a_text_that_spells_an_impossible_literal_stays_text(config):
    LazyConfig.apply_overrides(config, ["train.name=({[1]: 2})"])
    assert config.train.name == "({[1]: 2})"


def test_a_dictionary_without_spaces_after_colons_is_refused(config):
    with pytest.raises(ValueError, match="space after each colon"):
        LazyConfig.apply_overrides(config, ["train.name={a:1}"])


def test_a_target_that_takes_anything_takes_any_key(config):
    config.model._target_ = "builtins.dict"
    LazyConfig.apply_overrides(config, ["model.whatever=1"])
    assert config.model.whatever == 1
