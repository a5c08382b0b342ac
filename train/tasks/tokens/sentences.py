"""Reads sentences of words with a label for each word."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from deberta_jax.errors import UserError

from ..sources.cells import (
    Cells,
    is_ignored_label,
    is_list,
    lacks_label,
    list_cell,
    parse_class_name,
    parse_text,
)
from ..sources.classes import Classes
from ..sources.table import ParsedRow, Table, parse_rows

_ADVICE = " with one value per word"
NO_LABEL = -1  # class index of a word without a label; `losses.classification` ignores it

Tags = tuple[str | None, ...]  # of the words of a sentence; `None` for a word without a label


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """The words of a sentence with the class index of each; `None` if the labels are not published.

    A word whose label is -100 in the data has NO_LABEL. The index of a label that the model does not have follows those
    of the classes (see `Classes.unseen`).
    """

    words: tuple[str, ...]
    labels: tuple[int, ...] | None


def read_sentences(
    table: Table, columns: Mapping[str, str], *, label_optional: bool
) -> list[ParsedRow[Sentence, Tags]]:
    """Returns the sentences of a table without labels, and their tags.

    Words may be blank and sentences empty, so that predictions stay aligned with the data.

    Args:
      table: the table.
      columns: the columns `text` and `label`, which hold lists.
      label_optional: whether all rows may lack labels.

    Raises:
      UserError: if a row cannot be used; the message has the file and the line.
    """

    def parse(cells: Cells, number: int) -> Iterator[tuple[Sentence, Tags | None]]:
        del number
        values = list_cell(cells, columns["text"], advice=_ADVICE)
        words = tuple(parse_text(word, columns["text"], allow_empty=True) for word in values)
        tags = None
        if not (label_optional and _lacks_tags(table, cells, columns["label"], len(words))):
            labels = list_cell(cells, columns["label"], advice=_ADVICE)
            tags = tuple(
                None if is_ignored_label(label) else parse_class_name(label, table.class_names) for label in labels
            )
            if len(tags) != len(words):
                raise UserError(f"{len(tags)} labels for {len(words)} words; give one per word")
        yield Sentence(words, None), tags

    return parse_rows(table, parse)


def _lacks_tags(table: Table, cells: Cells, column: str, words: int) -> bool:
    """Returns whether a test sentence has no labels: no value, an empty list, or -1 where that hides a label."""
    if table.has_no_label(cells, column) or lacks_label(cells[column]):
        return True
    labels = cells[column]
    return words > 0 and is_list(labels) and all(table.hidden_label and label == -1 for label in labels)


def tag_order(tags: Collection[str]) -> list[str]:
    """Returns tags sorted such that "O" is first and "B-X" is next to "I-X"."""
    are_numbers = all(tag.isdecimal() for tag in tags)
    return sorted(tags, key=lambda tag: (tag != "O", int(tag) if are_numbers else 0, tag.partition("-")[2], tag))


def label_sentences(table: Table, rows: list[ParsedRow[Sentence, Tags]], classes: Classes) -> tuple[Sentence, ...]:
    """Returns the sentences with the class indices of their tags. Raises UserError for a tag that is not a class."""
    sentences = []
    for row in rows:
        words, labels = row.example.words, None
        with table.locate_errors(row.number):
            if row.label is not None:
                labels = tuple(
                    NO_LABEL if tag is None else classes.index(tag, owner=f" of word {number}, {word!r:.40},")
                    for number, (word, tag) in enumerate(zip(words, row.label, strict=True), start=1)
                )
        sentences.append(Sentence(words, labels))
    return tuple(sentences)
