"""Reads the rows of the inputs of `predict` one by one, so that a row which cannot be used does not end the reading."""

import codecs
import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from deberta_jax.errors import MissingFileError, MissingPackageError, UserError

from ....train.tasks.sources.cells import Cells
from ....train.tasks.sources.delimited import check_header
from ....train.tasks.sources.files import open_parquet
from ....train.tasks.sources.json_rows import json_objects, without_twins
from ....train.tasks.sources.text_files import open_text
from .streams import COMPRESSED, STANDARD_INPUT, Stream, input_name

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]
FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
TEXT = "text"  # the column of inputs without columns
_WHOLE = ("json", "parquet")  # formats that only a file can have
_LARGEST_FIELD = 2**31 - 1  # characters of a quoted field; by default the csv module refuses a long document


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read files.

    Attributes:
      format: The format of the inputs (default: by their suffixes; standard input is JSON Lines if it begins with "{",
        else text).
      header: Whether the first line of a .csv or .tsv file has the names of the columns. Without it they are "0", "1",
        ...
      quoting: Whether fields may be in quotation marks (default: in .csv files).
    """

    format: Format | None = None
    header: bool = True
    quoting: Literal["none", "csv"] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of an input.

    Attributes:
      file: The file, "-" for standard input, or nothing for a text of the command line.
      index: Number of the row in its file, from 0.
      place: The row in messages.
      cells: Its columns, or why it cannot be read.
    """

    file: str | None
    index: int
    place: str
    cells: Cells | UserError


def _always() -> bool:
    return True


