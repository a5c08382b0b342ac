"""Reads text files as a stream of documents, tokens and packed rows. Unreadable text is an error, never skipped."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Integer, UInt32

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names, say

from .records import RECORD_SUFFIXES, clean_document, json_records, parquet_records
from .text_files import TextError, inner_suffix, text_bytes, text_files

Boundary = Literal["blank_line", "line", "file", "chapter"]
BOUNDARIES: tuple[Boundary, ...] = ("blank_line", "line", "file", "chapter")
MAX_DOCUMENT_BYTES = 32 << 20

# The shortest piece of a longer document: fewer tokens have too little context to learn from, so the end of the row is
# padded instead. With 512 tokens per row this wastes at most 3 % of a row. Whole documents may be shorter.
MINIMUM_PIECE = 16
_JSON_BYTES = 4  # longest line of JSON for each byte of the longest document: other fields, and escapes
_ENCODE_CHARACTERS = 1 << 20  # characters per tokenizer call: one call per document would be slow for short documents

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Matches "CHAPTER XII", "Chapter 3" and "VOLUME II", optionally followed by a title of up to 80 characters.
_HEADING = re.compile(r"(?:CHAPTER|Chapter|VOLUME|Volume)\s+(?:\d+|[IVXLCDM]+)(?:[.:\s—-].{0,80})?")


class SupportsEncoding(Protocol):
    """The part of a tokenizer that text preparation uses."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_batch(self, texts: list[str], /) -> list[list[int]]: ...


def embedded_corpus() -> Path:
    """Returns the path of the packaged text: six novels by Jane Austen (public domain, 4 MB), one paragraph per line.

    The text has almost no blank lines. The boundary "chapter" divides it into about 270 documents.
    """
    return Path(__file__).parent / "corpora" / "austen_novels.txt.xz"


def text_or_novels(paths: Sequence[Path], boundary: Boundary | None) -> tuple[Sequence[Path], Boundary]:
    """Returns the text of a command and what separates its documents: by default blank lines, and if no text was given
    the chapters of the embedded corpus.
    """
    if paths:
        return paths, boundary or "blank_line"
    return (embedded_corpus(),), boundary or "chapter"


def is_heading(line: str) -> bool:
    """Returns whether a line is a heading such as "CHAPTER XII" or "Volume 2"."""
    return _HEADING.fullmatch(line.strip()) is not None


def read_documents(
    paths: Sequence[str | Path],
    *,
    boundary: Boundary = "blank_line",
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    field: str = "text",
    on_bad: Callable[[TextError], None] | None = None,
) -> Iterator[str]:
    """Yields the documents of text files in order. The lines of a document are joined by newlines.

    Memory is bounded by one document, whatever the size of the files. Lines end at a line feed. White space at the end
    of a line and byte order marks are removed. Empty documents are omitted.

    Args:
      paths: files of text, of JSON Lines or Parquet (see `documents_and_faults`), or folders (see `text_files`).
      boundary: what separates documents. "blank_line": a blank line. "line": each line is a document. "file": each file
        is a document. "chapter": a heading such as "CHAPTER XII" or "VOLUME II" starts a document; consecutive headings
        start one document, and blank lines are ignored.
      max_document_bytes: maximum length of a document in UTF-8 bytes.
      field: of the records of JSON Lines and Parquet, the field with the text.
      on_bad: gets the error of each document that is no text, which is omitted (default: the error is raised).

    Raises:
      TextError: if a file is missing or damaged or contains NUL or bytes that are not UTF-8, if a document is too long,
        or if there is no text at all.
    """
    empty = True
    for path in text_files(paths):
        for document in documents_and_faults(path, boundary, max_document_bytes=max_document_bytes, field=field):
            if not isinstance(document, TextError):
                empty = False
                yield document
            elif on_bad is None:
                raise document
            else:
                on_bad(document)
    if empty:
        raise TextError(f"no text in {list_names(paths)}; give files with at least one line that is not blank")


