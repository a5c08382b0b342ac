"""A prepared corpus on disk: files of rows, and a manifest that describes them.

What protects the rows: ArrayRecord verifies a checksum of every row that it reads. Digests in the manifest show files
that were exchanged, and the manifest has a digest too. No step reads whole files, because a host reads only a
part of a large corpus.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.mirrors import local_copy
from deberta_jax.stores import address_of

from ..settings import LONGEST_ROW, SHORTEST_ROW
from . import storage
from .preparation.rules import TextRules
from .strict_fields import build, parse_object, show
from .text import Boundary, SupportsEncoding

FORMAT = 2
_OLD_FORMAT = 1  # without rules, and with the rows in the order of the text
MANIFEST = "manifest.json"
DataType = Literal["uint16", "uint32"]

_LOG = logging.getLogger("deberta_jax")
_DIGEST = "sha256"  # the manifest's field with the digest of its other fields
ROW_FILE_NAME = re.compile(r"(train|held_out)-[0-9]{5,}\.array_record", re.ASCII)
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_END_BYTES = 1 << 16
_READERS = 16  # threads: opening a file takes long on a mounted bucket
_ADVICE = "copy the folder again, or delete it and prepare the corpus again"


@dataclasses.dataclass(frozen=True)
class RowFile:
    """An ArrayRecord file of a prepared corpus: name, rows, size in bytes, digests of both its ends and of all of it.

    Files of earlier versions lack digests.
    """

    name: str
    rows: int
    bytes: int
    ends_sha256: str | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a prepared corpus.

    `tokens` does not count [CLS], [SEP] and padding. `checksum` is the sum of the CRC-32 of all rows; earlier versions
    have none.
    """

    documents: int
    tokens: int
    rows: int
    files: tuple[RowFile, ...]
    checksum: int | None = None


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A text file that was read: its size and modification time, and the digest of the uncompressed text.

    Of a set such as tfds:lm1b, size and time are 0, and the digest is that of its documents.
    """

    name: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Removal:
    """How many documents a rule removed. `rule` is the name of a field of `TextRules`."""

    rule: str
    documents: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared corpus: the content of its manifest. `tokenizer` is the fingerprint of the tokenizer.

    Corpora of format 1 have no `rules` and `removed`.
    """

    folder: Path
    format: int
    sequence_length: int
    boundary: Boundary
    held_out_fraction: float
    seed: int
    tokenizer: str
    dtype: DataType
    sources: tuple[TextSource, ...]
    train: Split
    held_out: Split
    rules: TextRules | None = None
    removed: tuple[Removal, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine the rows, together with the text."""
        names = ("format", "sequence_length", "boundary", "held_out_fraction", "seed", "tokenizer")
        rules = dataclasses.asdict(self.rules) if self.rules is not None else {}
        return {name: getattr(self, name) for name in names} | rules

    @property
    def fingerprint(self) -> str:
        """A digest that is equal for equal rows."""
        content = [self.identity, [source.sha256 for source in self.sources]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check(self, *, tokenizer: SupportsEncoding, sequence_length: int) -> None:
        """Raises UserError if the rows have another tokenizer or length."""
        expected = {
            "sequence_length": sequence_length,
            "tokenizer": tokenizer.fingerprint,
            "dtype": row_data_type(tokenizer),
        }
        check_identity(self, expected, "prepare the text again with these settings, or use those of the corpus")


def row_data_type(tokenizer: SupportsEncoding) -> DataType:
    """Returns the type of token ids on disk."""
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"


def ends_digest(path: Path) -> str:
    """Returns the digest of the first and the last 64 KiB of a file.

    They differ between any two corpora: the first rows are there, and the index of all rows, which has the size of each
    one after compression.
    """
    size = storage.size(path)
    digest = hashlib.sha256(storage.read(path, 0, min(_END_BYTES, size)))
    digest.update(storage.read(path, max(0, size - _END_BYTES)))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the digest of a whole file."""
    with storage.open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO has no `readinto`


def write_manifest(corpus: Corpus, folder: Path) -> None:
    """Writes the manifest of a new corpus."""
    fields = dataclasses.asdict(corpus)
    del fields["folder"]
    fields[_DIGEST] = _digest(fields)
    storage.write(folder / MANIFEST, (json.dumps(fields, indent=1) + "\n").encode())


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Reads the manifest of a prepared corpus and checks that each file exists and is the one that was written.

    Of an address of a store, a local copy is made and opened, because ArrayRecord reads local files.

    Raises:
      MissingFileError: if the folder contains no manifest.
      UserError: if the manifest is damaged or of another format, or if a file is missing, truncated or another one.
      OSError: if the folder cannot be read.
    """
    if address_of(folder) and not storage.is_file(Path(folder) / MANIFEST):
        raise MissingFileError(f"{folder} contains no {MANIFEST}; create a corpus with `deberta-jax prepare`")
    return check_corpus(local_copy(folder))


def check_corpus(folder: Path) -> Corpus:
    """Does what `open_corpus` does, and of an address without a copy: only a small part of each file is read."""
    path = folder / MANIFEST
    if not storage.is_file(path):
        raise MissingFileError(f"{folder} contains no {MANIFEST}; create a corpus with `deberta-jax prepare`")
    content = storage.read(path)
    try:
        corpus = _parse(content, folder)
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {_ADVICE}") from None
    with ThreadPoolExecutor(_READERS) as readers:
        for fault in readers.map(lambda file: _fault(folder, file), (*corpus.train.files, *corpus.held_out.files)):
            if fault:
                raise UserError(f"{fault}; {_ADVICE}")
    if corpus.train.files[0].ends_sha256 is None:
        _LOG.warning(
            "%s was prepared by an earlier version, without digests: a file that was exchanged or a manifest that was "
            "changed may go unnoticed; prepare it again to have them",
            folder,
        )
    return corpus


def check_identity(corpus: Corpus, expected: Mapping[str, Any], advice: str) -> None:
    """Raises UserError with the first field that differs from the expected one. `advice` ends the message."""
    actual_values = {**vars(corpus), **corpus.identity}
    for name, value in expected.items():
        if (actual := actual_values[name]) != value:
            raise UserError(f"{corpus.folder} contains a corpus with {name} {actual!r}, not {value!r}; {advice}")


def _parse(content: bytes, folder: Path) -> Corpus:
    """Returns the corpus that a manifest describes. Raises ValueError if it is not one that `write_manifest` wrote."""
    fields = parse_object(content)
    digest = fields.pop(_DIGEST, None)
    if fields.get("format") not in (_OLD_FORMAT, FORMAT):
        raise ValueError(f"its format is {show(fields.get('format'))}, not {FORMAT} or {_OLD_FORMAT}")
    corpus = build(Corpus, fields, "", folder=folder)
    if (corpus.rules is not None) != (corpus.format == FORMAT):
        raise ValueError(f"rules is {show(corpus.rules)}, which format {corpus.format} does not have")
    _check_settings(corpus)
    names: set[str] = set()
    for name, split in (("train", corpus.train), ("held_out", corpus.held_out)):
        _check_split(split, name, corpus.sequence_length, names)
    for removal in corpus.removed:
        if removal.documents < 0:
            raise ValueError(f"removed has {show(removal)}; a number of documents is at least 0")
    digests = {file.ends_sha256 is not None for file in (*corpus.train.files, *corpus.held_out.files)}
    if digests != {digest is not None}:
        raise ValueError("some of its digests are missing")
    if digest is not None and digest != _digest(fields):
        raise ValueError("its content is not what was written (wrong digest)")
    return corpus


def _check_settings(corpus: Corpus) -> None:
    for name, valid, allowed in (
        ("sequence_length", SHORTEST_ROW <= corpus.sequence_length <= LONGEST_ROW, f"{SHORTEST_ROW} to {LONGEST_ROW}"),
        ("held_out_fraction", 0 <= corpus.held_out_fraction < 1, "at least 0 and below 1"),
        ("seed", 0 <= corpus.seed < 1 << 64, "0 to 2**64 - 1"),
        ("tokenizer", corpus.tokenizer, "the fingerprint of a tokenizer"),
        ("sources", corpus.sources, "a list of at least one text file"),
    ):
        if not valid:
            raise ValueError(f"{name} is {show(getattr(corpus, name))}; it must be {allowed}")
    for index, source in enumerate(corpus.sources):
        if source.bytes < 0 or not _HEX_DIGEST.fullmatch(source.sha256):
            raise ValueError(f"sources[{index}] is {show(source)}; it must have a size and a digest of 64 hex digits")


def _check_split(split: Split, name: str, sequence_length: int, names: set[str]) -> None:
    """Raises ValueError if a split contradicts itself. `names` has the files so far."""
    for index, file in enumerate(split.files):
        where = f"{name}.files[{index}]"
        if not ROW_FILE_NAME.fullmatch(file.name):
            raise ValueError(f"{where}.name is {show(file.name)}; it must be a name such as {name}-00000.array_record")
        if file.name in names:
            raise ValueError(f"{where}.name is {show(file.name)}, which is there more than once")
        names.add(file.name)
        if file.rows < 1 or file.bytes < 1:
            raise ValueError(f"{where} has {show(file.rows)} rows and {show(file.bytes)} bytes; both must be above 0")
        for field in ("ends_sha256", "sha256"):
            digest = getattr(file, field)
            if digest is not None and not _HEX_DIGEST.fullmatch(digest):
                raise ValueError(f"{where}.{field} is {show(digest)}; it must be 64 hex digits")
    if split.rows != (rows := sum(file.rows for file in split.files)):
        raise ValueError(f"{name}.rows is {show(split.rows)}, but its files have {show(rows)}")
    if name == "train" and not split.rows:
        raise ValueError("train has no rows")
    if split.documents < 0 or not split.rows <= split.tokens <= split.rows * (sequence_length - 2):
        raise ValueError(
            f"{name} has {show(split.documents)} documents of {show(split.tokens)} tokens, which are not {split.rows} "
            f"rows of {sequence_length}"
        )


def _fault(folder: Path, file: RowFile) -> str:
    """Returns what is wrong with a file, or ""."""
    path = folder / file.name
    if not storage.is_file(path):
        return f"{path} is missing"
    if not address_of(path) and path.resolve().parent != folder.resolve():
        return f"{path} is a link to a file outside of the folder, {path.resolve()}"
    if (size := storage.size(path)) != file.bytes:
        return f"{path} has {size} bytes instead of {file.bytes}"
    if file.ends_sha256 is not None and ends_digest(path) != file.ends_sha256:
        return f"{path} is not the file that was written (wrong digest)"
    return ""


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
