"""A label for each word of a sentence, as for named entities and parts of speech: objective and task."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.models import DebertaForTokenClassification
from deberta_jax.predict.entity_tags import marks_entities
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ...engine.divergence import TrainingError
from ..base import PROBABILITY_BYTES, AnswerLogits, Arrays, Predictions, mean_json_size, unlabeled_split
from ..metrics import accuracy
from ..sources.classes import NO_HEAD, ClassChoice, Head, choose_classes
from ..sources.delimited import Reading
from ..sources.source import Source, as_published, columns_of, named_splits, open_table
from ..sources.table import Table
from .conll import is_conll, read_conll
from .encoding import EncodedWords, encode_sentences
from .entities import entities, entity_scores
from .sentences import NO_LABEL, Sentence, TaggedSentences, label_sentences, read_sentences, tag_order


def _open(source: Source, config: FinetuneConfig) -> tuple[Table, Mapping[str, Any]]:
    """Returns the table of a source and the columns of its words and tags."""
    if source.path is not None and is_conll(source.path):
        columns_of(source, "tokens", {})
        conll = read_conll(source.path)
        given = config.data.columns
        columns = {"text": given.text_column or conll.text, "label": given.label_column or conll.label}
        return as_published(conll.table, source, label_column=columns["label"]), columns
    given = {"text": config.data.columns.text_column or "words", "label": config.data.columns.label_column or "labels"}
    columns = columns_of(source, "tokens", given)
    table = open_table(
        source,
        label_column=str(columns["label"]),
        data_dir=config.data.data_dir,
        manual_dir=config.data.manual_dir,
        reading=Reading.of(config.data.columns),
    )
    return table, columns


def load(config: FinetuneConfig, tokenizer: Tokenizer, *, head: Head = NO_HEAD) -> "TokenLabelTask":
    """Returns the tokenized task of a run.

    `text_column` and `label_column` are columns of lists (default: "words" and "labels"). In files of CoNLL's form
    they are numbers of columns (default: the first and the last; FORM and UPOS of CoNLL-U). Either all or none of the
    sentences of the test source have labels. `head` is the classifier of the model to start from (default: there is
    none); the module `classes` describes the order of the classes.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used; the message has the file, the line and the reason.
    """
    tagged: dict[str, TaggedSentences] = {}
    source = Source.parse(config.data.train)
    for name, split, role in named_splits(config.data.train, config.data.validation, config.data.test):
        table, columns = _open(split, config)
        tagged[name] = read_sentences(table, columns, label_optional=role == "test")
        known = role == "train" or "-1" in tagged["train"].tags
        if not known and tagged[name].hidden.all_hidden(table, role):
            tagged[name] = tagged[name].without_labels()
    observed = {name: set(split.tags) for name, split in tagged.items()}
    official = source.published.label_names if source.published else ()
    train = tagged["train"].table
    choice = ClassChoice(config.data.labels, head, official or train.class_names, tag_order)
    classes = choose_classes(observed, choice, table=train.name)
    notes = {name: (*split.table.notes, *classes.notes[name]) for name, split in tagged.items()}
    sentences = {name: label_sentences(split, classes) for name, split in tagged.items()}
    del tagged  # its memory is needed
    splits = {
        name: encode_sentences(of_split, tokenizer, max_length=config.data.max_length, notes=notes[name])
        for name, of_split in sentences.items()
    }
    objective = TokenLabels(config.regularization.label_smoothing)
    return TokenLabelTask(source.name, objective, classes.names, sentences, splits, classes.unseen)


@dataclasses.dataclass(frozen=True)
class TokenLabels:
    """A softmax per word. Implements `base.Objective`.

    Attributes:
      label_smoothing: share of a label that is spread over all labels.
    """

    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        """Returns a model with the head of transformers, a single layer, unless the configuration has Microsoft's."""
        return DebertaForTokenClassification(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return losses.classification(out.logits, batch["labels"], smoothing=self.label_smoothing)

    def count(self, batch: Arrays) -> Float[Array, ""]:
        """Returns the number of words with a label, at least 1: the loss of a batch without any is 0, not NaN."""
        return jnp.maximum((batch["labels"] >= 0).sum(), 1).astype(jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        """Only first pieces have weight, so that the loss of SiFT is a mean over words, as the loss of the task is."""
        return AnswerLogits(out.logits, (batch["labels"] >= 0).astype(jnp.float32))

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns the most probable `label` of each token, int32 [B, S], and its `probability`, float32 [B, S]."""
        del batch
        probabilities = jax.nn.softmax(out.logits)
        return {"label": probabilities.argmax(axis=-1), "probability": probabilities.max(axis=-1)}


@dataclasses.dataclass(frozen=True, eq=False)
class PredictedWords:
    """The predictions for the words of a sentence.

    Attributes:
      labels: class index of each word; for a word without pieces "O" or else the first class.
      probabilities: probability of each label; NaN for a word without pieces.
    """

    labels: Int[np.ndarray, "words"]
    probabilities: Float[np.ndarray, "words"]


@dataclasses.dataclass(frozen=True)
class TokenLabelTask:
    """A task of labels of words. Implements `base.Task`.

    The examples of `splits` are the windows of the `sentences` of the same split. `unseen` are labels of held-out
    splits that the model does not have.
    """

    name: str
    objective: TokenLabels
    label_names: tuple[str, ...]
    sentences: Mapping[str, Sequence[Sentence]]
    splits: Mapping[str, EncodedWords]
    unseen: tuple[str, ...] = ()

    @property
    def main_metric(self) -> str:
        return "f1" if marks_entities(self.label_names) else "accuracy"

    @property
    def examples(self) -> Mapping[str, Sequence[Sentence]]:
        return self.sentences

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        """Returns the `accuracy` of all words, and `f1`, `precision` and `recall` of entities if labels mark any.

        Words without a label are left out, as the evaluation of transformers does.
        """
        sentences = self.sentences[split]
        if not self.splits[split].labeled:
            raise unlabeled_split(split)
        expected = [np.array(sentence.labels, np.int32) for sentence in sentences]
        predicted = [
            words.labels[labels != NO_LABEL]
            for words, labels in zip(self._predicted_words(split, predictions), expected, strict=True)
        ]
        expected = [labels[labels != NO_LABEL] for labels in expected]
        figures = {"accuracy": accuracy(np.concatenate(predicted), np.concatenate(expected))}
        if not marks_entities(self.label_names):
            return figures
        return entity_scores(list(map(self._tags, predicted)), list(map(self._tags, expected))) | figures

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Does nothing, because this kind has no plot."""

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        predicted = self._predicted_words(split, predictions)
        for sentence, words in zip(self.sentences[split], predicted, strict=True):
            tags = self._tags(words.labels)
            record: dict[str, Any] = {"words": list(sentence.words)}
            if sentence.labels is not None:
                record["labels"] = [None if label == NO_LABEL else self._tag(label) for label in sentence.labels]
            record["predictions"] = tags
            record["probabilities"] = [None if np.isnan(share) else float(share) for share in words.probabilities]
            if marks_entities(self.label_names):
                record["entities"] = [
                    {**entity._asdict(), "words": list(sentence.words[entity.start : entity.stop])}
                    for entity in entities(tags)
                ]
            yield record

    def record_size(self, split: str) -> float:
        sentences = self.sentences[split]
        words = sum(len(sentence.words) for sentence in sentences) / max(1, len(sentences))
        mean_tag = sum(map(len, self.label_names)) / len(self.label_names)
        return mean_json_size(sentences) + words * (2 * mean_tag + PROBABILITY_BYTES)

    def _tags(self, labels: Sequence[int] | Int[np.ndarray, "words"]) -> list[str]:
        return [self._tag(label) for label in labels]

    def _tag(self, label: int) -> str:
        known = len(self.label_names)
        return self.label_names[label] if label < known else self.unseen[label - known]

    def _predicted_words(self, split: str, predictions: Predictions) -> list[PredictedWords]:
        """Returns the predictions of each sentence. Raises TrainingError if a probability is not finite."""
        default = next((index for index, name in enumerate(self.label_names) if name.upper() == "O"), 0)
        sizes = [len(sentence.words) for sentence in self.sentences[split]]
        sentences = [
            PredictedWords(np.full(size, default, np.int32), np.full(size, np.nan, np.float32)) for size in sizes
        ]
        for window, prediction in zip(self.splits[split].windows, predictions, strict=True):
            probabilities = prediction["probability"][window.positions]
            if not np.isfinite(probabilities).all():
                raise TrainingError(
                    f"the probabilities of sentence {window.sentence} are not finite; the model has diverged"
                )
            sentences[window.sentence].labels[window.words] = prediction["label"][window.positions]
            sentences[window.sentence].probabilities[window.words] = probabilities
        return sentences
