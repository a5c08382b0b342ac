"""Atomic replacement of files: whole or not at all, and no partial files are left behind."""

from pathlib import Path

import pytest

from deberta_jax.atomic_files import replace_file, write_file


def test_files_are_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_file(path, '{"name": "é"}\n')
    assert path.read_bytes() == '{"name": "é"}\n'.encode()
    write_file(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_old_file_is_visible_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_file(path, "old")
    with replace_file(path) as partial:
        partial.write_text("ne")
        assert path.read_text() == "old"
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_file(path, "old")

    def write_until_the_disk_is_full() -> None:
        with replace_file(path) as partial:
            partial.write_text("ne")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_until_the_disk_is_full()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with replace_file(path) as first, replace_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_an_operating_system_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "missing" / "config.json", "{}")
