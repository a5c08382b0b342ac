"""Reads files of the CoNLL shared tasks: one word with its tags per line, and an empty line between sentences."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deberta_jax.errors import UserError

from ..sources.table import Table
from ..sources.text_files import TextFile, open_text

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes", ".tsv", ".txt")
FIRST, LAST = "0", "-1"  # default columns of the words and of the tags
_UNIVERSAL = ("1", "3")  # the same in CoNLL-U: FORM and UPOS, of ten columns
_MARKS = ("-DOCSTART-", "#begin document", "#end document")
# Names of columns in header lines, without case and without characters that are not letters.
_WORD_NAMES = frozenset("word words token tokens form text sentence id index lemma".split())
_TAG_NAMES = frozenset(
    "tag tags label labels ner nertag nertags nerlabel pos postag upos xpos chunk entity iob".split()
)
_NUMBER = re.compile(r"\d+([-.]\d+)?")
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
    text = open_text(path)
    layout = _Layout(text)
    notes: list[str] = []
    table = Table(path, "line", _sentences(text, layout, notes), notes=notes)
    return ConllTable(table, *(_UNIVERSAL if layout.numbered and layout.width == 10 else (layout.word_column, LAST)))


def _sentences(text: TextFile, layout: "_Layout", notes: list[str]) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """Yields the columns of each sentence with the number of its first line. Adds to the notes at the end."""
    skipped: Counter[str] = Counter()
    blanks = _WordsWithBlanks()
    sentence: list[list[str]] = []
    start = 0
    for number, line in enumerate(_lines(text), start=1):
        reason = ""
        if line.strip(" \t\r"):
            reason = layout.no_word(number, line)
            if not reason:
                values = layout.values(number, line)
                blanks.add(number, values[int(layout.word_column)])
                start = start if sentence else number
                sentence.append(values)
                continue
            skipped[reason] += 1
        if sentence and reason in ("", "-DOCSTART-"):
            yield start, _columns(sentence)
            sentence = []
    blanks.check(text.given)
    notes += [f"{count} {reason} lines skipped in {Path(text.given).name}" for reason, count in skipped.items()]
    if sentence:
        yield start, _columns(sentence)


def _lines(text: TextFile) -> Iterator[str]:
    return (line.removesuffix("\n") for line in text.lines())


def _columns(sentence: Sequence[list[str]]) -> dict[str, list[str]]:
    columns = {str(index): list(column) for index, column in enumerate(zip(*sentence, strict=True))}
    width = len(columns)
    return columns | ({LAST: columns[str(width - 1)]} if width > 1 else {})


class _WordsWithBlanks:
    """Counts the words that have blanks inside."""

    def __init__(self) -> None:
        self._words = self._blanks = 0
        self._first = 0, ""  # the number of its line, and the word

    def add(self, number: int, word: str) -> None:
        self._words += 1
        if " " in word.strip():
            self._first = self._first if self._blanks else (number, word)
            self._blanks += 1

    def check(self, path: str) -> None:
        """Raises UserError if most words have blanks inside, as in a table with a sentence per line."""
        number, word = self._first
        if self._blanks * 2 > self._words:
            raise UserError(
                f"{path}, line {number}: {word!r:.60} is not a word; write one word with its tags per line and an "
                "empty line between sentences, or lists of words and labels to a .jsonl file"
            )


class _Layout:
    """The columns of a file, and which of its lines are no words.

    Attributes:
      width: number of columns.
      numbered: whether the first column numbers the words, as in CoNLL-U.
    """

    def __init__(self, text: TextFile) -> None:
        self._path = text.given
        # A line that begins with "#" is a comment or a word, which only the other lines tell.
        filled = Counter((line.startswith("#"), "\t" in line.strip(" \t\r")) for line in _filled(text))
        only_hashes = not (filled[False, False] or filled[False, True])
        with_tabs, without = filled[only_hashes, True], filled[only_hashes, False]
        self._tabs = with_tabs > without
        widths: Counter[int] = Counter()
        self._tags: Counter[str] = Counter()
        first_is_number, others_are = None, True
        for row in (self._split(line) for line in _filled(text) if only_hashes or not line.startswith("#")):
            widths[len(row)] += 1
            self._tags[row[-1]] += 1
            if first_is_number is None:
                first_is_number = bool(_NUMBER.fullmatch(row[0]))
            else:
                others_are = others_are and bool(_NUMBER.fullmatch(row[0]))
        self.width = widths.most_common(1)[0][0] if widths else 0
        self._header = self._find_header(text)
        self.numbered = self.width > 2 and others_are and (self._header > 0 or bool(first_is_number))

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

    def _find_header(self, text: TextFile) -> int:
        """Returns the number of the line with the names of the columns, or 0."""
        for number, line in enumerate(_lines(text), start=1):
            if not line.strip(" \t\r") or line.startswith(("#", *_MARKS)):
                continue
            values = self._split(line)
            names = [re.sub("[^a-z]", "", value.lower()) for value in values]
            is_header = len(values) > 1 and names[-1] in _TAG_NAMES and self._tags[values[-1]] == 1
            return number if is_header and any(name in _WORD_NAMES | _TAG_NAMES for name in names[:-1]) else 0
        return 0


def _filled(text: TextFile) -> Iterator[str]:
    return (line for line in _lines(text) if line.strip(" \t\r") and not line.startswith(_MARKS))


def _trimmed(value: str) -> str:
    """Returns a value without blanks around it, unless it is a word of blanks."""
    return value.strip(" \r") or value
