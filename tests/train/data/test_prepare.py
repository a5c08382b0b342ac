"""Text to documents, documents to packed rows, rows to disk; and what is said about text and folders that are bad."""

import gzip
import json
import lzma
import os
import resource
import tracemalloc
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data.prepare import open_corpus, prepare
from deberta_jax.train.data.text import (
    MINIMUM_PIECE,
    RowPacker,
    TextError,
    embedded_corpus,
    encode_documents,
    read_documents,
)

CLS, SEP = 1, 2


class Words:
    """A tokenizer of whole words: ids are hashes of them."""

    pad_id, cls_id, sep_id, unk_id = 0, CLS, SEP, 3

    def __init__(self, vocab_size: int = 1000, fingerprint: str = "words") -> None:
        self.vocab_size, self.mask_id, self.fingerprint = vocab_size, vocab_size - 1, fingerprint

    def encode_batch(self, texts):
        span = self.vocab_size - 5
        return [[CLS if w == "[CLS]" else 4 + zlib.crc32(w.encode()) % span for w in text.split()] for text in texts]


def read(path: Path, **options) -> list[str]:
    return list(read_documents([path], **options))


def stored_rows(corpus, split) -> np.ndarray:
    from array_record.python.array_record_module import ArrayRecordReader

    rows = []
    for file in split.files:
        reader = ArrayRecordReader(str(corpus.folder / file.name))
        rows += [np.frombuffer(record, corpus.dtype) for record in reader.read_all()]
        reader.close()
        assert reader_options_are_single_rows(corpus.folder / file.name)
    return np.array(rows)


def reader_options_are_single_rows(path: Path) -> bool:
    from array_record.python.array_record_module import ArrayRecordReader

    return "group_size:1," in ArrayRecordReader(str(path)).writer_options_string()


def segments(rows) -> list[list[int]]:
    """The contents of all segments, in order. Fails on a row that is not `[CLS] ... [SEP]` and so on, then zeros."""
    found = []
    for row in rows:
        tokens = list(map(int, row))
        while tokens and tokens[0] != 0:
            assert tokens[0] == CLS
            end = tokens.index(SEP)
            found.append(tokens[1:end])
            tokens = tokens[end + 1 :]
        assert not any(tokens)
    return found


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def story(documents: int, words: int = 40) -> str:
    rng = np.random.default_rng(1)
    lines = (" ".join(f"w{n}" for n in rng.integers(0, 400, rng.integers(1, 2 * words))) for _ in range(documents))
    return "\n\n".join(lines)


# ---------------------------------------------------------------- reading


def test_boundaries(tmp_path):
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


def test_embedded_corpus_falls_into_chapters():
    documents = read(embedded_corpus(), boundary="chapter")
    assert len(documents) == 270
    assert documents[1].startswith("VOLUME I\nCHAPTER I\nEmma Woodhouse")
    assert sum(map(len, documents)) > 4_000_000


def test_chunks_do_not_show(tmp_path, monkeypatch):
    text = "\ufeff" + "é日本 one\ntwo\n\nthrée\n" * 3
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    expected = read(path)
    assert expected[0] == "é日本 one\ntwo"
    for size in (4, 5, 7):
        monkeypatch.setattr("deberta_jax.train.data.text._CHUNK_BYTES", size)
        assert read(path) == expected


