"""Files that are no text, or that do not stay as they are: one line each, in bounded memory, and no hang."""

import gzip
import lzma
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.data import text_files as module
from deberta_jax.train.data.preparation import reading
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text import read_documents
from deberta_jax.train.data.text_files import TextError, text_bytes, text_files

from ...support.small_corpus import Words, write


def read(path: Path) -> list[str]:
    return list(read_documents([path], boundary="line"))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, r"x\.txt is a named pipe, not a regular file; write the text into a file"),
        (make_socket, r"x\.txt is a socket, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), r"x\.txt is a device, not a regular file"),
        (lambda path: path.symlink_to("x.txt"), r"x\.txt is a broken link; correct it or delete it"),
        (lambda path: path.symlink_to("gone"), r"x\.txt is a broken link; correct it or delete it"),
    ],
    ids=["pipe", "socket", "device", "link to itself", "broken link"],
)
def test_what_is_no_regular_file_is_refused_and_does_not_hang(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    write(tmp_path / "a.txt", "text")
    make(Path("x.txt"))
    with pytest.raises(TextError, match=message):
        read(tmp_path)
    with pytest.raises(TextError, match=message if "link" not in message else "no such file"):
        read(tmp_path / "x.txt")


def test_a_pipe_that_replaces_a_file_does_not_hang(tmp_path):
    path = write(tmp_path / "a.txt", "text")
    files = text_files([path])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TextError, match=r"a\.txt is a named pipe"):
        list(text_bytes(files[0]))
    path.unlink()
    with pytest.raises(TextError, match=r"a\.txt cannot be read, after 0 bytes of text: No such file"):
        list(text_bytes(files[0]))
    path.mkdir()
    with pytest.raises(TextError, match=r"a\.txt cannot be read, after 0 bytes of text: Is a directory"):
        list(text_bytes(files[0]))


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "text")
    (tmp_path / "inner").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(TextError, match=r"folder .*inner cannot be read: Permission denied; correct that or remove it"):
        read(tmp_path)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more\n")


@pytest.mark.parametrize("change", [append, lambda path: os.truncate(path, 10), lambda path: os.utime(path, (1, 1))])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch, change: Callable[[Path], None]):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 100)
    path = write(tmp_path / "a.txt", "text\n" * 100)
    chunks = text_bytes(path)
    next(chunks)
    change(path)
    with pytest.raises(TextError, match=r"a\.txt was changed while it was read; start again"):
        list(chunks)


def test_a_corpus_of_a_changing_file_is_not_made(tmp_path):
    path = write(tmp_path / "a.txt", "one two\n" * 100)

    def appending(document: str, *_arguments: object) -> None:
        if document != "more":
            append(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "removing_rule", appending)
        with pytest.raises(TextError, match=r"a\.txt was changed while it was read"):
            prepare([path], Words(), tmp_path / "c", sequence_length=64, boundary="line")
    assert os.listdir(tmp_path) == ["a.txt"]


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


ONE, TWO = b"one\ntwo\n", b"three\n"
NOISE = np.random.default_rng(0).bytes(500).hex().encode()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xz", lzma.compress(ONE) + lzma.compress(TWO), ["one", "two", "three"]),
        ("a.xz", lzma.compress(ONE) + bytes(8) + lzma.compress(TWO) + bytes(4), ["one", "two", "three"]),
        ("a.xz", lzma.compress(b"") + lzma.compress(TWO), ["three"]),
        ("a.gz", gzip.compress(ONE) + gzip.compress(TWO) + bytes(100), ["one", "two", "three"]),
        ("a.xz", lzma.compress(ONE) + b"garbage", r"a\.xz: damaged compressed file, after 8 bytes of text"),
        ("a.xz", lzma.compress(ONE) + lzma.compress(NOISE)[:300], r"a\.xz: damaged compressed file, after \d+ bytes"),
        ("a.xz", lzma.compress(ONE)[:-1], r"a\.xz: damaged compressed file, after 8 bytes of text: the file ends"),
        ("a.xz", b"", r"a\.xz: damaged compressed file, after 0 bytes of text: the file ends too early"),
        ("a.zst", zstd(ONE) + zstd(TWO), ["one", "two", "three"]),
        ("a.zst", zstd(ONE)[:-1], r"a\.zst: damaged compressed file, after \d+ bytes of text: Truncated"),
        ("a.zst", zstd(ONE) + zstd(TWO)[:5], r"a\.zst: damaged compressed file"),
        ("a.zst", zstd(ONE) + b"garbage", r"a\.zst: damaged compressed file"),
        ("a.zst", b"", r"a\.zst: damaged compressed file, after 0 bytes of text: the file ends too early"),
        ("a.gz", gzip.compress(ONE) + b"garbage", r"a\.gz: damaged compressed file"),
        ("a.gz", gzip.compress(ONE) + gzip.compress(NOISE)[:300], r"a\.gz: damaged compressed file"),
    ],
    ids=(  # gzip has the time in its bytes, so they cannot name a test
        *("two of xz", "padding", "an empty one", "two of gz", "garbage after xz", "second of xz cut", "xz cut"),
        *("nothing", "two of zst", "zst cut", "second of zst cut", "garbage after zst", "nothing in zst"),
        *("garbage after gz", "second of gz cut"),
    ),
)
def test_every_member_of_a_compressed_file_is_read_or_refused(tmp_path, monkeypatch, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr(module, "_CHUNK_BYTES", size)
        if isinstance(expected, list):
            assert read(path) == expected
        else:
            with pytest.raises(TextError, match=expected):
                read(path)


@pytest.mark.parametrize("opener", [gzip.open, lzma.open], ids=["a.gz", "a.xz"])
@pytest.mark.parametrize(
    ("unit", "message"), [(b"\0", "a NUL byte; this is not a text file"), (b"a", "longer than 33554432 bytes")]
)
def test_a_small_file_of_much_text_is_read_in_bounded_memory(tmp_path, opener, unit, message):
    path = tmp_path / ("a.gz" if opener is gzip.open else "a.xz")
    level = {"compresslevel": 1} if opener is gzip.open else {"preset": 0}
    with opener(path, "wb", **level) as file:
        for _ in range(80):
            file.write(unit * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TextError, match=message):
            list(read_documents([path], boundary="line"))
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_a_dictionary_of_an_xz_file_is_limited(tmp_path):
    """A header of a few bytes asks for the memory that is needed."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]
    path = tmp_path / "a.xz"
    path.write_bytes(lzma.compress(ONE, filters=filters))
    assert read(path) == ["one", "two"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_XZ_MEMORY", 1 << 12)
        with pytest.raises(UserError, match=r"a\.xz: damaged compressed file, .*Memory usage limit exceeded"):
            read(path)
