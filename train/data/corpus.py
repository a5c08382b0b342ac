"""A prepared corpus on disk: files of rows, and a manifest that describes them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deberta_jax.errors import MissingFileError, UserError

from .text import Boundary, SupportsEncoding

FORMAT = 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class RowFile:
    """An ArrayRecord file of a prepared corpus: name, number of rows, and size in bytes."""

    name: str
    rows: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a prepared corpus. `tokens` does not count [CLS], [SEP] and padding."""

    documents: int
    tokens: int
    rows: int
    files: tuple[RowFile, ...]


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A text file that was read: its size and modification time, and the digest of the uncompressed text."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared corpus: the content of its manifest. `tokenizer` is the fingerprint of the tokenizer."""

    folder: Path
    format: int
    sequence_length: int
    boundary: Boundary
    held_out_fraction: float
    seed: int
    tokenizer: str
    dtype: str
    sources: tuple[TextSource, ...]
    train: Split
    held_out: Split

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine the rows, together with the text."""
        names = ("format", "sequence_length", "boundary", "held_out_fraction", "seed", "tokenizer")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """A digest that is equal for equal rows."""
        content = [self.identity, [source.sha256 for source in self.sources]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check(self, *, tokenizer: SupportsEncoding, sequence_length: int) -> None:
        """Raises UserError if the rows have another tokenizer or length."""
        expected = {"sequence_length": sequence_length, "tokenizer": tokenizer.fingerprint}
        check_identity(self, expected, "prepare the text again with these settings, or use those of the corpus")


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Reads the manifest of a prepared corpus and checks that each file exists and has its full size.

    Raises:
      MissingFileError: if the folder contains no manifest.
      UserError: if the manifest is damaged or of another format, or if a file is missing or truncated.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise MissingFileError(f"{folder} contains no {MANIFEST}; create a corpus with `deberta-jax prepare`")
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']}, not {FORMAT}")
        fields["sources"] = tuple(TextSource(**source) for source in fields["sources"])
        for split in ("train", "held_out"):
            files = tuple(RowFile(**file) for file in fields[split].pop("files"))
            fields[split] = Split(**fields[split], files=files)
        corpus = Corpus(folder=folder, **fields)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be used: {error}; prepare the corpus again") from None
    for file in (*corpus.train.files, *corpus.held_out.files):
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            fault = "is missing" if size is None else f"has {size} bytes instead of {file.bytes}"
            raise UserError(f"{path} {fault}; copy it again, or delete {folder} and prepare the corpus again")
    return corpus


def check_identity(corpus: Corpus, expected: Mapping[str, Any], advice: str) -> None:
    """Raises UserError with the first field that differs from the expected one. `advice` ends the message."""
    for name, value in expected.items():
        if (actual := getattr(corpus, name)) != value:
            raise UserError(f"{corpus.folder} contains a corpus with {name} {actual!r}, not {value!r}; {advice}")
