"""Who is asked before something is written, and what is opened anew."""

import pytest

from detlab.utils import folder_watch
from detlab.utils.file_io import AppendedText, write_atomically


@pytest.fixture
def watched(tmp_path):
    """``tmp_path``, and the list that grows with each question."""
    asked = []
    folder_watch.watch(str(tmp_path.resolve()), lambda: asked.append(1))
    yield tmp_path, asked
    folder_watch.unwatch(str(tmp_path.resolve()))


def test_who_watches_is_asked_for_the_folder_and_all_below_and_for_nothing_else(watched, tmp_path_factory, monkeypatch):
    folder, asked = watched
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    inside = [folder, folder / "a.txt", folder / "b" / "c.txt", link / "d.txt", f"{folder.name}/e.txt"]
    for number, path in enumerate(inside, start=1):
        folder_watch.before_writing(str(path))
        assert len(asked) == number
    for path in ("", "s3://bucket/a", f"{folder}_2/a.txt", str(folder.parent)):
        folder_watch.before_writing(path)
    assert len(asked) == len(inside)


def test_nothing_is_written_where_who_watches_refuses(watched):
    folder, _ = watched

    def refuse():
        raise RuntimeError("taken")

    folder_watch.watch(str(folder.resolve()), refuse)
    with pytest.raises(RuntimeError, match="taken"), write_atomically(str(folder / "a.txt"), "w") as file:
        file.write("a")
    assert list(folder.iterdir()) == []


def test_files_that_are_gone_are_opened_anew_and_named(tmp_path):
    texts = {name: AppendedText(str(tmp_path / name)) for name in ("gone.txt", "replaced.txt", "there.txt")}
    closed = AppendedText(str(tmp_path / "closed.txt"))
    for text in (*texts.values(), closed):
        folder_watch.follow(text)
        text.write("old\n")
        text.flush()
    closed.close()
    for name in ("gone.txt", "replaced.txt", "closed.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "replaced.txt").write_text("another's\n")
    assert folder_watch.reopen_files(str(tmp_path.resolve() / "elsewhere")) == []
    assert folder_watch.reopen_files(str(tmp_path.resolve())) == ["gone.txt", "replaced.txt"]
    for text in texts.values():
        text.write("new\n")
        text.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "gone.txt": "new\n",
        "replaced.txt": "another's\nnew\n",
        "there.txt": "old\nnew\n",
    }
