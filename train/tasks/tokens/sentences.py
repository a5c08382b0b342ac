"""Reads sentences of words with a label for each word."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from deberta_jax.errors import UserError

from ..sources.cells import Cells, list_cell, parse_class_name, parse_text
from ..sources.table import ParsedRow, Table, class_index, parse_rows

_ADVICE = " with one value per word"


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """The words of a sentence with the class index of each; `None` if the labels are not published."""

    words: tuple[str, ...]
    labels: tuple[int, ...] | None


def read_sentences(
    table: Table, columns: Mapping[str, str], *, label_optional: bool
) -> list[ParsedRow[Sentence, tuple[str, ...]]]:
    """Returns the sentences of a table without labels, and their tags.

    Args:
      table: the table.
      columns: the columns `text` and `label`, which hold lists.
      label_optional: whether all rows may lack labels.

    Raises:
      UserError: if a row cannot be used; the message has the file and the line.
    """

    def parse(cells: Cells, number: int) -> Iterator[tuple[Sentence, tuple[str, ...] | None]]:
        del number
        values = list_cell(cells, columns["text"], advice=_ADVICE)
        if not values and not table.published:
            raise UserError(f"column {columns['text']!r} is an empty list; give words or remove the row")
        words = tuple(parse_text(word, columns["text"], allow_empty=table.published) for word in values)
        tags = None
        if not (label_optional and table.has_no_label(cells, columns["label"])):
            labels = list_cell(cells, columns["label"], advice=_ADVICE)
            tags = tuple(parse_class_name(label, table.class_names) for label in labels)
            if len(tags) != len(words):
                raise UserError(f"{len(tags)} labels for {len(words)} words; give one per word")
        yield Sentence(words, None), tags

    return parse_rows(table, parse)


def tag_order(tags: Collection[str]) -> list[str]:
    """Returns tags sorted such that "O" is first and "B-X" is next to "I-X"."""
    are_numbers = all(tag.isdecimal() for tag in tags)
    return sorted(tags, key=lambda tag: (tag != "O", int(tag) if are_numbers else 0, tag.partition("-")[2], tag))


def label_sentences(
    table: Table, rows: list[ParsedRow[Sentence, tuple[str, ...]]], label_names: tuple[str, ...]
) -> tuple[Sentence, ...]:
    """Returns the sentences with the class indices of their tags. Raises UserError for a tag that is not a class."""
    indices = {name: index for index, name in enumerate(label_names)}
    sentences = []
    for row in rows:
        words, labels = row.example.words, None
        with table.locate_errors(row.number):
            if row.label is not None:
                labels = tuple(
                    class_index(tag, indices, owner=f" of word {number}, {word!r:.40},")
                    for number, (word, tag) in enumerate(zip(words, row.label, strict=True), start=1)
                )
        sentences.append(Sentence(words, labels))
    return tuple(sentences)
