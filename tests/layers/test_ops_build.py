"""What is compiled, with what, and what a wheel carries of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from detlab.layers import _ops_build
from tests.layers.pretend import SOME_LIBRARY, Compiler, pretend_torch

PACKAGED = ("detlab", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
BUILD = """
import sys
if {hide_torch}:
    sys.modules["torch"] = None
from setuptools import build_meta
print("built", build_meta.build_{kind}("dist"))
"""


class TestWhatStandsInTheWay:
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path, monkeypatch):
        """A machine that has everything; each test takes something away."""
        self.torch = pretend_torch(tmp_path / "torch", monkeypatch)
        Compiler(tmp_path / "bin" / "g++")
        Compiler(tmp_path / "cuda" / "bin" / "nvcc")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        monkeypatch.delenv("CXX", raising=False)

    def test_nothing_where_torch_and_compilers_are(self):
        assert _ops_build.obstacle("cpu") is None
        assert _ops_build.obstacle("cuda") is None

    def test_no_torch(self, monkeypatch):
        monkeypatch.setattr(_ops_build, "find_torch", lambda: None)
        assert _ops_build.obstacle("cpu") == _ops_build.obstacle("cuda") == "torch is not installed"

    def test_torch_without_the_headers_of_the_stable_abi(self):
        shutil.rmtree(self.torch / "include")
        assert "no C++ headers" in _ops_build.obstacle("cpu")

    def test_torch_that_is_too_old(self):
        (self.torch / "version.py").write_text("__version__ = '2.10.3'\n")
        assert _ops_build.obstacle("cpu") == "torch is older than 2.11"

    def test_no_compiler(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        assert _ops_build.obstacle("cpu") == "there is no C++ compiler; install g++ or set CXX"

    def test_cxx_that_is_no_program_though_there_is_another_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "/nowhere/clang++ -m64")
        assert _ops_build.obstacle("cpu") == "CXX is '/nowhere/clang++ -m64', which is no program"

    def test_another_system(self, monkeypatch):
        monkeypatch.setattr("platform.system", lambda: "Darwin")
        assert "Linux only, this is Darwin" in _ops_build.obstacle("cpu")

    def test_torch_without_cuda_stops_only_the_cuda_part(self):
        (self.torch / "lib" / "libtorch_cuda.so").unlink()
        assert _ops_build.obstacle("cpu") is None
        assert _ops_build.obstacle("cuda") == "the installed torch is not one for CUDA"

    def test_no_nvcc_stops_only_the_cuda_part(self, monkeypatch):
        monkeypatch.setenv("CUDA_HOME", "/nowhere")
        assert _ops_build.obstacle("cpu") is None
        assert _ops_build.obstacle("cuda") == "CUDA_HOME is '/nowhere', which has no bin/nvcc"


def test_the_flags_in_cxx_are_used_and_nvcc_gets_the_compiler_behind_a_launcher(tmp_path, monkeypatch):
    pretend_torch(tmp_path / "torch", monkeypatch)
    launcher = tmp_path / "bin" / "ccache"
    compiler = Compiler(tmp_path / "bin" / "g++")
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    nvcc = Compiler(tmp_path / "cuda" / "bin" / "nvcc")
    monkeypatch.setenv("CXX", f"{launcher} {compiler.path} -m64")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    _ops_build.build_cpu(tmp_path / "cpu.so")
    assert all(command.startswith("-m64 ") for command in compiler.commands)
    assert len(compiler.commands) == len(list(_ops_build.CSRC.glob("cpu/*.cpp"))) + 1
    _ops_build.build_cuda(tmp_path / "cuda.so")
    assert all(command.startswith(f"-ccbin {compiler.path} ") for command in nvcc.commands)


def test_a_wheel_has_code_for_sm_80_sm_90_and_later(tmp_path, monkeypatch):
    pretend_torch(tmp_path / "torch", monkeypatch)
    nvcc = Compiler(tmp_path / "cuda" / "bin" / "nvcc")
    monkeypatch.setenv("CXX", str(Compiler(tmp_path / "g++").path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    _ops_build.build_cuda(tmp_path / "cuda.so")
    compiled = [command for command in nvcc.commands if command not in nvcc.linked]
    for code in ("code=sm_80", "code=sm_90", "code=compute_90"):
        assert all(code in command for command in compiled)


def test_what_the_compiler_says_is_in_the_error_and_no_library_is_left(tmp_path, monkeypatch):
    pretend_torch(tmp_path / "torch", monkeypatch)
    compiler = Compiler(
        tmp_path / "g++", action='echo "a.cpp:1: note"; echo "a.cpp:2: error: no such thing" >&2; exit 3'
    )
    monkeypatch.setenv("CXX", str(compiler.path))
    with pytest.raises(_ops_build.BuildError, match=r"^g\+\+ failed: a.cpp:2: error: no such thing$"):
        _ops_build.build_cpu(tmp_path / "out" / "cpu.so")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_new_library_takes_the_place_of_the_old_one_without_writing_into_it(tmp_path, monkeypatch):
    """Into which a process that has it loaded would run."""
    pretend_torch(tmp_path / "torch", monkeypatch)
    monkeypatch.setenv("CXX", str(Compiler(tmp_path / "g++").path))
    target = tmp_path / "cpu.so"
    target.write_bytes(b"old")
    with target.open("rb") as in_use:
        _ops_build.build_cpu(target)
        assert in_use.read() == b"old"
    assert target.read_bytes() == SOME_LIBRARY.read_bytes()
    assert not list(tmp_path.glob(".*"))


BUILD_ONE = """
import sys
from pathlib import Path
from detlab.layers import _ops_build
_ops_build.find_torch = lambda: Path(sys.argv[1])
_ops_build.build_cpu(Path(sys.argv[2]))
"""


def test_a_build_removes_what_a_killed_one_left_but_nothing_of_one_that_goes_on(tmp_path, monkeypatch):
    torch_dir = pretend_torch(tmp_path / "torch", monkeypatch)
    outputs, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    # A compiler leaves files of its own in the temporary folder, and takes for ever where there is no file "quick".
    action = f'touch "$TMPDIR/cc$$"; touch "$TMPDIR/started"; while [ ! -e "{tmp_path}/quick" ]; do sleep 0.05; done'
    compiler = Compiler(tmp_path / "g++", action=action)
    monkeypatch.setenv("CXX", str(compiler.path))
    monkeypatch.setenv("TMPDIR", str(temporary))

    def begin(name: str) -> subprocess.Popen:
        known = set(outputs.glob(".*/started"))
        build = subprocess.Popen(
            [sys.executable, "-c", BUILD_ONE, str(torch_dir), str(outputs / name)], start_new_session=True
        )
        while not set(outputs.glob(".*/started")) - known:
            assert build.poll() is None
            time.sleep(0.02)
        return build

    going_on, killed = begin("a.so"), begin("b.so")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(list(outputs.glob(".*"))) == 2
    (tmp_path / "quick").touch()
    _ops_build.build_cpu(outputs / "b.so")
    assert going_on.wait() == 0
    assert sorted(path.name for path in outputs.iterdir()) == ["a.so", "b.so"]
    assert list(temporary.iterdir()) == []


class TestTheNameOfTheLibrary:
    @pytest.fixture(autouse=True)
    def csrc(self, tmp_path, monkeypatch):
        self.csrc = tmp_path / "csrc"
        shutil.copytree(_ops_build.CSRC, self.csrc)
        before = {part: _ops_build.library_name(part) for part in ("cpu", "cuda")}
        monkeypatch.setattr(_ops_build, "CSRC", self.csrc)
        assert before == {part: _ops_build.library_name(part) for part in ("cpu", "cuda")}
        self.before = before

    def changed(self):
        return {part for part, name in self.before.items() if _ops_build.library_name(part) != name}

    def test_changes_with_a_source_of_its_part(self):
        (self.csrc / "cuda" / "register.cu").write_text("")
        assert self.changed() == {"cuda"}

    def test_changes_with_what_all_parts_include(self):
        (self.csrc / "kernels.h").write_text("")
        assert self.changed() == {"cpu", "cuda"}

    def test_changes_with_a_new_file(self):
        (self.csrc / "cpu" / "more.cpp").write_text("")
        assert self.changed() == {"cpu"}

    def test_changes_with_the_architectures(self, monkeypatch):
        monkeypatch.setitem(_ops_build.FLAGS, "cuda", ["-arch=native"])
        assert self.changed() == {"cuda"}

    def test_stays_with_what_is_no_source(self):
        (self.csrc / "cpu" / "nms.cpp~").write_text("an editor's copy")
        (self.csrc / ".clang-format").write_text("")
        assert self.changed() == set()


def test_a_library_that_was_cut_short_is_told_from_a_whole_one(tmp_path):
    content = SOME_LIBRARY.read_bytes()
    assert _ops_build.is_whole(SOME_LIBRARY)
    assert not _ops_build.is_whole(tmp_path / "missing.so")
    cut = tmp_path / "cut.so"
    for size in (0, 5, 64, 200, 5000, len(content) - 1000):
        cut.write_bytes(content[:size])
        assert not _ops_build.is_whole(cut), size
    cut.write_bytes(bytes(len(content)))
    assert not _ops_build.is_whole(cut)


def built_libraries() -> dict[str, Path]:
    """The libraries beside the sources, made now if they are not there."""
    libraries = {part: _ops_build.CSRC.with_name(_ops_build.library_name(part)) for part in ("cpu", "cuda")}
    for part, build in (("cpu", _ops_build.build_cpu), ("cuda", _ops_build.build_cuda)):
        if not libraries[part].is_file():
            if _ops_build.obstacle(part) is not None:
                del libraries[part]
            else:
                build(libraries[part])
    return libraries


def test_sources_compile_wherever_there_is_a_compiler():
    """An install goes on without what does not compile; here it is an error, with the compiler's words."""
    for part in ("cpu", "cuda"):
        if _ops_build.obstacle(part) is None:
            assert _ops_build.is_whole(built_libraries()[part])


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm, of binutils, lists the symbols")
@pytest.mark.parametrize("part", ["cpu", "cuda"])
def test_the_library_takes_nothing_from_torch_but_the_stable_abi(part):
    """A C++ symbol of torch's own would tie the library to the version of torch it was built against."""
    obstacle = _ops_build.obstacle(part)
    if obstacle is not None:
        pytest.skip(obstacle)
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", built_libraries()[part]], capture_output=True, text=True, check=True
    ).stdout
    taken = [line.split()[-1] for line in listing.splitlines()]
    # Symbols of the system's libraries carry a version; what is left comes from torch, or is weak and may be missing.
    from_torch = [name for name in taken if "@" not in name and not name.startswith(("_ITM_", "__gmon_start__"))]
    assert any(name.startswith("aoti_torch_") for name in from_torch)
    assert [name for name in from_torch if not re.match(r"(aoti_)?torch_[a-z0-9_]+$", name)] == []
    assert [name for name in taken if re.match(r"(GOMP|omp)_", name)] == []


