"""Ranking, as of documents for a query: one logit, whose sigmoid is the relevance. Objective and task.

A saved model is what cross-encoders are in sentence-transformers: a classifier of one label without a problem_type.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from deberta_jax import losses
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ..base import (
    PROBABILITY_BYTES,
    AnswerLogits,
    Arrays,
    Predictions,
    WithoutTuning,
    mean_json_size,
    sigmoid_answers,
    unlabeled_split,
)
from ..binary_metrics import BINARY_NAMES, Binary, binary_log_loss, binary_metric
from ..class_metrics import unknown_metric
from ..metrics import REGRESSION_METRICS, accuracy
from ..texts import TextObjective, TextTask, stack_scores, text_fields
from .encoding import EncodedExamples, encode_splits
from .examples import ClassificationData, load_examples_of

_OF_BINARY = ("average_precision", "auc", "f1", "accuracy")  # reported where all labels are 0 or 1
_OF_SHARES = ("spearman", "pearson")  # reported where labels are between
_ALWAYS = (*REGRESSION_METRICS, "log_loss")


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "RankingTask":
    """Returns the tokenized task of a run. Raises the errors of `load_examples`."""
    data = load_examples_of(config, kind="ranking")
    splits = encode_splits(data, tokenizer, max_length=config.data.max_length)
    labels = [split.labels for split in splits.values() if split.labels is not None]
    is_binary = all(bool(np.isin(of_split, (0, 1)).all()) for of_split in labels)
    metric = config.selection.metric
    if metric is not None and metric not in _ALWAYS:
        if not is_binary:
            raise unknown_metric(metric, _ALWAYS)
        if metric != "accuracy" and binary_metric(metric) is None:
            raise unknown_metric(metric, ["accuracy", *BINARY_NAMES, *_ALWAYS])
    objective = Ranking(config.regularization.label_smoothing, config.loss.focal_gamma)
    return RankingTask(data, objective, splits, is_binary, metric)


@dataclasses.dataclass(frozen=True)
class Ranking(TextObjective):
    """A sigmoid of one logit. Implements `base.Objective`.

    Attributes:
      label_smoothing: share of a label that is spread over 0 and 1.
      focal_gamma: exponent of the focal loss.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return losses.binary(
            out.logits, batch["labels"][:, None], smoothing=self.label_smoothing, focal_gamma=self.focal_gamma
        )

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        """Returns logits [B, 1, 2], whose softmax is the sigmoid."""
        del batch
        return sigmoid_answers(out.logits)

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns the `score` [B], the sigmoid of the logit."""
        del batch
        return {"score": jax.nn.sigmoid(out.logits[:, 0])}


@dataclasses.dataclass(frozen=True)
class RankingTask(TextTask[ClassificationData], WithoutTuning):
    """A task of ranking. Implements `base.Task`. A score of 0.5 and more counts as a prediction of 1."""

    objective: Ranking
    splits: Mapping[str, EncodedExamples]
    is_binary: bool  # whether all labels are 0 or 1
    metric: str | None = None  # that the user named, which is the main metric then

    @property
    def main_metric(self) -> str:
        return self.metric or (_OF_BINARY if self.is_binary else _OF_SHARES)[0]

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        labels = self.splits[split].labels
        if labels is None:
            raise unlabeled_split(split)
        scores = stack_scores(predictions)
        names = dict.fromkeys([*(_OF_BINARY if self.is_binary else _OF_SHARES), "log_loss", self.main_metric])
        return {name: self._metric(name, scores, labels) for name in names}

    def _metric(self, name: str, scores: Float[np.ndarray, "E"], labels: Float[np.ndarray, "E"]) -> float:
        if name in REGRESSION_METRICS:
            return REGRESSION_METRICS[name](scores, labels)
        if name == "log_loss":
            return binary_log_loss(scores, labels)
        if name == "accuracy":
            return accuracy(scores >= 0.5, labels == 1)
        measure = binary_metric(name)
        assert measure is not None, "load has checked the name"
        return measure(Binary(scores, scores >= 0.5, labels == 1))

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        for example, score in zip(self.data.splits[split], stack_scores(predictions), strict=True):
            label = {} if example.label is None else {"label": example.label}
            yield text_fields(example) | label | {"prediction": float(score)}

    def record_size(self, split: str) -> float:
        return mean_json_size(self.data.splits[split]) + PROBABILITY_BYTES

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Does nothing, because this kind has no plot."""
