"""Tests `deberta-jax prepare`: rows on disk, reuse, damage, invalid settings and interruptions."""

import gzip
import json
import os
import resource

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data.corpus import file_sha256, open_corpus
from deberta_jax.train.data.masking import hash_uint64
from deberta_jax.train.data.preparation import reading
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text import RowPacker, encode_documents, read_documents
from deberta_jax.train.data.text_files import TextError
from deberta_jax.train.prepare import PrepareConfig, main

from ...support.small_corpus import CLS, SEP, Words, segments, stored_rows, story, write


def test_prepared_rows_contain_every_document(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 12 * 64 * 2)
    text = write(tmp_path / "a.txt", story(200))
    settings = {"sequence_length": 64, "boundary": "blank_line", "held_out_fraction": 0.1, "seed": 3}
    corpus = prepare([text], Words(), tmp_path / "corpus", **settings)
    assert open_corpus(corpus.folder) == corpus
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "corpus"]
    assert corpus.dtype == "uint16"
    assert corpus.train.documents + corpus.held_out.documents == 200
    assert 8 <= corpus.held_out.documents <= 35
    assert len(corpus.train.files) > 5
    assert all(file.rows < 30 for file in corpus.train.files)
    assert corpus.train.files[1].name == "train-00001.array_record"
    assert all(file.sha256 == file_sha256(corpus.folder / file.name) for file in corpus.train.files)

    # Packed here in the order of the text, these rows are those of the corpus, in another order.
    packers = [RowPacker(64, cls_id=CLS, sep_id=SEP, dtype="uint16") for _ in range(2)]
    expected, tokens = ([], []), [0, 0]
    for number, document in enumerate(encode_documents(read_documents([text]), Words(), text)):
        is_held_out = bool(hash_uint64(np.uint64(3), number) / 2**64 < 0.1)
        expected[is_held_out].extend(packers[is_held_out].add(document))
        tokens[is_held_out] += len(document)
    for packer, rows, split, count in zip(packers, expected, (corpus.train, corpus.held_out), tokens, strict=True):
        rows.extend(packer.finish())
        stored = stored_rows(corpus, split)
        assert stored.shape == (split.rows, 64)
        assert sorted(row.tobytes() for row in stored) == sorted(row.tobytes() for row in rows)
        assert sum(map(len, segments(stored))) == split.tokens == count
        assert len(rows) < 10 or [row.tobytes() for row in stored] != [row.tobytes() for row in rows]

    again = prepare([text], Words(), tmp_path / "again", **settings)
    assert np.array_equal(stored_rows(again, again.held_out), stored_rows(corpus, corpus.held_out))
    assert again.fingerprint == corpus.fingerprint
    other = prepare([text], Words(), tmp_path / "other", **settings | {"seed": 4})
    assert other.fingerprint != corpus.fingerprint
    assert other.held_out.tokens != corpus.held_out.tokens


def test_large_vocabulary_uses_32_bits(tmp_path):
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
        patch.setattr(reading, "documents_and_faults", never)
        patch.setattr(prepare_module, "content_sha256", never)
        assert prepare([text], Words(), folder, **settings) == corpus
    moved = text.rename(tmp_path / "b.txt")
    os.utime(moved, (1, 1))
    assert prepare([moved], Words(), folder, **settings) == corpus
    (tmp_path / "b.gz").write_bytes(gzip.compress(moved.read_bytes()))
    assert prepare([tmp_path / "b.gz"], Words(), folder, **settings) == corpus

    with pytest.raises(
        ValueError, match="contains a corpus with sequence_length 64, not 128; delete the folder or choose"
    ):
        prepare([moved], Words(), folder, **settings | {"sequence_length": 128})
    with pytest.raises(ValueError, match="tokenizer 'words', not 'other'"):
        prepare([moved], Words(fingerprint="other"), folder, **settings)
    with pytest.raises(ValueError, match="was made from 1 text files, not 2"):
        prepare([moved, moved], Words(), folder, **settings)
    moved.write_text(story(100) + " more", encoding="utf-8")
    with pytest.raises(ValueError, match=r"was made from other text: .*b\.txt has sha256 [0-9a-f]+, a\.txt had"):
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
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used: its format is 99, not 2 or 1"):
        open_corpus(corpus.folder)
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used"):
        open_corpus(corpus.folder)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match=r"contains no manifest\.json; create a corpus with `deberta"):
        open_corpus(corpus.folder)
    with pytest.raises(ValueError, match="exists and is not a prepared corpus"):
        prepare([text], Words(), corpus.folder, sequence_length=64, boundary="line")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 7}, "sequence_length is 7; it must be at least 8"),
        ({"held_out_fraction": 1.0}, "held_out_fraction is 1.0; it must be at least 0 and below 1"),
        ({"held_out_fraction": 0.001}, "held_out_fraction 0.001 of 3 documents selects none; give a larger"),
        ({"held_out_fraction": 0.999}, "held_out_fraction 0.999 of 3 documents leaves none to train on"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
    ],
)
def test_invalid_settings(tmp_path, settings, message):
    text = write(tmp_path / "a.txt", "one\ntwo\nthree")
    with pytest.raises(ValueError, match=message):
        prepare([text], Words(), tmp_path / "c", **{"sequence_length": 64, "boundary": "line"} | settings)
    assert list(tmp_path.iterdir()) == [text]


