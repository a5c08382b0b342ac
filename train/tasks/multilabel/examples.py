"""Reads the examples of multi-label classification: a text or a pair of texts with any number of classes.

The labels of a row are a list (also one that is written as text, "['a', 'b']"), a text with separators ("a|b"), or
columns of 0 and 1, one for each class.
"""

import ast
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deberta_jax.errors import UserError
from deberta_jax.terminal import quote_names

from ...configs import FinetuneConfig
from ..classification.examples import BlankTexts, class_order
from ..packed import PackedExamples, PackedRows, Row
from ..sources.cells import (
    Cells,
    MissingColumnError,
    cell_value,
    decode_utf8,
    is_list,
    lacks_label,
    list_cell,
    parse_class_name,
    preview,
    text_cell,
)
from ..sources.classes import ClassChoice, Head, choose_classes
from ..sources.delimited import Reading
from ..sources.source import Role, Source, columns_of, named_splits, open_table
from ..sources.table import Table, parse_rows

_SEPARATORS = ("|", ";", ",")  # that are detected
_HIDDEN = (-1, "-1", "-1.0")
_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}

# The labels of a row before the separator is known: names, or a text of all of them.
_RawLabels = tuple[str, ...] | str


@dataclasses.dataclass(frozen=True, slots=True)
class MultilabelExample:
    """A text or a pair of texts with its labels.

    Attributes:
      text: the first text.
      pair: the second text, if there is one.
      labels: the indices of the classes, ascending; `None` if they are not published.
    """

    text: str
    pair: str | None
    labels: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class MultilabelData:
    """The examples of a task: the fields of `classification.examples.ClassificationData` that it has."""

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, Sequence[MultilabelExample]]
    notes: Mapping[str, tuple[str, ...]]


def load_examples(config: FinetuneConfig, head: Head) -> MultilabelData:
    """Reads the examples of a task.

    The classes and their order are those of `sources.classes`, as for classification.

    Args:
      config: the settings of the run.
      head: the classifier of the model to start from.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used; the message has the file, the line and the reason.
    """
    data, source = config.data, Source.parse(config.data.train)
    read: dict[str, _ReadSplit] = {}
    for name, split, role in named_splits(data.train, data.validation, data.test):
        columns_of(split, "multilabel", {})  # raises for a published set, none of which is of this kind
        table = open_table(
            split,
            label_column=data.columns.label_column or "labels",
            data_dir=data.data_dir,
            manual_dir=data.manual_dir,
            reading=Reading.of(data.columns),
        )
        read[name] = _read_split(table, config, role)
    separator = data_separator(read["train"].texts_of_labels, config.multilabel.label_separator)
    labels = {name: split.names(separator) for name, split in read.items()}
    observed = {name: set().union(*of_split.values()) for name, of_split in labels.items()}
    train = read["train"].table
    classes = choose_classes(observed, ClassChoice(data.labels, head, train.class_names, class_order), table=train.name)
    if classes.unseen:
        raise UserError(
            f"{quote_names(classes.unseen)} of the held-out examples are not among the classes of training and "
            f"validation, {quote_names(classes.names)}; name all classes with --labels"
        )
    splits = {}
    for name, split in read.items():
        indices: dict[_RawLabels, tuple[int, ...]] = {}
        for raw, names in labels[name].items():
            with split.table.locate_errors(split.first_rows[raw]):
                indices[raw] = tuple(sorted({classes.index(label) for label in names}))
        splits[name] = PackedExamples(split.rows, functools.partial(_example, indices))
    notes = {name: (*split.table.notes, *split.notes, *classes.notes[name]) for name, split in read.items()}
    if separator is not None and config.multilabel.label_separator is None:
        notes["train"] = (*notes["train"], f"labels separated by {separator!r}")
    return MultilabelData(source.name, classes.names, splits, notes)


@dataclasses.dataclass(frozen=True)
class _ReadSplit:
    """The examples of a split.

    Attributes:
      table: where they were read.
      rows: the text, the pair and the raw labels of each example, `None` if they are not published.
      first_rows: the number of the first row of each different value of the labels.
      notes: messages to the user.
    """

    table: Table
    rows: PackedRows
    first_rows: Mapping[_RawLabels, int]
    notes: tuple[str, ...]

    @property
    def texts_of_labels(self) -> list[str]:
        return [raw for raw in self.first_rows if isinstance(raw, str)]

    def names(self, separator: str | None) -> dict[_RawLabels, tuple[str, ...]]:
        """Returns the names of the labels for each different value."""
        names = {}
        for raw, number in self.first_rows.items():
            with self.table.locate_errors(number):
                names[raw] = _split_labels(raw, separator) if isinstance(raw, str) else raw
        return names


def _example(indices: Mapping[_RawLabels, tuple[int, ...]], position: int, row: Row) -> MultilabelExample:
    del position
    text, pair, raw = row
    return MultilabelExample(text, pair, None if raw is None else indices[raw])


