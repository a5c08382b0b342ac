"""Classification and regression of one text or a pair: labels, rows of ids, the head's loss and answers, scores.

Nothing is dropped: a row that cannot be used stops the run and is named by file and line.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForSequenceClassification
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ...reporting.classification_plots import plot_answers
from ..base import Arrays, Batch, Found, stack_probabilities
from ..metrics import METRICS, compute_metrics
from ..sources.cells import class_name, field, score_value, text_field
from ..sources.source import Role, Source, Table, columns_of, named_splits, open_table
from .grouped_metrics import answer_scores, exact_match


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One text, or a pair of texts. `label` is a class index, or the score of a regression; None: not published.

    `group`: what is counted as one, such as the question that it is an `answer` to.
    """

    text: str
    pair: str | None
    label: int | float | None
    group: str | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The examples of one task. `label_names[i]` is the name of class i; empty for regression.

    `metrics` are names of `metrics.compute_metrics` or `grouped`, the usual ones of the task, the main one first.
    `splits` are "train" and, where there are any, "validation", further validation splits by name (MNLI's
    `validation_mismatched`), and "test".
    """

    name: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    number: int
    text: str
    pair: str | None
    label: str | float | None
    group: str | None = None
    answer: str | None = None


# ------------------------------------------------------------------------------------------------------- examples


def load_examples(
    train: str | Path,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    kind: Literal["classification", "regression"] = "classification",
    label_names: Sequence[str] | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> TaskData:
    """Reads a task's examples from `train`, `validation` and `test`, each a source (see `sources`).

    A published source (`tfds:glue/sst2`, `super_glue/cb:train.jsonl`, see `published`) knows its columns, kind, classes
    and splits; the column arguments and `kind` describe every other source. With a `train` from tensorflow_datasets and
    no `validation` the set's own validation splits are read. A `test` source may leave its labels out, all of them.

    Args:
      label_names: the classes in the order of their indices. Default: the official order of a published set, else the
        order that tensorflow_datasets has, else the names found in training, as numbers if all are integers, else as
        text.
      data_dir: where tensorflow_datasets keeps prepared sets; default: its own folder.
      manual_dir: archives downloaded by hand, for a machine without internet; default: `downloads/manual` in data_dir.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a source that cannot be read or used; one line with the file, the line and the reason.
    """
    source = Source.parse(str(train))
    known = source.published
    if known and kind == "regression" and known.kind != "regression":
        raise UserError(f"{train} is a classification task; leave kind at 'classification'")
    kind = "regression" if known and known.kind == "regression" else kind

    def read(source: Source, role: Role) -> tuple[Table, list[_Row]]:
        columns = {"text": text_column, "label": label_column} | ({"pair": pair_column} if pair_column else {})
        columns = {name: str(column) for name, column in columns_of(source, kind, columns).items()}
        table = open_table(source, label_column=columns["label"], data_dir=data_dir, manual_dir=manual_dir)
        return table, _read_rows(table, columns, kind, labels_optional=role == "test")

    splits, names = {}, ()
    for name, split, role in named_splits(train, validation, test):
        table, rows = read(split, role)
        if role == "train":
            names = _label_names(table, rows, kind, label_names or (known.label_names if known else ()))
        splits[name] = _to_examples(table, rows, names)
    return TaskData(
        name=source.name,
        label_names=names,
        metrics=known.metrics if known else ("accuracy", "macro_f1") if names else ("pearson", "spearman"),
        splits=splits,
    )


def _read_rows(table: Table, columns: Mapping[str, str], kind: str, *, labels_optional: bool) -> list[_Row]:
    """All rows of a table, with the label as a class name or as a number. Raises where a row cannot be used."""
    rows = []
    for number, fields in table.rows:
        try:
            text = text_field(fields, columns["text"], allow_empty=table.published)
            pair = text_field(fields, columns["pair"], allow_empty=table.published) if "pair" in columns else None
            group, answer = (str(field(fields, columns[of])) if of in columns else None for of in ("group", "answer"))
            hidden = columns["label"] not in fields or (table.hidden_label and fields[columns["label"]] == -1)
            label = None
            if not (labels_optional and hidden):
                value = field(fields, columns["label"])
                label = score_value(value) if kind == "regression" else class_name(value, table.class_names)
        except ValueError as error:
            raise table.error(number, error) from None
        if rows and (label is None) != (rows[0].label is None):
            raise table.error(number, f"row {rows[0].number} and this one differ: give every row a label, or none")
        rows.append(_Row(number, text, pair, label, group, answer))
    if not rows:
        raise UserError(f"{table.name} has no rows")
    return rows


def _label_names(table: Table, rows: list[_Row], kind: str, given: Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of their indices; none for regression."""
    if kind == "regression":
        if given:
            raise UserError(f"label_names {tuple(given)} were given for a regression, which has no classes")
        return ()
    if len(set(given)) != len(given):
        raise UserError(f"label_names {tuple(given)} repeat a name; give every class once")
    found = {str(row.label) for row in rows}
    if len(found) == 1:
        raise UserError(f"{table.name} has only one class, {found.pop()!r}; training needs at least two")
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
        examples.append(Example(row.text, row.pair, label, row.group, row.answer))
    return tuple(examples)


