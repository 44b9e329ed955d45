"""Files appear whole or not at all; prefixes lead elsewhere."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from detlab.utils import file_io
from detlab.utils.file_io import (
    AppendedText,
    PathHandler,
    PathManager,
    RedirectHandler,
    is_running,
    locked,
    open_bytes,
    open_text,
    read_json,
    read_text,
    write_atomically,
    write_json,
)
from tests.limits import run_limited

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


def test_text_and_json_are_read_from_addresses_whose_handler_can_only_fetch(tmp_path, monkeypatch):
    class Fetches(PathHandler):
        def _get_supported_prefixes(self):
            return ["far://"]

        def _get_local_path(self, path, force=False, **kwargs):
            return str(tmp_path / path[len("far://") :])

        def _open(self, path, mode="r", buffering=-1, **kwargs):
            return open(self._get_local_path(path), mode)

    manager = type(PathManager)()
    monkeypatch.setattr(file_io, "PathManager", manager)
    manager.register_handler(Fetches())
    (tmp_path / "a.json").write_text("[1]")
    assert read_json("far://a.json") == [1] and read_text("far://a.json") == "[1]"
    with pytest.raises(FileNotFoundError, match=r"far://b\.json does not exist"):
        read_text("far://b.json")


def test_the_reference_prefix_is_known():
    handler = PathManager._PathManager__get_path_handler("detectron2://x/model.pkl")
    assert handler._resolve("detectron2://x/model.pkl") == "https://dl.fbaipublicfiles.com/detectron2/x/model.pkl"


def test_two_writers_at_a_time_leave_the_whole_file_of_the_last(tmp_path):
    path = tmp_path / "file"
    with write_atomically(str(path)) as first:
        first.write(b"first, " * 1000)
        with write_atomically(str(path)) as second:
            second.write(b"second, " * 1000)
        assert path.read_bytes() == b"second, " * 1000
    assert path.read_bytes() == b"first, " * 1000 and os.listdir(tmp_path) == ["file"]


def test_what_a_writer_that_runs_is_writing_is_left_alone(tmp_path):
    path = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", WRITE_SLOWLY, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        with write_atomically(str(path), "w") as file:
            file.write("new")
        assert len(os.listdir(tmp_path)) == 2 and path.read_text() == "new"
        writer.send_signal(signal.SIGKILL)


def test_a_process_that_has_ended_does_not_run():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert is_running(os.getpid()) and not is_running(process.pid)


def test_json_is_written_and_read(tmp_path):
    path = str(tmp_path / "new" / "a.json")
    write_json(path, {"name": "é", "values": [1, 2.5]})
    assert read_json(path) == {"name": "é", "values": [1, 2.5]}
    with open(path, "rb") as stream:
        assert stream.read() == b'{"name":"\\u00e9","values":[1,2.5]}'


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert read_json(path) == [1] and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_every_encoding_that_its_standard_knew(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "Käfer"}, ensure_ascii=False), encoding=encoding)
    assert read_json(str(path)) == {"name": "Käfer"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[1, 2", "is not valid json"),
        (b"\xff\xfe\xff", "is not valid json"),
        (b"[" * 200_000, "too deeply"),
        (b"1" * 10_000, "is not valid json"),
    ],
)
def test_json_that_cannot_be_read_names_its_file(tmp_path, content, complaint):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"the annotation file .*a.json.*{complaint}"):
        read_json(str(path), "annotation file")


def test_text_that_is_not_utf8_names_its_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("Käfer".encode("latin-1"))
    with pytest.raises(ValueError, match=r"the list .*names\.txt is not text in UTF-8"):
        read_text(str(path), "list")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = str(tmp_path / "a.txt")
    with open_text(path, "w") as stream:
        stream.write("\ufeffKäfer")
    with open_text(path, "a") as stream:
        stream.write("\nFliege")
    assert read_text(path) == "Käfer\nFliege"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is no file but a folder, pipe or device"):
        read_json(str(tmp_path / "pipe.json"))


def test_written_files_can_be_read_by_others_as_the_umask_says(tmp_path):
    previous = os.umask(0o022)
    try:
        write_json(str(tmp_path / "a.json"), [])
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(tmp_path / "a.json").st_mode) == 0o644


def test_a_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with locked(str(tmp_path / "deep" / "x")):
            assert (tmp_path / "deep").is_dir()


def test_a_folder_or_pipe_in_place_of_a_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        path = str(tmp_path / name)
        with (
            pytest.raises(ValueError, match=rf"{name} shall be written as a file.*move it away"),
            write_atomically(path),
        ):
            pytest.fail("it was opened")
        with pytest.raises(ValueError, match=rf"{name} shall be written as a file.*move it away"):
            AppendedText(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def read_pipe(read, path):
    os.mkfifo(path)
    read(path)


@pytest.mark.parametrize("read", [open_bytes, open_text, read_text, read_json])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    outcome = run_limited(read_pipe, read, str(tmp_path / "pipe"), seconds=10)
    assert outcome.error.startswith("ValueError") and "pipe is no file but a folder, pipe or device" in outcome.error


def test_bytes_are_read_and_what_is_missing_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\0")
    with open_bytes(str(tmp_path / "a")) as stream:
        assert stream.read() == b"\xff\0"
    with pytest.raises(FileNotFoundError, match="gone"):
        open_bytes(str(tmp_path / "gone"))