def data_separator(texts: Sequence[str], given: str | None) -> str | None:
    """Returns what separates the labels in texts: what the user gave, or else the only one of | ; , that occurs.

    Raises:
      UserError: if several of them occur.
    """
    if given is not None:
        return given
    found = [separator for separator in _SEPARATORS if any(separator in text for text in texts)]
    if len(found) > 1:
        example = next(text for text in texts if found[0] in text or found[1] in text)
        raise UserError(
            f"labels have {' and '.join(map(repr, found))}, as in {preview(example)}; give the separator as "
            "--label-separator"
        )
    return found[0] if found else None


def _split_labels(text: str, separator: str | None) -> tuple[str, ...]:
    """Returns the labels in a text. Raises UserError for an empty one between separators."""
    parts = [part.strip() for part in (text.split(separator) if separator else [text])]
    if parts == [""]:
        return ()
    if not all(parts):
        raise UserError(f"the labels {preview(text)} have an empty one; write them as 'a{separator}b'")
    return tuple(parts)


def _read_split(table: Table, config: FinetuneConfig, role: Role) -> _ReadSplit:
    columns = config.data.columns
    text_column, pair_column, label_column = columns.text_column or "text", columns.pair_column, columns.label_column
    class_columns: list[bool] = []  # whether every class has a column; of the first row, as of all others

    def parse(cells: Cells, number: int) -> Iterator[tuple[tuple[str, str | None], _RawLabels | None]]:
        del number
        text = text_cell(cells, text_column, allow_empty=True)
        pair = text_cell(cells, pair_column, allow_empty=True) if pair_column else None
        if not class_columns:
            has_names = bool(config.data.labels) and all(name in cells for name in config.data.labels)
            class_columns.append(label_column is None and "labels" not in cells and has_names)
        if class_columns[0]:
            yield (text, pair), _labels_of_columns(cells, config.data.labels, role)
        elif role == "test" and (label_column or "labels") not in cells:
            yield (text, pair), None
        else:
            yield (text, pair), _labels_of_cell(cells, label_column or "labels", table.class_names, role)

    rows, first_rows, blank = PackedRows(), {}, BlankTexts()
    for row in parse_rows(table, _with_advice(parse, config)):
        rows.append((*row.example, row.label))
        if row.label is not None:
            first_rows.setdefault(row.label, row.number)
        blank.add(row.number, row.example)
    if blank.all_blank and role == "train":
        raise UserError(f"{table.name}: all texts are blank; give the column of the text as text_column")
    if role == "test" and first_rows.keys() == {""}:  # a column of labels without any
        unlabeled = PackedRows()
        for text, pair, _ in rows:
            unlabeled.append((text, pair, None))
        rows, first_rows = unlabeled, {}
    return _ReadSplit(table, rows, first_rows, blank.notes(table))


def _with_advice(parse: Any, config: FinetuneConfig) -> Any:
    """Adds to the error of a missing column of labels that classes may have columns."""

    def parsed(cells: Cells, number: int) -> Iterator[Any]:
        try:
            yield from parse(cells, number)
        except MissingColumnError as error:
            column = config.data.columns.label_column or "labels"
            if column in cells or (config.data.columns.text_column or "text") not in cells:
                raise
            missing = [name for name in config.data.labels if name not in cells]
            raise MissingColumnError(
                f"{error}; give the column of the labels as --label-column, or the names of columns of 0 and 1 as "
                f"--labels{f' (not among them: {quote_names(missing)})' if missing else ''}"
            ) from None

    return parsed


def _labels_of_columns(cells: Cells, names: Sequence[str], role: Role) -> tuple[str, ...] | None:
    """Returns the names of the columns that hold 1; `None` for a test row in which all are -1."""
    values = [cell_value(cells, name) for name in names]
    if role == "test" and all(value in _HIDDEN for value in values):
        return None
    chosen = []
    for name, value in zip(names, values, strict=True):
        key = str(value).strip().lower()
        if key not in _VALUES:
            raise UserError(f"column {name!r} holds {preview(value)}; a column of a class must hold 0 or 1")
        if _VALUES[key]:
            chosen.append(name)
    return tuple(chosen)


def _labels_of_cell(cells: Cells, column: str, class_names: tuple[str, ...], role: Role) -> _RawLabels | None:
    """Returns the labels of a row: names, or a text whose separator is not known yet."""
    value = cell_value(cells, column)
    value = decode_utf8(value, f"column {column!r}") if isinstance(value, bytes) else value
    if is_list(value):
        return tuple(sorted({parse_class_name(label, class_names) for label in list_cell(cells, column)}))
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")):
            return text
        return tuple(sorted({parse_class_name(label, class_names) for label in _written_list(text, column)}))
    if lacks_label(value):
        if role == "test":
            return None
        raise UserError(f"column {column!r} is null; write an empty list for a row without labels")
    if isinstance(value, int) and not isinstance(value, bool):
        return (parse_class_name(value, class_names),)
    raise UserError(f"column {column!r} holds {preview(value)}, not a list of labels or a text with separators")


def _written_list(text: str, column: str) -> list[Any]:
    """Returns the list in a text, as JSON or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list) and all(type(value) in (str, int) for value in values):
            return values
    raise UserError(f"column {column!r} holds {preview(text)}, which is not a list of names; write them as a|b")
