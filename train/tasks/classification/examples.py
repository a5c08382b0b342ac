"""Reads the examples of classification and regression: a text or a pair of texts with a class or a score."""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from deberta_jax.errors import UserError

from ..sources.cells import Cells, cell_value, parse_class_name, parse_score, text_cell
from ..sources.delimited import Reading
from ..sources.source import Role, Source, columns_of, named_splits, open_table
from ..sources.table import ParsedRow, Table, choose_label_names, class_index, parse_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair of texts.

    Attributes:
      text: the first text.
      pair: the second text, if there is one.
      label: a class index or the score of a regression; `None` if it is not published.
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
      notes: for each split the notes about reading it.
    """

    name: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    notes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def load_examples(
    train: str | Path,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    kind: Literal["classification", "regression"] = "classification",
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    reading: Reading | None = None,
) -> ClassificationData:
    """Reads the examples of a task.

    The columns and the kind of a published source (`tfds:glue/sst2`, `super_glue/cb:train.jsonl`; see `published`) are
    known; the column arguments and `kind` describe any other source. Classes are numbered in the official order of a
    published set, else in the order of tensorflow_datasets, else in the order of their names in training, as numbers if
    all are integers.

    Args:
      train: the training source (see `source`).
      validation: the validation source (default: the validation splits of a `train` from tensorflow_datasets).
      test: the test source. Either all or none of its examples have labels.
      text_column: the column of the text.
      pair_column: the column of the second text, if there is one.
      label_column: the column of the label.
      kind: whether labels are classes or scores.
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
    given = {"text": text_column, "label": label_column} | ({"pair": pair_column} if pair_column else {})

    def read(source: Source, role: Role) -> tuple[Table, list[ParsedRow[Example, str | float]]]:
        columns = {name: str(column) for name, column in columns_of(source, kind, given).items()}
        table = open_table(
            source, label_column=columns["label"], data_dir=data_dir, manual_dir=manual_dir, reading=reading
        )

        def parse(cells: Cells, number: int) -> Iterator[tuple[Example, str | float | None]]:
            del number
            yield _parse_example(cells, table, columns, kind, label_optional=role == "test")

        return table, parse_rows(table, parse)

    splits, notes, label_names = {}, {}, ()
    for name, split, role in named_splits(train, validation, test):
        table, rows = read(split, role)
        if role == "train" and kind == "classification":
            official = known.label_names if known else ()
            label_names = choose_label_names(table, {str(row.label) for row in rows}, official, order=_class_order)
        splits[name], notes[name] = _to_examples(table, rows, label_names), table.notes
    return ClassificationData(
        name=source.name,
        label_names=label_names,
        metrics=known.metrics if known else ("accuracy", "macro_f1") if label_names else ("pearson", "spearman"),
        splits=splits,
        notes=notes,
    )


def _parse_example(
    cells: Cells, table: Table, columns: Mapping[str, str], kind: str, *, label_optional: bool
) -> tuple[Example, str | float | None]:
    """Returns the example of a row without its label, and the label as a class name or a score."""
    text = text_cell(cells, columns["text"], allow_empty=table.published)
    pair = text_cell(cells, columns["pair"], allow_empty=table.published) if "pair" in columns else None
    group, answer = (str(cell_value(cells, columns[name])) if name in columns else None for name in ("group", "answer"))
    label = None
    if not (label_optional and table.has_no_label(cells, columns["label"])):
        value = cell_value(cells, columns["label"])
        label = parse_score(value) if kind == "regression" else parse_class_name(value, table.class_names)
    return Example(text, pair, None, group, answer), label


def _class_order(names: Collection[str]) -> list[str]:
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _to_examples(
    table: Table, rows: list[ParsedRow[Example, str | float]], label_names: tuple[str, ...]
) -> tuple[Example, ...]:
    indices = {name: index for index, name in enumerate(label_names)}
    examples = []
    for row in rows:
        with table.locate_errors(row.number):
            label = class_index(row.label, indices) if isinstance(row.label, str) else row.label
        examples.append(dataclasses.replace(row.example, label=label))
    return tuple(examples)