class BadLines:
    """Counts the lines that are left out because they are no text."""

    def __init__(self) -> None:
        self._number = 0
        self._first: TextError | None = None

    def add(self, error: TextError) -> None:
        self._number += 1
        self._first = self._first or error

    def say(self) -> None:
        """Prints how many there were, if any, and the first."""
        if self._number:
            say(f"left out {self._number:,} lines that are no text; the first: {self._first}")


def documents_and_faults(
    path: Path,
    boundary: Boundary,
    *,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    digest: "hashlib._Hash | None" = None,
    field: str = "text",
) -> Iterator[str | TextError]:
    """Yields the documents of one file, and an error in place of each one that is no text.

    In JSON Lines (.jsonl, .ndjson and .json, also compressed) and Parquet (.parquet), each record is a document, whose
    text is in `field`; `boundary` does not apply. `digest` is updated with the uncompressed bytes.

    Raises:
      TextError: if the file is missing or damaged as a whole.
    """
    if boundary not in BOUNDARIES:
        raise UserError(f"boundary is {boundary!r}; it must be one of {', '.join(BOUNDARIES)}")
    if (suffix := inner_suffix(path)) not in RECORD_SUFFIXES:
        yield from _text_documents(path, boundary, max_document_bytes, digest)
        return
    if suffix == ".parquet":
        records = parquet_records(path, field, digest)
    else:
        lines = _lines(path, _JSON_BYTES * max_document_bytes, digest)
        records = json_records(path, field, lines)
    for place, text in records:
        if document := text if isinstance(text, TextError) else clean_document(text, place, max_document_bytes):
            yield document


def _text_documents(
    path: Path, boundary: Boundary, max_document_bytes: int, digest: "hashlib._Hash | None"
) -> Iterator[str | TextError]:
    lines: list[str] = []
    size = 0
    only_headings = False  # the document has only headings so far, so that another heading continues it
    faulty = False  # an error was yielded in place of the document
    for number, offset, raw in _lines(path, max_document_bytes, digest):
        line = raw if isinstance(raw, TextError) else _decode(raw, path, number, offset)
        heading = boundary == "chapter" and isinstance(line, str) and is_heading(line)
        ends_before = (heading and not only_headings) or (boundary == "blank_line" and not line) or boundary == "line"
        if ends_before:
            if lines:
                yield "\n".join(lines).rstrip("\n")
            lines, size, faulty = [], 0, False
        if faulty or (not line and not lines):
            continue  # a blank line before the document
        if isinstance(raw, bytes) and isinstance(line, str):
            only_headings = (only_headings or not lines) and (heading or not line)
            size += len(raw) + 1
            if size <= max_document_bytes:
                lines.append(line)
                continue
            line = _too_long(path, number, offset, max_document_bytes)
        yield line
        lines, only_headings, faulty = [], False, True
    if lines:
        yield "\n".join(lines).rstrip("\n")


def content_sha256(path: Path) -> str:
    """Returns the digest that `documents_and_faults` computes. Raises TextError if the file is damaged."""
    digest = hashlib.sha256()
    for chunk in text_bytes(path):
        digest.update(chunk)
    return digest.hexdigest()


def _decode(raw: bytes, path: Path, number: int, offset: int) -> str | TextError:
    try:
        return raw.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        return TextError(
            f"{path}: line {number}, byte {offset + error.start}: 0x{raw[error.start]:02x} is not UTF-8 "
            f"({error.reason}); convert the file to UTF-8"
        )


def _too_long(path: Path, number: int, offset: int, max_document_bytes: int) -> TextError:
    return TextError(
        f"{path}: line {number}, byte {offset}: this document is longer than {max_document_bytes} bytes; choose "
        f"a boundary that makes shorter documents ({', '.join(BOUNDARIES)}) or break the text into lines"
    )


