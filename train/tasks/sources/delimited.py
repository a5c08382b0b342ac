"""Reads tables whose columns are separated by tabs or commas."""

import csv
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, Self

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names

from ...task_configs import ColumnsConfig
from .cells import Cells
from .table import Table
from .text_files import TextFile

Quoting = Literal["none", "csv"]
MORE = "..."  # the last name of columns, if some lines have further columns
_NO_HEADER = "; if the first line is a row and not a header, add --no-header and give numbers of columns, from 0"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read a file with separated columns.

    Attributes:
      header: whether the first line has the names of the columns. Without it, columns are named "0", "1", ...
      quoting: whether fields may be in quotation marks (default: in .csv files).
      names: the names of the columns of a published file without a header, or empty.
      header_names: names of which a header of the published file has at least one.
    """

    header: bool = True
    quoting: Quoting | None = None
    names: tuple[tuple[str, ...], ...] = ()
    header_names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, columns: ColumnsConfig) -> Self:
        """Returns what the user set."""
        return cls(header=columns.header, quoting=columns.quoting)


def open_delimited(text: TextFile, separator: str, reading: Reading) -> Table:
    """Returns the rows of a file with separated columns.

    Args:
      text: the file.
      separator: a tab or a comma.
      reading: how to read it.

    Raises:
      UserError: if the header cannot be right.
    """
    quoting = reading.quoting or ("csv" if separator == "," else "none")
    name = text.given
    records = _quoted_records(text, separator) if quoting == "csv" else _plain_records(text, separator)
    number, first = next(records)
    header: Sequence[str]
    if reading.names and not (reading.header and reading.header_names & set(first)):
        header, records = _names_by_width(name, first, reading), itertools.chain([(number, first)], records)
    elif not reading.header:
        header, records = [str(index) for index in range(len(first))], itertools.chain([(number, first)], records)
    else:
        header = first
        check_header(name, header, separator)
    notes = _quoted_note(text, separator, header, skip=header is first) if quoting == "none" else ()
    advice = _NO_HEADER if header is first else ""
    rows = _rows(name, header, records, "header" if header is first else "first line")
    return Table(name, "line", rows, notes=notes, advice=advice)


def _names_by_width(name: str, first: list[str], reading: Reading) -> tuple[str, ...]:
    for names in reading.names:
        if len(names) == len(first) or (names[-1] == MORE and len(first) >= len(names) - 1):
            return names
    known = " or ".join(f"{len(names)} columns ({', '.join(names)})" for names in reading.names)
    raise UserError(
        f"{name}, line 1: neither a header of this set, which names {', '.join(sorted(reading.header_names))}, nor a "
        f"row of {known}: {len(first)} columns"
    )


def check_header(name: str, header: Sequence[str], separator: str) -> None:
    """Raises UserError if a header cannot be right: a name occurs twice, or another separator is in it."""
    if len(set(header)) != len(header):
        twins = ", ".join(map(repr, header))
        raise UserError(f"{name}, line 1: a column name occurs twice in the header {twins:.300}{_NO_HEADER}")
    if all(len(field) > 1 and field[0] == field[-1] == '"' for field in header):
        raise UserError(f"{name}, line 1: the names of the columns are in quotation marks; add --quoting csv")
    if len(header) == 1:
        for other, change in {
            "\t": "name the file .tsv",
            ",": "name the file .csv",
            ";": "save it with commas",
            "|": "save it with commas",
        }.items():
            if other != separator and other in header[0]:
                raise UserError(
                    f"{name}, line 1: the columns are separated by {other!r}, not by {separator!r}; {change}: "
                    f"{header[0]!r:.80}"
                )


def _rows(
    name: str, header: Sequence[str], records: Iterator[tuple[int, list[str]]], source: str
) -> Iterator[tuple[int, Cells]]:
    for number, fields in records:
        if len(fields) != len(header) and not (header[-1] == MORE and len(fields) >= len(header) - 1):
            raise UserError(f"{name}, line {number}: {len(fields)} fields, but the {source} has {len(header)}")
        yield number, dict(zip(header, fields, strict=False))


def _plain_records(text: TextFile, separator: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.lines(), start=1):
        yield number, _fields(line, separator)


def _fields(line: str, separator: str) -> list[str]:
    return line.removesuffix("\n").removesuffix("\r").split(separator)


def _quoted_note(text: TextFile, separator: str, header: Sequence[str], *, skip: int) -> tuple[str, ...]:
    """Returns a note if rows look as if a program had put their fields in quotation marks, which are kept."""
    records = quoted = 0
    columns: Counter[str] = Counter()
    for line in itertools.islice(text.lines(), skip, None):
        records += 1
        if '"' in line and (places := _quoted_fields(_fields(line, separator))):
            quoted += 1
            columns.update(header[place] for place in places if place < len(header))
    if not quoted:
        return ()
    where = list_names([f"{count:,} in {column!r}" for column, count in columns.items()])
    return (
        f"{quoted:,} of {records:,} rows have fields in quotation marks ({where}), which stay; "
        "--quoting csv removes them",
    )


def _quoted_fields(fields: Sequence[str]) -> list[int]:
    """Returns the positions of fields with doubled quotation marks inside quotation marks, or of all if all have any.

    A field in quotation marks alone may be a sentence that somebody says.
    """
    marked = {
        place: field[1:-1] for place, field in enumerate(fields) if len(field) > 1 and field[0] == field[-1] == '"'
    }
    if len(marked) == len(fields) > 1:
        return list(marked)
    return [place for place, inner in marked.items() if '""' in inner and '"' not in inner.replace('""', "")]


def _quoted_records(text: TextFile, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each record with the number of its first line, as a quoted field may contain line ends."""
    # The csv module rejects fields of more than 128 KiB by default, which is less than a long document.
    limit = csv.field_size_limit(max(text.size, csv.field_size_limit()))
    reader, start = csv.reader(text.lines(only_newlines=False), delimiter=separator, strict=True), 1
    try:
        for record in reader:
            yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{text.given}, line {start}: {error}") from None
    finally:
        csv.field_size_limit(limit)
