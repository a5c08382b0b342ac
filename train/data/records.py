"""Documents in records with named fields: JSON Lines and Parquet. A record that has no text is an error."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deberta_jax.errors import UserError, one_line
from deberta_jax.terminal import quote_names

from . import storage
from .strict_fields import show
from .text_files import TextError, file_version, text_bytes

RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_BATCH = 256  # rows of a Parquet file that are Python values at once
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def json_records(
    path: Path, field: str, lines: Iterable[tuple[int, int, bytes | TextError]]
) -> Iterator[tuple[str, str | TextError]]:
    """Yields where each record of a file of JSON Lines is, and its text. Blank lines are no records.

    In place of the text of a line that is not a JSON object in UTF-8, or has no text in `field`, an error is yielded.

    Args:
      path: the file, for errors.
      field: the field with the text.
      lines: number, offset and content of each line, or an error.
    """
    for number, _, raw in lines:
        place = f"{path}: line {number}"
        if isinstance(raw, TextError):
            yield place, raw
        elif raw.strip():
            yield place, _text_of_line(raw, field, place)


def _text_of_line(raw: bytes, field: str, place: str) -> str | TextError:
    try:
        record = json.loads(raw)
    except UnicodeDecodeError as error:
        fault = f"0x{raw[error.start]:02x} in its byte {error.start} is not UTF-8"
        return TextError(f"{place}: {fault} ({error.reason}); convert the file to UTF-8")
    except (ValueError, RecursionError) as error:
        return TextError(f"{place}: not JSON ({one_line(error):.200}); write one object per line")
    if not isinstance(record, dict):
        return TextError(f"{place}: not a JSON object; write one object per line")
    return _text_of(record, field, place)


def parquet_records(path: Path, field: str, digest: "hashlib._Hash | None") -> Iterator[tuple[str, str | TextError]]:
    """Yields where each record of a Parquet file is, and its text, or an error in place of what is no text.

    `digest` is updated with the bytes of the file.

    Raises:
      TextError: the file is damaged, has no column `field`, or changes meanwhile.
    """
    import pyarrow
    from pyarrow import parquet

    if digest is not None:
        for chunk in text_bytes(path):
            digest.update(chunk)
    number, before = 0, file_version(path)
    try:
        with storage.open_binary(path) as source, parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            if names.count(field) != 1:
                raise _missing_field(str(path), field, names)
            for batch in file.iter_batches(_BATCH, columns=[field]):
                for value in batch.column(0):
                    place = f"{path}: record {number}"
                    content = _python_value(value, place)
                    yield place, content if isinstance(content, TextError) else _text_of({field: content}, field, place)
                    number += 1
    except UserError:  # of a store, which may be an OSError too
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(f"{path}: damaged Parquet file, after {number} records: {one_line(error):.200}") from None
    if before != file_version(path):
        raise TextError(f"{path} was changed while it was read; start again when nothing writes to it")


def clean_document(text: str, place: str, max_document_bytes: int) -> str | TextError:
    """Returns the text of a record as a document: without white space at the end of lines and blank lines around it.

    Returns an error if it contains NUL or half a surrogate pair, or is too long. `place` says where the record is.
    """
    if found := _NOT_TEXT.search(text):
        return TextError(
            f"{place}: character {found.start()} of the text is U+{ord(found[0]):04X}, which is no text; correct or "
            "remove the record"
        )
    if len(text) > max_document_bytes or (not text.isascii() and len(text.encode()) > max_document_bytes):
        return TextError(f"{place}: this document is longer than {max_document_bytes} bytes; divide it into several")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def _text_of(record: dict[str, Any], field: str, place: str) -> str | TextError:
    if field not in record:
        return _missing_field(place, field, list(record))
    text = record[field]
    if isinstance(text, bytes):
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            fault = f"0x{text[error.start]:02x} in byte {error.start} of the text is not UTF-8"
            return TextError(f"{place}: {fault}; convert the text to UTF-8")
    if not isinstance(text, str):
        return TextError(f"{place}: {show(field)} is {show(text)}, not text; correct or remove the record")
    return text


def _missing_field(place: str, field: str, names: list[str]) -> TextError:
    return TextError(f"{place}: no single field {show(field)}; there are {quote_names(names)}: give --text-field NAME")


def _python_value(value: Any, place: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return TextError(f"{place}: the text is not UTF-8 ({error.reason}); convert it to UTF-8")