def _lines(
    path: Path, max_line_bytes: int, digest: "hashlib._Hash | None"
) -> Iterator[tuple[int, int, bytes | TextError]]:
    """Yields the number of each line (from 1), its offset in the uncompressed bytes, and its bytes without "\\n".

    In place of a line with a NUL byte, or of one that is too long, an error is yielded.
    """
    pending = bytearray()
    number, line_start, position = 1, 0, 0
    faulty = False  # the line is too long, and its error was yielded
    for chunk in text_bytes(path):
        if digest is not None:
            digest.update(chunk)
        start = 0
        if position == 0 and chunk.startswith(_BYTE_ORDER_MARK):
            start = line_start = len(_BYTE_ORDER_MARK)
        while (end := chunk.find(b"\n", start)) >= 0:
            if not faulty:
                line = bytes(pending) + chunk[start:end] if pending else chunk[start:end]
                yield number, line_start, _nul_fault(line, path, number, line_start) or line
            pending.clear()
            faulty = False
            start = end + 1
            number, line_start = number + 1, position + start
        if not faulty:
            pending += chunk[start:]
        if len(pending) > max_line_bytes:
            fault = _nul_fault(pending, path, number, line_start)
            yield number, line_start, fault or _too_long(path, number, line_start, max_line_bytes)
            pending.clear()
            faulty = True
        position += len(chunk)
    if pending:
        line = bytes(pending)
        yield number, line_start, _nul_fault(line, path, number, line_start) or line


def _nul_fault(line: bytes | bytearray, path: Path, number: int, offset: int) -> TextError | None:
    if (nul := line.find(b"\0")) < 0:
        return None
    return TextError(f"{path}: line {number}, byte {offset + nul}: a NUL byte; this is not a text file")


def encode_documents(
    documents: Iterable[str], tokenizer: SupportsEncoding, path: str | Path
) -> Iterator[UInt32[np.ndarray, "tokens"]]:
    """Yields the token ids of each document, without [CLS] and [SEP].

    A document is encoded line by line, which bounds the cost of long documents.

    Raises:
      TextError: if text encodes to [PAD], [CLS], [SEP] or [MASK]. The message names `path`.
    """
    forbidden = np.zeros(tokenizer.vocab_size, bool)
    forbidden[[tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]] = True
    for batch in _batches(documents):
        lines = iter(tokenizer.encode_batch([line for document in batch for line in document]))
        for document in batch:
            encoded = [next(lines) for _ in document]
            tokens = np.array([token for line in encoded for token in line], np.uint32)
            if forbidden[tokens].any():
                line = next(line for line, ids in zip(document, encoded, strict=True) if forbidden[ids].any())
                raise TextError(
                    f"{path}: the tokenizer encodes text as a special token, which is not allowed in rows, in the line "
                    f"{line[:80]!r}; remove that text, or make the token a control symbol of the tokenizer"
                )
            yield tokens


def _batches(documents: Iterable[str]) -> Iterator[list[list[str]]]:
    """Groups documents, each as a list of its lines that are not blank, to about _ENCODE_CHARACTERS per group."""
    batch: list[list[str]] = []
    size = 0
    for document in documents:
        batch.append([line for line in document.split("\n") if line])
        size += len(document)
        if size >= _ENCODE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class RowPacker:
    """Packs documents into rows without losing a token. Each row is yielded as soon as it is full."""

    def __init__(self, sequence_length: int, *, cls_id: int, sep_id: int, dtype: str) -> None:
        self._row = np.zeros(sequence_length, dtype)
        self._used = 0
        self._cls_id, self._sep_id = cls_id, sep_id

    def add(self, tokens: Integer[np.ndarray, "tokens"]) -> Iterator[Integer[np.ndarray, "S"]]:
        """Adds the tokens of a document and yields the rows that are full."""
        start = 0
        while start < len(tokens):
            room = len(self._row) - self._used - 2
            remaining = len(tokens) - start
            if self._used and room < min(remaining, MINIMUM_PIECE):
                yield from self.finish()
                continue
            piece = tokens[start : start + room]
            end = self._used + len(piece) + 2
            self._row[self._used], self._row[end - 1] = self._cls_id, self._sep_id
            self._row[self._used + 1 : end - 1] = piece
            self._used = end
            start += len(piece)

    def finish(self) -> Iterator[Integer[np.ndarray, "S"]]:
        """Yields the last row, if it contains a document."""
        if self._used:
            yield self._row
            self._row = np.zeros_like(self._row)
            self._used = 0
