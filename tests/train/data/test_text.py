"""Tests reading text files, encoding documents and packing rows."""

import gzip
import lzma
import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.train.data.text import (
    MINIMUM_PIECE,
    RowPacker,
    documents_and_faults,
    embedded_corpus,
    encode_documents,
    read_documents,
)
from deberta_jax.train.data.text_files import TextError, describe_ignored

from ...support.small_corpus import CLS, SEP, Words, segments, write


def read(path: Path, **options) -> list[str]:
    return list(read_documents([path], **options))


def test_boundaries_separate_documents(tmp_path):
    text = "\n\nThe title\n\nCHAPTER I\nOne  \r\ntwo\n\nthree\nVOLUME II\n\nChapter 1\nfour\nChapter one is long.\n \n"
    path = write(tmp_path / "a.txt", text)
    assert read(path) == [
        "The title",
        "CHAPTER I\nOne\ntwo",
        "three\nVOLUME II",
        "Chapter 1\nfour\nChapter one is long.",
    ]
    assert read(path, boundary="line")[:4] == ["The title", "CHAPTER I", "One", "two"]
    assert len(read(path, boundary="line")) == 9
    (whole,) = read(path, boundary="file")
    assert whole.startswith("The title\n\nCHAPTER I")
    assert whole.endswith("is long.")
    assert read(path, boundary="chapter") == [
        "The title",
        "CHAPTER I\nOne\ntwo\n\nthree",
        "VOLUME II\n\nChapter 1\nfour\nChapter one is long.",
    ]


def test_embedded_corpus_has_270_chapters():
    documents = read(embedded_corpus(), boundary="chapter")
    assert len(documents) == 270
    assert documents[1].startswith("VOLUME I\nCHAPTER I\nEmma Woodhouse")
    assert sum(map(len, documents)) > 4_000_000


def test_chunk_size_does_not_matter(tmp_path, monkeypatch):
    text = "\ufeff" + "é日本 one\ntwo\n\nthrée\n" * 3
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    expected = read(path)
    assert expected[0] == "é日本 one\ntwo"
    for size in (4, 5, 7):
        monkeypatch.setattr("deberta_jax.train.data.text_files._CHUNK_BYTES", size)
        assert read(path) == expected


def test_compressed_files_and_folders(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    write(folder / "b.txt", "b")
    (folder / "a.gz").write_bytes(gzip.compress(b"a"))
    (folder / "c.txt.xz").write_bytes(lzma.compress(b"c"))
    write(folder / "notes.md", "not text")
    assert read(folder) == ["a", "b", "c"]
    assert describe_ignored([folder]) == (
        f"not read, because they do not end in .txt, .gz, .xz, .zst, .jsonl, .ndjson, .parquet: {folder / 'notes.md'}"
    )
    assert list(read_documents([folder / "c.txt.xz", str(folder / "a.gz")])) == ["c", "a"]


def test_folders_are_read_with_their_subfolders_and_whatever_the_case(tmp_path):
    folder = tmp_path / "texts"
    (folder / "b" / "c").mkdir(parents=True)
    write(folder / "B.TXT", "first")
    (folder / "b" / "c" / "d.GZ").write_bytes(gzip.compress(b"second"))
    (folder / "b" / "again").symlink_to(folder)  # a loop
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "e.txt", "linked")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    write(folder / ".hidden.txt", "no")
    assert read(folder) == ["first", "second", "linked"]
    assert describe_ignored([folder]) == ""
    for number in range(7):
        write(folder / f"{number}.pdf", "x")
    assert describe_ignored([folder]).endswith("4.pdf and 2 more")


