"""A label for every word of a sentence: named entities, parts of speech.

Nothing is dropped: what cannot be used stops the run and is named by file and line.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForTokenClassification
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ..base import Arrays, Found
from ..metrics import accuracy
from ..sources.cells import check_text, class_name, field
from ..sources.source import Source, Table, as_published, columns_of, named_splits, open_table
from .conll import FIRST, LAST, is_conll, read_conll
from .entities import entities, entity_scores, marks_entities
from .sentences import EncodedWords, Sentence, encode_sentences

# ------------------------------------------------------------------------------------------------------- examples


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    number: int
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


def _open(source: Source, config: FinetuneConfig) -> tuple[Table, Mapping[str, Any]]:
    """The table of a source, and which columns have the words and the tags."""
    if source.path is not None and is_conll(source.path):
        columns_of(source, "tokens", {})
        columns = {"text": config.data.columns.text_column or FIRST, "label": config.data.columns.label_column or LAST}
        return as_published(read_conll(source.path), source, label_column=columns["label"]), columns
    given = {"text": config.data.columns.text_column or "words", "label": config.data.columns.label_column or "labels"}
    columns = columns_of(source, "tokens", given)
    table = open_table(
        source, label_column=str(columns["label"]), data_dir=config.data.data_dir, manual_dir=config.data.manual_dir
    )
    return table, columns


def _read_rows(table: Table, columns: Mapping[str, str], *, labels_optional: bool) -> list[_Row]:
    rows = []
    for number, fields in table.rows:
        try:
            words = _list(fields, columns["text"])
            if not words and not table.published:
                raise UserError(f"column {columns['text']!r} is an empty list; give words or take the row out")
            words = tuple(check_text(word, columns["text"], allow_empty=table.published) for word in words)
            tags = None
            if not labels_optional or columns["label"] in fields:
                tags = tuple(class_name(tag, table.class_names) for tag in _list(fields, columns["label"]))
                if len(tags) != len(words):
                    raise UserError(f"{len(tags)} labels for {len(words)} words; give one a word")
        except ValueError as error:
            raise table.error(number, error) from None
        if rows and (tags is None) != (rows[0].tags is None):
            raise table.error(number, f"row {rows[0].number} and this one differ: give every row labels, or none")
        rows.append(_Row(number, words, tags))
    if not rows:
        raise UserError(f"{table.name} has no rows")
    return rows


def _list(fields: Mapping[str, Any], column: str) -> list[Any]:
    values = field(fields, column)
    if not isinstance(values, list | tuple | np.ndarray):
        raise UserError(f"column {column!r} holds {values!r:.40}, not a list with a value a word")
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _label_names(table: Table, rows: list[_Row], known: tuple[str, ...]) -> tuple[str, ...]:
    """In the official order, else in that of tensorflow_datasets, else "O" first and "B-X" next to "I-X"."""
    found = {tag for row in rows for tag in row.tags or ()}
    if len(found) < 2:
        raise UserError(
            f"{table.name} has only {'one label, ' + repr(*found) if found else 'empty sentences'}; "
            "training needs at least two labels"
        )
    if known or table.class_names:
        return known or table.class_names
    numbers = all(tag.isdecimal() for tag in found)
    return tuple(sorted(found, key=lambda tag: (tag != "O", int(tag) if numbers else 0, tag.partition("-")[2], tag)))


def _to_sentences(table: Table, rows: list[_Row], names: tuple[str, ...]) -> tuple[Sentence, ...]:
    index = {name: number for number, name in enumerate(names)}
    sentences = []
    for row in rows:
        for place, tag in enumerate(row.tags or ()):
            if tag not in index:
                raise table.error(
                    row.number,
                    f"label {tag!r} of word {place + 1}, {row.words[place]!r:.40}, is not one of training: "
                    f"{', '.join(names)}",
                )
        labels = None if row.tags is None else tuple(index[tag] for tag in row.tags)
        sentences.append(Sentence(row.words, labels))
    return tuple(sentences)


# ----------------------------------------------------------------------------------------------- objective and task


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "TokenLabelTask":
    """The task of a run, tokenized.

    `text_column` and `label_column` have lists, by default "words" and "labels"; in `.conll` and `.txt` files they are
    numbers of columns, by default the first and the last. A test source may leave its labels out, all of them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a source that cannot be read or used; one line with the file, the line and the reason.
    """
    sentences, splits, names = {}, {}, ()
    source = Source.parse(config.data.train)
    for name, split, role in named_splits(config.data.train, config.data.validation, config.data.test):
        table, columns = _open(split, config)
        rows = _read_rows(table, columns, labels_optional=role == "test")
        if role == "train":
            names = _label_names(table, rows, source.published.label_names if source.published else ())
        sentences[name] = _to_sentences(table, rows, names)
        splits[name] = encode_sentences(
            sentences[name], tokenizer, max_length=config.data.max_length, notes=table.notes
        )
    return TokenLabelTask(source.name, TokenLabels(config.regularization.label_smoothing), names, sentences, splits)


@dataclasses.dataclass(frozen=True)
class TokenLabels:
    """A softmax a word. A `base.Objective`.

    `label_smoothing`: the share of a label that is spread over all labels.
    """

    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        """With transformers' head, a single layer, so that an exported model loads there."""
        return DebertaForTokenClassification(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        return losses.classification(out.logits, batch["labels"], smoothing=self.label_smoothing)

    def count(self, batch: Arrays) -> jax.Array:
        return (batch["labels"] >= 0).sum().astype(jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array | None]:
        """Those of first pieces alone, so that SiFT's loss is a mean over words, as the task's is."""
        return out.logits, (batch["labels"] >= 0).astype(jnp.float32)

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Of every token the likeliest `label`, int32 [B, S], and its `probability`, float32 [B, S]."""
        del batch
        probabilities = jax.nn.softmax(out.logits)
        return {"label": probabilities.argmax(axis=-1), "probability": probabilities.max(axis=-1)}


@dataclasses.dataclass(frozen=True)
class TokenLabelTask:
    """A `base.Task`. `sentences` by split; of each split `EncodedWords` has the windows."""

    name: str
    objective: TokenLabels
    label_names: tuple[str, ...]
    sentences: Mapping[str, tuple[Sentence, ...]]
    splits: Mapping[str, EncodedWords]

    @property
    def main_metric(self) -> str:
        return "f1" if marks_entities(self.label_names) else "accuracy"

    def score(self, split: str, found: Found) -> dict[str, float]:
        """`f1`, `precision` and `recall` of entities if the labels mark any, and the `accuracy` of all words."""
        sentences = self.sentences[split]
        if not self.splits[split].labeled:
            raise UserError(f"the {split} split has no labels to measure against; leave it out")
        predicted = [labels for labels, _ in self._predictions(split, found)]
        truth = [np.array(sentence.labels, np.int32) for sentence in sentences]
        figures = {"accuracy": accuracy(np.concatenate(predicted), np.concatenate(truth))}
        if not marks_entities(self.label_names):
            return figures
        return entity_scores(list(map(self._tags, predicted)), list(map(self._tags, truth))) | figures

    def plot(self, path: Path, split: str, found: Found) -> None:
        """Does nothing: this kind has no plot."""

    def records(self, split: str, found: Found) -> Iterator[dict[str, Any]]:
        for sentence, (labels, probabilities) in zip(
            self.sentences[split], self._predictions(split, found), strict=True
        ):
            tags = self._tags(labels)
            record: dict[str, Any] = {"words": list(sentence.words)}
            if sentence.labels is not None:
                record["labels"] = self._tags(sentence.labels)
            record["predictions"] = tags
            record["probabilities"] = [None if np.isnan(share) else float(share) for share in probabilities]
            if marks_entities(self.label_names):
                record["entities"] = [
                    {**one._asdict(), "words": list(sentence.words[one.start : one.stop])} for one in entities(tags)
                ]
            yield record

    def _tags(self, labels: Sequence[int] | np.ndarray) -> list[str]:
        return [self.label_names[label] for label in labels]

    def _predictions(self, split: str, found: Found) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Labels and their probabilities, by sentence; of a word without pieces "O", or else the first label, and nan.

        Raises ValueError where a probability is not finite.
        """
        default = self.label_names.index("O") if "O" in self.label_names else 0
        sizes = [len(sentence.words) for sentence in self.sentences[split]]
        answers = [(np.full(size, default, np.int32), np.full(size, np.nan, np.float32)) for size in sizes]
        for window, one in zip(self.splits[split].windows, found, strict=True):
            probabilities = one["probability"][window.places]
            if not np.isfinite(probabilities).all():
                raise UserError(
                    f"the probabilities of sentence {window.sentence} are not finite; the model has diverged"
                )
            answers[window.sentence][0][window.words] = one["label"][window.places]
            answers[window.sentence][1][window.words] = probabilities
        yield from answers
