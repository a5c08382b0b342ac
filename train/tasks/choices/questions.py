"""Rows of a table to questions with choices: columns, lists of questions, and what a label may be."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deberta_jax.errors import UserError

from ..sources.cells import check_text, decode, field
from ..sources.published import Columns
from ..sources.source import Table

_BLANK = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")  # not the underscore inside a name_like_this


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """`label` is the index of the right choice; None: not published."""

    context: str
    question: str | None
    choices: tuple[str, ...]
    label: int | None


def join(question: str | None, choice: str) -> str:
    """The second text that a model reads. Source: the official RACE task; blanks as its data means them."""
    if not question:
        return choice
    filled, blanks = _BLANK.subn(lambda _: f" {choice} ", question)
    return " ".join(filled.split()) if blanks else f"{question} {choice}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    number: int
    context: str
    question: str | None
    choices: tuple[str, ...]
    label: Any


def read_questions(table: Table, columns: Columns, *, labels_optional: bool) -> tuple[Question, ...]:
    """All questions of a table. Raises ValueError, with the file and the line, where a row cannot be used.

    Where the question is a list, as in RACE, its row has as many questions as it is long.
    """
    label_column = str(columns["label"])
    rows = []
    for number, record in table.rows:
        try:
            for fields in _questions(record, columns):
                question = None
                if "pair" in columns:
                    question = check_text(
                        field(fields, str(columns["pair"])), str(columns["pair"]), allow_empty=table.published
                    )
                context = check_text(
                    field(fields, str(columns["text"])), str(columns["text"]), allow_empty=table.published
                )
                hidden = label_column not in fields or (table.hidden_label and fields[label_column] == -1)
                label = None if labels_optional and hidden else _label(field(fields, label_column))
                if rows and (label is None) != (rows[0].label is None):
                    raise UserError(f"row {rows[0].number} and this one differ: give every row a label, or none")
                rows.append(_Row(number, context, question, _choices(fields, columns, table.published), label))
        except ValueError as error:
            raise table.error(number, error) from None
    if not rows:
        raise UserError(f"{table.name} has no rows")
    return _to_questions(table, rows)


def _questions(record: Mapping[str, Any], columns: Columns) -> Iterator[Mapping[str, Any]]:
    """A row; or, where it has lists of questions, of lists of choices and of labels, as RACE's, one row a question."""
    pair, choices, label = (columns.get(name) for name in ("pair", "choices", "label"))
    if not isinstance(pair, str) or not _is_list(record.get(pair)):
        yield record
        return
    if choices is None or len(choices) != 1:
        raise UserError(f"column {pair!r} is a list of questions; their choices must be one column, a list of lists")
    names = [pair, choices[0], *([label] if label in record else [])]
    lists = [list(field(record, str(name))) for name in names]
    if len({len(values) for values in lists}) > 1:
        sizes = ", ".join(f"{len(values)} in {name!r}" for name, values in zip(names, lists, strict=True))
        raise UserError(f"lists of different lengths: {sizes}")
    for values in zip(*lists, strict=True):
        yield {**record, **dict(zip(names, values, strict=True))}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _choices(fields: Mapping[str, Any], columns: Columns, published: bool) -> tuple[str, ...]:
    """A list in one column; or several columns, the last of which may be blank where there are fewer choices."""
    names = columns["choices"]
    if len(names) == 1:
        values = field(fields, names[0])
        if not _is_list(values):
            raise UserError(f"column {names[0]!r} holds {values!r:.40}, not a list; name one column for every choice")
        values = list(values)
    else:
        values = [field(fields, name) for name in names]
        while values and (values[-1] is None or (isinstance(values[-1], str) and not values[-1].strip())):
            values.pop()
    where = ", ".join(names)
    if len(values) < 2:
        raise UserError(f"there is {len(values)} choice in {where}; give at least two")
    return tuple(check_text(value, where, allow_empty=published) for value in values)


def _label(label: Any) -> str | int:
    if isinstance(label, bytes):
        label = decode(label, "the label")
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise UserError(f"label {label!r:.40} is not the index, the letter or the text of a choice")
    if isinstance(label, str) and not label.strip():
        raise UserError("the label is empty")
    return label


def _to_questions(table: Table, rows: list[_Row]) -> tuple[Question, ...]:
    """Labels to indices: all of a table are indices from 0, or letters from A, or texts of choices."""
    labels = [row.label for row in rows if row.label is not None]
    indices = all(isinstance(label, int) or label.isdecimal() for label in labels)
    letters = not indices and all(re.fullmatch("[A-Z]", str(label)) for label in labels)
    texts = all(row.label in row.choices for row in rows)
    if texts and (indices or letters):
        raise UserError(
            f"{table.name}: its labels are {'indices' if indices else 'letters'} and also texts of choices; write "
            f"{'letters' if indices else 'indices from 0'}"
        )
    questions = []
    for row in rows:
        label = row.label
        if label is not None and (indices or letters):
            label = int(label) if indices else ord(label) - ord("A")
            if not 0 <= label < len(row.choices):
                last = len(row.choices) - 1
                allowed = f"0 to {last}" if indices else f"A to {chr(ord('A') + last)}"
                raise table.error(row.number, f"label {row.label!r} is not a choice, which are {allowed}")
        elif label is not None:
            if row.choices.count(label) != 1:
                times = row.choices.count(label)
                raise table.error(row.number, f"label {label!r:.40} is the text of {times} choices; it must be of one")
            label = row.choices.index(label)
        questions.append(Question(row.context, row.question, row.choices, label))
    return tuple(questions)
