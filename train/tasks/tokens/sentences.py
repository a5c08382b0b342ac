"""Reads sentences of words with a label for each word."""

import dataclasses
import functools
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
from jaxtyping import Int

from deberta_jax.errors import UserError

from ..packed import PackedExamples, PackedRows, Row
from ..ragged import as_numpy
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
from ..sources.table import HiddenLabels, Table, parse_rows

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


@dataclasses.dataclass(frozen=True)
class TaggedSentences:
    """The sentences of a table with their tags as the table has them.

    Attributes:
      table: where they were read.
      words: the words of each sentence.
      starts: position in `codes` of the first word of each sentence, and the end of the last one.
      rows: number of the row of each sentence.
      codes: index in `tags` of the tag of each word, or NO_LABEL; `None` if the labels are not published.
      tags: the different tags in the order of their first occurrence.
      hidden: the count of sentences whose labels may be hidden.
    """

    table: Table
    words: PackedRows
    starts: "array[int]"
    rows: "array[int]"
    codes: "array[int] | None"
    tags: tuple[str, ...]
    hidden: HiddenLabels

    def without_labels(self) -> Self:
        return dataclasses.replace(self, codes=None, tags=())


def read_sentences(table: Table, columns: Mapping[str, str], *, label_optional: bool) -> TaggedSentences:
    """Returns the sentences of a table with their tags.

    Words may be blank and sentences empty, so that predictions stay aligned with the data.

    Args:
      table: the table.
      columns: the columns `text` and `label`, which hold lists.
      label_optional: whether all rows may lack labels.

    Raises:
      UserError: if a row cannot be used; the message has the file and the line.
    """

    def parse(cells: Cells, number: int) -> Iterator[tuple[tuple[str, ...], Tags | None]]:
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
        yield words, tags

    sentences, hidden = PackedRows(), HiddenLabels()
    starts, rows, codes = array("q", [0]), array("q"), array("b")
    indices: dict[str | None, int] = {None: NO_LABEL}
    tags: Tags | None = ()
    for number, words, tags in parse_rows(table, parse):
        sentences.append(words)
        rows.append(number)
        starts.append(starts[-1] + len(words))
        hidden.add(number, tags)
        codes_of_row = [indices.setdefault(tag, len(indices) - 1) for tag in tags or ()]
        if codes.typecode != "i" and len(indices) > 128:  # most tasks have few different tags
            codes = array("i", codes)
        codes.extend(codes_of_row)
    names = tuple(tag for tag in indices if tag is not None)
    return TaggedSentences(table, sentences, starts, rows, None if tags is None else codes, names, hidden)


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


def label_sentences(sentences: TaggedSentences, classes: Classes) -> Sequence[Sentence]:
    """Returns the sentences with the class indices of their tags. Raises UserError for a tag that is not a class."""
    if sentences.codes is None:
        return PackedExamples(sentences.words, lambda _, words: Sentence(words, None))
    codes = as_numpy(sentences.codes)
    indices = np.full(len(sentences.tags) + 1, NO_LABEL, np.int32)  # the last one is that of NO_LABEL
    for code, tag in enumerate(sentences.tags):
        if tag in classes.indices:
            indices[code] = classes.indices[tag]
            continue
        place = int(np.argmax(codes == code))
        sentence = int(np.searchsorted(as_numpy(sentences.starts), place, side="right")) - 1
        number = place - sentences.starts[sentence] + 1
        word = sentences.words[sentence][number - 1]
        with sentences.table.locate_errors(sentences.rows[sentence]):
            classes.index(tag, owner=f" of word {number}, {word!r:.40},")
    labels = indices.astype(np.min_scalar_type(-int(indices.max(initial=0)) - 1))[codes]
    return PackedExamples(sentences.words, functools.partial(_sentence, labels, sentences.starts))


def _sentence(labels: Int[np.ndarray, "words"], starts: "array[int]", index: int, words: Row) -> Sentence:
    return Sentence(words, tuple(labels[starts[index] : starts[index + 1]].tolist()))
