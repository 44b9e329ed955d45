"""Seeds reach every generator; the user's set-up module runs."""

import random

import numpy as np
import pytest
import torch

from detlab.utils.env import ENV_MODULE_VARIABLE, seed_all_rng, setup_custom_environment, setup_environment


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_a_seed_fixes_all_generators():
    seed_all_rng(7)
    first = draw()
    seed_all_rng(7)
    assert draw() == first
    seed_all_rng(8)
    assert all(a != b for a, b in zip(draw(), first))


def test_without_a_seed_runs_differ():
    seed_all_rng()
    first = draw()
    seed_all_rng()
    assert draw() != first


def test_seeds_beyond_numpys_range_work():
    seed_all_rng(2**40 + 3)


def test_the_users_module_sets_the_process_up(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    file = tmp_path / "my_env.py"
    file.write_text(f"def setup_environment():\n    open({str(marker)!r}, 'a').write('x')\n")
    monkeypatch.setenv(ENV_MODULE_VARIABLE, str(file))
    setup_environment.cache_clear()
    setup_environment()
    setup_environment()
    assert marker.read_text() == "x"


def test_a_module_without_the_function_is_refused(tmp_path):
    file = tmp_path / "empty_env.py"
    file.write_text("")
    with pytest.raises(AttributeError, match=r"setup_environment\(\)"):
        setup_custom_environment(str(file))
