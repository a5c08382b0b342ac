"""Reads multiple-choice questions: contexts, questions, lists of choices, and labels of several forms."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names

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
from ..sources.table import ParsedRow, Table, parse_rows, without_hidden_labels

_BLANK = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")  # does not match the underscore inside a name_like_this


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


def join_question_and_choice(question: str | None, choice: str) -> str:
    """Returns the second text of the model's input: the question followed by the choice.

    If the question has a blank ("The man _ ."), the choice fills it instead. Source: the official RACE task.
    """
    if not question:
        return choice
    filled, blanks = _BLANK.subn(lambda _: f" {choice} ", question)
    return " ".join(filled.split()) if blanks else f"{question} {choice}"


def read_questions(table: Table, columns: Columns, *, label_optional: bool) -> tuple[ChoiceQuestion, ...]:
    """Returns all questions of a table. A row with a list of questions, as in RACE, has as many questions.

    Args:
      table: the table.
      columns: the columns `text` (the context), `choices`, `label` and optionally `pair` (the question).
      label_optional: whether all rows may lack a label, or have the label -1.

    Raises:
      UserError: if a row cannot be used; the message has the file and the line.
    """
    text_column, label_column = str(columns["text"]), str(columns["label"])

    def parse(row: Cells, number: int) -> Iterator[tuple[ChoiceQuestion, str | int | None]]:
        del number
        for cells in _split_lists(row, columns):
            question = None
            if "pair" in columns:
                question = text_cell(cells, str(columns["pair"]), allow_empty=True)
            context = text_cell(cells, text_column, allow_empty=True)
            label = None
            if not (label_optional and (table.has_no_label(cells, label_column) or lacks_label(cells[label_column]))):
                label = _parse_label(cell_value(cells, label_column))
            yield ChoiceQuestion(context, question, _choices(cells, columns, table.published), None), label

    rows = parse_rows(table, parse)
    if label_optional and not any("-1" in row.example.choices for row in rows):  # it may be the text of a choice
        rows = without_hidden_labels(table, rows, "test")
    return _with_indices(table, rows)


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


def _with_indices(table: Table, rows: list[ParsedRow[ChoiceQuestion, str | int]]) -> tuple[ChoiceQuestion, ...]:
    """Returns the questions with their labels as indices.

    All labels of a table have the same form: indices from 0, letters from A, or texts of choices.
    """
    labels = [row.label for row in rows if row.label is not None]
    are_indices = all(isinstance(label, int) or label.isdecimal() for label in labels)
    are_letters = not are_indices and all(re.fullmatch("[A-Z]", str(label)) for label in labels)
    are_texts = all(row.label in row.example.choices for row in rows)
    if are_texts and (are_indices or are_letters):
        raise UserError(
            f"{table.name}: its labels are {'indices' if are_indices else 'letters'} and also texts of choices; write "
            f"{'letters' if are_indices else 'indices from 0'}"
        )
    questions = []
    for row in rows:
        label = row.label
        if label is not None:
            with table.locate_errors(row.number):
                if are_indices or are_letters:
                    label = _choice_position(label, len(row.example.choices), are_letters=are_letters)
                else:
                    label = _choice_with_text(str(label), row.example.choices)
        questions.append(dataclasses.replace(row.example, label=label))
    return tuple(questions)


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
