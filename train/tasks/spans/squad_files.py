"""Reads files in SQuAD's layout: data[].paragraphs[].context, and beside it qas[] with id, question, answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deberta_jax.errors import UserError

from ..sources.cells import Cells
from ..sources.json_rows import JsonReader
from ..sources.source import Source
from ..sources.table import Table
from ..sources.text_files import open_text


def open_squad_file(source: Source) -> Table | None:
    """Returns the questions of a .json file in SQuAD's layout, or `None` for any other source."""
    if source.path is None or not source.path.endswith((".json", ".json.gz")) or Path(source.path).is_dir():
        return None
    text = open_text(source.path)
    if not _has_data(JsonReader(text)):  # objects with a question each, which `open_table` reads
        return None
    return Table(source.given, "record", enumerate(_squad_rows(source.given, JsonReader(text))), published=True)


def _has_data(reader: JsonReader) -> bool:
    """Returns whether the first object has the key "data"."""
    for _ in reader.each():
        if not reader.at("{"):
            reader.value()  # an error tells what is wrong with it, unless it is another value
            return False
        for key in reader.members():
            if key == "data":
                return True
            reader.value()
        return False
    return False


def _squad_rows(name: str, reader: JsonReader) -> Iterator[Cells]:
    """Yields the questions of one object in SQuAD's layout, or of several, of which one paragraph is in memory."""
    for _ in reader.each():
        for article_index, _ in enumerate(_squad_list(reader, "data", name)):
            place = f"{name}: data[{article_index}]"
            for paragraph_index, _ in enumerate(_squad_list(reader, "paragraphs", place)):
                place_of_paragraph = f"{place}.paragraphs[{paragraph_index}]"
                paragraph = reader.value()
                context = _squad_value(paragraph, "context", str, place_of_paragraph)
                for index, question in enumerate(_squad_value(paragraph, "qas", list, place_of_paragraph)):
                    if not isinstance(question, dict):
                        raise UserError(
                            f"{place_of_paragraph}.qas[{index}] is not an object with id, question and answers"
                        )
                    yield {**question, "context": context}


def _squad_list(reader: JsonReader, key: str, place: str) -> Iterator[int]:
    """Yields where each item of the list at a key of the next object begins. The other values are skipped."""
    found = False
    if reader.at("{"):
        for member in reader.members():
            if member == key and reader.at("["):
                found = True
                yield from reader.items()
            else:
                reader.value()
    else:
        reader.value()
    if not found:
        raise _bad_layout(place, key, list)


def _squad_value(parent: Any, key: str, kind: type, place: str) -> Any:
    """Returns the value of a key of SQuAD's layout. `place` is the path of `parent` in errors."""
    if not isinstance(parent, dict) or not isinstance(parent.get(key), kind):
        raise _bad_layout(place, key, kind)
    return parent[key]


def _bad_layout(place: str, key: str, kind: type) -> UserError:
    return UserError(
        f"{place} has no {'list' if kind is list else 'text'} {key!r}; SQuAD's layout is "
        "data[].paragraphs[].context, and beside it qas[] with id, question, answers"
    )
