"""Prepares a corpus from and in a store, by the file system in memory of fsspec."""

import gzip
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta_jax import stores
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data import storage
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text import read_documents
from deberta_jax.train.data.text_files import TextError, refuse_output, text_files

from ...support.small_corpus import Words, stored_rows, story, write

SETTINGS = {"sequence_length": 64, "boundary": "blank_line", "held_out_fraction": 0.1, "seed": 3}


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where a local folder called `memory:` would be
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 12 * 64 * 2)
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    stores.remove_folder(address)
    assert not (tmp_path / "memory:").exists()


def _files(corpus) -> list[tuple[str, str]]:
    return [(file.name, file.sha256) for split in (corpus.train, corpus.held_out) for file in split.files]


def test_the_corpus_of_a_store_has_the_bytes_of_a_local_one(bucket: str, tmp_path: Path):
    text = write(tmp_path / "a.txt", story(200))
    stores.put_file(text, f"{bucket}/text/a.txt")
    expected = prepare([text], Words(), tmp_path / "corpus", **SETTINGS)
    corpus = prepare([f"{bucket}/text"], Words(), f"{bucket}/rows", **SETTINGS)
    assert _files(corpus) == _files(expected)
    assert corpus.fingerprint == expected.fingerprint
    names = sorted(path.name for path in (tmp_path / "corpus").iterdir())
    assert list(stores.entries(f"{bucket}/rows")) == names
    assert stores.names(bucket) == ["rows", "text"]  # no folder of work is left
    opened = open_corpus(f"{bucket}/rows")
    assert (stored_rows(opened, opened.train) == stored_rows(expected, expected.train)).all()

    assert _files(prepare([f"{bucket}/text"], Words(), f"{bucket}/rows", **SETTINGS)) == _files(expected)
    with pytest.raises(UserError, match="contains a corpus with seed 3, not 4"):
        prepare([f"{bucket}/text"], Words(), f"{bucket}/rows", **SETTINGS | {"seed": 4})
    stores.write(f"{bucket}/text/a.txt", b"other text\n")
    with pytest.raises(UserError, match=f"{bucket}/rows was made from other text"):
        prepare([f"{bucket}/text"], Words(), f"{bucket}/rows", **SETTINGS)
    first = expected.train.files[0]
    stores.write(f"{bucket}/rows/{first.name}", b"x" * first.bytes)
    with pytest.raises(UserError, match=r"train-00000.array_record is not the file that was written"):
        open_corpus(f"{bucket}/rows")


def test_interrupted_work_goes_on_and_looks_unfinished(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    text = write(tmp_path / "a.txt", story(200))
    expected = prepare([text], Words(), tmp_path / "corpus", **SETTINGS)
    copied: list[str] = []
    copy = stores.copy

    def copy_three(source: str, target: str) -> None:
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(target)
        copy(source, target)

    monkeypatch.setattr(stores, "copy", copy_three)
    with pytest.raises(KeyboardInterrupt):
        prepare([text], Words(), f"{bucket}/rows", **SETTINGS)
    assert "has what is complete; the same command continues from there" in caplog.text
    assert len(stores.entries(f"{bucket}/rows")) == 3
    with pytest.raises(MissingFileError, match=f"{bucket}/rows contains no manifest.json"):
        open_corpus(f"{bucket}/rows")
    monkeypatch.setattr(stores, "copy", copy)
    written: list[str] = []
    monkeypatch.setattr(storage.stores, "put_file", lambda path, address: written.append(address))
    corpus = prepare([text], Words(), f"{bucket}/rows", **SETTINGS)
    assert not written  # every file of rows was there
    assert _files(corpus) == _files(expected)
    assert stores.names(bucket) == ["rows"]


def test_work_of_others_is_named_and_stays(bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    text = write(tmp_path / "a.txt", story(50))
    stores.write(f"{bucket}/.rows.0123456789abcdef.tmp/selection.json", b"{}")
    stores.write(f"{bucket}/.rowsb.0123456789abcdef.tmp/selection.json", b"{}")
    with caplog.at_level(logging.WARNING):
        prepare([text], Words(), f"{bucket}/rows", **SETTINGS)
    assert f"{bucket}/.rows.0123456789abcdef.tmp is left of another run" in caplog.text
    assert "rowsb" not in caplog.text
    assert stores.exists(f"{bucket}/.rows.0123456789abcdef.tmp")


def test_an_output_that_cannot_be_used_is_refused_before_the_work(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = write(tmp_path / "a.txt", story(50))
    with pytest.raises(UserError, match="memory://b is a whole bucket; give a folder in it"):
        prepare([text], Words(), "memory://b", **SETTINGS)
    stores.write(f"{bucket}/rows/mine.txt", b"1")
    with pytest.raises(UserError, match=r"rows exists and is not a prepared corpus, but has 'mine.txt'"):
        prepare([text], Words(), f"{bucket}/rows", **SETTINGS)
    with pytest.raises(UserError, match="is inside of the folder"):
        refuse_output(Path(f"{bucket}/text/rows"), [Path(f"{bucket}/text")])
    monkeypatch.setattr(prepare_module, "_make", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(UserError, match="other:// is an unknown protocol"):
        prepare([text], Words(), "other://b/rows", **SETTINGS)


def test_text_of_every_kind_is_read_from_a_store(bucket: str, tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    stores.write(f"{bucket}/t/a.txt", b"one\n\ntwo\n")
    stores.write(f"{bucket}/t/b.txt.gz", gzip.compress(b"three\n"))
    stores.write(f"{bucket}/t/c.jsonl", json.dumps({"text": "four"}).encode())
    parquet.write_table(pyarrow.table({"text": ["five", "six"]}), tmp_path / "d.parquet")
    stores.put_file(tmp_path / "d.parquet", f"{bucket}/t/deep/d.parquet")
    with pyarrow.CompressedOutputStream(str(tmp_path / "e.zst"), "zstd") as file:
        file.write(b"seven\n")
    stores.put_file(tmp_path / "e.zst", f"{bucket}/t/e.txt.zst")
    stores.write(f"{bucket}/t/.hidden/f.txt", b"no\n")
    stores.write(f"{bucket}/t/g.pdf", b"no\n")
    assert list(read_documents([f"{bucket}/t"])) == ["one", "two", "three", "four", "five", "six", "seven"]
    assert list(read_documents([f"{bucket}/t/*.txt*"])) == ["one", "two", "three", "seven"]
    assert list(read_documents([Path(f"{bucket}/t/c.jsonl")])) == ["four"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no such file or folder: memory://"),
        ("t/*.md", r"no file matches memory://.*/t/\*.md"),
        ("pdf", "contains no file ending in .txt"),
    ],
)
def test_text_that_a_store_lacks_is_named(bucket: str, name: str, message: str):
    stores.write(f"{bucket}/t/a.txt", b"one\n")
    stores.write(f"{bucket}/pdf/a.pdf", b"one\n")
    with pytest.raises(TextError, match=message):
        text_files([f"{bucket}/{name}"])


def test_damage_and_changes_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch):
    stores.write(f"{bucket}/a.txt.gz", gzip.compress(b"three\n" * 1000)[:-9])
    with pytest.raises(TextError, match=r"a.txt.gz: damaged compressed file"):
        list(read_documents([f"{bucket}/a.txt.gz"]))
    stores.write(f"{bucket}/b.txt", b"one\n\ntwo\n")
    documents = read_documents([f"{bucket}/b.txt"])
    next(documents)
    stores.write(f"{bucket}/b.txt", b"one\n\ntwx\n")
    with pytest.raises(TextError, match=r"b.txt was changed while it was read"):
        list(documents)
