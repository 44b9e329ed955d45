import gc
import os
import stat

import pytest

from detlab.data.datasets.disk import locked, no_garbage_collection, read_json, write_json, written_whole


def test_json_is_written_and_read(tmp_path):
    path = str(tmp_path / "new" / "a.json")
    write_json(path, {"name": "é", "values": [1, 2.5]})
    assert read_json(path) == {"name": "é", "values": [1, 2.5]}
    with open(path, "rb") as stream:
        assert stream.read() == b'{"name":"\\u00e9","values":[1,2.5]}'


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    with pytest.raises(KeyboardInterrupt), written_whole(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert read_json(path) == [1] and os.listdir(tmp_path) == ["a.json"]


def test_written_files_can_be_read_by_others_as_the_umask_says(tmp_path):
    previous = os.umask(0o022)
    try:
        write_json(str(tmp_path / "a.json"), [])
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(tmp_path / "a.json").st_mode) == 0o644


def test_garbage_collection_goes_on_afterwards():
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with locked(str(tmp_path / "deep" / "x")):
            assert (tmp_path / "deep").is_dir()
