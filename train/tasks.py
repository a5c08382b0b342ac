"""Fine-tuning data for classification and regression of one text or a pair: labels, rows of ids, batches.

Sources are those of `task_sources`. Nothing is dropped: a row that cannot be used stops the run and is named by file
and line.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import grain
import numpy as np
from numpy.typing import NDArray

from .data import GlobalBatches, own_rows
from .task_sources import Columns, Role, Source, Table, decode, open_file, open_tfds

Kind = Literal["classification", "regression"]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One text, or a pair of texts. `label` is a class index, or the score of a regression; None: not published."""

    text: str
    pair: str | None
    label: int | float | None


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The examples of one task. `label_names[i]` is the name of class i; empty for regression.

    `metrics` are names of `metrics.compute_metrics`, the usual ones of the task. `extra_validation` holds further
    validation splits by name: MNLI's `validation_mismatched`; otherwise it is empty.
    """

    name: str
    kind: Kind
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...] | None
    test: tuple[Example, ...] | None
    extra_validation: Mapping[str, tuple[Example, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    number: int
    text: str
    pair: str | None
    label: str | float | None


# ---------------------------------------------------------------------------------------------------------- tasks


def load_task(
    train: str | Path,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    kind: Kind = "classification",
    label_names: Sequence[str] | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> TaskData:
    """Reads a task's examples from `train`, `validation` and `test`, each a source (see `task_sources`).

    A GLUE source (`tfds:glue/sst2`) knows its columns, kind, classes and splits; the column arguments and `kind`
    describe every other source. With a GLUE `train` and no `validation` the task's own validation splits are read.
    A `test` source may leave its labels out, all of them.

    Args:
      label_names: the classes in the order of their indices. Default: GLUE's official order, else the order that
        tensorflow_datasets publishes, else the names found in training, as numbers if all are integers, else as text.
      data_dir: where tensorflow_datasets keeps prepared sets; default: its own folder.
      manual_dir: archives downloaded by hand, for a machine without internet; default: `downloads/manual` in data_dir.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a source that cannot be read or used; one line with the file, the line and the reason.
    """
    source = Source.parse(str(train))
    glue = source.glue
    if glue and kind == "regression" and glue.label_names:
        raise ValueError(f"{train} is a classification task; leave kind at 'classification'")
    kind = ("classification" if glue.label_names else "regression") if glue else kind

    def read(source: Source, role: Role) -> tuple[Table, list[_Row]]:
        columns = Columns(text_column, pair_column, label_column)
        if source.glue:
            columns = Columns(source.glue.text, source.glue.pair, "label")
        table = open_tfds(source, columns, data_dir, manual_dir) if source.tfds_name else open_file(source.given)
        return table, _read_rows(table, columns, kind, labels_optional=role == "test")

    table, rows = read(source.with_splits("train")[0], "train")
    names = _label_names(table, rows, kind, label_names or (glue.label_names if glue else ()))

    def held_out(given: str | Path | None, role: Role) -> list[tuple[str | None, tuple[Example, ...]]]:
        splits = Source.parse(str(given)).with_splits(role) if given else []
        return [(split.split, _to_examples(*read(split, role), names)) for split in splits]

    if validation is None and glue:
        validation = f"tfds:{source.tfds_name}"
    validations = held_out(validation, "validation")
    tests = held_out(test, "test")
    return TaskData(
        name=source.tfds_name or Path(train).name.partition(".")[0],
        kind=kind,
        label_names=names,
        metrics=glue.metrics if glue else ("accuracy", "macro_f1") if names else ("pearson", "spearman"),
        train=_to_examples(table, rows, names),
        validation=validations[0][1] if validations else None,
        test=tests[0][1] if tests else None,
        extra_validation={str(split): examples for split, examples in validations[1:]},
    )


def _read_rows(table: Table, columns: Columns, kind: Kind, *, labels_optional: bool) -> list[_Row]:
    """All rows of a table, with the label as a class name or as a number. Raises where a row cannot be used."""
    rows = []
    for number, fields in table.rows:
        try:
            text = _text(fields, columns.text, allow_empty=table.published)
            pair = _text(fields, columns.pair, allow_empty=table.published) if columns.pair else None
            hidden = columns.label not in fields or (table.hidden_label and fields[columns.label] == -1)
            label = None
            if not (labels_optional and hidden):
                value = _field(fields, columns.label)
                label = _score(value) if kind == "regression" else _class_name(value, table.class_names)
        except ValueError as error:
            raise table.error(number, error) from None
        if rows and (label is None) != (rows[0].label is None):
            raise table.error(number, f"row {rows[0].number} and this one differ: give every row a label, or none")
        rows.append(_Row(number, text, pair, label))
    if not rows:
        raise ValueError(f"{table.name} has no rows")
    return rows


def _field(fields: Mapping[str, Any], column: str) -> Any:
    if column not in fields:
        raise ValueError(f"no column {column!r}; the columns are {', '.join(map(repr, fields))}")
    value = fields[column]
    return value.item() if isinstance(value, np.generic) else value


def _text(fields: Mapping[str, Any], column: str, *, allow_empty: bool) -> str:
    text = _field(fields, column)
    text = decode(text, f"column {column!r}") if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise ValueError(f"column {column!r} holds {text!r:.40}, not text")
    if not text.strip() and not allow_empty:
        raise ValueError(f"column {column!r} is empty; write a text or take the row out")
    # Both can hide behind JSON escapes, and no tokenizer can be given them.
    if "\0" in text or (not text.isascii() and re.search("[\ud800-\udfff]", text)):
        raise ValueError(f"column {column!r} holds a NUL character or half a surrogate pair")
    return text


def _class_name(label: Any, class_names: tuple[str, ...]) -> str:
    if isinstance(label, bytes):
        label = decode(label, "the label")
    if class_names and isinstance(label, int):
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"label {label} is outside 0 to {len(class_names) - 1}; labels of this split may be hidden"
            )
        return class_names[label]
    if isinstance(label, bool | int):
        return str(label).lower()
    if not isinstance(label, str):
        raise ValueError(f"label {label!r:.40} is not a class name or integer; for scores set kind to 'regression'")
    if not label.strip():
        raise ValueError("the label is empty")
    return label


def _score(label: Any) -> float:
    try:
        score = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"label {label!r:.40} is not a finite number, as regression needs")
    return score


def _label_names(table: Table, rows: list[_Row], kind: Kind, given: Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of their indices; none for regression."""
    if kind == "regression":
        if given:
            raise ValueError(f"label_names {tuple(given)} were given for a regression, which has no classes")
        return ()
    if len(set(given)) != len(given):
        raise ValueError(f"label_names {tuple(given)} repeat a name; give every class once")
    found = {str(row.label) for row in rows}
    if len(found) == 1:
        raise ValueError(f"{table.name} has only one class, {found.pop()!r}; training needs at least two")
    if given or table.class_names:
        return tuple(given) or table.class_names
    if all(re.fullmatch(r"-?[0-9]+", name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _to_examples(table: Table, rows: list[_Row], names: tuple[str, ...]) -> tuple[Example, ...]:
    index = {name: number for number, name in enumerate(names)}
    examples = []
    for row in rows:
        label = index.get(row.label) if isinstance(row.label, str) else row.label
        if label is None and row.label is not None:
            raise table.error(row.number, f"label {row.label!r} is not a class of training: {', '.join(names)}")
        examples.append(Example(row.text, row.pair, label))
    return tuple(examples)


# -------------------------------------------------------------------------------------------------------- batches


class Encoding(Protocol):
    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def token_type_ids(self) -> Sequence[int]: ...


class PairTokenizer(Protocol):
    def __call__(self, text: str, pair: str | None = None, *, max_length: int) -> Encoding: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExamples:
    """Token ids of E examples, padded with 0 to S = max_length.

    Shapes: `input_ids`, `token_type_ids` int32 [E, S]; `lengths` int32 [E], tokens in each row; `labels` int32 [E]
    (class) or float32 [E] (score), None for unlabelled examples. `truncated`: how many examples were longer than S.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    truncated: int

    def batch(self, rows: np.ndarray) -> Batch:
        """Rows as int32 [B, S] `input_ids`, `attention_mask`, `token_type_ids`; [B] `labels` if there are any."""
        real = np.arange(self.input_ids.shape[1]) < self.lengths[rows, None]
        batch = {
            "input_ids": self.input_ids[rows],
            "attention_mask": real.astype(np.int32),
            "token_type_ids": self.token_type_ids[rows],
        }
        return batch if self.labels is None else batch | {"labels": self.labels[rows]}


def encode_examples(examples: Sequence[Example], tokenizer: PairTokenizer, *, max_length: int) -> EncodedExamples:
    """Tokenizes examples into rows of `max_length` ids. Raises ValueError if some have labels and others none."""
    if not examples:
        raise ValueError("there are no examples to encode")
    unlabelled = sum(example.label is None for example in examples)
    if unlabelled not in (0, len(examples)):
        raise ValueError(f"{unlabelled} of {len(examples)} examples have no label; give labels to all or to none")
    input_ids = np.zeros((len(examples), max_length), np.int32)
    token_type_ids = np.zeros_like(input_ids)
    lengths = np.zeros(len(examples), np.int32)
    truncated = 0
    for row, example in enumerate(examples):
        encoded = tokenizer(example.text, example.pair, max_length=max_length)
        size = lengths[row] = len(encoded.input_ids)
        input_ids[row, :size] = encoded.input_ids
        token_type_ids[row, :size] = encoded.token_type_ids
        if size == max_length:  # full: cut, or just fitting?
            longer = tokenizer(example.text, example.pair, max_length=max_length + 1)
            truncated += len(longer.input_ids) > max_length
    labels = None
    if not unlabelled:
        score = isinstance(examples[0].label, float)
        labels = np.array([example.label for example in examples], np.float32 if score else np.int32)
    return EncodedExamples(input_ids, token_type_ids, lengths, labels, truncated)


class FinetuneBatches:
    """Endless training batches: the examples shuffled afresh every epoch, the epochs joined without a gap.

    Every host builds one with the same seed and the global `batch_size`, and gets those `rows` of each global batch
    that are its own (`sharding.local_rows`; None: all). The state counts examples, not batches, and is the same on
    every host, so a run resumes exactly on another number of hosts.

    Raises:
      ValueError: unlabelled examples, or rows that a batch does not have.
    """

    def __init__(
        self, encoded: EncodedExamples, *, batch_size: int, seed: int, rows: NDArray[np.int64] | None = None
    ) -> None:
        if encoded.labels is None:
            raise ValueError("training needs labels; these examples have none")
        self._encoded = encoded
        examples = grain.MapDataset.range(len(encoded.lengths)).seed(seed).shuffle().repeat()
        # The rows are in memory already: reading ahead in threads would only cost.
        read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._batches = GlobalBatches(examples, global_batch=batch_size, rows=rows, read_options=read_options)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self._encoded.batch(next(self._batches))

    def get_state(self) -> dict[str, int]:
        """The position, `{"global_next_index": examples drawn so far on all hosts}`; plain JSON."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to a position of `get_state`. Raises ValueError for anything else."""
        self._batches.set_state(state)


def evaluation_batches(
    encoded: EncodedExamples, *, batch_size: int, rows: NDArray[np.int64] | None = None
) -> Iterator[Batch]:
    """One pass in order, each example once. Adds `weight` float32 [B]: 1, or 0 for the rows that fill the last batch.

    Filling rows repeat the last example. A host gets its `rows` of every global batch of `batch_size` rows (None: all);
    all hosts get the same number of batches.
    """
    own, count = own_rows(batch_size, rows), len(encoded.lengths)
    for first in range(0, count, batch_size):
        numbers = first + own
        batch = encoded.batch(np.minimum(numbers, count - 1))
        yield batch | {"weight": (numbers < count).astype(np.float32)}