@pytest.fixture
def project(tmp_path, project_root):
    """A copy of what a wheel is made from."""
    folder = tmp_path / "project"
    for name in PACKAGED:
        source = project_root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, folder)
    return folder


def build(project: Path, kind: str = "wheel", hide_torch: bool = False, **environment: object) -> tuple[Path, str]:
    """What pip would run; the file, and all that was said."""
    settings = {"CXX": "none", "CUDA_HOME": "/nowhere", **{name: str(value) for name, value in environment.items()}}
    result = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, hide_torch=hide_torch)],
        cwd=project,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    name = re.search(r"^built (.*)$", result.stdout, re.MULTILINE)[1]
    return project / "dist" / name, result.stdout + result.stderr


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def libraries_in(wheel: Path) -> set[str]:
    return {name for name in contents(wheel) if name.endswith(".so")}


def sources_in_tree() -> set[str]:
    sources = [path for path in _ops_build.CSRC.rglob("*.*") if not path.name.startswith(".")]
    assert {path.suffix for path in sources} >= {".h", ".inl", ".cpp", ".cu", ".cuh"}
    return {f"detlab/layers/csrc/{path.relative_to(_ops_build.CSRC).as_posix()}" for path in sources}


def test_a_wheel_without_torch_has_the_sources_and_is_for_any_platform(project):
    wheel, said = build(project, hide_torch=True, CXX=Compiler(project / "bin" / "g++").path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "operators are not compiled: torch is not installed" in said
    found = contents(wheel)
    assert sources_in_tree() <= set(found)
    assert "detlab/model_zoo/configs/quick_start/shapes_mask_rcnn.yaml" in found
    assert libraries_in(wheel) == set()


def test_a_wheel_without_a_compiler_says_why_it_has_no_library(project):
    wheel, said = build(project, CXX="/nowhere/g++")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "the cpu operators are not compiled: CXX is '/nowhere/g++', which is no program" in said


def test_a_wheel_is_made_even_if_the_compiler_fails_and_its_words_are_shown(project):
    compiler = Compiler(project / "bin" / "g++", action='echo "nms.cpp:7: error: gone wrong" >&2; exit 1')
    wheel, said = build(project, CXX=compiler.path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "warning: detlab: the cpu operators are not compiled: g++ failed: nms.cpp:7: error: gone wrong" in said


def test_a_wheel_with_a_library_names_the_platform_but_no_python(project):
    wheel, said = build(project, CXX=Compiler(project / "bin" / "g++").path)
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    assert libraries_in(wheel) == {f"detlab/layers/{_ops_build.library_name('cpu')}"}
    assert "the cuda operators are not compiled: CUDA_HOME is '/nowhere', which has no bin/nvcc" in said
    metadata = next(text for name, text in contents(wheel).items() if name.endswith("/WHEEL"))
    assert b"Root-Is-Purelib: false" in metadata


def test_a_wheel_made_with_nvcc_has_both_parts(project):
    if _ops_build.obstacle("cuda") == "the installed torch is not one for CUDA":
        pytest.skip("the installed torch is not one for CUDA")
    nvcc = Compiler(project / "cuda" / "bin" / "nvcc")
    wheel, _ = build(project, CXX=Compiler(project / "bin" / "g++").path, CUDA_HOME=nvcc.path.parent.parent)
    assert libraries_in(wheel) == {f"detlab/layers/{_ops_build.library_name(part)}" for part in ("cpu", "cuda")}


def test_what_an_earlier_build_left_does_not_travel_along(project):
    layers = project / "build" / "lib" / "detlab" / "layers"
    (layers / "csrc" / "cpu").mkdir(parents=True)
    for outdated in ("libdetlab_cpu-000000000000.so", "csrc/cpu/outdated.cpp", "outdated.py"):
        (layers / outdated).touch()
    first, _ = build(project, CXX=Compiler(project / "bin" / "g++").path)
    assert not [name for name in contents(first) if "outdated" in name or "000000000000" in name]
    assert len(libraries_in(first)) == 1
    second, _ = build(project, hide_torch=True)
    assert second.name.endswith("-py3-none-any.whl")
    assert libraries_in(second) == set()


def test_a_wheel_from_the_source_distribution_equals_one_from_the_tree(project, tmp_path):
    from_tree, _ = build(project)
    archive, _ = build(project, kind="sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    from_archive, _ = build(unpacked)
    assert contents(from_archive) == contents(from_tree)
    assert sources_in_tree() <= set(contents(from_archive))
