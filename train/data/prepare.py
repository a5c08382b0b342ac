"""The command `deberta-jax prepare`: tokenizes text and packs it into rows of token ids on disk.

Rows have a fixed length and are written without masks into ArrayRecord files, which allow random access. A row contains
one or more segments `[CLS] ... [SEP]`, each a document or a piece of one, followed by padding (0).
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Integer

from deberta_jax.errors import UserError
from deberta_jax.path_names import check_utf8
from deberta_jax.terminal import list_names, say, shown_number

from ..model_folders import tokenizer_folder
from ..new_tokens import with_new_tokens
from ..settings import LONGEST_ROW, SHORTEST_ROW, Flat, check_seed
from ..task_configs import NewTokensConfig
from .corpus import (
    FORMAT,
    MANIFEST,
    Corpus,
    RowFile,
    Split,
    TextSource,
    check_identity,
    ends_digest,
    open_corpus,
    row_data_type,
    write_manifest,
)
from .corpus_folder import check_free, clear_leftovers, replacing, writing
from .masking import hash_uint64
from .row_files import create_row_file
from .text import (
    Boundary,
    RowPacker,
    SupportsEncoding,
    content_sha256,
    encode_documents,
    file_documents,
    text_or_novels,
)
from .text_files import TextError, describe_ignored, refuse_output, text_files
from .work_folder import stop_at_signals

ROWS_PER_FILE = 1 << 17  # 128 MB of 512 16-bit ids
SplitName = Literal["train", "held_out"]
_SHORT = 2  # rows of at least this many average documents call for a hint


class _SplitWriter:
    """Packs the documents of one split and writes their rows. Starts a new file after ROWS_PER_FILE rows."""

    def __init__(self, folder: Path, name: SplitName, packer: RowPacker) -> None:
        self._folder, self._name, self._packer = folder, name, packer
        self._files: list[RowFile] = []
        self._writer: Any = None
        self._rows = 0
        self._documents = self._tokens = 0

    def add(self, tokens: Integer[np.ndarray, "tokens"]) -> None:
        """Adds a document."""
        self._documents += 1
        self._tokens += len(tokens)
        for row in self._packer.add(tokens):
            self._write(row)

    def finish(self) -> Split:
        """Writes the last row and returns the totals."""
        for row in self._packer.finish():
            self._write(row)
        self._close()
        rows = sum(file.rows for file in self._files)
        return Split(self._documents, self._tokens, rows, tuple(self._files))

    def _path(self) -> Path:
        return self._folder / f"{self._name}-{len(self._files):05d}.array_record"

    def _write(self, row: Integer[np.ndarray, "S"]) -> None:
        if self._writer is None:
            self._writer = create_row_file(str(self._path()))
        self._writer.write(row.tobytes())
        self._rows += 1
        if self._rows == ROWS_PER_FILE:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            path = self._path()
            self._files.append(RowFile(path.name, self._rows, path.stat().st_size, ends_digest(path)))
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
    """Tokenizes and packs text files into `folder`, or opens `folder` if it has the same text and settings.

    Whether a document is held out is a hash of `seed` and the document's number. The folder gets its name only when it
    is complete. A process that is killed leaves a hidden folder `.NAME.*.tmp` beside it, or inside `folder` if that
    existed, which the next call removes.

    Args:
      paths, boundary: see `text.read_documents`.
      sequence_length: tokens per row including [CLS] and [SEP], at least 8.
      held_out_fraction: share of the documents that is kept for evaluation; 0 disables it.

    Raises:
      TextError: if the text cannot be used (see `text.read_documents`).
      UserError: if a setting is invalid, if a split would be empty, if the folder has other content, or if another
        process is making it.
      OSError: if writing fails, for instance because the disk is full.
    """
    folder = Path(folder)
    empty = Split(0, 0, 0, ())
    corpus = Corpus(
        folder=folder,
        format=FORMAT,
        sequence_length=sequence_length,
        boundary=boundary,
        held_out_fraction=held_out_fraction,
        seed=seed,
        tokenizer=tokenizer.fingerprint,
        dtype=row_data_type(tokenizer),
        sources=(),
        train=empty,
        held_out=empty,
    )
    _validate(corpus, tokenizer)
    check_utf8(folder)
    files = text_files(paths)
    clear_leftovers(folder)
    if (folder / MANIFEST).exists():
        return _open_existing(corpus, files)
    check_free(folder)
    with replacing(folder) as complete:
        return _write(corpus, files, tokenizer, complete)


def _validate(corpus: Corpus, tokenizer: SupportsEncoding) -> None:
    if not SHORTEST_ROW <= corpus.sequence_length <= LONGEST_ROW:
        raise UserError(
            f"sequence_length is {shown_number(corpus.sequence_length)}; it must be at least {SHORTEST_ROW}, usually "
            f"128 or 512, and at most {LONGEST_ROW}"
        )
    if not 0 <= corpus.held_out_fraction < 1:
        raise UserError(f"held_out_fraction is {corpus.held_out_fraction}; it must be at least 0 and below 1")
    check_seed(corpus.seed)
    if tokenizer.pad_id != 0:
        raise UserError(f"the tokenizer's padding id is {tokenizer.pad_id}; it must be 0, as in every DeBERTa")


def _open_existing(expected: Corpus, files: Sequence[Path]) -> Corpus:
    """Opens the corpus in the folder. Raises UserError with the first difference if it is not the expected one."""
    corpus = open_corpus(expected.folder)
    advice = "delete the folder or choose another one"
    check_identity(corpus, expected.identity, advice)
    if len(files) != len(corpus.sources):
        raise UserError(f"{corpus.folder} was made from {len(corpus.sources)} text files, not {len(files)}; {advice}")
    for path, source in zip(files, corpus.sources, strict=True):
        stat = path.stat()
        untouched = (path.name, stat.st_size, stat.st_mtime_ns) == (source.name, source.bytes, source.mtime_ns)
        if not untouched and (sha256 := content_sha256(path)) != source.sha256:
            raise UserError(
                f"{corpus.folder} was made from other text: {path} has sha256 {sha256}, {source.name} had "
                f"{source.sha256}; {advice}"
            )
    return corpus


def _write(corpus: Corpus, files: Sequence[Path], tokenizer: SupportsEncoding, folder: Path) -> Corpus:
    """Creates `folder`, writes all rows and the manifest, and returns the corpus with its totals."""
    writers: dict[SplitName, _SplitWriter] = {}
    for name in ("train", "held_out"):
        packer = RowPacker(corpus.sequence_length, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, dtype=corpus.dtype)
        writers[name] = _SplitWriter(folder, name, packer)
    with writing(corpus.folder):
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
            with writing(corpus.folder):
                writers["held_out" if share < corpus.held_out_fraction else "train"].add(tokens)
        sources.append(TextSource(path.name, stat.st_size, stat.st_mtime_ns, digest.hexdigest()))
    with writing(corpus.folder):
        splits = {name: writer.finish() for name, writer in writers.items()}
    corpus = dataclasses.replace(corpus, sources=tuple(sources), **splits)
    _check_splits(corpus)
    with writing(corpus.folder):
        write_manifest(corpus, folder)
    return corpus


def _check_splits(corpus: Corpus) -> None:
    documents = corpus.train.documents + corpus.held_out.documents
    if not corpus.train.tokens + corpus.held_out.tokens:
        names = list_names([source.name for source in corpus.sources])
        raise TextError(f"no text in {names}; give files with at least one line that is not blank")
    if corpus.held_out_fraction and not corpus.held_out.rows:
        raise UserError(
            f"held_out_fraction {corpus.held_out_fraction} of {documents} documents selects none; give a larger "
            "fraction, a boundary that makes more documents, another seed, or 0 to disable evaluation"
        )
    if not corpus.train.rows:
        raise UserError(
            f"held_out_fraction {corpus.held_out_fraction} of {documents} documents leaves none to train on; give a "
            "smaller fraction, a boundary that makes more documents, or another seed"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Tokenize text and pack it into rows of token ids, once for any number of pre-training runs."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("--output rows --tokenizer tok --text corpus/ --sequence-length 512",)

    output: Path
    """folder to create"""
    tokenizer: Path
    """folder of a tokenizer, for instance from `deberta-jax tokenizer`, or a hub name such as
    microsoft/deberta-v3-small"""
    text: tuple[Path, ...] = ()
    """text files, or folders of .txt, .gz and .xz files with subfolders (default: the embedded corpus, six novels)"""
    boundary: Boundary | None = None
    """what separates documents (default: blank_line, or chapter for the embedded corpus)"""
    sequence_length: int = 512
    """tokens per row"""
    held_out_fraction: float = 0.02
    """share of the documents that is kept for evaluation"""
    seed: int = 0
    """seed that selects the held-out documents"""
    new_tokens: Annotated[NewTokensConfig, Flat] = NewTokensConfig()


def boundary_hint(corpus: Corpus) -> str:
    """Returns what to do about documents that are much shorter than a row, or an empty string."""
    documents = corpus.train.documents + corpus.held_out.documents
    mean = (corpus.train.tokens + corpus.held_out.tokens) / documents
    if corpus.boundary != "blank_line" or mean * _SHORT > corpus.sequence_length:
        return ""
    return (
        f"hint: a blank line ends a document, and documents have {mean:.0f} tokens on average; if blank lines only "
        "separate paragraphs, prepare the text again with --boundary file, which makes each file a document"
    )


def main(config: PrepareConfig) -> None:
    """Prepares the corpus and prints its totals. Raises as `prepare` does."""
    from deberta_jax.tokenizers.tokenizer import Tokenizer

    with stop_at_signals():
        refuse_output(config.output, config.text)
        if ignored := describe_ignored(config.text):
            say(ignored)
        text, boundary = text_or_novels(config.text, config.boundary)
        corpus = prepare(
            text,
            with_new_tokens(config.new_tokens, Tokenizer.from_folder(tokenizer_folder(config.tokenizer))),
            config.output,
            sequence_length=config.sequence_length,
            boundary=boundary,
            held_out_fraction=config.held_out_fraction,
            seed=config.seed,
        )
    say(f"{corpus.folder}: rows of {corpus.sequence_length} tokens from {len(corpus.sources)} text files")
    for name, split in (("train", corpus.train), ("held out", corpus.held_out)):
        filled = split.tokens / max(1, split.rows * corpus.sequence_length)
        say(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.rows:,} rows in "
            f"{len(split.files)} files, {filled:.1%} filled with text"
        )
    if config.boundary is None and (hint := boundary_hint(corpus)):
        say(hint)