def test_compressed_files_and_folders(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    write(folder / "b.txt", "b")
    (folder / "a.gz").write_bytes(gzip.compress(b"a"))
    (folder / "c.txt.xz").write_bytes(lzma.compress(b"c"))
    write(folder / "notes.md", "not text")
    assert read(folder) == ["a", "b", "c"]
    assert list(read_documents([folder / "c.txt.xz", str(folder / "a.gz")])) == ["c", "a"]


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


NOISE = np.random.default_rng(0).bytes(99).hex().encode()  # hardly compresses


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"no text in .*a\.txt; give files"),
        ("a.txt", b" \n\n\t\n", r"no text in .*a\.txt; give files"),
        ("a.txt", b"good\nb\xffad\n", r"a\.txt: line 2, byte 6: 0xff is not UTF-8 .*; convert"),
        ("a.txt", b"\xef\xbb\xbfgood\nb\xffad\n", r"a\.txt: line 2, byte 9: 0xff is not UTF-8"),
        ("a.txt", b"good\ncut \xe6\x97", r"a\.txt: line 2, byte 9: 0xe6 is not UTF-8"),
        ("a.txt", b"one\ntw\0o\n", r"a\.txt: line 2, byte 6: a NUL byte; this is not a text file"),
        ("a.txt", b"abcde\n" * 20, r"a\.txt: line 17, byte 96: the document here is longer than 100 bytes; choose"),
        ("a.txt", b"ok\n\n" + b"a" * 101, r"a\.txt: line 3, byte 4: the document here is longer than 100 bytes"),
        (
            "a.gz",
            damaged(gzip.compress(np.random.default_rng(0).bytes(99).hex().encode(), mtime=0)),
            r"a\.gz: damaged compressed file, after \d+",
        ),
        ("a.gz", b"plain text", r"a\.gz: damaged compressed file, after 0 bytes of text"),
        ("a.xz", damaged(lzma.compress(os.urandom(99).hex().encode())), r"a\.xz: damaged compressed file"),
    ],
)
def test_bad_text(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        read(tmp_path / name, max_document_bytes=100)
    assert "\n" not in str(caught.value)


def test_endless_line_is_refused_in_bounded_memory(tmp_path):
    """A line of 256 MB; the limit is 4 MB."""
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * (4 << 20))
    tracemalloc.start()
    with pytest.raises(TextError, match=r"line 1, byte 0: the document here is longer than 4194304 bytes"):
        read(path, max_document_bytes=4 << 20)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_missing_files(tmp_path):
    with pytest.raises(TextError, match=r"no such file or folder: .*gone\.txt"):
        read(tmp_path / "gone.txt")
    with pytest.raises(TextError, match=r"folder .* holds no file that ends in \.txt, \.gz, \.xz"):
        read(tmp_path)
    with pytest.raises(TextError, match="no text file was given"):
        list(read_documents([]))
    with pytest.raises(ValueError, match="boundary is 'page'; it must be one of blank_line, line, file, chapter"):
        read(write(tmp_path / "a.txt", "a"), boundary="page")


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("length", [8, 20, 64])
def test_packing_loses_nothing(length):
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 1000, size) for size in rng.integers(0, 200, 100)]
    packer = RowPacker(length, cls_id=CLS, sep_id=SEP, dtype="uint16")
    rows = [row for document in documents for row in packer.add(document)]
    rows += packer.finish()
    assert all(row.shape == (length,) and row.dtype == np.uint16 for row in rows)
    found = segments(rows)
    assert all(found)
    assert list(chain.from_iterable(found)) == np.concatenate(documents).tolist()
    waste = [np.count_nonzero(row == 0) for row in rows[:-1]]
    assert max(waste) < MINIMUM_PIECE + 2


def test_packing_by_hand():
    packer = RowPacker(24, cls_id=CLS, sep_id=SEP, dtype="uint16")
    rows = []
    for size in (4, 30, 3):  # 4 fit; 30 = 16 in the rest of the row + 14; 3 fit behind those
        rows += packer.add(np.full(size, 9))
    rows += packer.finish()
    assert [list(map(len, segments([row]))) for row in rows] == [[4, 16], [14, 3]]
    for size in (8, 30, 5):  # 8 fit; 12 places of the row are left, too few; 22 fill a row; 8 and 5 the last
        rows += packer.add(np.full(size, 9))
    rows += packer.finish()
    assert [list(map(len, segments([row]))) for row in rows[2:]] == [[8], [22], [8, 5]]