def test_a_broken_link_is_an_error(tmp_path):
    write(tmp_path / "a.txt", "a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(TextError, match=r"b\.txt is a broken link"):
        read(tmp_path)


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


NOISE = np.random.default_rng(0).bytes(99).hex().encode()  # does not compress


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"no text in .*a\.txt; give files"),
        ("a.txt", b" \n\n\t\n", r"no text in .*a\.txt; give files"),
        ("a.txt", b"good\nb\xffad\n", r"a\.txt: line 2, byte 6: 0xff is not UTF-8 .*; convert"),
        ("a.txt", b"\xef\xbb\xbfgood\nb\xffad\n", r"a\.txt: line 2, byte 9: 0xff is not UTF-8"),
        ("a.txt", b"good\ncut \xe6\x97", r"a\.txt: line 2, byte 9: 0xe6 is not UTF-8"),
        ("a.txt", b"one\ntw\0o\n", r"a\.txt: line 2, byte 6: a NUL byte; this is not a text file"),
        ("a.txt", b"abcde\n" * 20, r"a\.txt: line 17, byte 96: this document is longer than 100 bytes; choose"),
        ("a.txt", b"ok\n\n" + b"a" * 101, r"a\.txt: line 3, byte 4: this document is longer than 100 bytes"),
        (
            "a.gz",
            damaged(gzip.compress(NOISE, mtime=0)),
            r"a\.gz: damaged compressed file, after \d+",
        ),
        ("a.gz", b"plain text", r"a\.gz: damaged compressed file, after 0 bytes of text"),
        ("a.xz", damaged(lzma.compress(NOISE)), r"a\.xz: damaged compressed file"),
    ],
)
def test_unreadable_text_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        read(tmp_path / name, max_document_bytes=100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("boundary", "content", "documents", "faults"),
    [
        ("line", b"good\nb\xffad\nmore\n", ["good", "more"], ["line 2, byte 6: 0xff is not UTF-8"]),
        ("line", b"\0\na\n\xff\n\xe6\x97", ["a"], ["line 1, byte 0: a NUL", "line 3, byte 4", "line 4, byte 6"]),
        ("blank_line", b"a\nb\xff\nc\n\xff\n\nd", ["d"], ["line 2, byte 3"]),
        ("blank_line", b"a\n\nb\0b\nc\n\nd", ["a", "d"], ["line 3, byte 4: a NUL byte"]),
        ("blank_line", b"a\n\n" + b"b\n" * 60 + b"\nd", ["a", "d"], ["line 53, byte 103: this document is longer"]),
        ("blank_line", b"a\n\n" + b"b" * 300 + b"\n\nd", ["a", "d"], ["line 3, byte 3: this document is longer"]),
        ("blank_line", b"\xff\n" + b"b\n" * 99, [], ["line 1, byte 0"]),
        ("chapter", b"CHAPTER I\na\nCHAPTER II\n\xff\nCHAPTER III", ["CHAPTER I\na", "CHAPTER III"], ["line 4"]),
        ("file", b"a\n\nb\n\xff\nc", [], ["line 4, byte 5"]),
    ],
)  # fmt: skip
def test_documents_that_are_no_text_are_left_out_on_request(tmp_path, boundary, content, documents, faults):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    found = list(documents_and_faults(path, boundary, max_document_bytes=100))
    assert [document for document in found if isinstance(document, str)] == documents
    named = [str(fault) for fault in found if isinstance(fault, TextError)]
    assert len(named) == len(faults)
    for message, fault in zip(named, faults, strict=True):
        assert f"{path}: {fault}" in message
    left_out = []
    if documents:
        assert (
            list(read_documents([path], boundary=boundary, max_document_bytes=100, on_bad=left_out.append)) == documents
        )
        assert list(map(str, left_out)) == named


def test_long_line_is_refused_in_bounded_memory(tmp_path):
    """The line has 64 MB and the limit is 4 MB."""
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(16):
            file.write(b"x" * (4 << 20))
    tracemalloc.start()
    with pytest.raises(TextError, match=r"line 1, byte 0: this document is longer than 4194304 bytes"):
        read(path, max_document_bytes=4 << 20)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_missing_files(tmp_path):
    with pytest.raises(TextError, match=r"no such file or folder: .*gone\.txt"):
        read(tmp_path / "gone.txt")
    with pytest.raises(TextError, match=r"folder .* contains no file ending in \.txt, \.gz, \.xz"):
        read(tmp_path)
    with pytest.raises(TextError, match="no text file was given"):
        list(read_documents([]))
    with pytest.raises(ValueError, match="boundary is 'page'; it must be one of blank_line, line, file, chapter"):
        read(write(tmp_path / "a.txt", "a"), boundary="page")


@pytest.mark.parametrize("length", [8, 20, 64])
def test_packing_keeps_every_token(length):
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 1000, size) for size in rng.integers(0, 200, 100)]
    packer = RowPacker(length, cls_id=CLS, sep_id=SEP, dtype="uint16")
    rows = [row for document in documents for row in packer.add(document)]
    rows += packer.finish()
    assert all(row.shape == (length,) and row.dtype == np.uint16 for row in rows)
    contents = segments(rows)
    assert all(contents)
    assert list(chain.from_iterable(contents)) == np.concatenate(documents).tolist()
    waste = [np.count_nonzero(row == 0) for row in rows[:-1]]
    assert max(waste) < MINIMUM_PIECE + 2


def test_packing_by_hand():
    packer = RowPacker(24, cls_id=CLS, sep_id=SEP, dtype="uint16")
    rows = []
    for size in (4, 30, 3):  # 30 tokens are 16 in the rest of the first row and 14 in the second
        rows += packer.add(np.full(size, 9))
    rows += packer.finish()
    assert [list(map(len, segments([row]))) for row in rows] == [[4, 16], [14, 3]]
    for size in (8, 30, 5):  # the 12 free positions after 8 tokens are too few for a piece of the 30
        rows += packer.add(np.full(size, 9))
    rows += packer.finish()
    assert [list(map(len, segments([row]))) for row in rows[2:]] == [[8], [22], [8, 5]]


def test_encoding_does_not_depend_on_batching(tmp_path, monkeypatch):
    documents = ["a b\n\nc", "d", "e f g\nh"]
    expected = [[x for line in d.split("\n") for x in Words().encode_batch([line])[0]] for d in documents]
    for size in (1, 8, 1000):
        monkeypatch.setattr("deberta_jax.train.data.text._ENCODE_CHARACTERS", size)
        assert [list(tokens) for tokens in encode_documents(documents, Words(), tmp_path)] == expected
