"""Text to rows of token ids on disk: `deberta-jax prepare`.

Documents are tokenized, packed into rows of one length, and written unmasked into ArrayRecord files that are read in
any order. A row holds one or more segments `[CLS] ... [SEP]`, each a document or a piece of one, then padding (0).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deberta_jax.errors import MissingFileError, UserError

from .masking import hash_uint64
from .text import (
    Boundary,
    RowPacker,
    SupportsEncoding,
    TextError,
    content_sha256,
    embedded_corpus,
    encode_documents,
    file_documents,
    text_files,
)

FORMAT = 1
MANIFEST = "manifest.json"
ROWS_PER_FILE = 1 << 17  # 128 MB of 512 16-bit ids
SplitName = Literal["train", "held_out"]


@dataclasses.dataclass(frozen=True)
class RowFile:
    name: str
    rows: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """`tokens` are those of the documents, without [CLS], [SEP] and padding."""

    documents: int
    tokens: int
    rows: int
    files: tuple[RowFile, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """A text file that was read: size and time as on disk, digest of the uncompressed text."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared folder, as its manifest tells."""

    folder: Path
    format: int
    sequence_length: int
    boundary: Boundary
    held_out_fraction: float
    seed: int
    tokenizer: str  # fingerprint
    dtype: str
    sources: tuple[Source, ...]
    train: Split
    held_out: Split

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows follow from, besides the text."""
        names = ("format", "sequence_length", "boundary", "held_out_fraction", "seed", "tokenizer")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows."""
        told = [self.identity, [source.sha256 for source in self.sources]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def check(self, *, tokenizer: SupportsEncoding, sequence_length: int) -> None:
        """Raises ValueError unless the rows are of this tokenizer and of this length."""
        wanted = {"sequence_length": sequence_length, "tokenizer": tokenizer.fingerprint}
        _check_identity(self, wanted, "prepare the text again with these settings, or use those of the corpus")


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Reads a prepared folder's manifest and checks that every file is there in full length.

    Raises:
      FileNotFoundError: no manifest in the folder.
      ValueError: a manifest that this version does not read, a missing or a truncated file.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise MissingFileError(f"{folder} holds no {MANIFEST}; make a corpus with `deberta-jax prepare`")
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise UserError(f"its format is {fields['format']}, not {FORMAT}")
        fields["sources"] = tuple(Source(**source) for source in fields["sources"])
        for split in ("train", "held_out"):
            files = tuple(RowFile(**file) for file in fields[split].pop("files"))
            fields[split] = Split(**fields[split], files=files)
        corpus = Corpus(folder=folder, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be used: {error}; prepare the corpus again") from None
    for file in (*corpus.train.files, *corpus.held_out.files):
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {file.bytes}"
            raise UserError(f"{path} {found}; copy it again, or delete {folder} and prepare the corpus again")
    return corpus


def _check_identity(corpus: Corpus, wanted: Mapping[str, Any], advice: str) -> None:
    for name, value in wanted.items():
        if (found := getattr(corpus, name)) != value:
            raise UserError(f"{corpus.folder} holds a corpus with {name} {found!r}, not {value!r}; {advice}")


class _SplitWriter:
    """Packs one split's documents and writes its rows, a new file every ROWS_PER_FILE."""

    def __init__(self, folder: Path, name: SplitName, packer: RowPacker) -> None:
        self._folder, self._name, self._packer = folder, name, packer
        self._files: list[RowFile] = []
        self._writer: Any = None
        self._rows = 0
        self._documents = self._tokens = 0

    def add(self, tokens: NDArray[np.integer]) -> None:
        self._documents += 1
        self._tokens += len(tokens)
        for row in self._packer.add(tokens):
            self._write(row)

    def finish(self) -> Split:
        for row in self._packer.finish():
            self._write(row)
        self._close()
        rows = sum(file.rows for file in self._files)
        return Split(self._documents, self._tokens, rows, tuple(self._files))

    def _path(self) -> Path:
        return self._folder / f"{self._name}-{len(self._files):05d}.array_record"

    def _write(self, row: NDArray[np.integer]) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        if self._writer is None:
            self._writer = ArrayRecordWriter(str(self._path()), "group_size:1")  # one row a read, as grain wants it
        self._writer.write(row.tobytes())
        self._rows += 1
        if self._rows == ROWS_PER_FILE:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            path = self._path()
            self._files.append(RowFile(path.name, self._rows, path.stat().st_size))
            self._writer, self._rows = None, 0


def prepare(
    paths: Sequence[str | Path],
    tokenizer: SupportsEncoding,
    folder: str | os.PathLike[str],
    *,
    sequence_length: int,
    boundary: Boundary,
    held_out_fraction: float = 0.02,
    seed: int = 0,
) -> Corpus:
    """Tokenizes and packs text files into `folder`, or takes what is there if it came from the same text and settings.

    A document is tokenized line by line and its lines' tokens are joined, so that a long one needs no more than its
    own memory. Whether a document is held out is a hash of `seed` and its number. The folder appears under its name
    only when it is complete; a run that was killed leaves a hidden `.NAME.*.tmp` folder beside it, which may be
    deleted.

    Args:
      paths, boundary: see `text.read_documents`.
      sequence_length: tokens a row, [CLS] and [SEP] counted, at least 8.
      held_out_fraction: share of the documents kept for evaluation, 0 for none.

    Raises:
      TextError: text that cannot be used (see `text.read_documents`).
      ValueError: bad settings, nothing held out or nothing left, or a folder that holds something else.
      OSError: writing failed, for instance on a full disk.
    """
    folder = Path(folder)
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    nothing = Split(0, 0, 0, ())
    corpus = Corpus(
        folder=folder,
        format=FORMAT,
        sequence_length=sequence_length,
        boundary=boundary,
        held_out_fraction=held_out_fraction,
        seed=seed,
        tokenizer=tokenizer.fingerprint,
        dtype=dtype,
        sources=(),
        train=nothing,
        held_out=nothing,
    )
    _validate(corpus, tokenizer)
    files = text_files(paths)
    if (folder / MANIFEST).exists():
        return _existing(corpus, files)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no prepared corpus; delete it or choose another folder")
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent)
    with temporary:
        complete = Path(temporary.name) / "corpus"
        corpus = _write(corpus, files, tokenizer, complete)
        with _writing(folder):
            complete.rename(folder)
    return corpus


def _validate(corpus: Corpus, tokenizer: SupportsEncoding) -> None:
    if corpus.sequence_length < 8:
        raise UserError(f"sequence_length is {corpus.sequence_length}; it must be at least 8, usually 128 or 512")
    if not 0 <= corpus.held_out_fraction < 1:
        raise UserError(f"held_out_fraction is {corpus.held_out_fraction}; it must be at least 0 and below 1")
    if corpus.seed < 0:
        raise UserError(f"seed is {corpus.seed}; it must not be negative")
    if tokenizer.pad_id != 0:
        raise UserError(f"the tokenizer's padding id is {tokenizer.pad_id}; it must be 0, as in every DeBERTa")


def _existing(wanted: Corpus, files: Sequence[Path]) -> Corpus:
    """The corpus that is in the folder already, if it is the wanted one. Raises ValueError with the difference."""
    corpus = open_corpus(wanted.folder)
    advice = "delete the folder or choose another one"
    _check_identity(corpus, wanted.identity, advice)
    if len(files) != len(corpus.sources):
        raise UserError(f"{corpus.folder} holds {len(corpus.sources)} text files, not {len(files)}; {advice}")
    for path, source in zip(files, corpus.sources, strict=True):
        stat = path.stat()
        untouched = (path.name, stat.st_size, stat.st_mtime_ns) == (source.name, source.bytes, source.mtime_ns)
        if not untouched and (sha256 := content_sha256(path)) != source.sha256:
            raise UserError(
                f"{corpus.folder} holds other text: {path} has sha256 {sha256}, {source.name} there has "
                f"{source.sha256}; {advice}"
            )
    return corpus


def _write(corpus: Corpus, files: Sequence[Path], tokenizer: SupportsEncoding, folder: Path) -> Corpus:
    """Writes all rows and the manifest into `folder`, a new one; returns the corpus with what was found in the text."""
    writers: dict[SplitName, _SplitWriter] = {}
    for name in ("train", "held_out"):
        packer = RowPacker(corpus.sequence_length, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, dtype=corpus.dtype)
        writers[name] = _SplitWriter(folder, name, packer)
    with _writing(corpus.folder):
        folder.mkdir()
    sources = []
    number = 0
    for path in files:
        digest = hashlib.sha256()
        stat = path.stat()
        documents = file_documents(path, corpus.boundary, digest=digest)
        for tokens in encode_documents(documents, tokenizer, path):
            share = float(hash_uint64(np.uint64(corpus.seed), number)) / 2**64
            number += 1
            with _writing(corpus.folder):
                writers["held_out" if share < corpus.held_out_fraction else "train"].add(tokens)
        sources.append(Source(path.name, stat.st_size, stat.st_mtime_ns, digest.hexdigest()))
    with _writing(corpus.folder):
        splits = {name: writer.finish() for name, writer in writers.items()}
    corpus = dataclasses.replace(corpus, sources=tuple(sources), **splits)
    _check_splits(corpus)
    fields = dataclasses.asdict(corpus)
    del fields["folder"]
    with _writing(corpus.folder):
        (folder / MANIFEST).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return corpus


def _check_splits(corpus: Corpus) -> None:
    documents = corpus.train.documents + corpus.held_out.documents
    if not corpus.train.tokens + corpus.held_out.tokens:
        names = ", ".join(source.name for source in corpus.sources)
        raise TextError(f"no text in {names}; give files with at least one line that is not blank")
    if corpus.held_out_fraction and not corpus.held_out.rows:
        raise UserError(
            f"held_out_fraction {corpus.held_out_fraction} of {documents} documents holds none out; give a larger "
            "fraction, a boundary that makes more documents, another seed, or 0 for no held-out rows"
        )
    if not corpus.train.rows:
        raise UserError(
            f"held_out_fraction {corpus.held_out_fraction} of {documents} documents leaves none to train on; give a "
            "smaller fraction, a boundary that makes more documents, or another seed"
        )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into one line. ArrayRecord reports a full disk as a RuntimeError, on closing a file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot write the corpus {folder}: {error}; free some space or choose another folder") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn text into packed rows of token ids, once, for any number of pre-training runs."""

    output: Path
    """folder to make"""
    tokenizer: Path
    """folder with spm.model, for instance from `deberta-jax tokenizer`, or with the files of v1's tokenizer"""
    text: tuple[Path, ...] = ()
    """text files or folders of them (.txt, .gz, .xz); none: the embedded corpus, six novels"""
    boundary: Boundary | None = None
    """what ends a document; default blank_line, and chapter for the embedded corpus"""
    sequence_length: int = 512
    """tokens a row"""
    held_out_fraction: float = 0.02
    """share of the documents kept for evaluation"""
    seed: int = 0
    """chooses the documents that are held out"""


def main(config: PrepareConfig) -> None:
    from deberta_jax.tokenizers.tokenizer import Tokenizer

    corpus = prepare(
        config.text or (embedded_corpus(),),
        Tokenizer.from_folder(config.tokenizer),
        config.output,
        sequence_length=config.sequence_length,
        boundary=config.boundary or ("blank_line" if config.text else "chapter"),
        held_out_fraction=config.held_out_fraction,
        seed=config.seed,
    )
    print(f"{corpus.folder}: rows of {corpus.sequence_length} tokens from {len(corpus.sources)} text files")
    for name, split in (("train", corpus.train), ("held out", corpus.held_out)):
        filled = split.tokens / max(1, split.rows * corpus.sequence_length)
        print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.rows:,} rows in "
            f"{len(split.files)} files, {filled:.1%} filled with text"
        )
