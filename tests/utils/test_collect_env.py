"""The report names what a bug report needs, whatever is broken."""

import torch

from detlab.utils import collect_env


def test_the_report_names_versions_devices_and_variables(monkeypatch):
    monkeypatch.setenv("DETLAB_SOMETHING", "set-by-the-test")
    report = collect_env.collect_env_info()
    for expected in [torch.__version__, "torchvision", "Pillow", "Python", "GPU available", "set-by-the-test"]:
        assert expected in report
    assert "operators" in report


def test_a_part_that_cannot_report_does_not_end_the_report(monkeypatch):
    monkeypatch.setitem(collect_env.REPORTS, "operators", "no_such_package.report")
    assert "no_such_package.report failed: ImportError" in collect_env.collect_env_info().replace("\n", " ")


def test_a_library_without_a_toolkit_is_still_named(tmp_path):
    assert "ops.so" in collect_env.detect_compute_compatibility(str(tmp_path), "ops.so")


def test_architectures_are_read_from_the_toolkits_listing(tmp_path):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "cuobjdump"
    tool.write_text(
        "#!/bin/sh\necho 'ELF file 1: a.sm_80.cubin'\necho 'ELF file 2: a.sm_90a.cubin'\necho 'b.sm_120.cubin'\n"
    )
    tool.chmod(0o755)
    assert collect_env.detect_compute_compatibility(str(tmp_path), "ops.so") == "8.0, 9.0, 12.0"


def test_the_users_module_is_reported(monkeypatch):
    monkeypatch.setenv("DETLAB_ENV_MODULE", "mine.py")
    assert collect_env.get_env_module() == ("DETLAB_ENV_MODULE", "mine.py")
    monkeypatch.delenv("DETLAB_ENV_MODULE")
    assert collect_env.get_env_module()[1] == "<not set>"
