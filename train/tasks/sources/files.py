"""Reads the rows of local files: .tsv, .csv, .jsonl or .json (each also as .gz), and .parquet."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deberta_jax.errors import MissingFileError, UserError, one_line

from .cells import Cells
from .table import Table


def open_file(given: str, *, label_column: str) -> Table:
    """Returns the rows of a file.

    Args:
      given: the path as the user wrote it.
      label_column: the column whose class names a Parquet file may contain.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the suffix is unknown or the file cannot be read.
    """
    path = Path(given).expanduser()
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    if path.suffix == ".parquet":
        return _open_parquet(given, label_column)
    if suffix not in readers:
        allowed = f"{', '.join(readers)} (.gz allowed), .parquet, .conll and .txt for words"
        raise UserError(f"{given}: unknown suffix {suffix!r}; give {allowed} or tfds:NAME")
    return Table(given, "line", readers[suffix](given, read_text(given)))


def read_text(given: str) -> str:
    """Returns the text of a file without the line ends at its end. A .gz file is decompressed.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the file is damaged, empty or not UTF-8.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{given}: damaged or incomplete gzip file ({error})") from None
    # NUL bytes are valid UTF-8, but in practice they come from files in UTF-16.
    if (offset := data.find(b"\0")) >= 0:
        raise UserError(f"{given}, line {_line(data, offset)}: NUL byte at offset {offset}; save the file as UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{given}, line {_line(data, error.start)}: byte {data[error.start]:#04x} at offset {error.start} is not "
            "UTF-8; save the file as UTF-8"
        ) from None
    # A blank line at the very end is no row; elsewhere it is a row with missing fields.
    text = text.removeprefix("\ufeff").rstrip("\r\n")
    if not text:
        raise UserError(f"{given} is empty")
    return text


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text. Raises ValueError for everything that is not JSON or cannot be represented."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many nested lists or objects") from None


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _tsv_rows(name: str, text: str) -> Iterator[tuple[int, Cells]]:
    # str.splitlines() would also split at characters such as U+2028, which occur in texts.
    lines = (line.removesuffix("\r").split("\t") for line in text.split("\n"))
    return _with_header(name, enumerate(lines, start=1))


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, Cells]]:
    return _with_header(name, _csv_records(name, text))


def _csv_records(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each record with the number of its first line, as a quoted field may contain line ends."""
    # The csv module rejects fields of more than 128 KiB by default, which is less than a long document.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader, start = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for record in reader:
            yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}, line {start}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _with_header(name: str, records: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Cells]]:
    _, header = next(records)
    if len(set(header)) != len(header):
        raise UserError(f"{name}, line 1: a column name occurs twice in the header {', '.join(map(repr, header))}")
    for number, fields in records:
        if len(fields) != len(header):
            raise UserError(f"{name}, line {number}: {len(fields)} fields, but the header has {len(header)}")
        yield number, dict(zip(header, fields, strict=True))


def _json_rows(name: str, text: str) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            cells = parse_json(line)
        except ValueError as error:
            raise UserError(f"{name}, line {number}: not JSON ({error}); write one object per line") from None
        if not isinstance(cells, dict):
            raise UserError(f"{name}, line {number}: not a JSON object; write one object per line")
        yield number, cells


def _open_parquet(given: str, label_column: str) -> Table:
    import pyarrow
    from pyarrow import parquet

    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{given}: not a Parquet file ({one_line(error):.200})") from None

    def rows() -> Iterator[tuple[int, Cells]]:
        number = 0
        try:
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    yield number, cells
                    number += 1
        # ArrowException covers damaged pages. Conversion to Python values raises the others, for text that is not
        # UTF-8 and for dates that Python cannot represent.
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise UserError(f"{given}: damaged after record {number} ({one_line(error):.200})") from None

    names = _parquet_class_names(file.schema_arrow.metadata or {}, label_column)
    return Table(given, "record", rows(), names, hidden_label=bool(names))


def _parquet_class_names(metadata: Mapping[bytes, bytes], label_column: str) -> tuple[str, ...]:
    """Returns the class names that Hugging Face's `datasets` writes into the schema, or nothing.

    The label column has integers, or lists of them.
    """
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]
        feature = feature.get("feature", feature)
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else ()
    except (KeyError, TypeError, AttributeError, ValueError):
        return ()
