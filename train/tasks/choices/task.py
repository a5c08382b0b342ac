"""Multiple choice: objective and task. The model scores each choice separately."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.models import DebertaForMultipleChoice
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ..base import (
    PROBABILITY_BYTES,
    AnswerLogits,
    Arrays,
    Predictions,
    WithoutTuning,
    mean_json_size,
    most_probable,
    shown_classes,
    stack_probabilities,
    unlabeled_split,
)
from ..class_metrics import chosen_metric, log_loss
from ..metrics import compute_metrics
from ..sources.delimited import Reading
from ..sources.published import Columns
from ..sources.source import Source, columns_of, named_splits, open_table
from .encoding import EncodedQuestions, encode_choice_questions
from .questions import ChoiceQuestion, read_questions

_MASKED = -1e9  # logit of a choice that a question does not have: finite, because 0 times infinity is NaN


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "ChoiceTask":
    """Returns the tokenized task of a run.

    `text_column` is the context and `pair_column` the question, if there is one. `choices_columns` is one column of
    lists or one column per choice, and `label_column` the index, the letter or the text of the correct choice. Either
    all or none of the examples of the test source have labels.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used; the message has the file, the line and the reason.
    """
    questions, splits = {}, {}
    for name, split, role in named_splits(config.data.train, config.data.validation, config.data.test):
        columns = columns_of(split, "choice", _columns(config))
        table = open_table(
            split,
            label_column=str(columns["label"]),
            data_dir=config.data.data_dir,
            manual_dir=config.data.manual_dir,
            reading=Reading.of(config.data.columns),
        )
        questions[name] = read_questions(table, columns, label_optional=role == "test")
        splits[name] = encode_choice_questions(
            questions[name], tokenizer, max_length=config.data.max_length, notes=table.notes
        )
    objective = Choice(config.regularization.label_smoothing)
    metric = chosen_metric(config.selection.metric, ("accuracy", "log_loss")) or "accuracy"
    name = Source.parse(config.data.train).name
    return ChoiceTask(name, objective, questions, splits, config.top_k, main_metric=metric)


def _columns(config: FinetuneConfig) -> Columns:
    columns: dict[str, str | tuple[str, ...]] = {
        "text": config.data.columns.text_column or "text",
        "choices": config.data.columns.choices_columns or ("choices",),
        "label": config.data.columns.label_column or "label",
    }
    return columns | ({"pair": config.data.columns.pair_column} if config.data.columns.pair_column else {})


@dataclasses.dataclass(frozen=True)
class Choice:
    """A softmax over the choices of a question. Implements `base.Objective`.

    Attributes:
      label_smoothing: share of a label that is spread over all choices of its question.
    """

    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForMultipleChoice(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        logits, labels = _real_logits(out, batch), batch["labels"]
        if self.label_smoothing:  # only over the choices that a question has
            shares = batch["real"] / batch["real"].sum(axis=-1, keepdims=True)
            hard_labels = jax.nn.one_hot(labels, logits.shape[-1])
            labels = (1 - self.label_smoothing) * hard_labels + self.label_smoothing * shares
        return losses.classification(logits, labels)

    def count(self, batch: Arrays) -> Float[Array, ""]:
        return jnp.asarray(batch["input_ids"].shape[0], jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        return AnswerLogits(_real_logits(out, batch))

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns `probabilities` [B, C], with 0 for choices that a question does not have."""
        return {"probabilities": jax.nn.softmax(_real_logits(out, batch))}


def _real_logits(out: Any, batch: Arrays) -> Float[Array, "B C"]:
    return jnp.where(batch["real"] != 0, out.logits, _MASKED)


@dataclasses.dataclass(frozen=True)
class ChoiceTask(WithoutTuning):
    """A multiple-choice task. Implements `base.Task`.

    The task has no classes, because the model gives one score to each choice. The records have null for the
    probabilities of all but the `top_k` most probable choices of a question (default: see `base.shown_classes`).
    """

    name: str
    objective: Choice
    questions: Mapping[str, Sequence[ChoiceQuestion]]
    splits: Mapping[str, EncodedQuestions]
    top_k: int | None = None
    label_names: tuple[str, ...] = ()
    main_metric: str = "accuracy"

    @property
    def examples(self) -> Mapping[str, Sequence[ChoiceQuestion]]:
        return self.questions

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        labels = self.splits[split].labels
        if labels is None:
            raise unlabeled_split(split)
        probabilities = stack_probabilities(predictions, "question")
        figures = compute_metrics(("accuracy",), probabilities.argmax(axis=1), labels)
        return figures | ({"log_loss": log_loss(probabilities, labels)} if self.main_metric == "log_loss" else {})

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Does nothing, because this kind has no plot."""

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        stacked = stack_probabilities(predictions, "question")
        for question, probabilities in zip(self.questions[split], stacked, strict=True):
            record: dict[str, Any] = {"text": question.context}
            if question.question is not None:
                record["question"] = question.question
            record["choices"] = list(question.choices)
            if question.label is not None:
                record["label"] = question.label
            record["prediction"] = int(probabilities.argmax())
            shares = probabilities[: len(question.choices)]
            shown = set(most_probable(shares, shown_classes(len(shares), self.top_k)).tolist())
            record["probabilities"] = [float(share) if place in shown else None for place, share in enumerate(shares)]
            yield record

    def record_size(self, split: str) -> float:
        questions = self.questions[split]
        choices = sum(len(question.choices) for question in questions) / max(1, len(questions))
        shown = shown_classes(round(choices), self.top_k)
        return mean_json_size(questions) + choices * len("null, ") + shown * PROBABILITY_BYTES
