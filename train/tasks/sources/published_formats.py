"""Records of published sets, as tensorflow_datasets or the published files have them, to rows of plain columns.

Each takes one record and gives the rows that it makes. Raises ValueError for a record of another form.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from deberta_jax.errors import UserError

from .cells import decode, field

Record = Mapping[str, Any]
Convert = Callable[[Record], Iterable[Record]]


def as_it_is(record: Record) -> Iterator[Record]:
    yield record


def copa(record: Record) -> Iterator[Record]:
    """The premise, "because" or "so", and two choices: what a person would say.

    Deliberate difference: the official task tells cause from effect by the order of the two texts alone.
    """
    asked = _text(record, "question")
    if asked not in ("cause", "effect"):
        raise UserError(f"column 'question' holds {asked!r:.40}; it must be cause or effect")
    yield {
        "premise": _text(record, "premise"),
        "joint": "because" if asked == "cause" else "so",
        "choices": [_text(record, "choice1"), _text(record, "choice2")],
        **_label(record),
    }


def multirc(record: Record) -> Iterator[Record]:
    """An answer of tensorflow_datasets: the passage, the question and the answer; answers of a question are a group."""
    idx = _inner(field(record, "idx"), "idx")
    yield {
        "passage": _text(record, "paragraph"),
        "answer": f"{_text(record, 'question')} {_text(record, 'answer')}",
        "group": f"{field(idx, 'paragraph')}/{field(idx, 'question')}",
        **_label(record),
    }


def multirc_file(record: Record) -> Iterator[Record]:
    """A passage of MultiRC/train.jsonl with all of its questions and their answers."""
    passage = _inner(field(record, "passage"), "passage")
    for question in _each(passage, "questions"):
        for answer in _each(question, "answers"):
            yield {
                "passage": _text(passage, "text"),
                "answer": f"{_text(question, 'question')} {_text(answer, 'text')}",
                "group": f"{field(record, 'idx')}/{field(question, 'idx')}",
                **({"label": bool(answer["label"])} if "label" in answer else {}),
            }


def record(record: Record) -> Iterator[Record]:
    """A query of tensorflow_datasets about a passage: for each of its entities, whether it belongs in the query's gap.

    The entities of a query are a group. Deliberate difference: the official task pools the pieces of all mentions of an
    entity; here, as in SuperGLUE's own baseline, a model reads the query once for each with the gap filled.
    """
    idx = _inner(field(record, "idx"), "idx")
    entities, answers = ([_decoded(text) for text in field(record, name)] for name in ("entities", "answers"))
    group = f"{field(idx, 'passage')}/{field(idx, 'query')}"
    yield from _gap_filled(_text(record, "passage"), _text(record, "query"), group, entities, answers)


def record_file(record: Record) -> Iterator[Record]:
    """A passage of ReCoRD/train.jsonl with all of its queries."""
    passage = _inner(field(record, "passage"), "passage")
    text = _text(passage, "text")
    spans = [(field(entity, "start"), field(entity, "end") + 1) for entity in _each(passage, "entities")]
    entities = sorted({text[start:end] for start, end in spans})
    for query in _each(record, "qas"):
        answers = [_text(answer, "text") for answer in _each(query, "answers")] if "answers" in query else []
        group = f"{field(record, 'idx')}/{field(query, 'idx')}"
        yield from _gap_filled(text, _text(query, "query"), group, entities, answers)


def _gap_filled(passage: str, query: str, group: str, entities: list[str], answers: list[str]) -> Iterator[Record]:
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


def wic(record: Record) -> Iterator[Record]:
    """Two sentences, each behind the word that is asked about and with its occurrence in quotation marks.

    Deliberate difference: the official task pools the pieces of the two occurrences, by code that never ran.
    """
    word = _text(record, "word")
    sentences = {}
    for number in "12":
        sentence = _text(record, f"sentence{number}")
        start, end = int(field(record, f"start{number}")), int(field(record, f"end{number}"))
        if not 0 <= start < end <= len(sentence):
            raise UserError(f"characters {start} to {end} are not in sentence{number}, which has {len(sentence)}")
        marked = f'{sentence[:start]}"{sentence[start:end]}"{sentence[end:]}'
        sentences[f"sentence{number}"] = f"{word}: {marked}"
    yield {**sentences, **_label(record)}


def xnli(language: str) -> Convert:
    """The pair of one language out of a record of tensorflow_datasets, which has all of them."""

    def convert(record: Record) -> Iterator[Record]:
        hypotheses = field(record, "hypothesis")
        languages = [_decoded(name) for name in field(hypotheses, "language")]
        yield {
            "premise": field(field(record, "premise"), language),
            "hypothesis": field(hypotheses, "translation")[languages.index(language)],
            **_label(record),
        }

    return convert


def xnli_file(language: str) -> Convert:
    """The lines of one language of XNLI-1.0/xnli.dev.tsv."""

    def convert(record: Record) -> Iterator[Record]:
        if field(record, "language") == language:
            pair = {"premise": field(record, "sentence1"), "hypothesis": field(record, "sentence2")}
            yield {**pair, "label": field(record, "gold_label")}

    return convert


def _label(record: Record) -> Record:
    """The label where there is one: the published files leave those of test out."""
    return {"label": record["label"]} if "label" in record else {}


def _inner(value: Any, column: str) -> Record:
    if not isinstance(value, Mapping):
        raise UserError(f"column {column!r} holds {value!r:.40}, not an object")
    return value


def _each(record: Record, column: str) -> list[Record]:
    values = field(record, column)
    if not isinstance(values, list):
        raise UserError(f"column {column!r} holds {values!r:.40}, not a list")
    return [_inner(value, column) for value in values]


def _text(record: Record, column: str) -> str:
    text = _decoded(field(record, column))
    if not isinstance(text, str):
        raise UserError(f"column {column!r} holds {text!r:.40}, not text")
    return text


def _decoded(value: Any) -> Any:
    return decode(value, "a text") if isinstance(value, bytes) else value
