"""A corpus that is not what `prepare` wrote: edited by hand, flipped bits, exchanged files, and earlier versions."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.data import batches as batches_module
from deberta_jax.train.data import corpus as corpus_module
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data.batches import TrainingBatches, held_out_batches
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.data.preparation.rules import TextRules
from deberta_jax.train.data.prepare import prepare

from ...support.small_corpus import MaskedWords, story, write

SETTINGS = {"sequence_length": 64, "boundary": "blank_line", "held_out_fraction": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a text and the corpus of it, in several files."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "SHARD_BYTES", 8700)
        text = write(folder / "a.txt", story(180))
        assert len(prepare([text], MaskedWords(), folder / "corpus", **SETTINGS).train.files) == 3
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the corpus, to be damaged."""
    return shutil.copytree(made / "corpus", tmp_path / "corpus")


def all_rows(folder: Path) -> list[bytes]:
    """Returns every row in the order of its file, read as `pretrain` does."""
    corpus = open_corpus(folder)
    rows = []
    for size in (corpus.train.rows, corpus.held_out.rows):
        setting = {"tokenizer": MaskedWords(), "masking": MaskingConfig(), "global_batch": size}
        stream = TrainingBatches(corpus, seed=0, **setting) if not rows else held_out_batches(corpus, **setting)
        batch = next(stream)
        ids = batch["input_ids"].copy()
        chosen, slots = np.nonzero(batch["masked_labels"])
        ids[chosen, batch["masked_positions"][chosen, slots]] = batch["masked_labels"][chosen, slots]
        rows += [row.tobytes() for row in ids]
        if isinstance(stream, TrainingBatches):
            stream.close()
    return rows


def edit(folder: Path, change: Callable[[dict[str, Any]], object], *, as_earlier_version: bool = True) -> None:
    """Changes the manifest, without its digests as earlier versions wrote it, so that nothing else protects it."""
    fields = json.loads((folder / "manifest.json").read_text())
    if as_earlier_version:
        fields["format"] = 1
        del fields["sha256"], fields["rules"], fields["removed"]
        for split in ("train", "held_out"):
            del fields[split]["checksum"]
            for file in fields[split]["files"]:
                del file["ends_sha256"], file["sha256"]
    change(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))


