"""Tests JSON Lines, Parquet, sets and patterns as inputs of `prepare`."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from deberta_jax.errors import UserError
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data.corpus import Removal
from deberta_jax.train.data.preparation.rules import TextRules
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text import read_documents
from deberta_jax.train.data.text_files import TextError
from deberta_jax.train.prepare import set_records

from ....support.small_corpus import Words, segments, stored_rows, write

TEXTS = ["one two", "three  \r\n\nfour\n", "", " \n", "日本 🙂", "five"]
DOCUMENTS = ["one two", "three\n\nfour", "日本 🙂", "five"]
SETTINGS = {"sequence_length": 64, "boundary": "blank_line", "held_out_fraction": 0.0}


def json_lines(texts: list[object], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": n, field: text}) + "\n" for n, text in enumerate(texts)).encode()


def write_parquet(path: Path, texts: list[object], field: str = "text") -> Path:
    parquet.write_table(pyarrow.table({"id": list(range(len(texts))), field: texts}), path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda content: content),
        ("a.NDJSON", lambda content: b"\n" + content.rstrip() + b"\n \n"),
        ("a.json.gz", gzip.compress),
        ("a.jsonl.zst", lambda content: pyarrow.compress(content, codec="zstd", asbytes=True)),
    ],
)
def test_each_record_of_json_lines_is_a_document(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(json_lines(TEXTS)))
    assert list(read_documents([tmp_path])) == DOCUMENTS
    assert list(read_documents([tmp_path / name], boundary="line")) == DOCUMENTS


def test_each_record_of_parquet_is_a_document(tmp_path):
    write_parquet(tmp_path / "a.parquet", TEXTS)
    assert list(read_documents([tmp_path])) == DOCUMENTS
    write_parquet(tmp_path / "b.parquet", [text.encode() for text in TEXTS])
    assert list(read_documents([tmp_path / "b.parquet"])) == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', r"a\.jsonl: line 2: 'text' is 3, not text; correct or remove"),
        (b'{"text": null}\n', r"a\.jsonl: line 1: 'text' is None, not text"),
        (b'{"body": "a"}\n', r"a\.jsonl: line 1: no single field 'text'; there are 'body': give --text-field NAME"),
        (b'["a"]\n', r"a\.jsonl: line 1: not a JSON object; write one object per line"),
        (b'{"text": "a"}\n{"text": "b"', r"a\.jsonl: line 2: not JSON \(.*\); write one object per line"),
        (b'{"text": "\\u0000"}\n', r"a\.jsonl: line 1: character 0 of the text is U\+0000, which is no text"),
        (b'{"text": "ab\\ud800"}\n', r"a\.jsonl: line 1: character 2 of the text is U\+D800, which is no text"),
        (b'{"text": "\xff"}\n', r"a\.jsonl: line 1: 0xff in its byte 10 is not UTF-8"),
        (b'{"text": "a\0"}\n', r"a\.jsonl: line 1, byte 11: a NUL byte"),
        (b'{"text": "abcdefghijk"}\n', r"a\.jsonl: line 1: this document is longer than 10 bytes"),
        (b'{"text": "' + b"x" * 50, r"a\.jsonl: line 1, byte 0: this document is longer than 40 bytes"),
    ],
)  # fmt: skip
def test_a_record_without_text_is_named(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        list(read_documents([path], max_document_bytes=10))
    assert "\n" not in str(caught.value)


def test_records_that_are_no_text_are_removed_on_request(tmp_path):
    lines = [
        b'{"text": "a"}',
        b'{"text": 3}',
        b"[]",
        b"{",
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"body": "b"}',
        b"\0",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "z"}']))
    write_parquet(tmp_path / "b.parquet", [b"b", None, b"\xff", b"c\0"])
    sets = [("x, record 0", "d"), ("x, record 1", "\0"), ("x, record 2", TextError("no text")), ("x, record 3", "e")]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.parquet", "tfds:x"]
    rules = TextRules(skip_bad=True)
    corpus = prepare(paths, Words(), tmp_path / "c", rules=rules, open_set=lambda *_: iter(sets), **SETTINGS)
    assert corpus.train.documents + corpus.held_out.documents == 5
    assert corpus.removed == (Removal("drop_duplicates", 0), Removal("skip_bad", 12))
    with pytest.raises(TextError, match="x, record 1: character 0"):
        prepare(paths[2:], Words(), tmp_path / "d", open_set=lambda *_: iter(sets), **SETTINGS)


def test_deeply_nested_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"[" * 10**5)
    with pytest.raises(TextError, match=r"a\.jsonl: line 1: not JSON \(.*\); write one object per line"):
        list(read_documents([tmp_path / "a.jsonl"]))


def test_parquet_that_cannot_be_used_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["a", None])
    with pytest.raises(TextError, match=r"a\.parquet: record 1: 'text' is None, not text"):
        list(read_documents([path]))
    write_parquet(path, ["a"], field="body")
    with pytest.raises(TextError, match=r"a\.parquet: no single field 'text'; there are 'id', 'body': give --text-fi"):
        list(read_documents([path]))
    write_parquet(path, [b"a", b"\xff"])
    with pytest.raises(TextError, match=r"a\.parquet: record 1: 0xff in byte 0 of the text is not UTF-8"):
        list(read_documents([path]))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TextError, match=r"a\.parquet: damaged Parquet file, after 0 records"):
        list(read_documents([path]))


def test_the_same_documents_make_the_same_rows_from_any_files(tmp_path, monkeypatch):
    """Neither compression, nor records, nor the division into files and groups has an effect."""
    monkeypatch.setattr(prepare_module, "CHUNK_BYTES", 200)
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 64 * 2 * 6)
    documents = [f"{n} " + " ".join(f"w{n * k % 97}" for k in range(n % 40)) for n in range(60)]
    write(tmp_path / "a.txt", "\n\n".join(documents))
    (tmp_path / "b.gz").write_bytes(gzip.compress("\n\n".join(documents).encode()))
    write_parquet(tmp_path / "c.parquet", documents, field="body")
    for number in range(6):
        (tmp_path / f"d{number}.jsonl").write_bytes(json_lines(documents[10 * number : 10 * number + 10], "body"))
    rows = {}
    for name in ("a.txt", "b.gz", "c.parquet", "d*.jsonl", "d*.jsonl "):
        if name.endswith(" "):
            monkeypatch.setattr("deberta_jax.train.data.prepare.GROUP_BYTES", 700)
        corpus = prepare(
            [tmp_path / name.strip()], Words(), tmp_path / f"of {name}", rules=TextRules(text_field="body"), **SETTINGS
        )
        rows[name] = [stored_rows(corpus, corpus.train).tobytes(), *(file.sha256 for file in corpus.train.files)]
        assert len(corpus.train.files) > 2
    assert all(found == rows["a.txt"] for found in rows.values())


def test_patterns(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.txt", "a.txt", "inner/c.txt", "d.md"):
        write(tmp_path / name, name)
    assert list(read_documents([tmp_path / "*.txt"])) == ["a.txt", "b.txt"]
    assert list(read_documents([tmp_path / "**" / "*.*"])) == ["a.txt", "b.txt", "d.md", "inner/c.txt"]
    write(tmp_path / "[x].txt", "a name, not a pattern")
    assert list(read_documents([tmp_path / "[x].txt"])) == ["a name, not a pattern"]
    with pytest.raises(TextError, match=r"no file matches .*\*\.zst; correct the pattern"):
        list(read_documents([tmp_path / "*.zst"]))
    os.symlink("gone", tmp_path / "e.txt")
    with pytest.raises(TextError, match=r"e\.txt is a broken link"):
        list(read_documents([tmp_path / "*.txt"]))


def test_sets_are_read_beside_files(tmp_path):
    def open_set(name: str, field: str):
        assert (name, field) == ("tfds:some/set@train", "text")
        yield from ((f"{name}, record {number}", text) for number, text in enumerate(TEXTS))

    text = write(tmp_path / "a.txt", "first")
    corpus = prepare([text, "tfds:some/set@train"], Words(), tmp_path / "c", open_set=open_set, **SETTINGS)
    assert [(source.name, source.bytes) for source in corpus.sources] == [("a.txt", 5), ("tfds:some/set@train", 0)]
    assert corpus.train.documents == 5
    assert len(segments(stored_rows(corpus, corpus.train))) == 5
    again = prepare([text, "tfds:some/set@train"], Words(), tmp_path / "c", open_set=None, **SETTINGS)
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(UserError, match=r"was made from other text: tfds:some/set@test, tfds:some/set@train had"):
        prepare([text, "tfds:some/set@test"], Words(), tmp_path / "c", open_set=open_set, **SETTINGS)
    with pytest.raises(TextError, match=r"x, record 7: character 0 of the text is U\+0000"):
        prepare(["tfds:x"], Words(), tmp_path / "d", open_set=lambda *_: iter([("x, record 7", "\0")]), **SETTINGS)


def test_a_set_of_datasets_is_opened_as_finetune_does(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "set")
    name = f"hf:{tmp_path / 'set'}"
    assert [text for _, text in set_records(name, "text")] == TEXTS
    with pytest.raises(UserError, match=r"no column 'body'; the columns are 'text': give --text-field NAME"):
        list(set_records(name, "body"))
