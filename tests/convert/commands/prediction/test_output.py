"""The file of predictions: complete, resumed or refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.convert.commands.prediction import output
from deberta_jax.convert.commands.prediction.output import OutputFile, is_complete
from deberta_jax.errors import UserError

from ....support.small_disk import fill, mounted

ORIGIN: dict[str, Any] = {"inputs": {"a.txt": "0f"}, "model": "1e", "max_length": 128}


def begun(path: Path, *lines: str) -> None:
    """Leaves what a run leaves that ended after some lines."""
    file = OutputFile(path, ORIGIN)
    for line in lines:
        file.write(line)
    file.close()


def test_the_file_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = OutputFile(path, ORIGIN)
    file.write("{}")
    assert not path.exists()
    file.finish()
    file.close()
    assert path.read_text() == "{}\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"x\.jsonl exists; give another --output, or delete it"):
        is_complete(path)


def done(path: Path, origin: dict[str, Any], **options: Any) -> int:
    """How many lines the next run finds."""
    with contextlib.closing(OutputFile(path, origin, **options)) as file:
        return file.done


@pytest.mark.parametrize("rest", [b"", b'{"row": 2, "la', b"\0" * 3000, b'{"ro\0\0\0\n\0\0'])
def test_a_run_goes_on_after_the_last_whole_line(tmp_path: Path, rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_PIECE", 16)
    path = tmp_path / "x.jsonl"
    begun(path, '{"row": 0, "text": "longer than a piece"}', '{"row": 1}')
    partial = tmp_path / "x.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + rest)
    file = OutputFile(path, ORIGIN)
    assert file.done == 2
    file.write('{"row": 2}')
    file.finish()
    file.close()
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_run_that_was_killed_between_its_last_two_acts_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    begun(path, "{}")
    (tmp_path / "x.jsonl.partial").rename(path)
    assert is_complete(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "2e"}, "was written with another model; "),
        ({"inputs": {"a.txt": "1f"}}, "was written from other content of a.txt; "),
        ({"inputs": {"b.txt": "0f"}}, "was written from a.txt, not from b.txt; "),
        ({"max_length": 256}, "was written with --max-length 128, not 256; "),
        ({"labels": ["x"]}, "was written without --labels, not with "),
    ],
)
def test_another_origin_is_refused_and_nothing_is_lost(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "x.jsonl"
    begun(path, "{}")
    with pytest.raises(UserError) as error:
        OutputFile(path, {**ORIGIN, **changes})
    assert reason in str(error.value)
    assert "to start over" in str(error.value)
    assert done(path, ORIGIN) == 1


def test_lines_of_an_unknown_origin_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    begun(path, "{}")
    (tmp_path / "x.jsonl.partial.json").unlink()
    with pytest.raises(UserError, match="which says what it is, cannot be read"):
        OutputFile(path, ORIGIN)


def test_a_deleted_partial_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    begun(path, "{}")
    (tmp_path / "x.jsonl.partial").unlink()
    assert not is_complete(path)
    assert done(path, {**ORIGIN, "model": "2e"}) == 0


def test_lines_that_cannot_be_continued_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    begun(path, "{}")
    assert done(path, ORIGIN, anew="its input cannot be read again") == 0
    assert "x.jsonl.partial is started over: its input cannot be read again" in capsys.readouterr().err


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    first = OutputFile(tmp_path / "x.jsonl", ORIGIN)
    with pytest.raises(UserError, match="another process is writing"):
        OutputFile(tmp_path / "x.jsonl", ORIGIN)
    first.close()


def test_a_folder_or_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give a file as --output"):
        is_complete(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        is_complete(tmp_path / "no" / "x.jsonl")


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", megabytes=1):
        path = tmp_path / "disk" / "x.jsonl"
        file = OutputFile(path, ORIGIN)
        filler = tmp_path / "disk" / "filler"
        fill(filler)
        file.write("{" + " " * 5000 + "}")
        with pytest.raises(UserError, match="No space left on device; free some space, and run the same command again"):
            file.close()
        filler.unlink()
        file = OutputFile(path, ORIGIN)
        assert file.done == 0
        file.write("{}")
        file.finish()
        file.close()
        assert path.read_text() == "{}\n"
