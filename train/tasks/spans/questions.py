"""Questions with the contexts that answer them: SQuAD, files in its layout, and tables of one's own. Not yet tokens.

A table has a column for the question, one for the context and one for the answers, which holds

    JSON Lines, tensorflow_datasets   SQuAD's {"text": ["a", "b"], "answer_start": [3, 17]}, or a list of
                                      {"text": "a", "answer_start": 3}; empty where the context has no answer
    TSV, CSV, or any                  one text, blank where the context has no answer; it starts at the character that
                                      another column names ("answer_start"), without one where it occurs first

A row is known by its column "id", without one by its number. Nothing is dropped: a row that cannot be used stops the
run and is named; what is taken though it is odd, in sets that others published, is counted in the notes.
"""

import dataclasses
import json
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.errors import UserError

from ..sources.cells import check_text, field, text_field
from ..sources.source import Source, Table, columns_of, named_splits, open_table, read_text

_LISTS = (list, tuple, np.ndarray)
_START = "answer_start"
_SHIFT = 2  # characters that an answer of a published set may be away from where it is said to start


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """`text` stands in the context from character `start` on."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """`answers` is empty where the context has none, and None where they are not published."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None


@dataclasses.dataclass(frozen=True)
class QuestionData:
    """The questions of a task by split, as `classification.TaskData`, and by split what reading them has to tell."""

    name: str
    splits: Mapping[str, tuple[Question, ...]]
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
) -> QuestionData:
    """Reads `train`, `validation` and `test`: files, `tfds:squad/v1.1`, `squad/v2.0:FILE`, or other sets by columns.

    A .json file that is one object with "data" is read in SQuAD's layout, whatever the columns. A `test` source may
    leave its answers out, all of them.

    Args:
      text_column, pair_column, label_column: of the question, its context and the answers.
      start_column: of the character that an answer starts at, where the answers are plain texts. Default:
        "answer_start" if there is such a column.
      data_dir, manual_dir: see `classification.load_examples`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a source that cannot be read or used; one line with the file, the row and the reason.
    """
    given = {"text": text_column, "pair": pair_column, "label": label_column}
    splits, notes = {}, {}
    for name, source, role in named_splits(train, validation, test):
        columns = {of: str(column) for of, column in columns_of(source, "span", given).items()}
        table = _open_squad_file(source)
        if table is not None:
            columns = {"text": "question", "pair": "context", "label": "answers"}
        else:
            table = open_table(source, label_column=columns["label"], data_dir=data_dir, manual_dir=manual_dir)
        splits[name], notes[name] = _read(table, columns, start_column, labels_optional=role == "test")
    if not any(question.answers for question in splits["train"]):
        raise UserError(f"{train}: not one question has an answer; training needs some")
    return QuestionData(name=Source.parse(train).name, splits=splits, notes=notes)


# ------------------------------------------------------------------------------------------------- SQuAD's own layout


def _open_squad_file(source: Source) -> Table | None:
    """The questions of a .json file in SQuAD's layout, in one line or many; None: it is something else."""
    if source.path is None or not source.path.endswith((".json", ".json.gz")):
        return None
    try:
        squad = json.loads(read_text(source.path))
    except json.JSONDecodeError:  # several objects, one a line
        return None
    if not isinstance(squad, dict) or "data" not in squad:
        return None
    return Table(source.given, "record", enumerate(_squad_rows(source.given, squad)), published=True)


def _squad_rows(name: str, squad: Any) -> Iterator[dict[str, Any]]:
    for number, article in enumerate(_part(squad, "data", list, name)):
        place = f"{name}: data[{number}]"
        for which, paragraph in enumerate(_part(article, "paragraphs", list, place)):
            place = f"{name}: data[{number}].paragraphs[{which}]"
            context = _part(paragraph, "context", str, place)
            for index, asked in enumerate(_part(paragraph, "qas", list, place)):
                if not isinstance(asked, dict):
                    raise UserError(f"{place}.qas[{index}] is not an object with id, question and answers")
                yield {**asked, "context": context}


