"""How threads wait: programs say so before torch is imported, where the user has not; the library leaves it alone."""

import os
import subprocess
import sys

import pytest

from detlab.utils.threads import children_wait_asleep, wait_asleep

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TOOLS = (
    "train_net", "plain_train_net", "lazyconfig_train_net", "benchmark", "benchmark_ops", "visualize_data",
    "visualize_json_results",
)  # fmt: skip

# Runs a program up to the point where it imports torch, and says what OpenMP would find then.
UNTIL_TORCH = """
import os, runpy, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch finds", os.environ.get("OMP_WAIT_POLICY"))
            sys.exit()

sys.meta_path.insert(0, Stop())
sys.path.insert(0, os.path.dirname(sys.argv[1]))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch):
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def policy_of(project_root, tool, **settings):
    environment = {**os.environ, "PYTHONPATH": str(project_root), **settings}
    command = [sys.executable, "-c", UNTIL_TORCH, str(project_root / "tools" / f"{tool}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().removeprefix("torch finds ")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_program_sets_the_policy_before_it_imports_torch(project_root, tool):
    assert policy_of(project_root, tool) == "PASSIVE"


def test_every_program_is_among_these(project_root):
    assert {path.stem for path in (project_root / "tools").glob("*.py")} == set(TOOLS)


@pytest.mark.parametrize(
    ("setting", "value", "policy"),
    [("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE"), ("GOMP_SPINCOUNT", "1000", "None"), ("KMP_BLOCKTIME", "200", "None")],
)
def test_what_the_user_has_set_wins(project_root, setting, value, policy):
    assert policy_of(project_root, "train_net", **{setting: value}) == policy


def test_the_call_says_whether_it_has_set_something():
    assert wait_asleep() is True
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert wait_asleep() is False


def test_children_get_the_policy_and_this_process_keeps_its_environment():
    with children_wait_asleep():
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ


def test_children_get_what_the_user_has_set(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with children_wait_asleep():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_library_leaves_the_environment_alone(project_root):
    code = "import os, detlab.engine.launch, detlab.modeling; print(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