def test_encoding_is_the_same_for_any_batching(tmp_path, monkeypatch):
    documents = ["a b\n\nc", "d", "e f g\nh"]
    expected = [[x for line in d.split("\n") for x in Words().encode_batch([line])[0]] for d in documents]
    for size in (1, 8, 1000):
        monkeypatch.setattr("deberta_jax.train.data.text._ENCODE_CHARACTERS", size)
        assert [list(tokens) for tokens in encode_documents(documents, Words(), tmp_path)] == expected


# ---------------------------------------------------------------- preparing


def test_prepared_rows_hold_every_document(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "ROWS_PER_FILE", 7)
    text = write(tmp_path / "a.txt", story(200))
    settings = {"sequence_length": 64, "boundary": "blank_line", "held_out_fraction": 0.1, "seed": 3}
    corpus = prepare([text], Words(), tmp_path / "corpus", **settings)
    assert open_corpus(corpus.folder) == corpus
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "corpus"]
    assert corpus.dtype == "uint16"
    assert corpus.train.documents + corpus.held_out.documents == 200
    assert 8 <= corpus.held_out.documents <= 35
    assert [file.rows for file in corpus.train.files[:-1]] == [7] * (len(corpus.train.files) - 1)
    assert corpus.train.files[1].name == "train-00001.array_record"

    streams = {"".join(map(chr, tokens)) for tokens in encode_documents(read(text), Words(), text)}
    for split in (corpus.train, corpus.held_out):
        rows = stored_rows(corpus, split)
        assert rows.shape == (split.rows, 64)
        stream = "".join(map(chr, chain.from_iterable(segments(rows))))
        assert len(stream) == split.tokens
        whole = [document for document in streams if document in stream]
        streams -= set(whole)
    assert not streams

    again = prepare([text], Words(), tmp_path / "again", **settings)
    assert np.array_equal(stored_rows(again, again.held_out), stored_rows(corpus, corpus.held_out))
    assert again.fingerprint == corpus.fingerprint
    other = prepare([text], Words(), tmp_path / "other", **settings | {"seed": 4})
    assert other.fingerprint != corpus.fingerprint
    assert other.held_out.tokens != corpus.held_out.tokens


def test_large_vocabularies_take_32_bits(tmp_path):
    text = write(tmp_path / "a.txt", story(20))
    corpus = prepare(
        [text], Words(vocab_size=70_000), tmp_path / "c", sequence_length=32, boundary="line", held_out_fraction=0
    )
    assert corpus.dtype == "uint32"
    assert stored_rows(corpus, corpus.train).max() > 1 << 16
    assert corpus.held_out.rows == 0