# -------------------------------------------------------------------------------------------------------- encoding


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
    (class) or float32 [E] (score), None for unlabeled examples. `truncated`: how many examples were longer than S.
    A `base.Encoded`.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    truncated: int

    @property
    def labeled(self) -> bool:
        return self.labels is not None

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{self.truncated} cut to {self.input_ids.shape[1]} tokens",) if self.truncated else ()

    def batch(self, rows: np.ndarray, *, length: int) -> Batch:
        """Rows as int32 [B, length] `input_ids`, `attention_mask`, `token_type_ids`; [B] `labels` if there are any."""
        real = np.arange(length) < self.lengths[rows, None]
        batch = {
            "input_ids": self.input_ids[rows, :length],
            "attention_mask": real.astype(np.int32),
            "token_type_ids": self.token_type_ids[rows, :length],
        }
        return batch if self.labels is None else batch | {"labels": self.labels[rows]}


def encode_examples(examples: Sequence[Example], tokenizer: PairTokenizer, *, max_length: int) -> EncodedExamples:
    """Tokenizes examples into rows of `max_length` ids. Raises ValueError if some have labels and others none."""
    if not examples:
        raise UserError("there are no examples to encode")
    unlabeled = sum(example.label is None for example in examples)
    if unlabeled not in (0, len(examples)):
        raise UserError(f"{unlabeled} of {len(examples)} examples have no label; give labels to all or to none")
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
    if not unlabeled:
        score = isinstance(examples[0].label, float)
        labels = np.array([example.label for example in examples], np.float32 if score else np.int32)
    return EncodedExamples(input_ids, token_type_ids, lengths, labels, truncated)


# ----------------------------------------------------------------------------------------------- objective and task


def load(
    config: FinetuneConfig, tokenizer: Tokenizer, *, kind: Literal["classification", "regression"]
) -> "ClassificationTask":
    """The task of a run, tokenized. Raises as `load_examples`."""
    data = load_examples(
        config.data.train,
        validation=config.data.validation,
        test=config.data.test,
        text_column=config.data.columns.text_column or "text",
        pair_column=config.data.columns.pair_column,
        label_column=config.data.columns.label_column or "label",
        kind=kind,
        data_dir=config.data.data_dir,
        manual_dir=config.data.manual_dir,
    )
    splits = {
        name: encode_examples(examples, tokenizer, max_length=config.data.max_length)
        for name, examples in data.splits.items()
    }
    objective = Classification(regression=kind == "regression", label_smoothing=config.regularization.label_smoothing)
    return ClassificationTask(data, objective, splits)


@dataclasses.dataclass(frozen=True)
class Classification:
    """One softmax over the classes; with `regression` one score. A `base.Objective`.

    `label_smoothing`: the share of a label that is spread over all classes.
    """

    regression: bool = False
    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForSequenceClassification(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        if self.regression:
            return losses.regression(out.logits[:, 0], batch["labels"])
        return losses.classification(out.logits, batch["labels"], smoothing=self.label_smoothing)

    def count(self, batch: Arrays) -> jax.Array:
        return jnp.asarray(batch["input_ids"].shape[0], jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array | None]:
        del batch
        return out.logits, None

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """`score` [B] of a regression, else `probabilities` [B, C]."""
        del batch
        return {"score": out.logits[:, 0]} if self.regression else {"probabilities": jax.nn.softmax(out.logits)}


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """A `base.Task`."""

    data: TaskData
    objective: Classification
    splits: Mapping[str, EncodedExamples]

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.data.label_names

    @property
    def main_metric(self) -> str:
        return self.data.metrics[0]

    def score(self, split: str, found: Found) -> dict[str, float]:
        labels = self.splits[split].labels
        if labels is None:
            raise UserError(f"the {split} split has no labels to measure against; leave it out")
        predictions = self._predictions(found)
        figures = compute_metrics([name for name in self.data.metrics if name in METRICS], predictions, labels)
        groups = [str(example.group) for example in self.data.splits[split]]
        if "exact_match" in self.data.metrics:
            figures["exact_match"] = exact_match(predictions, labels, groups)
        if "answer_f1" in self.data.metrics:
            answers = [str(example.answer) for example in self.data.splits[split]]
            figures |= answer_scores([float(one["probabilities"][1]) for one in found], labels, groups, answers)
        return figures

    def records(self, split: str, found: Found) -> Iterator[dict[str, Any]]:
        predictions = self._predictions(found)
        for example, prediction, one in zip(self.data.splits[split], predictions, found, strict=True):
            record: dict[str, Any] = {"text": example.text}
            if example.pair is not None:
                record["pair"] = example.pair
            if example.group is not None:
                record["group"] = example.group
            if self.objective.regression:
                known = {} if example.label is None else {"label": example.label}
                yield record | known | {"prediction": float(prediction)}
            else:
                known = {} if example.label is None else {"label": self.label_names[int(example.label)]}
                shares = dict(zip(self.label_names, map(float, one["probabilities"]), strict=True))
                yield record | known | {"prediction": self.label_names[prediction], "probabilities": shares}

    def plot(self, path: Path, split: str, found: Found) -> None:
        """Confusion and calibration of a labeled split as a PNG; nothing for a regression."""
        labels = self.splits[split].labels
        if labels is not None and not self.objective.regression:
            plot_answers(path, stack_probabilities(found, "example"), labels, self.label_names)

    def _predictions(self, found: Found) -> np.ndarray:
        """Scores, or the indices of the likeliest classes, [E]. Raises as `stack_probabilities`."""
        if self.objective.regression:
            return np.array([one["score"] for one in found])
        return stack_probabilities(found, "example").argmax(axis=1)
