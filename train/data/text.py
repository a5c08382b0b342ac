"""Raw text files to documents, tokens and packed rows, as a stream. What cannot be read is an error, never skipped."""

import gzip
import hashlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deberta_jax.errors import UserError

Boundary = Literal["blank_line", "line", "file", "chapter"]
BOUNDARIES: tuple[Boundary, ...] = ("blank_line", "line", "file", "chapter")
MAX_DOCUMENT_BYTES = 32 << 20

# A shorter remainder of a row is left as padding: a piece of fewer tokens has next to no context to learn from. At
# 512 tokens a row this wastes 3 % of a row at worst. (A whole document that short is still packed.)
MINIMUM_PIECE = 16
_ENCODE_CHARACTERS = 1 << 20  # text handed to the tokenizer at once, so that short documents do not cost a call each

_CHUNK_BYTES = 1 << 20  # how much text is taken from a file at a time
_SUFFIXES = (".txt", ".gz", ".xz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# "CHAPTER XII", "Chapter 3", "VOLUME II", each perhaps with a title behind it; only a short line can be a heading.
_HEADING = re.compile(r"(?:CHAPTER|Chapter|VOLUME|Volume)\s+(?:\d+|[IVXLCDM]+)(?:[.:\s—-].{0,80})?")


class SupportsEncoding(Protocol):
    """What the preparation of text needs of a tokenizer."""

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


class TextError(UserError):
    """A text file that cannot be used; the message names the file, the place in it, and what to do."""


def embedded_corpus() -> Path:
    """Path of the packaged text: six novels by Jane Austen (public domain, 4 MB), one paragraph a line.

    It has hardly any blank lines; read it with boundary "chapter", which makes some 270 documents.
    """
    return Path(__file__).parent / "corpora" / "austen_novels.txt.xz"


def is_heading(line: str) -> bool:
    """Whether a line is a heading such as "CHAPTER XII" or "Volume 2"."""
    return _HEADING.fullmatch(line.strip()) is not None


def read_documents(
    paths: Sequence[str | Path], *, boundary: Boundary = "blank_line", max_document_bytes: int = MAX_DOCUMENT_BYTES
) -> Iterator[str]:
    """The documents of text files, in order; a document's lines are joined by newlines.

    Memory is bounded by one document, whatever the size of the files or of their lines. Lines end at a line feed, and
    white space at the end of a line is dropped. A byte order mark is dropped. A document with no text is none.

    Args:
      paths: plain, .gz or .xz files; a folder stands for its *.txt, *.gz and *.xz files, sorted by name.
      boundary: where a document ends: "blank_line"; "line", every line is a document; "file", every file is one;
        "chapter", a heading such as "CHAPTER XII" or "VOLUME II" begins the next document (headings that follow each
        other begin one together), and blank lines do not matter.
      max_document_bytes: the longest document, in bytes of UTF-8.

    Raises:
      TextError: a missing or damaged file, bytes that are not UTF-8, NUL bytes, a document that is too long, or no
        text at all.
    """
    empty = True
    for path in text_files(paths):
        for document in file_documents(path, boundary, max_document_bytes=max_document_bytes):
            empty = False
            yield document
    if empty:
        raise TextError(f"no text in {', '.join(map(str, paths))}; give files with at least one line that is not blank")


def text_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `read_documents` reads, in order. Raises TextError for a missing one or a folder without any."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
            if not inside:
                raise TextError(f"folder {path} holds no file that ends in {', '.join(_SUFFIXES)}; name the files")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise TextError(f"no such file or folder: {path}")
    if not files:
        raise TextError("no text file was given; give at least one file or folder")
    return files


def file_documents(
    path: Path,
    boundary: Boundary,
    *,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    digest: "hashlib._Hash | None" = None,
) -> Iterator[str]:
    """The documents of one file, see `read_documents`. `digest` is fed the bytes of the (uncompressed) text."""
    if boundary not in BOUNDARIES:
        raise UserError(f"boundary is {boundary!r}; it must be one of {', '.join(BOUNDARIES)}")
    lines: list[str] = []
    size = 0
    only_headings = False  # all lines so far are headings, so one more belongs to the same document
    for number, offset, raw in _lines(path, max_document_bytes, digest):
        line = _decode(raw, path, number, offset)
        heading = boundary == "chapter" and is_heading(line)
        ends_before = (heading and not only_headings) or (boundary == "blank_line" and not line) or boundary == "line"
        if ends_before and lines:
            yield "\n".join(lines).rstrip("\n")
            lines, size = [], 0
        if not line and not lines:
            continue  # blank lines in front of a document
        only_headings = (only_headings or not lines) and (heading or not line)
        size += len(raw) + 1
        if size > max_document_bytes:
            raise _too_long(path, number, offset, max_document_bytes)
        lines.append(line)
    if lines:
        yield "\n".join(lines).rstrip("\n")


def content_sha256(path: Path) -> str:
    """The digest that `file_documents` computes while it reads. Raises TextError for a damaged file."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _decode(raw: bytes, path: Path, number: int, offset: int) -> str:
    try:
        return raw.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: line {number}, byte {offset + error.start}: 0x{raw[error.start]:02x} is not UTF-8 "
            f"({error.reason}); convert the file to UTF-8"
        ) from None


def _too_long(path: Path, number: int, offset: int, max_document_bytes: int) -> TextError:
    return TextError(
        f"{path}: line {number}, byte {offset}: the document here is longer than {max_document_bytes} bytes; choose "
        f"a boundary that makes shorter documents ({', '.join(BOUNDARIES)}) or break the text into lines"
    )


def _lines(path: Path, max_line_bytes: int, digest: "hashlib._Hash | None") -> Iterator[tuple[int, int, bytes]]:
    """Each line's number (from 1), byte offset in the (uncompressed) text, and bytes without the line feed."""
    pending = bytearray()
    number, line_start, position = 1, 0, 0
    for chunk in _chunks(path):
        if digest is not None:
            digest.update(chunk)
        if (nul := chunk.find(b"\0")) >= 0:
            line = number + chunk.count(b"\n", 0, nul)
            raise TextError(f"{path}: line {line}, byte {position + nul}: a NUL byte; this is not a text file")
        start = 0
        if position == 0 and chunk.startswith(_BYTE_ORDER_MARK):
            start = line_start = len(_BYTE_ORDER_MARK)
        while (end := chunk.find(b"\n", start)) >= 0:
            pending += chunk[start:end]
            yield number, line_start, bytes(pending)
            pending.clear()
            start = end + 1
            number, line_start = number + 1, position + start
        pending += chunk[start:]
        position += len(chunk)
        if len(pending) > max_line_bytes:
            raise _too_long(path, number, line_start, max_line_bytes)
    if pending:
        yield number, line_start, bytes(pending)


def _chunks(path: Path) -> Iterator[bytes]:
    """The uncompressed bytes of a file, a bounded piece at a time."""
    open_file: Callable[..., IO[bytes]] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    done = 0
    try:
        with open_file(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
                done += len(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TextError(f"{path}: damaged compressed file, after {done} bytes of text: {error}") from None
    except OSError as error:
        raise TextError(f"{path} cannot be read, after {done} bytes of text: {error.strerror or error}") from None


def encode_documents(documents: Iterable[str], tokenizer: SupportsEncoding, path: Path) -> Iterator[NDArray[np.uint32]]:
    """Each document's tokens [n], without [CLS] and [SEP].

    A document is encoded line by line and its lines' tokens are joined, so that a long one stays cheap.

    Raises:
      TextError: text that encodes to [PAD], [CLS], [SEP] or [MASK]; `path` is named in it.
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
                    f"{path}: the tokenizer turns text into a special token, which rows cannot hold, in the line "
                    f"{line[:80]!r}; take that text out, or make the token a control symbol of the tokenizer"
                )
            yield tokens


def _batches(documents: Iterable[str]) -> Iterator[list[list[str]]]:
    """Documents as lists of their lines that are not blank, some together."""
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
    """Packs documents into rows; no token is lost. A row comes out as soon as it is full."""

    def __init__(self, sequence_length: int, *, cls_id: int, sep_id: int, dtype: str) -> None:
        self._row = np.zeros(sequence_length, dtype)
        self._used = 0
        self._cls_id, self._sep_id = cls_id, sep_id

    def add(self, tokens: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
        """Takes one document's tokens [n]; yields the rows [S] that it fills."""
        start = 0
        while start < len(tokens):
            room = len(self._row) - self._used - 2
            rest = len(tokens) - start
            if self._used and room < min(rest, MINIMUM_PIECE):
                yield from self.finish()
                continue
            piece = tokens[start : start + room]
            end = self._used + len(piece) + 2
            self._row[self._used], self._row[end - 1] = self._cls_id, self._sep_id
            self._row[self._used + 1 : end - 1] = piece
            self._used = end
            start += len(piece)

    def finish(self) -> Iterator[NDArray[np.integer]]:
        """Yields the row that is begun, if there is one."""
        if self._used:
            yield self._row
            self._row = np.zeros_like(self._row)
            self._used = 0