class Position:
    """How far all inputs were read.

    Attributes:
      share: 0 to 1; 0 where it is unknown.
      ready: Returns whether the next row can be read at once.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self.ready: Callable[[], bool] = _always


def is_file(argument: str) -> bool:
    """Returns whether an argument names a file, which need not exist, or standard input. Everything else is a text.

    A name has the suffix of a file, or a slash and no white space.
    """
    path = Path(argument)
    try:
        exists = bool(argument) and path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a text that is too long, or has a NUL, or begins with "~"
        exists = False
    looks_like_path = "/" in argument and not any(map(str.isspace, argument))
    return argument == STANDARD_INPUT or exists or looks_like_path or file_format(argument) is not None


def file_format(name: str) -> Format | None:
    """Returns the format of a file by its suffix, or None if the suffix is unknown."""
    path = Path(name)
    return FORMATS.get((path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower())


def check_inputs(arguments: Sequence[str], reading: Reading) -> None:
    """Raises if an input does not exist, or its format is unknown, before anything is read.

    Raises:
      MissingFileError: There is no such file.
      UserError: A file has no known suffix, cannot have the format, or is no text.
    """
    for argument in filter(is_file, arguments):
        if argument == STANDARD_INPUT:
            if reading.format in _WHOLE:
                raise UserError(f"standard input cannot be {reading.format}; give --format jsonl, csv, tsv or text")
            continue
        path = Path(argument).expanduser()
        if not path.exists():
            raise MissingFileError(
                f"{argument}: no such file; if it is a text, pass it by standard input: echo TEXT | deberta-jax "
                "predict MODEL -"
            )
        if path.is_file() and file_format(argument) != "parquet":
            Stream(argument).close()
        if path.is_dir():
            raise UserError(f"{argument} is a folder; give its files, for instance {path / '*.jsonl'}")
        if reading.format is None and file_format(argument) is None:
            raise UserError(
                f"{argument}: unknown suffix {path.suffix!r}; the suffixes are {', '.join(FORMATS)} "
                f"({' and '.join(COMPRESSED)} allowed); or give --format {'|'.join(get_args(Format))}"
            )


def read_rows(arguments: Sequence[str], reading: Reading, position: Position) -> Iterator[Row]:
    """Yields the rows of all inputs in order. A text of the command line is a row; its index counts these texts.

    Args:
      arguments: Files, "-", and texts.
      reading: How to read the files.
      position: Is updated while the rows are read.

    Raises:
      UserError: A file has no rows, or is damaged so that the rows after a place cannot be found.
    """
    texts = 0
    for number, argument in enumerate(arguments):
        if not is_file(argument):
            yield Row(None, texts, f"text {texts + 1}", {TEXT: argument})
            texts += 1
            continue
        name, index = input_name(argument), -1
        for index, (place, cells, share) in enumerate(_file_rows(argument, reading, position)):
            position.share = (number + share) / len(arguments)
            yield Row(argument, index, f"{name}, {place}", cells)
        if index < 0:
            advice = "; give files or texts after MODEL and before the options" if argument == STANDARD_INPUT else ""
            raise UserError(f"{name} has no rows{advice}")
    position.share = 1.0


def arrived_parts(rows: Iterator[Row], position: Position) -> Iterator[Iterator[Row]]:
    """Yields all rows in parts. A part ends where the next row has not arrived yet, so that results do not wait for it.

    Rows of files are one part.

    Args:
      rows: The rows that `read_rows` yields. Each part must be read to its end before the next one.
      position: As for `read_rows`.
    """

    def part(first: Row) -> Iterator[Row]:
        yield first
        while position.ready() and (row := next(rows, None)) is not None:
            yield row

    for first in rows:
        yield part(first)


_FileRow = tuple[str, Cells | UserError, float]  # place, columns, share of the file that was read


def _file_rows(given: str, reading: Reading, position: Position) -> Iterator[_FileRow]:
    kind = reading.format or file_format(given)
    if kind in _WHOLE:
        yield from _parquet_rows(given) if kind == "parquet" else _json_rows(given)
        return
    stream = Stream(given)
    position.ready = stream.ready
    try:
        if kind is None:
            kind = "jsonl" if stream.head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") else "text"
        if kind == "text":
            rows = _numbered(stream, _text_cells)
        elif kind == "jsonl":
            rows = (row for row in _numbered(stream, _json_cells) if row[1] is not None)
        else:
            rows = _delimited_rows(stream, "," if kind == "csv" else "\t", reading)
        for number, cells in rows:
            yield f"line {number}", cells, stream.share()
    finally:
        position.ready = _always
        stream.close()


def _json_rows(given: str) -> Iterator[_FileRow]:
    """Yields the objects of a JSON file, which may be spread over lines or in a list; a mistake ends the reading."""
    for number, cells in json_objects(open_text(given)):
        yield f"line {number}", cells, 0.0


def _parquet_rows(given: str) -> Iterator[_FileRow]:
    """Yields the rows of a Parquet file, of which a damaged one ends the reading."""
    try:
        table = open_parquet(given, label_column="")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{given}: Parquet files need the package {error.name!r}: pip install 'deberta-jax[train]'"
        ) from None
    from pyarrow import parquet

    total = parquet.read_metadata(Path(given).expanduser()).num_rows
    for number, cells in table.rows:
        yield f"record {number}", cells, number / total


def _numbered(stream: Stream, parse: Callable[[str], Any]) -> Iterator[tuple[int, Any]]:
    """Yields the number of each line and what it is parsed to, or the error of a bad one."""
    for number, line in enumerate(stream.lines(), start=1):
        try:
            yield number, parse(_decode(line))
        except UserError as error:
            yield number, error


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {line[error.start]:#04x} at offset {error.start} of the line is not UTF-8; save the file as UTF-8 "
            "(from Windows or Latin-1: iconv -f WINDOWS-1252 -t UTF-8)"
        ) from None


def _text_cells(line: str) -> Cells:
    return {TEXT: line}


def _json_cells(line: str) -> Cells | None:
    """Returns the object of a line, or nothing if the line is blank."""
    if not line.strip():
        return None
    advice = "write one object per line, or name the file .json if an object spans several lines"
    try:
        value = json.loads(line, object_pairs_hook=without_twins)
    except UserError:  # a key that occurs twice
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"not a JSON object; {advice}")
    return value


def _delimited_rows(stream: Stream, separator: str, reading: Reading) -> Iterator[tuple[int, Cells | UserError]]:
    """Yields the rows of columns that a tab or comma separates. Blank lines are no rows."""
    quoting = reading.quoting or ("csv" if separator == "," else "none")
    lines = (line.decode(errors="surrogateescape") for line in stream.lines())
    records = _quoted_records(lines, separator) if quoting == "csv" else _plain_records(lines, separator)
    header: Sequence[str] | None = None
    for number, fields in records:
        if isinstance(fields, UserError):
            if header is None:
                raise UserError(f"{stream.name}, line {number}: {fields}")
            yield number, fields
        elif not any(fields) and len(fields) <= 1:
            continue
        elif header is None and reading.header:
            check_header(stream.name, fields, separator)
            header = fields
        else:
            header = header or [str(index) for index in range(len(fields))]
            yield number, _named(header, fields)


def _named(header: Sequence[str], fields: Sequence[str]) -> Cells | UserError:
    if len(fields) != len(header):
        return UserError(f"{len(fields)} fields, but the first line has {len(header)}")
    for name, field in zip(header, fields, strict=True):
        if not field.isascii():
            try:
                field.encode()
            except UnicodeEncodeError as error:
                byte = ord(field[error.start]) - 0xDC00
                return UserError(f"column {name!r}: byte {byte:#04x} is not UTF-8; save the file as UTF-8")
    return dict(zip(header, fields, strict=True))


def _plain_records(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str] | UserError]]:
    for number, line in enumerate(lines, start=1):
        yield number, line.split(separator)


def _quoted_records(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str] | UserError]]:
    """Yields each record with the number of its first line, as a quoted field may contain line ends."""
    csv.field_size_limit(_LARGEST_FIELD)
    reader, start = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True), 1
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, UserError(str(error))
        else:
            yield start, record
        start = reader.line_num + 1
