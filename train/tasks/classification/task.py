"""Classification and regression: objective and task."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from deberta_jax import losses
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ...reporting.classification_plots import plot_answers
from ..base import (
    AnswerLogits,
    Arrays,
    Predictions,
    WithoutTuning,
    stack_probabilities,
    unlabeled_split,
)
from ..class_metrics import chosen_metric, class_metric
from ..class_weights import class_weights, weights_array
from ..metrics import METRICS, REGRESSION_METRICS, compute_metrics
from ..sources.classes import NO_HEAD, Head
from ..texts import TextObjective, TextTask, class_record_size, shown_probabilities, stack_scores, text_fields
from .encoding import EncodedExamples, encode_splits
from .examples import ClassificationData, load_examples_of
from .grouped_metrics import answer_scores, exact_match


def load(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    *,
    kind: Literal["classification", "regression"],
    head: Head = NO_HEAD,
) -> "ClassificationTask":
    """Returns the tokenized task of a run. Raises the errors of `load_examples`, which describes `head`."""
    data = load_examples_of(config, kind=kind, head=head)
    metric = config.selection.metric
    if metric is not None and metric not in data.metrics:  # raises for a name that is unknown
        if kind == "regression":
            chosen_metric(metric, list(REGRESSION_METRICS))
        else:
            class_metric(metric, data.label_names, positive=data.positive)
    splits = encode_splits(data, tokenizer, max_length=config.data.max_length)
    labels = splits["train"].labels
    counts = np.bincount([] if labels is None or not data.label_names else labels, minlength=len(data.label_names))
    objective = Classification(
        regression=kind == "regression",
        label_smoothing=config.regularization.label_smoothing,
        class_weights=class_weights(config.loss.class_weights, data.label_names, counts),
        focal_gamma=config.loss.focal_gamma,
    )
    return ClassificationTask(data, objective, splits, config.top_k, metric)


@dataclasses.dataclass(frozen=True)
class Classification(TextObjective):
    """A softmax over the classes, or one score. Implements `base.Objective`.

    Attributes:
      regression: whether to predict a score instead of a class.
      label_smoothing: share of a label that is spread over all classes.
      class_weights: weight of each class in the loss; empty if all are 1.
      focal_gamma: exponent of the focal loss.
    """

    regression: bool = False
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        if self.regression:
            return losses.regression(out.logits[:, 0], batch["labels"])
        return losses.classification(
            out.logits,
            batch["labels"],
            smoothing=self.label_smoothing,
            class_weights=weights_array(self.class_weights),
            focal_gamma=self.focal_gamma,
        )

    def count(self, batch: Arrays) -> Float[Array, ""]:
        weights = self._weights(batch)
        return super().count(batch) if weights is None else weights.sum()

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        return AnswerLogits(out.logits, self._weights(batch))

    def _weights(self, batch: Arrays) -> Float[Array, "B"] | None:
        """Returns the weight of the class of each example; None if all are 1."""
        return jnp.asarray(self.class_weights, jnp.float32)[batch["labels"]] if self.class_weights else None

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns `score` [B] for regression, else `probabilities` [B, C]."""
        del batch
        return {"score": out.logits[:, 0]} if self.regression else {"probabilities": jax.nn.softmax(out.logits)}


@dataclasses.dataclass(frozen=True)
class ClassificationTask(TextTask[ClassificationData], WithoutTuning):
    """A task of classification or regression. Implements `base.Task`.

    The records have the probabilities of the `top_k` most probable classes (default: see `base.shown_classes`).
    """

    objective: Classification
    splits: Mapping[str, EncodedExamples]
    top_k: int | None = None
    metric: str | None = None  # that the user named, which is the main metric then

    @property
    def main_metric(self) -> str:
        return self.metric or self.data.metrics[0]

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        labels = self.splits[split].labels
        if labels is None:
            raise unlabeled_split(split)
        values = self._values(predictions)
        figures = {}
        for name in (name for name in self.data.metrics if name in METRICS):
            # The F1 of two classes is that of the official class 1, which another order of classes may number 0.
            compared = (values, labels)
            if name == "f1":
                compared = tuple((indices == self.data.positive).astype(np.int32) for indices in compared)
            figures |= compute_metrics([name], *compared)
        if self.metric is not None and self.metric not in self.data.metrics:
            if self.objective.regression:
                figures[self.metric] = REGRESSION_METRICS[self.metric](values, labels)
            else:
                measure = class_metric(self.metric, self.label_names, positive=self.data.positive)
                figures[self.metric] = measure(stack_probabilities(predictions, "example"), labels)
        if not {"exact_match", "answer_f1"} & set(self.data.metrics):
            return figures
        groups = [str(example.group) for example in self.data.splits[split]]
        if "exact_match" in self.data.metrics:
            figures["exact_match"] = exact_match(values, labels, groups)
        if "answer_f1" in self.data.metrics:
            answers = [str(example.answer) for example in self.data.splits[split]]
            probabilities = [float(prediction["probabilities"][self.data.positive]) for prediction in predictions]
            figures |= answer_scores(probabilities, (labels == self.data.positive).astype(np.int32), groups, answers)
        return figures

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        values = self._values(predictions)
        names = (*self.label_names, *self.data.unseen)
        for example, value, prediction in zip(self.data.splits[split], values, predictions, strict=True):
            record = text_fields(example)
            if example.group is not None:
                record["group"] = example.group
            if self.objective.regression:
                label = {} if example.label is None else {"label": example.label}
                yield record | label | {"prediction": float(value)}
            else:
                label = {} if example.label is None else {"label": names[int(example.label)]}
                probabilities = shown_probabilities(prediction["probabilities"], names, self.top_k)
                yield record | label | {"prediction": self.label_names[value], "probabilities": probabilities}

    def record_size(self, split: str) -> float:
        return class_record_size(self.data.splits[split], self.label_names, self.top_k)

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Writes the confusion and the calibration of a labeled split to a PNG file; does nothing for regression."""
        labels = self.splits[split].labels
        if labels is not None and not self.objective.regression:
            probabilities = stack_probabilities(predictions, "example")
            unseen = np.zeros((len(probabilities), len(self.data.unseen)), probabilities.dtype)
            names = (*self.label_names, *self.data.unseen)
            plot_answers(path, np.concatenate([probabilities, unseen], axis=1), labels, names)

    def _values(self, predictions: Predictions) -> Num[np.ndarray, "E"]:
        """Returns the scores, or the most probable classes. Raises TrainingError if one is not finite."""
        if self.objective.regression:
            return stack_scores(predictions)
        return stack_probabilities(predictions, "example").argmax(axis=1)