def put(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    """Returns a change that sets the value at a path."""

    def change(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        del fields[path[-1]]

    return change


NAME = ("train", "files", 0, "name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("../train-00000.array_record", *NAME), r"train\.files\[0\]\.name is '\.\./train-.*'; it must be"),
        (put("/etc/passwd", *NAME), r"name is '/etc/passwd'; it must be a name such as train-00000\.array_record"),
        (put("", *NAME), r"name is ''; it must be"),
        (put("train-00000.array_record\n", *NAME), r"name is 'train-00000\.array_record\\n'; it must be"),
        (put("train-00000\0.array_record", *NAME), r"it must be a name such"),
        (put("\x1b[31mtrain", *NAME), r"name is '\\x1b\[31mtrain'; it must be"),
        (put("train-00001.array_record", *NAME), r"files\[1\]\.name is 'train-00001.*', which is there more"),
        (put("held_out-00000.array_record", *NAME), r"held_out\.files\[0\]\.name .* which is there more than once"),
        (put(7, *NAME), r"train\.files\[0\]\.name is 7; it must be a string"),
        (put(32, "sequence_length"), r"\d+ tokens, which are not \d+ rows of 32"),
        (put(7, "sequence_length"), r"sequence_length is 7; it must be 8 to 1048576"),
        (put(10**30, "sequence_length"), r"sequence_length is 10+; it must be 8 to 1048576"),
        (put("64", "sequence_length"), r"sequence_length is '64'; it must be a whole number"),
        (put(64.0, "sequence_length"), r"sequence_length is 64\.0; it must be a whole number"),
        (put(True, "seed"), r"seed is True; it must be a whole number"),
        (put(-1, "seed"), r"seed is -1; it must be 0 to 2\*\*64 - 1"),
        (put("uint8", "dtype"), r"dtype is 'uint8'; it must be one of uint16, uint32"),
        (put("page", "boundary"), r"boundary is 'page'; it must be one of blank_line, line"),
        (put([], "boundary"), r"boundary is \[\]; it must be one of"),
        (put(float("nan"), "held_out_fraction"), r"it contains NaN, which JSON does not have"),
        (put(1.5, "held_out_fraction"), r"held_out_fraction is 1\.5; it must be at least 0 and below 1"),
        (put(10**400, "held_out_fraction"), r"held_out_fraction is 10+\.\.\.; it must be a number"),
        (put("", "tokenizer"), r"tokenizer is ''; it must be the fingerprint"),
        (put(None, "tokenizer"), r"tokenizer is None; it must be a string"),
        (put([], "sources"), r"sources is \(\); it must be a list of at least one"),
        (put("x", "sources", 0, "sha256"), r"sources\[0\] is .*; it must have a size and a digest"),
        (put([], "train"), r"train is \[\]; it must be an object"),
        (put({}, "train", "files"), r"train\.files is \{\}; it must be a list"),
        (put([], "train", "files"), r"train\.rows is \d+, but its files have 0"),
        (put(1, "train", "files", 0, "rows"), r"train\.rows is \d+, but its files have \d+"),
        (put(0, "train", "files", 0, "rows"), r"files\[0\] has 0 rows and \d+ bytes; both must be above 0"),
        (put(10**25, "train", "rows"), r"train\.rows is 10+, but its files have"),
        (put(10**25, "train", "tokens"), r"train has \d+ documents of 10+ tokens, which are not"),
        (put(-5, "train", "documents"), r"train has -5 documents"),
        (put(1, "train", "extra"), r"'train\.extra' is not a field; allowed are documents, tokens, rows, files"),
        (put(1, "vocab_size"), r"'vocab_size' is not a field; allowed are format, sequence_length"),
        (put("x", "folder"), r"'folder' is not a field"),
        (put(3, "format"), r"its format is 3, not 2 or 1"),
        (put(1.0, "format"), r"format is 1\.0; it must be a whole number"),
        (drop("format"), r"its format is None, not 2 or 1"),
        (put(2, "format"), r"rules is None, which format 2 does not have"),
        (put({"text_field": "text"}, "rules"), r"rules is TextRules.*, which format 1 does not have"),
        (put({"text_field": 1}, "rules"), r"rules\.text_field is 1; it must be a string"),
        (put([{"rule": "near_duplicates", "documents": -1}], "removed"), r"removed has Removal.*at least 0"),
        (put("x", "train", "files", 0, "sha256"), r"files\[0\]\.sha256 is 'x'; it must be 64 hex digits"),
        (drop("seed"), r"seed is missing"),
        (drop("train", "files", 0, "bytes"), r"train\.files\[0\]\.bytes is missing"),
        (put("0" * 64, "sha256"), r"some of its digests are missing"),
        (put("0" * 64, "train", "files", 0, "ends_sha256"), r"some of its digests are missing"),
    ],
)  # fmt: skip
def test_a_manifest_that_was_edited_is_refused_in_one_line(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=rf"manifest\.json cannot be used: .*{message}") as caught:
        open_corpus(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).endswith("copy the folder again, or delete it and prepare the corpus again")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[1]", r"its content is \[1\]; it must be an object"),
        (b"\xff{}", "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"seed": 1, "seed": 2}', "the field 'seed' is there more than once"),
        (b'{"format": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"format": 1e999}', "its format is inf, not 2 or 1"),
        (b'{"format": ' + b"[" * 500 + b"]" * 500 + b"}", r"its format is \[\[\[.*\.\.\., not 2 or 1"),
    ],
)
def test_a_manifest_that_is_not_json_of_a_corpus_is_refused(folder, content, message):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"manifest\.json cannot be used: .*{message}"):
        open_corpus(folder)


@pytest.mark.parametrize(
    "change", [put("a.csv", "sources", 0, "name"), put(2, "seed"), put(65, "sequence_length"), put("w", "tokenizer")]
)
def test_a_change_that_looks_right_is_found_by_the_digest(folder, change):
    edit(folder, change, as_earlier_version=False)
    with pytest.raises(UserError, match=r"its content is not what was written \(wrong digest\)"):
        open_corpus(folder)


@pytest.mark.parametrize(("length", "dtype"), [(65, "uint16"), (32, "uint32"), (128, "uint16")])
def test_rows_of_another_length_are_found_at_the_start(folder, length, dtype):
    def change(fields: dict[str, Any]) -> None:
        fields.update(sequence_length=length, dtype=dtype)
        for split in ("train", "held_out"):
            fields[split]["tokens"] = fields[split]["rows"]

    edit(folder, change)
    corpus = open_corpus(folder)
    setting = {"tokenizer": MaskedWords(), "masking": MaskingConfig(), "global_batch": 4}
    with pytest.raises(UserError, match=r"row 0 is damaged: it has 128 bytes, not|dtype 'uint32', not 'uint16'"):
        TrainingBatches(corpus, seed=0, **setting)
    with pytest.raises(UserError, match=r"row 0 is damaged: it has 128 bytes, not|dtype 'uint32', not 'uint16'"):
        held_out_batches(corpus, **setting)


def test_a_corpus_of_an_earlier_version_loads_and_is_named(made, folder, caplog):
    new = open_corpus(folder)
    assert not caplog.records
    edit(folder, lambda fields: None)
    old = open_corpus(folder)
    assert old.train.rows == new.train.rows
    assert "was prepared by an earlier version, without digests" in caplog.text
    assert len(caplog.records) == 1
    assert old.fingerprint != new.fingerprint
    assert all_rows(folder) == all_rows(made / "corpus")
    assert prepare([made / "a.txt"], MaskedWords(), folder, **SETTINGS) == old
    with pytest.raises(UserError, match="contains a corpus with format 1, not 2"):
        prepare([made / "a.txt"], MaskedWords(), folder, rules=TextRules(min_characters=5), **SETTINGS)


