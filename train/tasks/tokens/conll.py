"""Reads files of the CoNLL shared tasks: one word with its tags per line, and an empty line between sentences."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deberta_jax.errors import UserError

from ..sources.table import Table
from ..sources.text_files import read_text

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes", ".tsv", ".txt")
FIRST, LAST = "0", "-1"  # default columns of the words and of the tags
_UNIVERSAL = ("1", "3")  # the same in CoNLL-U: FORM and UPOS, of ten columns
_MARKS = ("-DOCSTART-", "#begin document", "#end document")
# Names of columns in header lines, without case and without characters that are not letters.
_WORD_NAMES = frozenset("word words token tokens form text sentence id index lemma".split())
_TAG_NAMES = frozenset(
    "tag tags label labels ner nertag nertags nerlabel pos postag upos xpos chunk entity iob".split()
)
_TAG = re.compile(r"[BIESLUMO]|[BIESLUM][-_].+|.+[-_][BIESLUM]|#")  # `#` is itself the tag of the word `#`


class ConllTable(NamedTuple):
    """The sentences of a file, and the default columns of its words and tags."""

    table: Table
    text: str
    label: str


def is_conll(path: str) -> bool:
    return path.removesuffix(".gz").endswith(SUFFIXES) and not Path(path).expanduser().is_dir()


def read_conll(path: str) -> ConllTable:
    """Returns one row per sentence, numbered by its first line, with a list of values in each column.

    The columns, which are separated by spaces or tabs, are named "0", "1", ...; the last of several columns is also
    named "-1". Lines that are no words are skipped and counted in the notes: marks of documents, comments, a header,
    and the lines of CoNLL-U that repeat words (`1-2`) or add words that the text does not have (`1.1`).

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the file cannot be read, or a line has another number of columns than the others.
    """
    lines = read_text(path).split("\n")
    layout = _Layout(path, lines)
    skipped: Counter[str] = Counter()
    words: list[tuple[int, list[str]]] = []  # the number of a line and its values, which are empty between sentences
    for number, line in enumerate(lines, start=1):
        if not line.strip(" \t\r"):
            words.append((number, []))
        elif reason := layout.no_word(number, line):
            skipped[reason] += 1
            if reason == "-DOCSTART-":
                words.append((number, []))
        else:
            words.append((number, layout.values(number, line)))
    notes = tuple(f"{count} {reason} lines skipped in {Path(path).name}" for reason, count in skipped.items())
    _check_words(path, [(number, values[int(layout.word_column)]) for number, values in words if values])
    table = Table(path, "line", _sentences(words), notes=notes)
    return ConllTable(table, *(_UNIVERSAL if layout.numbered and layout.width == 10 else (layout.word_column, LAST)))


def _check_words(path: str, words: Sequence[tuple[int, str]]) -> None:
    """Raises UserError if most words have blanks inside, as in a table with a sentence per line."""
    blanks = [(number, word) for number, word in words if " " in word.strip()]
    if len(blanks) * 2 > len(words):
        number, word = blanks[0]
        raise UserError(
            f"{path}, line {number}: {word!r:.60} is not a word; write one word with its tags per line and an empty "
            "line between sentences, or lists of words and labels to a .jsonl file"
        )


def _sentences(words: Sequence[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, list[str]]]]:
    sentence, start = [], 0
    for number, values in [*words, (0, [])]:
        if values:
            start = start if sentence else number
            sentence.append(values)
        elif sentence:
            columns = {str(index): list(column) for index, column in enumerate(zip(*sentence, strict=True))}
            width = len(columns)
            yield start, columns | ({LAST: columns[str(width - 1)]} if width > 1 else {})
            sentence = []


class _Layout:
    """The columns of a file, and which of its lines are no words.

    Attributes:
      width: number of columns.
      numbered: whether the first column numbers the words, as in CoNLL-U.
    """

    def __init__(self, path: str, lines: Sequence[str]) -> None:
        self._path = path
        # A line that begins with "#" is a comment or a word, which only the other lines tell.
        filled = [line for line in lines if line.strip(" \t\r") and not line.startswith(_MARKS)]
        plain = [line for line in filled if not line.startswith("#")] or filled
        self._tabs = sum("\t" in line.strip(" \t\r") for line in plain) * 2 > len(plain)
        rows = [self._split(line) for line in plain]
        widths = Counter(map(len, rows))
        self.width = widths.most_common(1)[0][0] if widths else 0
        self._tags = Counter(row[-1] for row in rows)
        self._header = self._find_header(lines)
        firsts = [row[0] for row in rows[bool(self._header) :]]
        self.numbered = self.width > 2 and all(re.fullmatch(r"\d+([-.]\d+)?", first) for first in firsts)

    @property
    def word_column(self) -> str:
        return "1" if self.numbered else FIRST

    def no_word(self, number: int, line: str) -> str:
        """Returns what a line is that is no word, or an empty string for a word."""
        if line.startswith("-DOCSTART-"):
            return "-DOCSTART-"
        if line.startswith(_MARKS):
            return "document"
        if line.startswith("#") and self._is_comment(line):
            return "comment"
        if number == self._header:
            return "header"
        first = line.partition("\t" if self._tabs else " ")[0]
        return "multi-word and empty-node" if self.numbered and not first.isdecimal() else ""

    def values(self, number: int, line: str) -> list[str]:
        """Returns the values of the columns of a word. An empty column at the end of a line counts."""
        values = self._split(line)
        if len(values) < self.width and self._tabs:
            values = [_trimmed(value) for value in line.removesuffix("\r").split("\t")]
            if len(values) != self.width:  # a line with another separator than the others
                values = re.split("[ \t]+", line.strip(" \t\r"))
        if len(values) != self.width:
            raise UserError(f"{self._path}, line {number}: {len(values)} columns, but most lines have {self.width}")
        return values

    def _split(self, line: str) -> list[str]:
        if not self._tabs:
            return re.split("[ \t]+", line.strip(" \t\r"))
        return [_trimmed(value) for value in line.rstrip(" \t\r").split("\t")]

    def _is_comment(self, line: str) -> bool:
        """Returns whether a line that begins with "#" is a comment and not a word."""
        values = self._split(line)
        is_row = len(values) == self.width
        if self.numbered:
            return True
        if re.match("#([ \t\r]|$)", line) is None:  # a word such as #monday
            return not is_row and "=" in line
        return not (is_row and (self.width == 1 or values[-1] in self._tags or bool(_TAG.fullmatch(values[-1]))))

    def _find_header(self, lines: Sequence[str]) -> int:
        """Returns the number of the line with the names of the columns, or 0."""
        for number, line in enumerate(lines, start=1):
            if not line.strip(" \t\r") or line.startswith(("#", *_MARKS)):
                continue
            values = self._split(line)
            names = [re.sub("[^a-z]", "", value.lower()) for value in values]
            is_header = len(values) > 1 and names[-1] in _TAG_NAMES and self._tags[values[-1]] == 1
            return number if is_header and any(name in _WORD_NAMES | _TAG_NAMES for name in names[:-1]) else 0
        return 0


def _trimmed(value: str) -> str:
    """Returns a value without blanks around it, unless it is a word of blanks."""
    return value.strip(" \r") or value
