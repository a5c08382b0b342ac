"""Files as the CoNLL shared tasks have them: a word a line with its tags behind it, an empty line between sentences."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..sources.source import Table, read_text

SUFFIXES = (".conll", ".txt")
FIRST, LAST = "0", "-1"  # columns: words by default, tags by default


def is_conll(path: str) -> bool:
    return path.removesuffix(".gz").endswith(SUFFIXES)


def read_conll(path: str) -> Table:
    """One row a sentence, numbered by its first line: lists of as many values as it has words.

    The columns, separated by blanks or tabs, are called "0", "1", ..., and the last of several "-1" as well. Lines
    that begin with -DOCSTART- are skipped, and counted in the notes.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that `read_text` refuses, or a line with another number of columns than the first.
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
                columns = {str(place): list(column) for place, column in enumerate(zip(*words, strict=True))}
                yield start, columns | ({LAST: columns[str(width - 1)]} if width > 1 else {})
                words = []

    return Table(path, "line", rows(), notes=notes)
