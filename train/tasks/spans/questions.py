"""Reads questions with the contexts that answer them, from files in SQuAD's layout and from other tables.

A table has columns for the question, its context and the answers. The answers have one of these forms:

    JSON Lines, tensorflow_datasets   SQuAD's {"text": ["a", "b"], "answer_start": [3, 17]}, or a list of
                                      {"text": "a", "answer_start": 3}; empty if the context has no answer
    TSV, CSV and all others           one text, blank if the context has no answer; another column ("answer_start")
                                      has the position of its first character (default: the first occurrence)

The column "id" identifies a question; without it, the number of the row does. Oddities of published sets are accepted
and counted in the notes.
"""

import dataclasses
import operator
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.errors import UserError

from ..packed import PackedExamples, PackedRows, Row
from ..ragged import as_numpy
from ..sources.cells import Cells, cell_value, is_list, parse_text, preview, text_cell
from ..sources.delimited import Reading
from ..sources.source import Source, columns_of, named_splits, open_table
from ..sources.table import Table, parse_rows
from .squad_files import open_squad_file

_START = "answer_start"
_Texts = tuple[str, str, str]  # id, question and context
_Answers = tuple[tuple[str, int], ...]  # text and start of each
_SHIFT = 2  # largest error, in characters, of the start of an answer in a published set
_SQUAD_COLUMNS = {"text": "question", "pair": "context", "label": "answers"}


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An answer and the position of its first character in the context."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class SpanQuestion:
    """A question about a context.

    Attributes:
      id: the identifier of the question.
      question: the question.
      context: the text that has the answer.
      answers: the accepted answers; empty if the context has none, `None` if they are not published.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None


@dataclasses.dataclass(frozen=True)
class SpanData:
    """The questions of a task by split (see `ClassificationData`), and for each split the notes about reading it."""

    name: str
    splits: Mapping[str, Sequence[SpanQuestion]]
    notes: Mapping[str, tuple[str, ...]]


def load_questions(
    train: str,
    *,
    validation: str | None = None,
    test: str | None = None,
    text_column: str = "question",
    pair_column: str = "context",
    label_column: str = "answers",
    start_column: str | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    reading: Reading | None = None,
) -> SpanData:
    """Reads the questions of a task.

    Files, `tfds:squad/v1.1` and `squad/v2.0:FILE` are sources, and so are other sets with their columns. A .json file
    with an object that has "data" is read in SQuAD's layout, for which the columns are known.

    Args:
      train: the training source (see `source`).
      validation: the validation source (default: the validation split of a `train` from tensorflow_datasets).
      test: the test source. Either all or none of its questions have answers.
      text_column: the column of the question.
      pair_column: the column of the context.
      label_column: the column of the answers.
      start_column: the column of the position in the context, in characters, of an answer that is a plain text
        (default: "answer_start" if there is such a column).
      data_dir: the folder of prepared sets (default: that of tensorflow_datasets).
      manual_dir: the folder of archives that were downloaded by hand (default: `downloads/manual` in `data_dir`).
      reading: how to read files with separated columns (default: by their names).

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used; the message has the file, the row and the reason.
    """
    given = {"text": text_column, "pair": pair_column, "label": label_column}
    splits, notes = {}, {}
    for name, source, role in named_splits(train, validation, test):
        columns = {part: str(column) for part, column in columns_of(source, "span", given).items()}
        table = open_squad_file(source)
        if table is not None:
            columns = _SQUAD_COLUMNS
        else:
            table = open_table(
                source, label_column=columns["label"], data_dir=data_dir, manual_dir=manual_dir, reading=reading
            )
        splits[name], notes[name] = _read_questions(table, columns, start_column, label_optional=role == "test")
    if not any(question.answers for question in splits["train"]):
        raise UserError(f"{train}: no question has an answer; training needs some")
    return SpanData(name=Source.parse(train).name, splits=splits, notes=notes)


# ---------------------------------------------------------------------------------------------------------------- rows


class _Reader:
    """Reads the questions of a table and counts its oddities."""

    def __init__(
        self, table: Table, columns: Mapping[str, str], start_column: str | None, *, label_optional: bool
    ) -> None:
        self._table, self._columns, self._start_column = table, columns, start_column
        self._label_optional = label_optional
        self.moved = self.blank = 0

    def parse(self, cells: Cells, number: int) -> Iterator[tuple[_Texts, _Answers | None]]:
        """Yields the id, the question and the context of a row, and the answers."""
        identifier = _identifier(cells, number)
        try:
            yield self._question(cells, identifier)
        except UserError as error:
            if cells.get("id") is None:
                raise
            raise UserError(f"question {identifier!r}: {error}") from None

    def _question(self, cells: Cells, identifier: str) -> tuple[_Texts, _Answers | None]:
        published, label_column = self._table.published, self._columns["label"]
        text = text_cell(cells, self._columns["text"], allow_empty=published)
        context = text_cell(cells, self._columns["pair"], allow_empty=False)
        answers = None
        if not (self._label_optional and self._table.has_no_label(cells, label_column)):
            given = _given_answers(cells, label_column, self._start_column, allow_empty=published)
            within = _SHIFT if published else 0
            answers = tuple(_find_answer(answer, start, context, within=within) for answer, start in given)
            self.moved += sum(
                start not in (None, answer.start) for answer, (_, start) in zip(answers, given, strict=True)
            )
        self.blank += not text.strip()
        return (identifier, text, context), None if answers is None else tuple(map(dataclasses.astuple, answers))


def _read_questions(
    table: Table, columns: Mapping[str, str], start_column: str | None, *, label_optional: bool
) -> tuple[Sequence[SpanQuestion], tuple[str, ...]]:
    """Returns all questions of a table and the notes about reading it."""
    reader = _Reader(table, columns, start_column, label_optional=label_optional)
    rows, numbers = PackedRows(), array("q")
    ids = array("q")  # a hash of each id
    for number, texts, answers in parse_rows(table, reader.parse):
        rows.append((*texts, answers))
        numbers.append(number)
        ids.append(hash(texts[0]))
    _check_ids(table, rows, numbers, ids)
    notes = (
        f"{reader.blank} questions are blank" if reader.blank else "",
        f"{reader.moved} answers moved by up to {_SHIFT} characters to where their text is" if reader.moved else "",
    )
    return PackedExamples(rows, _question), tuple(filter(None, (*table.notes, *notes)))


def _question(index: int, row: Row) -> SpanQuestion:
    del index
    identifier, question, context, answers = row
    return SpanQuestion(identifier, question, context, None if answers is None else tuple(Answer(*a) for a in answers))


def _check_ids(table: Table, rows: PackedRows, numbers: "array[int]", hashes: "array[int]") -> None:
    """Raises UserError if an id occurs twice.

    Args:
      table: the table.
      rows: the questions, which begin with their ids.
      numbers: the number of the row of each question.
      hashes: the hash of each id, which different ids may have in common.
    """
    values, counts = np.unique(as_numpy(hashes), return_counts=True)
    first: dict[str, int] = {}
    for index in np.flatnonzero(np.isin(as_numpy(hashes), values[counts > 1])).tolist():
        identifier = rows[index][0]
        if identifier in first:
            reason = (
                f"question {identifier!r}: the id occurs before, in {table.unit} {first[identifier]}; predictions "
                "need different ids"
            )
            raise table.error(numbers[index], reason)
        first[identifier] = numbers[index]


def _identifier(cells: Cells, number: int) -> str:
    value = cell_value(cells, "id") if "id" in cells else None
    if value is None:
        return str(number)
    return parse_text(value if isinstance(value, bytes) else str(value), "id", allow_empty=True)


def _given_answers(
    cells: Cells, column: str, start_column: str | None, *, allow_empty: bool
) -> list[tuple[str, int | None]]:
    """Returns the text and the start of each answer of a row; the start is `None` if the row does not have it."""
    value = cell_value(cells, column)
    answers: list[tuple[str, int | None]]
    if isinstance(value, str | bytes):
        text = parse_text(value, column, allow_empty=True)
        if not text.strip():
            answers = []
        elif start_column is None and _START not in cells:
            answers = [(text, None)]
        else:
            answers = [(text, _parse_start(cell_value(cells, start_column or _START)))]
    else:
        answers = [
            (_answer_text(text, column, allow_empty=allow_empty), _parse_start(start))
            for text, start in _texts_and_starts(value, column)
        ]
    if answers and isinstance(flag := cells.get("is_impossible"), bool | np.bool_) and flag:
        raise UserError(f"is_impossible is true, but column {column!r} has an answer")
    return answers


def _texts_and_starts(value: Any, column: str) -> list[tuple[Any, Any]]:
    """Returns the text and the start of each answer from either of their two forms in JSON."""
    if isinstance(value, Mapping) and is_list(value.get("text")) and is_list(value.get(_START)):
        if len(value["text"]) != len(value[_START]):
            raise UserError(f"column {column!r} has {len(value['text'])} texts but {len(value[_START])} starts")
        return list(zip(value["text"], value[_START], strict=True))
    if is_list(value) and all(isinstance(answer, Mapping) and {"text", _START} <= answer.keys() for answer in value):
        return [(answer["text"], answer[_START]) for answer in value]
    raise UserError(
        f"column {column!r} holds {preview(value, 60)}; give a text, a list of "
        f'{{"text": ..., "{_START}": ...}}, or {{"text": [...], "{_START}": [...]}}, empty where there is no answer'
    )


def _answer_text(text: Any, column: str, *, allow_empty: bool) -> str:
    text = parse_text(text, column, allow_empty=True)
    if not text.strip() and not allow_empty:
        raise UserError(f"column {column!r} has an answer without text; if there is no answer, leave the list empty")
    return text


def _parse_start(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(value) if isinstance(value, str | bytes) else operator.index(value)
    except (TypeError, ValueError):
        raise UserError(f"an answer starts at {preview(value)}, which is not a whole number") from None


def _find_answer(text: str, start: int | None, context: str, *, within: int) -> Answer:
    """Returns an answer with its position, which is at most `within` characters from `start`."""
    first = context.find(text)
    if start is None and first >= 0:
        return Answer(text, first)
    if start is None:
        raise UserError(f"the answer {text!r:.60} is not in the context")
    nearby = range(max(0, start - within), start + within + 1)
    for position in sorted(nearby, key=lambda position: abs(position - start)):
        if context.startswith(text, position):
            return Answer(text, position)
    if not 0 <= start < len(context):
        raise UserError(
            f"the answer {text!r:.60} starts at {start}, outside the context, which has {len(context)} characters"
        )
    occurrence = f"it occurs at {first}" if first >= 0 else "it is not in the context"
    raise UserError(
        f"the answer {text!r:.60} does not start at character {start}, where the context has "
        f"{context[start : start + len(text)]!r:.60}; {occurrence}"
    )
