"""Files appear whole or not at all; prefixes lead elsewhere."""

import os
import signal
import subprocess
import sys

import pytest

from detlab.utils import file_io
from detlab.utils.file_io import PathManager, RedirectHandler, write_atomically

WRITE_SLOWLY = """
import sys, time
from detlab.utils.file_io import write_atomically
with write_atomically(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_written_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with write_atomically(str(path), "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), write_atomically(str(path)) as file:
        file.write(b"half")
        raise RuntimeError("disk")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with subprocess.Popen([sys.executable, "-c", WRITE_SLOWLY, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    with write_atomically(str(path), "w") as file:
        file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_a_prefix_is_read_from_another_place(tmp_path, monkeypatch):
    manager = type(PathManager)()
    monkeypatch.setattr(file_io, "PathManager", manager)
    manager.register_handler(RedirectHandler("zoo://", f"{tmp_path}/"))
    (tmp_path / "weights.pkl").write_text("content")
    assert manager.exists("zoo://weights.pkl") and not manager.exists("zoo://other.pkl")
    assert manager.isfile("zoo://weights.pkl")
    assert manager.get_local_path("zoo://weights.pkl") == f"{tmp_path}/weights.pkl"
    with manager.open("zoo://weights.pkl") as file:
        assert file.read() == "content"


def test_the_reference_prefix_is_known():
    handler = PathManager._PathManager__get_path_handler("detectron2://x/model.pkl")
    assert handler._resolve("detectron2://x/model.pkl") == "https://dl.fbaipublicfiles.com/detectron2/x/model.pkl"