def _part(whole: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(whole, dict) or not isinstance(whole.get(key), kind):
        raise UserError(
            f"{place} has no {'list' if kind is list else 'text'} {key!r}; SQuAD's layout is "
            "data[].paragraphs[].context, and beside it qas[] with id, question, answers"
        )
    return whole[key]


# -------------------------------------------------------------------------------------------------------- rows


def _read(
    table: Table, columns: Mapping[str, str], start_column: str | None, *, labels_optional: bool
) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """All questions of a table, and its notes. Raises where a row cannot be used."""
    questions: list[Question] = []
    seen: dict[str, int] = {}
    contexts: dict[str, str] = {}  # one text in memory, however many questions are about it
    moved = empty = 0
    for number, fields in table.rows:
        named = ""
        try:
            name = _name(fields, number)
            named = f"question {name!r}: " if fields.get("id") is not None else ""
            if name in seen:
                raise UserError(f"the id occurs before, in {table.unit} {seen[name]}; predictions are told apart by it")
            text = text_field(fields, columns["text"], allow_empty=table.published)
            context = text_field(fields, columns["pair"], allow_empty=False)
            answers = None
            if not (labels_optional and columns["label"] not in fields):
                given = _given_answers(fields, columns["label"], start_column, allow_empty=table.published)
                within = _SHIFT if table.published else 0
                answers = tuple(_placed(answer, start, context, within=within) for answer, start in given)
                moved += sum(start not in (None, at.start) for at, (_, start) in zip(answers, given, strict=True))
        except ValueError as error:
            raise table.error(number, f"{named}{error}") from None
        if questions and (answers is None) != (questions[0].answers is None):
            raise table.error(number, "the first row and this one differ: give every row answers, or none")
        seen[name] = number
        empty += not text.strip()
        questions.append(Question(name, text, contexts.setdefault(context, context), answers))
    if not questions:
        raise UserError(f"{table.name} has no questions")
    notes = (
        f"{empty} questions are blank" if empty else "",
        f"{moved} answers moved by up to {_SHIFT} characters to where their text stands" if moved else "",
    )
    return tuple(questions), tuple(filter(None, (*table.notes, *notes)))


def _name(fields: Mapping[str, Any], number: int) -> str:
    value = fields.get("id")
    if value is None:
        return str(number)
    return check_text(value if isinstance(value, bytes) else str(value), "id", allow_empty=True)


def _given_answers(
    fields: Mapping[str, Any], column: str, start_column: str | None, *, allow_empty: bool
) -> list[tuple[str, int | None]]:
    """The texts of a row's answers, and where they are said to start: None where nothing is said."""
    value = field(fields, column)
    answers: list[tuple[str, int | None]]
    if isinstance(value, str | bytes):
        text = check_text(value, column, allow_empty=True)
        if not text.strip():
            answers = []
        elif start_column is None and _START not in fields:
            answers = [(text, None)]
        else:
            answers = [(text, _integer(field(fields, start_column or _START)))]
    else:
        answers = [
            (_answer_text(text, column, allow_empty=allow_empty), _integer(start))
            for text, start in _pairs(value, column)
        ]
    if answers and isinstance(flag := fields.get("is_impossible"), bool | np.bool_) and flag:
        raise UserError(f"is_impossible is true, but column {column!r} has an answer")
    return answers


def _pairs(value: Any, column: str) -> list[tuple[Any, Any]]:
    """Text and start of each answer of a row, in either of the forms that JSON has for them."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), _LISTS) and isinstance(value.get(_START), _LISTS):
        if len(value["text"]) != len(value[_START]):
            raise UserError(f"column {column!r} has {len(value['text'])} texts but {len(value[_START])} starts")
        return list(zip(value["text"], value[_START], strict=True))
    if isinstance(value, _LISTS) and all(isinstance(one, Mapping) and {"text", _START} <= one.keys() for one in value):
        return [(one["text"], one[_START]) for one in value]
    raise UserError(
        f"column {column!r} holds {value!r:.60}; give a text, a list of "
        f'{{"text": ..., "{_START}": ...}}, or {{"text": [...], "{_START}": [...]}}, empty where there is no answer'
    )


def _answer_text(text: Any, column: str, *, allow_empty: bool) -> str:
    text = check_text(text, column, allow_empty=True)
    if not text.strip() and not allow_empty:
        raise UserError(f"column {column!r} has an answer without text; where there is none, leave the list empty")
    return text


def _integer(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(value) if isinstance(value, str | bytes) else operator.index(value)
    except (TypeError, ValueError):
        raise UserError(f"an answer starts at {value!r:.40}, which is not a whole number") from None


def _placed(text: str, start: int | None, context: str, *, within: int) -> Answer:
    """The answer where it stands: at start, or at most `within` characters from it."""
    first = context.find(text)
    if start is None and first >= 0:
        return Answer(text, first)
    if start is None:
        raise UserError(f"the answer {text!r:.60} is not in the context")
    for at in sorted(range(max(0, start - within), start + within + 1), key=lambda at: abs(at - start)):
        if context.startswith(text, at):
            return Answer(text, at)
    if not 0 <= start < len(context):
        raise UserError(
            f"the answer {text!r:.60} starts at {start}, outside the context, which has {len(context)} characters"
        )
    found = f"it stands at {first}" if first >= 0 else "it is not in the context"
    raise UserError(
        f"the answer {text!r:.60} is said to start at character {start}, where the context has "
        f"{context[start : start + len(text)]!r:.60}; {found}"
    )
