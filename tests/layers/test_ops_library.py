"""Which library is loaded, when one is compiled, and what is said if neither is possible."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from detlab.layers import _ops, _ops_build, _ops_library, _ops_plain
from detlab.utils import collect_env
from tests.layers.pretend import SOME_LIBRARY, Compiler, pretend_torch
from tests.test_architecture import MODULES

COMPILE = """
import sys
from pathlib import Path
from detlab.layers import _ops_build, _ops_library
_ops_build.find_torch = lambda: Path(sys.argv[1])
_ops_library._compile_once("cpu", Path(sys.argv[2]))
"""
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from detlab.layers import _ops_library
import torch
print(_ops_library._part.cache_info().currsize, len(torch.ops.loaded_libraries))
"""


class Machine:
    """An installation of detlab without a library, a compiler, and a record of what is loaded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers, self.cache, self.loaded = folder / "detlab" / "layers", folder / "cache", []
        self.compiler = Compiler(folder / "bin" / "g++")
        self.layers.mkdir(parents=True)
        self.torch = pretend_torch(folder / "torch", monkeypatch)
        self._monkeypatch = monkeypatch
        # The library of the wheel is looked for beside this file.
        monkeypatch.setattr(_ops_library, "__file__", str(self.layers / "_ops_library.py"))
        monkeypatch.setattr(torch.ops, "load_library", self.load_library)
        monkeypatch.setenv("DETLAB_CACHE", str(self.cache))
        monkeypatch.setenv("CXX", str(self.compiler.path))
        monkeypatch.setenv("CUDA_HOME", "/nowhere")
        monkeypatch.delenv("DETLAB_OPS", raising=False)

    def load_library(self, path: str) -> None:
        if Path(path) in self.broken:
            raise OSError(f"Could not load this library: {path}") from OSError("GLIBC_9.99 not found")
        self.loaded.append(Path(path))

    broken: tuple[Path, ...] = ()

    def prebuilt(self, part: str = "cpu", content: bytes | None = None) -> Path:
        path = self.layers / _ops_build.library_name(part)
        path.write_bytes(SOME_LIBRARY.read_bytes() if content is None else content)
        return path

    def no_compiler(self) -> None:
        self._monkeypatch.setenv("CXX", "none")

    def failing_compiler(self) -> None:
        failing = Compiler(self.compiler.path, action='echo "nms.cpp:7: error: gone wrong" >&2; exit 1')
        self._monkeypatch.setenv("CXX", str(failing.path))

    def new_process(self) -> None:
        _ops_library._part.cache_clear()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    # What this process has loaded stays loaded; only the memory of it is put aside.
    _ops_library._part.cache_clear()
    yield Machine(tmp_path, monkeypatch)
    _ops_library._part.cache_clear()


class TestThePrebuiltLibrary:
    def test_is_taken_and_nothing_is_compiled(self, machine):
        path = machine.prebuilt()
        assert _ops_library.serves("cpu")
        assert machine.loaded == [path]
        assert machine.compiler.commands == []
        assert _ops.report().startswith(f"CPU: compiled, {path}, prebuilt")
        assert _ops.backend() == "compiled"

    def test_is_not_taken_if_it_was_built_from_other_sources(self, machine):
        machine.no_compiler()
        machine.prebuilt().rename(machine.layers / "libdetlab_cpu-000000000000.so")
        assert not _ops_library.serves("cpu")
        assert "there is no prebuilt library of these sources" in _ops.report()

    @pytest.mark.parametrize("content", [b"", b"no library", SOME_LIBRARY.read_bytes()[:5000]])
    def test_is_not_touched_if_it_is_damaged(self, machine, content):
        machine.no_compiler()
        path = machine.prebuilt(content=content)
        assert not _ops_library.serves("cpu")
        assert machine.loaded == []
        assert f"{path} is damaged or cannot be read, and none can be compiled: CXX is 'none'" in _ops.report()

    def test_makes_room_for_one_compiled_here_if_it_does_not_load(self, machine):
        path = machine.prebuilt()
        machine.broken = (path,)
        assert _ops_library.serves("cpu")
        assert machine.loaded[0].is_relative_to(machine.cache)
        assert f"as {path} does not load: GLIBC_9.99 not found" in _ops.report()

    def test_is_there_wherever_it_can_be_built(self):
        """In CI the operators under test are those of the install, not what stands in for them."""
        if os.environ.get("CI", "").lower() not in ("1", "true"):
            pytest.skip("an install of one's own may be without them")
        assert _ops.backend() == "compiled", _ops.report()


class TestTheFirstUse:
    def test_compiles_once_and_says_so_in_one_line(self, machine, caplog):
        assert _ops_library.serves("cpu")
        (library,) = machine.loaded
        assert library.is_relative_to(machine.cache)
        assert _ops_build.is_whole(library)
        (message,) = caplog.messages
        assert message.startswith("detlab compiles its CPU operators with pretended compiler 1.0, once, to")
        machine.new_process()
        assert _ops_library.serves("cpu")
        assert len(machine.compiler.linked) == len(caplog.messages) == 1
        assert f"{library}, compiled here, as there is no prebuilt library of these sources" in _ops.report()

    def test_needs_no_compiler_where_one_was_before(self, machine):
        assert _ops_library.serves("cpu")
        machine.no_compiler()
        machine.new_process()
        assert _ops_library.serves("cpu")

    def test_of_one_device_leaves_the_other_alone(self, machine, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("the GPU was asked for"))
        assert _ops_library.serves("cpu")
        assert not _ops_library.serves("mps")

    def test_with_a_compiler_that_fails_gives_its_words_and_torchvisions_operators(self, machine, caplog):
        machine.failing_compiler()
        assert not _ops_library.serves("cpu")
        assert not _ops_library.serves("cpu")
        _, warning = caplog.messages
        assert warning.startswith("detlab uses torchvision's operators for CPU, which are slower: ")
        assert "and none can be compiled: g++ failed: nms.cpp:7: error: gone wrong" in warning
        assert _ops.backend() == "torchvision"

    def test_compiles_anew_what_was_damaged(self, machine):
        _ops_library.serves("cpu")
        (library,) = machine.loaded
        library.write_bytes(library.read_bytes()[:5000])
        machine.new_process()
        assert _ops_library.serves("cpu")
        assert _ops_build.is_whole(library)
        assert len(machine.compiler.linked) == 2

    def test_of_two_at_once_waits_for_the_one_that_compiles(self, machine):
        machine.compiler = Compiler(machine.compiler.path, action="sleep 0.3")
        found = []
        # The lock tells open files apart, not processes: threads stand for them.
        threads = [
            threading.Thread(target=lambda: found.append(_ops_library._compile_once("cpu", machine.cache)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == found[1]
        assert len(machine.compiler.linked) == 1

    def test_is_undisturbed_by_one_that_was_killed_while_it_compiled(self, machine):
        started = Path(machine.cache, "started")
        Compiler(machine.compiler.path, action=f'touch "{started}"; sleep 100')
        arguments = [sys.executable, "-c", COMPILE, str(machine.torch), str(machine.cache)]
        temporary = machine.cache.parent / "temporary"
        temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary)}
        with subprocess.Popen(arguments, env=environment, start_new_session=True, stderr=subprocess.DEVNULL) as process:
            while not started.exists() and process.poll() is None:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert list(machine.cache.rglob(".detlab-build-*"))
        machine.compiler = Compiler(machine.compiler.path)
        assert _ops_library.serves("cpu")
        (library,) = machine.loaded
        assert _ops_build.is_whole(library)
        assert {path.name for path in library.parent.iterdir()} == {library.name, f"{library.stem}.lock"}
        assert list(temporary.iterdir()) == []


class TestTheFolderOfLibraries:
    @pytest.fixture(autouse=True)
    def home(self, machine, tmp_path, monkeypatch):
        monkeypatch.delenv("DETLAB_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        self.home, self.temporary = tmp_path / "home", tmp_path / f"detlab-{os.getuid()}"

    def test_is_in_the_cache_at_home(self, machine):
        assert _ops_library.serves("cpu")
        assert machine.loaded[0].is_relative_to(self.home / ".cache" / "detlab")

    def test_is_a_temporary_one_if_home_cannot_be_written_to(self, machine):
        self.home.touch()  # a file, in which even root can make no folder
        assert _ops_library.serves("cpu")
        assert machine.loaded[0].is_relative_to(self.temporary)
        assert self.temporary.stat().st_mode & 0o777 == 0o700

    def test_is_no_temporary_one_that_others_can_write_to(self, machine):
        self.home.touch()
        self.temporary.mkdir()
        self.temporary.chmod(0o777)
        assert not _ops_library.serves("cpu")
        assert f"{self.temporary} is not this user's alone" in _ops.report()

    def test_is_none_if_nothing_can_be_written_to(self, machine, monkeypatch, tmp_path):
        self.home.touch()
        monkeypatch.setenv("TMPDIR", str(self.home))
        assert not _ops_library.serves("cpu")
        assert str(self.home / f"detlab-{os.getuid()}") in _ops.report()

    def test_is_only_the_one_the_user_names(self, machine, monkeypatch):
        self.home.touch()
        monkeypatch.setenv("DETLAB_CACHE", str(self.home / "named"))
        assert not _ops_library.serves("cpu")
        assert str(self.home / "named") in _ops.report()
        assert not self.temporary.exists()

    def test_may_be_read_only_if_the_library_is_in_it(self, machine, monkeypatch):
        _ops_library.serves("cpu")
        machine.loaded[0].with_suffix(".lock").unlink()
        monkeypatch.setattr(_ops_library, "_locked", lambda path: pytest.fail(f"{path} was locked"))
        machine.new_process()
        assert _ops_library.serves("cpu")


class TestTheChoice:
    def test_of_torchvision_leaves_the_library_alone(self, machine, monkeypatch):
        machine.prebuilt()
        monkeypatch.setenv("DETLAB_OPS", "torchvision")
        assert not _ops_library.serves("cpu")
        assert machine.loaded == []
        assert _ops.report().startswith("CPU: torchvision's, because DETLAB_OPS=torchvision")

    def test_of_the_compiled_ones_fails_without_them(self, machine, monkeypatch):
        machine.no_compiler()
        monkeypatch.setenv("DETLAB_OPS", "compiled")
        with pytest.raises(RuntimeError, match=r"DETLAB_OPS=compiled, but .* for CPU cannot be had: .* CXX is 'none'"):
            _ops_library.serves("cpu")

    def test_of_something_else_names_what_there_is(self, machine, monkeypatch):
        monkeypatch.setenv("DETLAB_OPS", "fast")
        with pytest.raises(ValueError, match="DETLAB_OPS is 'fast'; it may be auto, compiled, torchvision"):
            _ops.backend()


class TestTheCudaPart:
    @pytest.fixture(autouse=True)
    def gpus(self, machine, monkeypatch):
        """Two GPUs, the weaker of capability 8.6."""
        self.capabilities = [(8, 6), (9, 0)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(self.capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: self.capabilities[index])
        self.nvcc = Compiler(machine.layers / "cuda" / "bin" / "nvcc")
        monkeypatch.setenv("CUDA_HOME", str(self.nvcc.path.parent.parent))

    def test_is_loaded_beside_the_other(self, machine):
        both = [machine.prebuilt("cpu"), machine.prebuilt("cuda")]
        assert _ops_library.load().devices == {"cpu", "cuda"}
        assert machine.loaded == both
        assert f"; CUDA: compiled, {both[1]}, prebuilt" in _ops.report()

    def test_is_compiled_for_the_gpus_that_are_there(self, machine):
        assert _ops_library.serves("cuda")
        assert machine.compiler.linked == []
        for code in ("arch=compute_86,code=sm_86", "arch=compute_90,code=sm_90"):
            assert code in self.nvcc.commands[0]

    def test_is_not_taken_prebuilt_for_a_gpu_it_has_no_code_for(self, machine):
        self.capabilities = [(9, 0), (7, 5)]
        path = machine.prebuilt("cuda")
        assert _ops_library.serves("cuda")
        assert path not in machine.loaded
        assert "arch=compute_75,code=sm_75" in self.nvcc.commands[0]
        assert f"as {path} has no code for a GPU of capability 7.5" in _ops.report()

    def test_may_be_missing_without_taking_the_other_along(self, machine, monkeypatch):
        monkeypatch.setenv("CUDA_HOME", "/nowhere")
        machine.prebuilt("cpu")
        assert _ops_library.load().devices == {"cpu"}
        assert "CUDA: torchvision's: " in _ops.report()
        assert "CUDA_HOME is '/nowhere', which has no bin/nvcc" in _ops.report()


def test_without_torchvision_too_the_error_says_what_to_install(machine, monkeypatch):
    machine.no_compiler()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"CXX is 'none'.*install the torchvision made for torch .* C\+\+ compiler"):
        _ops_plain.nms(torch.zeros(1, 4), torch.zeros(1), None, 0.5)


def test_importing_everything_neither_loads_nor_compiles():
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL, *MODULES], capture_output=True, text=True)
    assert result.stdout.split()[:1] == ["0"], result.stderr


def test_the_operators_need_no_package_but_torch():
    """Which is how a broken torchvision, or none, leaves the compiled operators in use."""
    code = """
import sys
for name in ("torchvision", "fvcore", "iopath", "pycocotools", "omegaconf", "tabulate", "termcolor", "PIL"):
    sys.modules[name] = None
from detlab.layers import _ops, roi_align
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", "CPU: compiled, "), ("torchvision", "DETLAB_OPS=torchvision"), ("fast", "DETLAB_OPS is 'fast'")],
)
def test_the_report_on_the_machine_names_the_operators_in_use(machine, monkeypatch, choice, expected):
    machine.prebuilt()
    monkeypatch.setenv("DETLAB_OPS", choice)
    assert expected in collect_env.collect_env_info()
