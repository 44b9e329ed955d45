"""A lazy config in yaml may name parts, and refer to values; it cannot run anything, nor grow without bounds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detlab.config.instantiate import instantiate
from detlab.config.lazy import LazyConfig
from detlab.utils import user_modules
from detlab.utils.registry import Registry, qualified_name
from detlab.utils.user_modules import import_user_modules
from tests.limits import MEBIBYTE, run_limited

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/COCO-*/*.py"))


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


@pytest.fixture(autouse=True)
def no_user_modules(monkeypatch):
    monkeypatch.delenv("DETLAB_USER_FILES", raising=False)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr(user_modules, "_imported", set())
    monkeypatch.setattr(user_modules, "_stems", set())


# ------------------------------------------------------------------------------------------------------- targets

SHELL = "command: touch pwned"
TARGETS = {
    "a function of the system": f"model: {{_target_: os.system, {SHELL}}}",
    "one below a list": f"model: [1, {{a: {{_target_: os.system, {SHELL}}}}}]",
    "one that stands in the place of another": f"model: {{_target_: {{_target_: os.system, {SHELL}}}}}",
    "a name put together": f"a: os\nmodel: {{_target_: '${{a}}.system', {SHELL}}}",
    "a name from another place": f"a: os.system\nmodel: {{_target_: '${{a}}', {SHELL}}}",
    "a dictionary in a reference": "model: '${oc.select:none,{_target_:os.system,command:touch pwned}}'",
    "a dictionary made by a resolver": "model: \"${oc.create:{_target_: os.system, command: 'touch pwned'}}\"",
    "a text decoded by a resolver": "model: \"${oc.decode:'{_target_: os.system, command: touch pwned}'}\"",
    "a way through what a part has imported": f"model: {{_target_: detlab.data.build.torch.os.system, {SHELL}}}",
    "a way through what a file of torch has imported": f"model: {{_target_: torch.nn.modules.module.os, {SHELL}}}",
    "a loader of torch": "model: {_target_: torch.hub.load, repo_or_dir: x, model: x}",
    "a function of torch.nn": "model: {_target_: torch.nn.init.uniform_, tensor: 1}",
    "a writer of files": "model: {_target_: detlab.utils.file_io.write_json, path: pwned, content: 1}",
    "a finder of names": "model: {_target_: detlab.utils.registry.locate, name: os.system}",
    "a reader of Python configs": "model: {_target_: detlab.config.lazy.LazyConfig.load, filename: x.py}",
    "an importer": "model: {_target_: detlab.utils.user_modules.import_user_modules, names: [x.py]}",
    "a starter of processes": "model: {_target_: detlab.engine.launch.launch, main_func: x}",
    "a private function": "model: {_target_: detlab.layers._ops_build.subprocess.run, args: [touch, pwned]}",
    "a method of an instance": "model: {_target_: detlab.modeling.backbone.build.BACKBONE_REGISTRY.get, name: x}",
    "a method that every class has": "model: {_target_: torch.nn.Linear.__subclasses__}",
    "a number": "model: {_target_: 3}",
    "no name": "model: {_target_: '..'}",
}


def load_and_build(path):
    os.chdir(os.path.dirname(path))
    instantiate(LazyConfig.load(path).model)


@pytest.mark.parametrize("text", TARGETS.values(), ids=TARGETS)
def test_a_yaml_file_can_run_nothing(write, tmp_path, text):
    path = write("evil.yaml", text)
    outcome = run_limited(load_and_build, path)
    assert outcome.error.startswith("ValueError") and "evil.yaml is refused: model" in outcome.error, outcome
    assert os.listdir(tmp_path) == ["evil.yaml"] and len(outcome.error) < 600


def test_a_module_beside_the_file_is_not_imported_for_a_name_in_it(write, tmp_path, monkeypatch):
    write("innocent.py", "open('pwned', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"model\._target_ names 'innocent\.Net'.*--import FILE_OR_MODULE.*in Python"):
        LazyConfig.load(write("evil.yaml", "model: {_target_: innocent.Net}"))
    assert "pwned" not in os.listdir(tmp_path)


def test_the_tool_refuses_a_yaml_config_that_would_run_code(write, tmp_path):
    nodes = "".join(f"{name}: {{_target_: os.system, {SHELL}}}\n" for name in ("model", "optimizer", "lr_multiplier"))
    path = write("evil.yaml", f"{nodes}dataloader: {{}}\ntrain: {{device: cpu, output_dir: {tmp_path}/out}}\n")
    tool = ROOT / "tools" / "lazyconfig_train_net.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--config-file", path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0 and "names 'os.system'" in done.stderr
    assert os.listdir(tmp_path) == ["evil.yaml"]


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_what_a_run_of_a_shipped_config_saves_can_be_loaded(tmp_path, config):
    saved = str(tmp_path / "config.yaml")
    LazyConfig.save(LazyConfig.load(str(config)), saved)
    assert LazyConfig.to_py(LazyConfig.load(saved)).count("detlab.modeling") > 5


def test_parts_of_the_user_can_be_named_once_their_module_is_imported(write):
    parts = write(
        "my_yaml_parts.py", "from os import system\n\nclass Net:\n    pass\n\ndef make():\n    return Net()\n"
    )
    text = "model: {_target_: my_yaml_parts.Net}\nother: {_target_: my_yaml_parts.make}\n"
    with pytest.raises(ValueError, match=r"names 'my_yaml_parts\.Net'"):
        LazyConfig.load(write("a.yaml", text))
    (module,) = import_user_modules([parts])
    config = LazyConfig.load(write("a.yaml", text))
    assert type(instantiate(config.model)) is type(instantiate(config.other)) is module.Net
    with pytest.raises(ValueError, match=r"names 'my_yaml_parts\.system'"):
        LazyConfig.load(write("b.yaml", "model: {_target_: my_yaml_parts.system}"))


def test_a_config_that_a_run_of_the_users_parts_saved_can_be_loaded_in_another_process(write, tmp_path):
    parts = write("my_saved_parts.py", "class Net:\n    pass\n")
    config = write(
        "config.py",
        "from detlab.config import LazyCall as L\nfrom my_saved_parts import Net\nmodel = L(Net)()\n",
    )
    run = (
        "import sys\nfrom detlab.config import LazyConfig, instantiate\n"
        "from detlab.utils.user_modules import import_user_modules\n"
        "import_user_modules([sys.argv[1]])\nconfig = LazyConfig.load(sys.argv[2])\n"
        "print(type(instantiate(config.model)).__name__)\nLazyConfig.save(config, sys.argv[3])\n"
    )
    saved = str(tmp_path / "saved.yaml")
    for source in (config, saved):
        command = [sys.executable, "-c", run, parts, source, saved]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout == "Net\n", done.stderr


def test_what_is_registered_can_be_named(write):
    registry = Registry("PARTS_OF_LAZY_YAML_TEST")
    name = qualified_name(Registered)
    path = write("a.yaml", f"model: {{_target_: {name}}}")
    with pytest.raises(ValueError, match=re.escape(name)):
        LazyConfig.load(path)
    registry.register(Registered)
    assert isinstance(instantiate(LazyConfig.load(path).model), Registered)


class Registered:
    pass


def test_a_part_that_does_not_exist_is_named(write):
    with pytest.raises(ValueError, match=r"a\.yaml is refused: model\._target_: cannot find 'detlab\.modeling\.gone"):
        LazyConfig.load(write("a.yaml", "model: {_target_: detlab.modeling.gone.Net}"))


# ---------------------------------------------------------------------------------------------------- references


def chain(count, value, last="x"):
    return "\n".join(f"k{i}: {value.format(f'k{i + 1}')}" for i in range(count)) + f"\nk{count}: {last}"


BOMBS = {
    "texts of texts": chain(40, '"${{{0}}}${{{0}}}"'),
    "lists of lists": chain(40, '["${{{0}}}", "${{{0}}}"]'),
    "dictionaries of dictionaries": chain(40, '{{a: "${{{0}}}", b: "${{{0}}}"}}'),
    "doubled by a resolver": chain(40, '["${{oc.select:{0}}}", "${{oc.dict.values:{0}}}"]'),
    "long texts": f"k: {'x' * 100_000}\na: '{'${k}' * 50}'",
    "a long chain": chain(3000, '"${{{0}}}"'),
    "itself": "a: ${a}",
    "itself by a circle": "a: ${b}\nb: ${a}",
    "itself by what is in it": "a: {b: '${a}'}",
    "itself on the way": "a: ${a.b}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_references_that_grow_without_bounds_are_refused(write, text):
    path = write("bomb.yaml", text)
    outcome = run_limited(LazyConfig.load, path, seconds=20, more_bytes=64 * MEBIBYTE + 10 * len(text))
    assert outcome.error.startswith("ValueError") and "bomb.yaml is refused" in outcome.error, outcome
    assert len(outcome.error) < 500


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "x${oc.env:HOME}",
        "${ oc.env : HOME }",
        "${oc.env:HOME,x}",
        "${mine:1}",
        "${a${b}}",
        "${",
        "${}",
    ],
)
def test_a_reference_that_calls_a_function_is_refused(write, text):
    with pytest.raises(ValueError, match=r"a\.b is .*in yaml a reference is \$\{a\.key\}"):
        LazyConfig.load(write("a.yaml", f"a: {{b: '{text}'}}"))


def test_references_between_values_are_kept(write):
    path = write(
        "a.yaml",
        "a: {b: 3, c: '${.b}', d: '${a.b}', e: {f: '${..b}', g: [1, '${a.e.f}']}}\n"
        "h: '${a.e}'\ni: '${h.g[1]}'\nj: 'x${a.b}y${oc.select:none, 5}'\nk: '${oc.dict.keys:a.e}'\n",
    )
    config = LazyConfig.load(path)
    assert config.a.c == config.a.d == config.a.e.f == config.a.e.g[1] == config.i == 3
    assert config.j == "x3y5" and list(config.k) == ["f", "g"]
