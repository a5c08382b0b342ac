"""Converts the records of published sets to rows with plain columns.

Each function takes one record, as tensorflow_datasets (or, where the name ends in `_file`, the published file) has it,
and yields the rows that it contains. It raises UserError for a record of another form.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deberta_jax.errors import UserError

from .cells import (
    Cells,
    cell_value,
    decode_utf8,
    integer_cell,
    list_cell,
    object_cell,
    object_list_cell,
    preview,
)

Convert = Callable[[Cells], Iterable[Cells]]


def unchanged(cells: Cells) -> Iterator[Cells]:
    yield cells


_LABELS = ("label", "gold_label", "Label", "Quality", "is_duplicate", "score")


def convert_pairs(**columns: tuple[str, ...]) -> Convert:
    """Returns a function that yields the texts and the label of a line of GLUE's and similar files.

    The label is left out where the file has none, or -1. An integer becomes text, which the set's `renamed` explains.

    Args:
      columns: for each text the names that its column has in the published files, of which the first one is told in
        errors.
    """

    def convert(cells: Cells) -> Iterator[Cells]:
        row = {
            name: cell_value(cells, next((column for column in known if column in cells), known[0]))
            for name, known in columns.items()
        }
        label = next((cells[column] for column in _LABELS if column in cells), None)
        is_hidden = label is None or label in (-1, "-1", "")
        is_index = isinstance(label, int) and not isinstance(label, bool)
        yield row | ({} if is_hidden else {"label": str(label) if is_index else label})

    return convert


def convert_copa(cells: Cells) -> Iterator[Cells]:
    """Yields the premise, "because" or "so", and two choices, in the order in which a person would say them.

    Deliberate difference: in the official task only the order of the two texts tells a cause from an effect.
    """
    question = _text(cells, "question")
    if question not in ("cause", "effect"):
        raise UserError(f"column 'question' holds {preview(question)}; it must be cause or effect")
    yield {
        "premise": _text(cells, "premise"),
        "joint": "because" if question == "cause" else "so",
        "choices": [_text(cells, "choice1"), _text(cells, "choice2")],
        **_label(cells),
    }


def convert_multirc(cells: Cells) -> Iterator[Cells]:
    """Yields the passage and the question with its answer. The answers to a question have the same `group`."""
    idx = object_cell(cells, "idx")
    yield {
        "passage": _text(cells, "paragraph"),
        "answer": f"{_text(cells, 'question')} {_text(cells, 'answer')}",
        "group": f"{cell_value(idx, 'paragraph')}/{cell_value(idx, 'question')}",
        **_label(cells),
    }


def convert_multirc_file(cells: Cells) -> Iterator[Cells]:
    """Yields the rows of `convert_multirc` for a line of MultiRC/train.jsonl, a passage with all its questions."""
    passage = object_cell(cells, "passage")
    for question in object_list_cell(passage, "questions"):
        for answer in object_list_cell(question, "answers"):
            yield {
                "passage": _text(passage, "text"),
                "answer": f"{_text(question, 'question')} {_text(answer, 'text')}",
                "group": f"{cell_value(cells, 'idx')}/{cell_value(question, 'idx')}",
                **({"label": bool(answer["label"])} if "label" in answer else {}),
            }


def convert_record(cells: Cells) -> Iterator[Cells]:
    """Yields a row for each entity of a ReCoRD passage, labeled with whether it fills the gap of the query.

    The entities of a query have the same `group`. Deliberate difference: the official task pools the pieces of all
    mentions of an entity. Here, as in SuperGLUE's own baseline, the model reads the query once per entity, with the gap
    filled.
    """
    idx = object_cell(cells, "idx")
    entities, answers = (list(map(_decoded, list_cell(cells, column))) for column in ("entities", "answers"))
    group = f"{cell_value(idx, 'passage')}/{cell_value(idx, 'query')}"
    yield from _filled_queries(_text(cells, "passage"), _text(cells, "query"), group, entities, answers)


def convert_record_file(cells: Cells) -> Iterator[Cells]:
    """Yields the rows of `convert_record` for a line of ReCoRD/train.jsonl, a passage with all its queries."""
    passage = object_cell(cells, "passage")
    text = _text(passage, "text")
    # The published end is the last character of the entity.
    entities = sorted(
        {
            text[integer_cell(entity, "start") : integer_cell(entity, "end") + 1]
            for entity in object_list_cell(passage, "entities")
        }
    )
    for query in object_list_cell(cells, "qas"):
        answers = [_text(answer, "text") for answer in object_list_cell(query, "answers")] if "answers" in query else []
        group = f"{cell_value(cells, 'idx')}/{cell_value(query, 'idx')}"
        yield from _filled_queries(text, _text(query, "query"), group, entities, answers)


def _filled_queries(passage: str, query: str, group: str, entities: list[str], answers: list[str]) -> Iterator[Cells]:
    if "@placeholder" not in query:
        raise UserError(f"the query {query!r:.60} has no @placeholder")
    for entity in entities:
        yield {
            "passage": passage,
            "query": query.replace("@placeholder", entity),
            "group": group,
            "answer": entity,
            **({"label": entity in answers} if answers else {}),
        }


def convert_wic(cells: Cells) -> Iterator[Cells]:
    """Yields two sentences, each after the word in question and with this occurrence of it in quotation marks.

    Deliberate difference: the official task pools the pieces of the two occurrences, with code that never ran.
    """
    word = _text(cells, "word")
    sentences = {}
    for number in "12":
        sentence = _text(cells, f"sentence{number}")
        start, end = integer_cell(cells, f"start{number}"), integer_cell(cells, f"end{number}")
        if not 0 <= start < end <= len(sentence):
            raise UserError(f"characters {start} to {end} are not in sentence{number}, which has {len(sentence)}")
        marked = f'{sentence[:start]}"{sentence[start:end]}"{sentence[end:]}'
        sentences[f"sentence{number}"] = f"{word}: {marked}"
    yield {**sentences, **_label(cells)}


def convert_xnli(language: str) -> Convert:
    """Returns a function that yields the pair of one language, as a record has the pairs of all languages."""

    def convert(cells: Cells) -> Iterator[Cells]:
        hypotheses = object_cell(cells, "hypothesis")
        languages = [_decoded(name) for name in list_cell(hypotheses, "language")]
        yield {
            "premise": cell_value(object_cell(cells, "premise"), language),
            "hypothesis": list_cell(hypotheses, "translation")[languages.index(language)],
            **_label(cells),
        }

    return convert


def convert_xnli_file(language: str) -> Convert:
    """Returns a function that yields the lines of one language of XNLI-1.0/xnli.dev.tsv.

    A file of XNLI-MT-1.0, such as multinli.train.de.tsv, has one language, and the names of other columns.
    """

    def convert(cells: Cells) -> Iterator[Cells]:
        if "hypo" in cells:
            yield {"premise": cell_value(cells, "premise"), "hypothesis": cells["hypo"], **_label(cells)}
        elif cell_value(cells, "language") == language:
            pair = {"premise": cell_value(cells, "sentence1"), "hypothesis": cell_value(cells, "sentence2")}
            yield {**pair, "label": cell_value(cells, "gold_label")}

    return convert


def _label(cells: Cells) -> Cells:
    """Returns the label if there is one. The published test files have none."""
    return {"label": cells["label"]} if "label" in cells else {}


def _text(cells: Cells, column: str) -> str:
    text = _decoded(cell_value(cells, column))
    if not isinstance(text, str):
        raise UserError(f"column {column!r} holds {preview(text)}, not text")
    return text


def _decoded(value: Any) -> Any:
    return decode_utf8(value, "a text") if isinstance(value, bytes) else value
