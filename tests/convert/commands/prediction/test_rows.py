"""Rows of files in every format; bad rows do not end the reading."""

import gzip
import io
import lzma
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.convert.commands.prediction.rows import (
    Position,
    Reading,
    arrived_parts,
    check_inputs,
    is_file,
    read_rows,
)
from deberta_jax.errors import MissingFileError, UserError


def read(path: Path | str, **reading: Any) -> list[Any]:
    """The cells of all rows, or the messages of bad ones."""
    rows = read_rows([str(path)], Reading(**reading), Position())
    return [str(row.cells) if isinstance(row.cells, UserError) else dict(row.cells) for row in rows]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\r\ntwo\n\nfour\n\n\n", [{"text": "one"}, {"text": "two"}, {"text": ""}, {"text": "four"}]),
        ("a.txt", "\ufeffone", [{"text": "one"}]),
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two", "n": 2}', [{"text": "one"}, {"text": "two", "n": 2}]),
        ("a.json", '[{"text": "one"},\n {"text":\n"two"}]', [{"text": "one"}, {"text": "two"}]),
        ("a.csv", 'a,b\n1,"x, ""y""\nz"\n\n3,4\n', [{"a": "1", "b": 'x, "y"\nz'}, {"a": "3", "b": "4"}]),
        ("a.tsv", 'a\tb\n"x\ty\n', [{"a": '"x', "b": "y"}]),
    ],
)
def test_every_format_is_read(tmp_path: Path, name: str, content: str, expected: list[Any]) -> None:
    assert read(write(tmp_path / name, content)) == expected


def test_compressed_files_are_read(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt.gz", gzip.compress(b"one\ntwo"))) == [{"text": "one"}, {"text": "two"}]
    assert read(write(tmp_path / "a.csv.xz", lzma.compress(b"text\none"))) == [{"text": "one"}]
    with pytest.raises(UserError, match="damaged or incomplete compressed file"):
        read(write(tmp_path / "cut.txt.gz", gzip.compress(bytes(range(97, 123)) * 9000)[:100]))


def test_rows_of_a_pipe_do_not_wait_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    position = Position()
    with open(reader, encoding="utf-8") as standard_input, open(writer, "wb", buffering=0) as program:
        monkeypatch.setattr(sys, "stdin", standard_input)
        program.write(b"one\ntwo\nthr")
        parts = arrived_parts(read_rows(["-"], Reading(), position), position)
        assert [row.cells for row in next(parts)] == [{"text": "one"}, {"text": "two"}]
        program.write(b"ee\nfour")
        assert [row.cells for row in next(parts)] == [{"text": "three"}]
        program.close()
        assert [[row.cells for row in part] for part in parts] == [[{"text": "four"}]]


def test_rows_of_files_are_one_part(tmp_path: Path) -> None:
    files = [str(write(tmp_path / name, "one\ntwo\n")) for name in ("a.txt", "b.txt")]
    position = Position()
    assert [len(list(part)) for part in arrived_parts(read_rows(files, Reading(), position), position)] == [4]


def test_parquet_is_read_with_the_share_of_its_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, None]}), tmp_path / "a.parquet")
    position = Position()
    rows = read_rows([str(tmp_path / "a.parquet")], Reading(), position)
    assert next(rows).cells == {"text": "one", "n": 1}
    assert (next(rows).place, position.share) == (f"{tmp_path / 'a.parquet'}, record 1", 0.5)
    assert list(rows) == []
    assert position.share == 1


def test_bad_rows_are_named_and_the_next_ones_are_read(tmp_path: Path) -> None:
    lines = b'{"text": 1}\n{"text": \n[1]\n{"a": "\xe9"}\n{"a": 1, "a": 2}\n{"text": "ok"}'
    rows = read(write(tmp_path / "a.jsonl", lines))
    assert rows[0] == {"text": 1}
    assert rows[1].startswith("not JSON (")
    assert "not a JSON object" in rows[2]
    assert "byte 0xe9 at offset 7 of the line is not UTF-8" in rows[3]
    assert "'a' occurs twice" in rows[4]
    assert rows[5] == {"text": "ok"}
    rows = read(write(tmp_path / "a.csv", b'a,b\n1\n1,\xff\n1,2,3\n"1"x,2\n7,8\n'))
    assert rows[0] == "1 fields, but the first line has 2"
    assert "column 'b': byte 0xff is not UTF-8" in rows[1]
    assert rows[2] == "3 fields, but the first line has 2"
    assert "',' expected after '\"'" in rows[3]
    assert rows[4] == {"a": "7", "b": "8"}


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text\n"one\nmore"\ntwo\n')
    rows = list(read_rows([str(path)], Reading(), Position()))
    assert [(row.index, row.place) for row in rows] == [(0, f"{path}, line 2"), (1, f"{path}, line 4")]


def test_columns_without_a_header_are_numbers(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "x,y\n"), header=False) == [{"0": "x", "1": "y"}]


def test_standard_input_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    for content, expected in ((b'{"text": "x"}\n', {"text": "x"}), (b"x\n", {"text": "x"})):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert read("-") == [expected]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,b\n1,2\n")))
    assert read("-", format="csv") == [{"a": "1", "b": "2"}]


def test_texts_and_files_are_told_apart(tmp_path: Path) -> None:
    folder = write(tmp_path / "named", "x")
    assert [is_file(argument) for argument in ("-", "a.csv", "no/such", str(folder))] == [True] * 4
    texts = ("plain words", "and/or with spaces", "", "x" * 9000, "a\0b")
    assert not any(map(is_file, texts))
    rows = list(read_rows(["one", "two"], Reading(), Position()))
    assert [(row.file, row.index, row.cells) for row in rows] == [
        (None, 0, {"text": "one"}),
        (None, 1, {"text": "two"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"x", "unknown suffix '.md'"),
        ("a.txt", b"PK\x03\x04", "ZIP archive"),
        ("a.txt", "x".encode("utf-16"), "UTF-16"),
        ("a.csv", "abc".encode("utf-16-le"), "NUL bytes"),
        ("a.txt", b"PAR1", "Parquet"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_inputs([str(write(tmp_path / name, content))], Reading())


@pytest.mark.parametrize("argument", ["missing.csv", "no/such"])
def test_a_file_that_does_not_exist_is_no_text(argument: str) -> None:
    with pytest.raises(MissingFileError, match="no such file; if it is a text, pass it by standard input"):
        check_inputs([argument], Reading())


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "\n\n"), ("a.csv", "text\n"), ("a.jsonl", ""), ("a.json", "[]")]
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UserError, match="has no rows"):
        read(write(tmp_path / name, content))


def test_folders_and_formats_that_need_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give its files"):
        check_inputs([str(tmp_path)], Reading())
    with pytest.raises(UserError, match="standard input cannot be parquet"):
        check_inputs(["-"], Reading(format="parquet"))
