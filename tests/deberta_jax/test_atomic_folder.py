"""Entries of a folder that are replaced together, by processes that are killed at any point."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta_jax import atomic_folder
from deberta_jax.atomic_folder import (
    create_folder,
    current_path,
    interrupted_save,
    leftovers,
    remove_leftovers,
    replace_entries,
)

# Replaces a, b and folder c of a folder by new ones, adds d, and removes e. Dies at the N-th change of the file system.
WRITER = """
import os, pathlib, signal, sys
from deberta_jax.atomic_folder import replace_entries

folder, calls = pathlib.Path(sys.argv[1]), int(sys.argv[2])

def counted(change):
    def call(*args, **kwargs):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*args, **kwargs)
    return call

for name in ("replace", "rename", "link", "mkdir", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
with replace_entries(folder, last="a", remove=["e"]) as new:
    for name in "abd":
        (new / name).write_text("new")
    (new / "c").mkdir()
    (new / "c" / "file").write_text("new")
"""


def write_old(folder: Path) -> None:
    folder.mkdir()
    for name in ("a", "b", "e", "mine"):
        (folder / name).write_text("old")
    (folder / "c").mkdir()
    (folder / "c" / "file").write_text("old")


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


OLD = {"a": "old", "b": "old", "c/file": "old", "e": "old", "mine": "old"}
NEW = {"a": "new", "b": "new", "c/file": "new", "d": "new", "mine": "old"}


def test_entries_are_replaced_together_and_others_stay(tmp_path: Path) -> None:
    write_old(tmp_path / "folder")
    (tmp_path / "link").symlink_to("folder")
    with replace_entries(tmp_path / "link", last="a", remove=["e", "missing"]) as new:
        for name in "abd":
            (new / name).write_text("new")
        (new / "c").mkdir()
        (new / "c" / "file").write_text("new")
        assert content(tmp_path / "folder").items() >= OLD.items()
    assert content(tmp_path / "folder") == NEW
    assert (tmp_path / "link").is_symlink()


def test_a_killed_process_leaves_the_old_entries_or_the_new_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = []
    for calls in range(40):
        folder = tmp_path / str(calls)
        write_old(folder)
        done = subprocess.run([sys.executable, "-c", WRITER, str(folder), str(calls)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        found = {name: current_path(folder, name) for name in ("a", "b", "c", "mine")}
        texts = {name: (path / "file" if path.is_dir() else path).read_text() for name, path in found.items()}
        assert texts in ({**dict.fromkeys("abc", "old"), "mine": "old"}, {**dict.fromkeys("abc", "new"), "mine": "old"})
        outcomes.append(texts["a"])
        if found["a"].parent != folder:
            assert interrupted_save(folder, ["a"]) == found["a"].parent
        caplog.clear()
        left = leftovers(folder)
        remove_leftovers(folder)
        assert content(folder) == (OLD if texts["a"] == "old" else NEW)
        assert all(any(path.name in line for line in caplog.messages) for path in left)
    assert outcomes == sorted(outcomes, reverse=True), "once it is the new one, it stays"
    assert {"old", "new"} == set(outcomes)
    assert len(outcomes) > 10
    assert content(folder) == NEW


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    write_old(tmp_path / "folder")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_text("of others")
    for name in ("a", "c"):
        path = tmp_path / "folder" / name
        path.unlink() if path.is_file() else (path / "file").unlink() or path.rmdir()
    (tmp_path / "folder" / "a").symlink_to(tmp_path / "cache" / "file")
    (tmp_path / "folder" / "c").symlink_to(tmp_path / "cache")
    with replace_entries(tmp_path / "folder", last="a") as new:
        (new / "a").write_text("new")
        (new / "c").mkdir()
    assert content(tmp_path / "cache") == {"file": "of others"}
    assert (tmp_path / "folder" / "a").read_text() == "new"
    assert not (tmp_path / "folder" / "c").is_symlink()


def test_a_failed_move_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_old(tmp_path / "folder")
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).parent.suffix == ".tmp" and Path(source).name == "c":
            raise OSError(16, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)

    def write() -> None:
        with replace_entries(tmp_path / "folder", last="c", remove=["e"]) as new:
            for name in "abd":
                (new / name).write_text("new")
            (new / "c").mkdir()

    with pytest.raises(OSError, match="busy"):
        write()
    assert content(tmp_path / "folder") == OLD


def test_a_failed_block_changes_nothing(tmp_path: Path) -> None:
    write_old(tmp_path / "folder")

    def write() -> None:
        with replace_entries(tmp_path / "folder", last="a") as new:
            (new / "a").write_text("new")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write()
    assert content(tmp_path / "folder") == OLD


def test_what_others_are_writing_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_old(tmp_path / "folder")
    other_host = tmp_path / "folder" / ".save.elsewhere.1.0123456789ab.tmp"
    other_host.mkdir()
    alive = tmp_path / "folder" / f".save.{atomic_folder._host()}.{os.getppid()}.0123456789ab.tmp"
    alive.mkdir()
    mine = tmp_path / "folder" / ".save.mine.txt"
    mine.touch()
    with replace_entries(tmp_path / "folder", last="a") as first, replace_entries(tmp_path / "folder", last="a") as new:
        (first / "a").write_text("first")
        (new / "a").write_text("second")
    assert (tmp_path / "folder" / "a").read_text() == "first"
    assert leftovers(tmp_path / "folder") == []
    old = time.time() - 2 * 24 * 3600
    os.utime(other_host, (old, old))
    assert leftovers(tmp_path / "folder") == [other_host]
    remove_leftovers(tmp_path / "folder")
    assert mine.exists()
    assert alive.exists()
    assert not other_host.exists()


def test_a_new_folder_appears_whole_and_the_faster_process_wins(tmp_path: Path) -> None:
    with create_folder(tmp_path / "new[1]") as first, create_folder(tmp_path / "new[1]") as second:
        assert not (tmp_path / "new[1]").exists()
        (first / "a").write_text("first")
        (second / "a").write_text("second")
    assert (tmp_path / "new[1]" / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["new[1]"]
    with pytest.raises(ValueError, match="mine"), create_folder(tmp_path / "other"):
        raise ValueError("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["new[1]"]