def test_the_fingerprint_is_that_of_earlier_versions(folder):
    """It is in the checkpoints of runs: another one would make them unusable."""
    edit(folder, lambda fields: None)
    corpus = open_corpus(folder)
    content = [
        {
            "format": 1,
            "sequence_length": 64,
            "boundary": "blank_line",
            "held_out_fraction": 0.1,
            "seed": 0,
            "tokenizer": "words",
        },
        [source.sha256 for source in corpus.sources],
    ]
    assert corpus.fingerprint == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_exchanged_files_are_found(made, folder, tmp_path):
    """ArrayRecord fills whole blocks, so that the files of different text have the same size."""
    one, other = folder / "train-00000.array_record", folder / "train-00001.array_record"
    assert one.stat().st_size == other.stat().st_size
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(UserError, match=r"train-0000[01]\.array_record is not the file that was written"):
        open_corpus(folder)
    shutil.copyfile(made / "corpus" / one.name, one)
    shutil.copyfile(made / "corpus" / other.name, other)
    assert all_rows(folder) == all_rows(made / "corpus")
    outside = tmp_path / "outside.array_record"
    one.rename(outside)
    one.symlink_to(outside)
    with pytest.raises(UserError, match=r"train-00000\.array_record is a link to a file outside of the folder, /"):
        open_corpus(folder)
    one.unlink()
    one.mkdir()
    with pytest.raises(UserError, match=r"train-00000\.array_record is missing; copy the folder again"):
        open_corpus(folder)
    one.rmdir()
    outside.rename(one)
    (tmp_path / "link").symlink_to(folder)
    assert open_corpus(tmp_path / "link").train == open_corpus(folder).train
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    with pytest.raises(MissingFileError, match=r"contains no manifest\.json"):
        open_corpus(folder)


def flips(folder: Path, count: int) -> list[tuple[Path, int, int]]:
    """Returns files, positions and bits: half of them anywhere, half of them where a file is not padding."""
    choose = random.Random(0)
    files = sorted(folder.iterdir())
    found = []
    for number in range(count):
        path = files[number % len(files)]
        content = path.read_bytes()
        places = range(len(content)) if number % 2 else [place for place, byte in enumerate(content) if byte]
        found.append((path, choose.choice(places), choose.randrange(8)))
    return found


@pytest.mark.parametrize(
    "digests",
    [pytest.param(True, id="with digests of files"), pytest.param(False, id="rows alone", marks=pytest.mark.slow)],
)
def test_200_flipped_bits_load_nothing_else(made, folder, monkeypatch, digests):
    """Every row is read. Without the digests of files, which cover these small ones, ArrayRecord has to find a flip."""
    if not digests:
        monkeypatch.setattr(corpus_module, "_fault", lambda folder, file: "")
    expected = all_rows(folder)
    refused = []
    for path, place, bit in flips(folder, 200):
        content = path.read_bytes()
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            assert all_rows(folder) == expected, (path.name, place, bit)
        except UserError as error:
            refused.append((path.name, str(error)))
        path.write_bytes(content)
    assert all(name in message and "\n" not in message for name, message in refused)
    assert len(refused) > (190 if digests else 100)


def test_a_fault_of_storage_is_not_called_damage(folder, monkeypatch):
    """After it, the run is worth starting again: an OSError has exit code 42, a damaged row 1."""
    corpus = open_corpus(folder)
    rows = batches_module._Rows(corpus, "train")

    class Failing:
        def __getitem__(self, index: int) -> bytes:
            raise RuntimeError("read() failed: Input/output error")

    rows._files[1] = Failing()
    place = corpus.train.files[0].rows + 5
    with pytest.raises(UserError, match=r"train-00001\.array_record: row 5 is damaged: read\(\) failed"):
        rows[place]
    (folder / "train-00001.array_record").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001\.array_record"):
        rows[place]


def test_a_damaged_row_is_named_with_its_file(folder):
    corpus = open_corpus(folder)
    rows = batches_module._Rows(corpus, "train")
    expected = [rows[index].tobytes() for index in range(len(rows))]
    path = folder / "train-00001.array_record"
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    rows = batches_module._Rows(corpus, "train")
    damaged = {}
    for index, row in enumerate(expected):
        try:
            assert rows[index].tobytes() == row
        except UserError as error:
            damaged[index] = str(error)
    ((index, message),) = damaged.items()
    assert message.startswith(f"{path}: row {index - corpus.train.files[0].rows} is damaged: Corrupted")
