"""Multi-label classification, in which a text has any number of classes: objective and task."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array, Float

from deberta_jax import losses
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ...task_configs import MultilabelConfig
from ..base import (
    AnswerLogits,
    Arrays,
    Predictions,
    sigmoid_answers,
    stack_probabilities,
    unlabeled_split,
)
from ..class_weights import class_weights, weights_array
from ..sources.classes import NO_HEAD, Head
from ..texts import TextObjective, TextTask, class_record_size, shown_probabilities, text_fields
from .encoding import EncodedLabels, encode_labels
from .examples import MultilabelData, load_examples
from .metrics import REPORTED, LabelPredictions, label_metric
from .thresholds import UNTUNED, Thresholds


def load(config: FinetuneConfig, tokenizer: Tokenizer, *, head: Head = NO_HEAD) -> "MultilabelTask":
    """Returns the tokenized task of a run. Raises the errors of `load_examples`, which describes `head`."""
    data = load_examples(config, head)
    metric = config.selection.metric
    if metric is not None:
        label_metric(metric, data.label_names)  # raises for an unknown name
    splits = {
        name: encode_labels(
            examples,
            tokenizer,
            classes=len(data.label_names),
            max_length=config.data.max_length,
            notes=data.notes[name],
        )
        for name, examples in data.splits.items()
    }
    counts, examples = np.zeros(len(data.label_names), np.int64), data.splits["train"]
    for example in examples if config.loss.class_weights else ():
        counts[list(example.labels or ())] += 1
    objective = Multilabel(
        label_smoothing=config.regularization.label_smoothing,
        positive_weights=class_weights(
            config.loss.class_weights, data.label_names, counts, examples=len(data.splits["train"])
        ),
        focal_gamma=config.loss.focal_gamma,
    )
    return MultilabelTask(data, objective, splits, config.multilabel, config.top_k, metric)


@dataclasses.dataclass(frozen=True)
class Multilabel(TextObjective):
    """A sigmoid for each class. Implements `base.Objective`.

    Attributes:
      label_smoothing: share of a label that is spread over "has the class" and "does not have it".
      positive_weights: weight of the examples that have each class; empty if all are 1.
      focal_gamma: exponent of the focal loss.
    """

    label_smoothing: float = 0.0
    positive_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return losses.binary(
            out.logits,
            batch["labels"],
            smoothing=self.label_smoothing,
            positive_weights=weights_array(self.positive_weights),
            focal_gamma=self.focal_gamma,
        )

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        """Returns logits [B, C, 2]: each sigmoid is a softmax with a second logit of 0. An example has their mean."""
        del batch
        return sigmoid_answers(out.logits)

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns `probabilities` [B, C]."""
        del batch
        return {"probabilities": jax.nn.sigmoid(out.logits)}


@dataclasses.dataclass(frozen=True)
class MultilabelTask(TextTask[MultilabelData]):
    """A task of multi-label classification. Implements `base.Task`.

    A class is predicted if its probability is at least a threshold: that of the user; or else the best one for the
    validation split, which then also applies to other splits; or 0.5 if there is no such split. The scores of the
    validation split are therefore those of its own best threshold.
    """

    objective: Multilabel
    splits: Mapping[str, EncodedLabels]
    settings: MultilabelConfig
    top_k: int | None = None
    metric: str | None = None  # that the user named, which is the main metric then
    thresholds: Thresholds | None = None  # of the validation split, from `tuned`

    @property
    def main_metric(self) -> str:
        return self.metric or REPORTED[0]

    def tuned(self, validation: Predictions) -> Self:
        """Returns the task with the thresholds that are the best ones for the validation split."""
        probabilities = stack_probabilities(validation, "example")
        targets = self.splits["validation"].targets(np.arange(len(probabilities)))
        return dataclasses.replace(self, thresholds=Thresholds.of(probabilities, targets))

    @property
    def extra_results(self) -> dict[str, Any]:
        """Returns `thresholds`: those of the validation split, and which one the predictions have."""
        tuned = self.thresholds.to_json(self.label_names) if self.thresholds else {}
        if self.settings.threshold is not None:
            used = {"used": "fixed", "fixed": self.settings.threshold}
        elif self.thresholds is None:
            used = {"used": "fixed", "fixed": UNTUNED}
        else:
            used = {"used": "per_class" if self.settings.per_class_thresholds else "single"}
        return {"thresholds": used | tuned}

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        if not self.splits[split].labeled:
            raise unlabeled_split(split)
        probabilities = stack_probabilities(predictions, "example")
        targets = self.splits[split].targets(np.arange(len(probabilities)))
        task = self.tuned(predictions) if split == "validation" and self.thresholds is None else self
        scored = LabelPredictions(probabilities, probabilities >= task.used_thresholds, targets)
        names = dict.fromkeys([*REPORTED, self.main_metric])
        return {name: label_metric(name, self.label_names)(scored) for name in names}

    @property
    def used_thresholds(self) -> Float[np.ndarray, "C"]:
        """The probability of each class from which it is predicted."""
        if self.settings.threshold is not None or self.thresholds is None:
            single = UNTUNED if self.settings.threshold is None else self.settings.threshold
            return np.full(len(self.label_names), single)
        if self.settings.per_class_thresholds:
            return np.array(self.thresholds.per_class)
        return np.full(len(self.label_names), self.thresholds.single)

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        """Yields texts, labels, predicted labels, and the probabilities of the `top_k` most probable ones."""
        thresholds, names = self.used_thresholds, self.label_names
        stacked = stack_probabilities(predictions, "example")
        for example, probabilities in zip(self.data.splits[split], stacked, strict=True):
            record = text_fields(example)
            if example.labels is not None:
                record["labels"] = [names[index] for index in example.labels]
            record["predictions"] = [names[index] for index in np.flatnonzero(probabilities >= thresholds)]
            yield record | {"probabilities": shown_probabilities(probabilities, names, self.top_k)}

    def record_size(self, split: str) -> float:
        return class_record_size(self.data.splits[split], self.label_names, self.top_k)

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Does nothing, because this kind has no plot."""
