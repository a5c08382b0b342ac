"""Finds the texts of a row: which columns they are in, and what each use of a model makes of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from deberta_jax.errors import UserError
from deberta_jax.predict.answers import QuestionAndContext
from deberta_jax.predict.choices import PromptAndChoices
from deberta_jax.predict.pipeline import TextPair
from deberta_jax.predict.ranking import QueryAndDocuments
from deberta_jax.terminal import quote_names

from ....train.tasks.sources.cells import Cells, MissingColumnError, is_list, list_cell, parse_text, text_cell

Task = Literal["classify", "score", "zero-shot", "entities", "answer", "choose", "rank", "embed", "fill-mask", "detect"]
# Names of columns in the order in which they are tried.
_TEXTS = ("text", "sentence", "content", "document", "passage", "review", "comment", "body")
_PAIRS = (
    ("text", "pair"),
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "text"),
    ("question", "answer"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("prompt", "response"),
    ("prompt", "completion"),
)
_WORDS = ("words", "tokens")
_PROMPTS = ("prompt", "context", "article", "ctx", *_TEXTS, "question")
_QUERIES = ("query", "question")
_DOCUMENTS = ("documents", "passages", "candidates")
_CHOICES = ("choices", "endings", "options")
# Option -> the tasks that read it; --text-column and --id-column belong to all.
_READ_BY: dict[str, tuple[str, ...]] = {
    "pair_column": ("classify", "score"),
    "pair": ("classify", "score"),
    "question_column": ("answer", "choose"),
    "question": ("answer",),
    "context_column": ("answer",),
    "choices_columns": ("choose",),
    "documents_column": ("rank",),
    "query": ("rank",),
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of the input; by default usual names are looked for in its first row"""

    text_column: str | None = None
    """the text (default: text, sentence, ..., or the only column); for choices the prompt, for `rank` the query"""
    pair_column: str | None = None
    """the second text of a pair (default: pair, or sentence2, hypothesis, document, response, ... beside the first)"""
    question_column: str | None = None
    """the question that the context answers, or between a prompt and its choices (default: question)"""
    context_column: str | None = None
    """the context in which answers are found (default: context)"""
    choices_columns: tuple[str, ...] = ()
    """the choices: one column of lists, or one column per choice (default: choices or endings)"""
    documents_column: str | None = None
    """the list of documents that `rank` orders, if each row has its own (default: documents)"""
    id_column: str | None = None
    """a column that is copied to the output to tell the rows apart (default: id, else the number of the row, from 0)"""
    pair: str | None = None
    """the second text of all pairs (default: the column of each row)"""
    question: str | None = None
    """the question about all contexts (default: the column of each row)"""
    query: str | None = None
    """the query for which `rank` orders all texts (default: the column of each row)"""


@dataclasses.dataclass(frozen=True)
class Finder:
    """Turns rows into items.

    Attributes:
      item: Returns the item of a row; raises UserError if the row cannot be used.
      columns: The names of the columns that are read.
    """

    item: Callable[[Cells], Any]
    columns: tuple[str, ...]


def check_columns(task: Task, columns: Columns) -> None:
    """Raises UserError if the user set a column that the task does not read."""
    for name, tasks in _READ_BY.items():
        if getattr(columns, name) not in (None, ()) and task not in tasks:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} has no effect on the task {task}; it belongs to {' and '.join(tasks)}")


def find_columns(task: Task, columns: Columns, cells: Cells) -> Finder:
    """Returns how the rows of an input with these columns become items of a use.

    Args:
      task: The use.
      columns: What the user set.
      cells: The first row.

    Raises:
      UserError: A column is missing.
    """
    if columns.id_column is not None:
        _existing(columns.id_column, cells, "--id-column")
    match task:
        case "classify" | "score":
            return _pairs(columns, cells)
        case "entities":
            return _words(columns, cells)
        case "answer":
            return _questions(columns, cells)
        case "choose":
            return _choices(columns, cells)
        case "rank":
            return _documents(columns, cells)
        case _:
            name = _text_column(columns, cells)
            return Finder(lambda row: text_cell(row, name, allow_empty=False), (name,))


