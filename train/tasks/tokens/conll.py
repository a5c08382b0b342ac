"""Reads files of the CoNLL shared tasks: one word with its tags per line, and an empty line between sentences."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..sources.files import read_text
from ..sources.table import Table

SUFFIXES = (".conll", ".txt")
FIRST, LAST = "0", "-1"  # default columns of the words and of the tags


def is_conll(path: str) -> bool:
    return path.removesuffix(".gz").endswith(SUFFIXES)


def read_conll(path: str) -> Table:
    """Returns one row per sentence, numbered by its first line, with a list of values in each column.

    The columns, which are separated by spaces or tabs, are named "0", "1", ...; the last of several columns is also
    named "-1". Lines that begin with -DOCSTART- are skipped and counted in the notes.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the file cannot be read, or a line has another number of columns than the first one.
    """
    lines = [line.strip(" \t\r") for line in read_text(path).split("\n")]
    skipped = sum(line.startswith("-DOCSTART-") for line in lines)
    notes = (f"{skipped} -DOCSTART- lines skipped in {Path(path).name}",) if skipped else ()
    table = Table(path, "line", (), notes=notes)

    def rows() -> Iterator[tuple[int, dict[str, list[str]]]]:
        words, start, width = [], 0, 0
        for number, line in enumerate([*lines, ""], start=1):
            if line and not line.startswith("-DOCSTART-"):
                values = re.split("[ \t]+", line)
                width, start = width or len(values), start if words else number
                if len(values) != width:
                    raise table.error(number, f"{len(values)} columns, but the lines before have {width}")
                words.append(values)
            elif words:
                columns = {str(index): list(column) for index, column in enumerate(zip(*words, strict=True))}
                yield start, columns | ({LAST: columns[str(width - 1)]} if width > 1 else {})
                words = []

    return Table(path, "line", rows(), notes=notes)