def test_text_that_encodes_to_special_tokens(tmp_path):
    text = write(tmp_path / "a.txt", "one\ntwo [CLS] three\n")
    with pytest.raises(TextError, match=r"a\.txt: the tokenizer encodes text as a special token.*'two \[CLS\] three'"):
        prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="file", held_out_fraction=0)


def test_corpus_without_text(tmp_path):
    text = write(tmp_path / "a.txt", "\n\n")
    with pytest.raises(TextError, match=r"no text in a\.txt"):
        prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="file", held_out_fraction=0)


def test_an_interrupted_preparation_is_continued_or_removed(tmp_path, monkeypatch, caplog):
    class Interrupted(Words):
        def encode_batch(self, texts):
            raise KeyboardInterrupt

    text = write(tmp_path / "a.txt", story(30))
    settings = {"sequence_length": 64, "boundary": "line", "held_out_fraction": 0.1}
    with pytest.raises(KeyboardInterrupt):
        prepare([text], Interrupted(), tmp_path / "c", **settings)
    (work,) = tmp_path.glob(".c.*.tmp")
    assert f"{work} has what is complete; the same command continues from there" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(reading, "documents_and_faults", None)  # the text is not read again
        corpus = prepare([text], Words(), tmp_path / "c", **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "c"}
    with pytest.raises(KeyboardInterrupt):
        prepare([text], Interrupted(), tmp_path / "d", **settings)
    other = prepare([text], Words(), tmp_path / "d", **settings | {"seed": 1})
    assert other.fingerprint != corpus.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "c", "d"}
    assert "which a killed run had left" in caplog.text


@pytest.mark.parametrize("kind", ["empty folder", "mount point", "link", "current folder", "leftovers"])
def test_an_existing_folder_receives_the_corpus(tmp_path, monkeypatch, kind):
    """None of these can be replaced by a folder that is renamed."""
    text = write(tmp_path / "a.txt", story(50))
    real = tmp_path / "real"
    real.mkdir()
    output = real
    if kind == "mount point":
        (real / "lost+found").mkdir()
    elif kind == "link":
        output = tmp_path / "link"
        output.symlink_to(real)
    elif kind == "current folder":
        monkeypatch.chdir(real)
        output = "."
    elif kind == "leftovers":
        (real / ".real.abc.tmp").mkdir()
    before = {path.name for path in real.iterdir()}
    settings = {"sequence_length": 64, "boundary": "line", "held_out_fraction": 0.1}
    corpus = prepare([text], Words(), output, **settings)
    assert open_corpus(real).train == corpus.train
    names = {file.name for file in (*corpus.train.files, *corpus.held_out.files)}
    assert {path.name for path in real.iterdir()} - before == names | {"manifest.json"}
    assert prepare([text], Words(), output, **settings).fingerprint == corpus.fingerprint


def test_a_broken_link_is_refused_before_the_work(tmp_path):
    (tmp_path / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="c is a broken link; delete it or choose another folder"):
        prepare([write(tmp_path / "a.txt", story(5))], Words(), tmp_path / "c", sequence_length=64, boundary="line")


def test_full_disk_is_reported_in_one_line_and_the_work_is_continued(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse writes, as a full disk does."""
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
    assert not (tmp_path / "c").exists()
    prepare([text], Words(), tmp_path / "c", sequence_length=64, boundary="line")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "c"}


def test_command_prints_totals(tmp_path, capsys, monkeypatch):
    from deberta_jax.tokenizers.tokenizer import Tokenizer

    monkeypatch.setattr(Tokenizer, "from_folder", lambda _folder: Words())
    text = write(tmp_path / "a.txt", story(100))
    config = PrepareConfig(
        output=tmp_path / "c", tokenizer=tmp_path, text=(text,), sequence_length=64, held_out_fraction=0.1
    )
    main(config)
    corpus = open_corpus(tmp_path / "c")
    assert corpus.boundary == "blank_line"
    out = capsys.readouterr().out
    assert "rows of 64 tokens from 1 text files" in out
    assert f"train: {corpus.train.documents} documents, {corpus.train.tokens:,} tokens, {corpus.train.rows} rows" in out


def test_command_hints_at_paragraphs_that_became_documents(tmp_path, capsys, monkeypatch):
    from deberta_jax.tokenizers.tokenizer import Tokenizer

    monkeypatch.setattr(Tokenizer, "from_folder", lambda _folder: Words())
    text = write(tmp_path / "a.txt", "\n\n".join(f"one two three {number}" for number in range(200)))
    settings = {"tokenizer": tmp_path, "text": (text,), "sequence_length": 64}
    main(PrepareConfig(output=tmp_path / "c", **settings))
    assert "documents have 4 tokens on average; if blank lines only separate paragraphs" in capsys.readouterr().out
    main(PrepareConfig(output=tmp_path / "c", boundary="blank_line", **settings))
    assert "hint:" not in capsys.readouterr().out