def _pairs(columns: Columns, cells: Cells) -> Finder:
    if columns.pair is not None:
        name, second = _text_column(columns, cells), parse_text(columns.pair, "--pair", allow_empty=False)
        return Finder(lambda row: TextPair(text_cell(row, name, allow_empty=False), second), (name,))
    first, second = columns.text_column, columns.pair_column
    if first is None:
        known = (pair for pair in _PAIRS if set(pair) <= cells.keys() and second in (None, pair[1]))
        first, found = next(known, (None, None))
        second = second or found
    if second is None:
        lists = next((name for name in _DOCUMENTS if is_list(cells.get(name))), None)
        if lists is not None and columns.text_column is None and _first(_TEXTS, cells) is None:
            raise UserError(f"column {lists!r} has a list of documents; order them with --task rank")
        name = _text_column(columns, cells)
        return Finder(lambda row: TextPair(text_cell(row, name, allow_empty=False)), (name,))
    names = first or _text_column(columns, cells), _existing(second, cells, "--pair-column")
    _existing(names[0], cells, "--text-column")
    return Finder(lambda row: TextPair(*(text_cell(row, name, allow_empty=False) for name in names)), names)


def _words(columns: Columns, cells: Cells) -> Finder:
    name = columns.text_column or next((name for name in _WORDS if is_list(cells.get(name))), None)
    name = name or _text_column(columns, cells)

    def item(row: Cells) -> str | tuple[str, ...]:
        if not is_list(row.get(name)):
            return text_cell(row, name, allow_empty=False)
        words = list_cell(row, name)
        if not words:
            raise UserError(f"column {name!r} is an empty list; write words or remove the row")
        return tuple(parse_text(word, name, allow_empty=False) for word in words)

    return Finder(item, (_existing(name, cells, "--text-column"),))


def _questions(columns: Columns, cells: Cells) -> Finder:
    fixed = columns.question
    if fixed is not None:
        fixed = parse_text(fixed, "--question", allow_empty=False)
        context = columns.context_column or ("context" if "context" in cells else _text_column(columns, cells))
        _existing(context, cells, "--context-column")
        return Finder(lambda row: QuestionAndContext(fixed, text_cell(row, context, allow_empty=False)), (context,))
    question = _existing(columns.question_column or "question", cells, "--question-column or --question TEXT")
    context = _existing(columns.context_column or "context", cells, "--context-column")
    names = question, context
    return Finder(lambda row: QuestionAndContext(*(text_cell(row, name, allow_empty=False) for name in names)), names)


def _choices(columns: Columns, cells: Cells) -> Finder:
    prompt = columns.text_column or _first(_PROMPTS, cells) or _text_column(columns, cells)
    _existing(prompt, cells, "--text-column")
    names = columns.choices_columns or (_first(_CHOICES, cells) or "choices",)
    for name in names:
        _existing(name, cells, "--choices-columns")

    question = columns.question_column or ("question" if "question" in cells and prompt != "question" else None)
    if question is not None:
        _existing(question, cells, "--question-column")

    def item(row: Cells) -> PromptAndChoices:
        choices = list_cell(row, names[0]) if len(names) == 1 else [row.get(name) for name in names]
        texts = tuple(parse_text(choice, "choices", allow_empty=False) for choice in choices)
        asked = None if question is None else text_cell(row, question, allow_empty=False)
        return PromptAndChoices(text_cell(row, prompt, allow_empty=False), texts, asked)

    return Finder(item, (prompt, *([] if question is None else [question]), *names))


def _documents(columns: Columns, cells: Cells) -> Finder:
    if columns.query is not None:
        query, name = parse_text(columns.query, "--query", allow_empty=False), _text_column(columns, cells)
        return Finder(lambda row: TextPair(query, text_cell(row, name, allow_empty=False)), (name,))
    query_column = columns.text_column or _first(_QUERIES, cells) or "query"
    _existing(query_column, cells, "--query TEXT, or --text-column")
    documents = _existing(
        columns.documents_column or _first(_DOCUMENTS, cells) or "documents", cells, "--documents-column"
    )

    def item(row: Cells) -> QueryAndDocuments:
        texts = (parse_text(document, documents, allow_empty=False) for document in list_cell(row, documents))
        return QueryAndDocuments(text_cell(row, query_column, allow_empty=False), tuple(texts))

    return Finder(item, (query_column, documents))


def _text_column(columns: Columns, cells: Cells) -> str:
    """Returns the column of the text: the one that the user named, one of a usual name, or the only one."""
    if columns.text_column is not None:
        return _existing(columns.text_column, cells, "--text-column")
    name = _first(_TEXTS, cells) or (next(iter(cells)) if len(cells) == 1 else None)
    return _existing(name or "text", cells, "--text-column")


def _first(names: Sequence[str], cells: Cells) -> str | None:
    return next((name for name in names if name in cells), None)


def _existing(name: str, cells: Cells, option: str) -> str:
    if name not in cells:
        raise MissingColumnError(f"no column {name!r}; the columns are {quote_names(cells)}: name one with {option}")
    return name
