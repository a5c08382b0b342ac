"""Reads multiple-choice questions: contexts, questions, lists of choices, and labels of several forms."""

import dataclasses
import functools
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names

from ..packed import PackedExamples, PackedRows, Row
from ..sources.cells import (
    Cells,
    cell_value,
    decode_utf8,
    is_list,
    lacks_label,
    list_cell,
    parse_text,
    preview,
    text_cell,
)
from ..sources.published import Columns
from ..sources.table import HiddenLabels, Table, parse_rows

_Texts = tuple[str, str | None, tuple[str, ...]]  # context, question and choices


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A context, a question about it and its possible answers.

    Attributes:
      context: the text that the question is about.
      question: the question, if there is one.
      choices: the possible answers, at least two.
      label: index of the correct choice; `None` if it is not published.
    """

    context: str
    question: str | None
    choices: tuple[str, ...]
    label: int | None


def read_questions(table: Table, columns: Columns, *, label_optional: bool) -> Sequence[ChoiceQuestion]:
    """Returns all questions of a table. A row with a list of questions, as in RACE, has as many questions.

    Args:
      table: the table.
      columns: the columns `text` (the context), `choices`, `label` and optionally `pair` (the question).
      label_optional: whether all rows may lack a label, or have the label -1.

    Raises:
      UserError: if a row cannot be used; the message has the file and the line.
    """
    text_column, label_column = str(columns["text"]), str(columns["label"])

    def parse(row: Cells, number: int) -> Iterator[tuple[_Texts, str | int | None]]:
        del number
        for cells in _split_lists(row, columns):
            question = None
            if "pair" in columns:
                question = text_cell(cells, str(columns["pair"]), allow_empty=True)
            context = text_cell(cells, text_column, allow_empty=True)
            label = None
            if not (label_optional and (table.has_no_label(cells, label_column) or lacks_label(cells[label_column]))):
                label = _parse_label(cell_value(cells, label_column))
            yield (context, question, _choices(cells, columns, table.published)), label

    rows, form, hidden = PackedRows(), _LabelForm(), HiddenLabels()
    has_choice_minus_one = False
    for number, texts, label in parse_rows(table, parse):
        rows.append((*texts, label, number))
        form.add(label, texts[2])
        hidden.add(number, label)
        has_choice_minus_one = has_choice_minus_one or "-1" in texts[2]
    labels = array("q")
    if not (label_optional and not has_choice_minus_one and hidden.all_hidden(table, "test")):
        labels = _label_indices(table, rows, form)
    return PackedExamples(rows, functools.partial(_question, labels))


def _question(labels: "array[int]", index: int, row: Row) -> ChoiceQuestion:
    context, question, choices, *_ = row
    return ChoiceQuestion(context, question, choices, labels[index] if labels else None)


def _split_lists(row: Cells, columns: Columns) -> Iterator[Cells]:
    """Yields a row with one question unchanged, and a row with lists of questions, choices and labels split."""
    pair, choices, label = (columns.get(name) for name in ("pair", "choices", "label"))
    if not isinstance(pair, str) or not is_list(row.get(pair)):
        yield row
        return
    if choices is None or len(choices) != 1:
        raise UserError(f"column {pair!r} is a list of questions; their choices must be one column, a list of lists")
    names = [pair, choices[0], *([str(label)] if label in row else [])]
    lists = [list_cell(row, name) for name in names]
    if len({len(values) for values in lists}) > 1:
        sizes = list_names([f"{len(values)} in {name!r}" for name, values in zip(names, lists, strict=True)])
        raise UserError(f"lists of different lengths: {sizes}")
    for values in zip(*lists, strict=True):
        yield {**row, **dict(zip(names, values, strict=True))}


def _choices(cells: Cells, columns: Columns, published: bool) -> tuple[str, ...]:
    """Returns the choices from a column of lists, or from several columns, of which the last ones may be blank."""
    names = columns["choices"]
    if len(names) == 1:
        values = list_cell(cells, names[0], advice="; name one column for each choice")
    else:
        values = [cell_value(cells, name) for name in names]
        while values and (values[-1] is None or (isinstance(values[-1], str) and not values[-1].strip())):
            values.pop()
    joined_names = list_names(names)
    if len(values) < 2:
        raise UserError(f"there is {len(values)} choice in {joined_names}; give at least two")
    return tuple(parse_text(value, joined_names, allow_empty=published) for value in values)


def _parse_label(label: Any) -> str | int:
    if isinstance(label, bytes):
        label = decode_utf8(label, "the label")
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise UserError(f"label {preview(label)} is not the index, the letter or the text of a choice")
    if isinstance(label, str) and not label.strip():
        raise UserError("the label is empty")
    return label


@dataclasses.dataclass
class _LabelForm:
    """The form of the labels of a table, which is that of all: indices from 0, letters from A, or texts of choices."""

    are_indices: bool = True
    are_letters: bool = True
    are_texts: bool = True

    def add(self, label: str | int | None, choices: tuple[str, ...]) -> None:
        self.are_texts = self.are_texts and label in choices
        if label is not None:
            self.are_indices = self.are_indices and (isinstance(label, int) or label.isdecimal())
            self.are_letters = self.are_letters and re.fullmatch("[A-Z]", str(label)) is not None


def _label_indices(table: Table, rows: PackedRows, form: _LabelForm) -> "array[int]":
    """Returns the labels as indices of choices; none if they are not published."""
    indices = array("q")
    if form.are_texts and (form.are_indices or form.are_letters):
        raise UserError(
            f"{table.name}: its labels are {'indices' if form.are_indices else 'letters'} and also texts of choices; "
            f"write {'letters' if form.are_indices else 'indices from 0'}"
        )
    for _, _, choices, label, number in rows:
        if label is None:
            continue
        with table.locate_errors(number):
            if form.are_indices or form.are_letters:
                indices.append(_choice_position(label, len(choices), are_letters=not form.are_indices))
            else:
                indices.append(_choice_with_text(str(label), choices))
    return indices


def _choice_position(label: str | int, choices: int, *, are_letters: bool) -> int:
    index = ord(str(label)) - ord("A") if are_letters else int(label)
    if not 0 <= index < choices:
        allowed = f"A to {chr(ord('A') + choices - 1)}" if are_letters else f"0 to {choices - 1}"
        raise UserError(f"label {label!r} is not one of the choices, which are {allowed}")
    return index


def _choice_with_text(label: str, choices: tuple[str, ...]) -> int:
    if choices.count(label) != 1:
        raise UserError(f"label {label!r:.40} is the text of {choices.count(label)} choices; it must be that of one")
    return choices.index(label)
