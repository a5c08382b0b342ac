"""Reads the examples of classification and regression: a text or a pair of texts with a class or a score."""

import dataclasses
import functools
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.terminal import quote_names

from ...configs import FinetuneConfig
from ..packed import PackedExamples, PackedRows, Row
from ..ragged import as_numpy
from ..sources.cells import (
    Cells,
    cell_value,
    is_ignored_label,
    lacks_label,
    parse_class_name,
    parse_relevance,
    parse_score,
    text_cell,
)
from ..sources.classes import NO_HEAD, ClassChoice, Classes, Head, choose_classes, match_names
from ..sources.delimited import Reading
from ..sources.source import Role, Source, columns_of, named_splits, open_table
from ..sources.table import HiddenLabels, Table, parse_rows

_Texts = tuple[str, str | None, str | None, str | None]  # text, pair, group and answer of an example
_MANY = 10  # examples per class, on average: then a class with a single one is worth a note


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair of texts.

    Attributes:
      text: the first text.
      pair: the second text, if there is one.
      label: the index of a class, or of an `unseen` label after the classes; the score of a regression; `None` if it is
        not published.
      group: what metrics count as one, such as the question that has this `answer`.
      answer: a text that metrics compare.
    """

    text: str
    pair: str | None
    label: int | float | None
    group: str | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class ClassificationData:
    """The examples of a task.

    Attributes:
      name: the name of the training source.
      label_names: the name of each class by index; empty for regression.
      metrics: names of `metrics.compute_metrics` or `grouped_metrics`; the first one is the main metric.
      splits: "train" and, where they exist, "validation", further validation splits by name (MNLI's
        `validation_mismatched`), and "test".
      notes: messages to the user about reading each split.
      unseen: labels of held-out splits that are no class (see `Classes.unseen`).
      positive: index of the class that is 1 in the official metrics of a published set.
    """

    name: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, Sequence[Example]]
    notes: Mapping[str, tuple[str, ...]]
    unseen: tuple[str, ...] = ()
    positive: int = 1


def load_examples(
    train: str | Path,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    kind: Literal["classification", "regression", "ranking"] = "classification",
    labels: tuple[str, ...] = (),
    head: Head = NO_HEAD,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    reading: Reading | None = None,
) -> ClassificationData:
    """Reads the examples of a task.

    The columns and the kind of a published source (`tfds:glue/sst2`, `super_glue/cb:train.jsonl`; see `published`) are
    known; the column arguments and `kind` describe any other source. The module `classes` describes the order of the
    classes; labels that have no other order are sorted, as numbers if all are integers.

    Args:
      train: the training source (see `source`).
      validation: the validation source (default: the validation splits of a `train` from tensorflow_datasets).
      test: the test source. Either all or none of its examples have labels.
      text_column: the column of the text.
      pair_column: the column of the second text, if there is one.
      label_column: the column of the label.
      kind: whether labels are classes, scores, or scores from 0 to 1.
      labels: the names of all classes by index (default: see `classes`).
      head: the classifier of the model to start from (default: there is none).
      data_dir: the folder of prepared sets (default: that of tensorflow_datasets).
      manual_dir: the folder of archives that were downloaded by hand, for a machine without internet access (default:
        `downloads/manual` in `data_dir`).
      reading: how to read files with separated columns (default: by their names).

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used; the message has the file, the line and the reason.
    """
    source = Source.parse(str(train))
    known = source.published
    if known and kind == "regression" and known.kind != "regression":
        raise UserError(f"{train} is a classification task; leave kind at 'classification'")
    kind = "regression" if known and known.kind == "regression" else kind
    has_scores = kind != "classification"
    given = {"text": text_column, "label": label_column} | ({"pair": pair_column} if pair_column else {})

    splits: dict[str, _ReadSplit] = {}
    for name, split, role in named_splits(train, validation, test):
        columns = {name: str(column) for name, column in columns_of(split, kind, given).items()}
        table = open_table(
            split, label_column=columns["label"], data_dir=data_dir, manual_dir=manual_dir, reading=reading
        )
        splits[name] = _read_split(table, columns, kind, role, splits.get("train"))
    if splits["train"].all_blank:
        raise UserError(f"{train}: all texts are blank; give the column of the text as text_column")
    if has_scores:
        return ClassificationData(
            name=source.name,
            label_names=(),
            metrics=known.metrics if known else ("pearson", "spearman"),
            splits={name: split.with_scores() for name, split in splits.items()},
            notes={name: split.notes for name, split in splits.items()},
        )
    official = known.label_names if known else ()
    choice = ClassChoice(labels, head, official or splits["train"].table.class_names, class_order)
    observed = {name: split.names.counts.keys() for name, split in splits.items()}
    classes = choose_classes(observed, choice, table=splits["train"].table.name)
    rare = _rare_classes(splits["train"])
    return ClassificationData(
        name=source.name,
        label_names=classes.names,
        metrics=known.metrics if known else ("accuracy", "macro_f1"),
        splits={name: split.with_classes(classes) for name, split in splits.items()},
        notes={
            name: (*split.notes, *classes.notes[name], *(rare if name == "train" else ()))
            for name, split in splits.items()
        },
        unseen=classes.unseen,
        positive=match_names(official[1:2], classes.names).get(official[1], 1) if official else 1,
    )


def load_examples_of(
    config: FinetuneConfig, *, kind: Literal["classification", "regression", "ranking"], head: Head = NO_HEAD
) -> ClassificationData:
    """Returns the examples of a run. The arguments and errors are those of `load_examples`."""
    data, columns = config.data, config.data.columns
    return load_examples(
        data.train,
        validation=data.validation,
        test=data.test,
        text_column=columns.text_column or "text",
        pair_column=columns.pair_column,
        label_column=columns.label_column or "label",
        kind=kind,
        labels=data.labels,
        head=head,
        data_dir=data.data_dir,
        manual_dir=data.manual_dir,
        reading=Reading.of(columns),
    )


class _ClassNames:
    """The label of each example of a split, of which there are few different ones.

    Attributes:
      codes: the index in `counts` of the label of each example.
      counts: number of examples of each label.
      rows: number of the first row of each label.
    """

    def __init__(self) -> None:
        self.codes = array("i")
        self.counts: Counter[str] = Counter()
        self.rows: list[int] = []
        self._codes: dict[str, int] = {}

    def append(self, name: str, row: int) -> None:
        code = self._codes.setdefault(name, len(self._codes))
        if code == len(self.rows):
            self.rows.append(row)
        self.counts[name] += 1
        self.codes.append(code)


class BlankTexts:
    """Counts the examples of a split of which a text is blank.

    Attributes:
      all_blank: whether no example has any text.
    """

    def __init__(self) -> None:
        self._count, self._first, self.all_blank = 0, 0, True

    def add(self, row: int, texts: Iterable[str | None]) -> None:
        """Adds an example by the number of its row and its texts, `None` for one that it does not have."""
        given = [bool(text.strip()) for text in texts if text is not None]
        self.all_blank = self.all_blank and not any(given)
        if not all(given):
            self._first = self._first if self._count else row
            self._count += 1

    def notes(self, table: Table) -> tuple[str, ...]:
        """Returns a message to the user, if a text was blank."""
        return (f"{self._count} with a blank text, the first in {table.unit} {self._first}",) if self._count else ()


@dataclasses.dataclass(frozen=True)
class _ReadSplit:
    """The examples of a split, and the messages about them.

    Attributes:
      table: where they were read.
      texts: the text, the pair, the group and the answer of each example.
      names: their classes as the table has them; empty for scores and if they are not published.
      scores: their scores; empty for classes and if they are not published.
      all_blank: whether no example has any text.
      notes: messages to the user.
    """

    table: Table
    texts: PackedRows
    names: _ClassNames
    scores: "array[float]"
    all_blank: bool
    notes: tuple[str, ...]

    def with_scores(self) -> Sequence[Example]:
        return PackedExamples(self.texts, functools.partial(_example, self.scores))

    def with_classes(self, classes: Classes) -> Sequence[Example]:
        """Returns the examples with the indices of their classes. Raises UserError for a label that is no class."""
        indices = np.zeros(len(self.names.rows), np.int32)
        for code, (name, number) in enumerate(zip(self.names.counts, self.names.rows, strict=True)):
            with self.table.locate_errors(number):
                indices[code] = classes.index(name)
        labels = indices[as_numpy(self.names.codes)]
        return PackedExamples(self.texts, functools.partial(_example, array("i", labels.tobytes())))


def _example(labels: "array[int] | array[float]", index: int, texts: Row) -> Example:
    text, pair, group, answer = texts
    return Example(text, pair, labels[index] if labels else None, group, answer)


def _read_split(
    table: Table, columns: Mapping[str, str], kind: str, role: Role, train: _ReadSplit | None
) -> _ReadSplit:
    """Reads a split. `train` is the one of training, if another one is read."""

    def parse(cells: Cells, number: int) -> Iterator[tuple[_Texts, str | float | None]]:
        del number
        yield _parse_example(cells, table, columns, kind, label_optional=role == "test")

    texts, names, scores, hidden = PackedRows(), _ClassNames(), array("d"), HiddenLabels()
    blank = BlankTexts()
    for row in parse_rows(table, parse):
        texts.append(row.example)
        hidden.add(row.number, row.label)
        if isinstance(row.label, str):
            names.append(row.label, row.number)
        elif row.label is not None:
            scores.append(row.label)
        blank.add(row.number, row.example[:2])
    notes = []
    if train is not None:
        # -1 is a label like any other if it is a class of training, or one of several scores.
        known = "-1" in train.names.counts if kind == "classification" else any(score != -1 for score in scores)
        if not known and hidden.all_hidden(table, role):
            names, scores = _ClassNames(), array("d")
            notes = ["labels of -1 read as not published"]
    return _ReadSplit(table, texts, names, scores, blank.all_blank, (*table.notes, *notes, *blank.notes(table)))


def _rare_classes(split: _ReadSplit) -> tuple[str, ...]:
    """Returns a note about classes with a single example among many, which may be misspelled labels."""
    counts = split.names.counts
    single = sorted(label for label, count in counts.items() if count == 1)
    return (f"only one example of {quote_names(single)}",) if single and len(split.texts) >= _MANY * len(counts) else ()


def _parse_example(
    cells: Cells, table: Table, columns: Mapping[str, str], kind: str, *, label_optional: bool
) -> tuple[_Texts, str | float | None]:
    """Returns the texts of a row, and its label as a class name or a score."""
    text = text_cell(cells, columns["text"], allow_empty=True)
    pair = text_cell(cells, columns["pair"], allow_empty=True) if "pair" in columns else None
    group, answer = (str(cell_value(cells, columns[name])) if name in columns else None for name in ("group", "answer"))
    if label_optional and (
        table.has_no_label(cells, columns["label"])
        or lacks_label(value := cell_value(cells, columns["label"]))
        or (kind == "classification" and is_ignored_label(value))
    ):
        return (text, pair, group, answer), None
    value = cell_value(cells, columns["label"])
    texts = (text, pair, group, answer)
    if kind == "classification":
        return texts, parse_class_name(value, table.class_names)
    return texts, parse_score(value) if kind == "regression" else parse_relevance(value, hidden=label_optional)


def class_order(names: Collection[str]) -> list[str]:
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