def test_prepared_corpus_is_reused_or_refused(tmp_path, monkeypatch):
    text = write(tmp_path / "a.txt", story(100))
    settings = {"sequence_length": 64, "boundary": "line", "held_out_fraction": 0.1}
    folder = tmp_path / "corpus"
    corpus = prepare([text], Words(), folder, **settings)

    def never(*_args, **_kwargs):
        raise AssertionError("the text was read again")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "file_documents", never)
        patch.setattr(prepare_module, "content_sha256", never)
        assert prepare([text], Words(), folder, **settings) == corpus
    moved = text.rename(tmp_path / "b.txt")
    os.utime(moved, (1, 1))
    assert prepare([moved], Words(), folder, **settings) == corpus
    (tmp_path / "b.gz").write_bytes(gzip.compress(moved.read_bytes()))
    assert prepare([tmp_path / "b.gz"], Words(), folder, **settings) == corpus

    with pytest.raises(
        ValueError, match="holds a corpus with sequence_length 64, not 128; delete the folder or choose"
    ):
        prepare([moved], Words(), folder, **settings | {"sequence_length": 128})
    with pytest.raises(ValueError, match="tokenizer 'words', not 'other'"):
        prepare([moved], Words(fingerprint="other"), folder, **settings)
    with pytest.raises(ValueError, match="holds 1 text files, not 2"):
        prepare([moved, moved], Words(), folder, **settings)
    moved.write_text(story(100) + " more", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds other text: .*b\.txt has sha256 [0-9a-f]+, a\.txt there has"):
        prepare([moved], Words(), folder, **settings)
    with pytest.raises(ValueError, match="sequence_length 64, not 512"):
        corpus.check(tokenizer=Words(), sequence_length=512)


def test_damaged_corpus_is_named(tmp_path):
    text = write(tmp_path / "a.txt", story(100))
    corpus = prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="line", held_out_fraction=0.1)
    file = corpus.folder / corpus.train.files[0].name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"train-00000\.array_record has {len(content) - 1} bytes instead of"):
        open_corpus(corpus.folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"train-00000\.array_record is missing"):
        open_corpus(corpus.folder)
    file.write_bytes(content)
    manifest = corpus.folder / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(fields | {"format": 99}))
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used: its format is 99, not 1"):
        open_corpus(corpus.folder)
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used"):
        open_corpus(corpus.folder)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json; make a corpus with `deberta-jax prepare`"):
        open_corpus(corpus.folder)
    with pytest.raises(ValueError, match="exists and is no prepared corpus"):
        prepare([text], Words(), corpus.folder, sequence_length=64, boundary="line")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 7}, "sequence_length is 7; it must be at least 8"),
        ({"held_out_fraction": 1.0}, "held_out_fraction is 1.0; it must be at least 0 and below 1"),
        ({"held_out_fraction": 0.001}, "held_out_fraction 0.001 of 3 documents holds none out; give a larger"),
        ({"held_out_fraction": 0.999}, "held_out_fraction 0.999 of 3 documents leaves none to train on"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    text = write(tmp_path / "a.txt", "one\ntwo\nthree")
    with pytest.raises(ValueError, match=message):
        prepare([text], Words(), tmp_path / "c", **{"sequence_length": 64, "boundary": "line"} | settings)
    assert list(tmp_path.iterdir()) == [text]


def test_special_tokens_in_the_text(tmp_path):
    text = write(tmp_path / "a.txt", "one\ntwo [CLS] three\n")
    with pytest.raises(TextError, match=r"a\.txt: the tokenizer turns text into a special token.*'two \[CLS\] three'"):
        prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="file", held_out_fraction=0)


def test_no_text_at_all(tmp_path):
    text = write(tmp_path / "a.txt", "\n\n")
    with pytest.raises(TextError, match=r"no text in a\.txt"):
        prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="file", held_out_fraction=0)


def test_interrupted_preparation_leaves_nothing(tmp_path):
    class Interrupted(Words):
        def encode_batch(self, texts):
            raise KeyboardInterrupt

    text = write(tmp_path / "a.txt", story(10))
    with pytest.raises(KeyboardInterrupt):
        prepare([text], Interrupted(), tmp_path / "c", sequence_length=64, boundary="line")
    assert list(tmp_path.iterdir()) == [text]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of a file makes the kernel refuse writes, as a full disk does."""
    text = write(tmp_path / "a.txt", story(5000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"cannot write the corpus .*/c: .*File too large.*; free some space"
        ) as caught:
            prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [text]


def test_command(tmp_path, capsys, monkeypatch):
    from deberta_jax.tokenizers.tokenizer import Tokenizer

    monkeypatch.setattr(Tokenizer, "from_folder", lambda _folder: Words())
    text = write(tmp_path / "a.txt", story(100))
    config = prepare_module.PrepareConfig(
        output=tmp_path / "c", tokenizer=tmp_path, text=(text,), sequence_length=64, held_out_fraction=0.1
    )
    prepare_module.main(config)
    corpus = open_corpus(tmp_path / "c")
    assert corpus.boundary == "blank_line"
    out = capsys.readouterr().out
    assert "rows of 64 tokens from 1 text files" in out
    assert f"train: {corpus.train.documents} documents, {corpus.train.tokens:,} tokens, {corpus.train.rows} rows" in out
