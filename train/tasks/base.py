"""The interface between fine-tuning and the kinds of tasks.

A kind of task consists of an `Objective` (a head, its loss and its predictions: only arrays) and a `Task` (examples
and scores).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from deberta_jax.config import DebertaConfig

from ..engine.divergence import TrainingError

ExampleBatch = dict[str, Num[np.ndarray, "B ..."]]
Arrays = Mapping[str, jax.Array]  # an `ExampleBatch` on the devices
Predictions = Sequence[Mapping[str, np.ndarray]]  # the arrays of `Objective.predict` for each example of a split

_MOST_SHOWN, _SHOWN_OF_MORE = 200, 20  # classes in a record without --top-k
_EXAMPLES_MEASURED = 200
PROBABILITY_BYTES = 25  # of a probability in a record, with the punctuation around it


def stack_probabilities(predictions: Predictions, unit: str) -> Float[np.ndarray, "E C"]:
    """Returns the `probabilities` of all examples. `unit` is the word for an example in error messages.

    Raises:
      TrainingError: if a probability is not finite.
    """
    first = predictions[0]["probabilities"]
    probabilities = np.empty((len(predictions), *first.shape), first.dtype)
    for row, prediction in zip(probabilities, predictions, strict=True):
        row[:] = prediction["probabilities"]
    if not np.isfinite(probabilities).all():
        index = int(np.argmin(np.isfinite(probabilities).all(axis=1)))
        raise TrainingError(f"the probabilities of {unit} {index} are not finite; the model has diverged")
    return probabilities


def shown_classes(classes: int, top_k: int | None) -> int:
    """Returns the number of classes whose probabilities are in a record: `top_k`, by default all of few."""
    return min(classes, top_k or (classes if classes <= _MOST_SHOWN else _SHOWN_OF_MORE))


def most_probable(probabilities: Float[np.ndarray, "C"], shown: int) -> Int[np.ndarray, "shown"]:
    """Returns the classes to show: all in their order, or else the most probable ones, the first one being `argmax`."""
    if shown >= len(probabilities):
        return np.arange(len(probabilities))
    return np.argsort(-probabilities, kind="stable")[:shown]


def mean_json_size(examples: Sequence[Any]) -> float:
    """Returns the mean number of bytes of dataclasses or strings as JSON, measured for 200 of them or a few more."""
    chosen = examples[:: max(1, len(examples) // _EXAMPLES_MEASURED)]
    sizes = [
        len(json.dumps(example, default=dataclasses.asdict, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        for example in chosen
    ]
    return float(np.mean(sizes)) if sizes else 0.0


def unlabeled_split(split: str) -> ValueError:
    """Returns the error of `Task.score` for a split without labels."""
    return ValueError(f"the {split} split has no labels to compare with; only labeled splits have scores")


class AnswerLogits(NamedTuple):
    """The softmaxes that a task trains.

    Attributes:
      logits: the logits of each answer.
      weight: the weight of each answer (default: 1).
    """

    logits: Float[Array, "*answers C"]
    weight: Float[Array, "*answers"] | None = None


def sigmoid_answers(logits: Float[Array, "B C"]) -> AnswerLogits:
    """Returns sigmoids as softmaxes of two logits; all C of an example together have the weight 1."""
    pairs = jnp.stack([logits, jnp.zeros_like(logits)], axis=-1)
    return AnswerLogits(pairs, jnp.full(logits.shape, 1 / logits.shape[-1]))


class Encoded(Protocol):
    """The token ids of the E examples of a split, in memory.

    Attributes:
      lengths: number of tokens of each example (of its longest row).
      labeled: whether the examples have labels.
      notes: messages to the user about the encoding, such as "12 cut to 128 tokens".
    """

    @property
    def lengths(self) -> Int[np.ndarray, "E"]: ...
    @property
    def labeled(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns the examples at `indices`, padded to `length` tokens, which must not be less than their `lengths`.

        The int32 arrays `input_ids`, `attention_mask` and `token_type_ids` [B, ..., S] are always present. The kind
        adds what its objective needs, with labels only if the split is labeled.
        """
        ...


class Objective(Protocol):
    """The training and the predictions of a kind of task.

    Methods are traced by JAX. `out` is the output of the model for a batch.
    """

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module: ...

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the sum of the losses and their number."""
        ...

    def count(self, batch: Arrays) -> Float[Array, ""]:
        """Returns the number that `loss` returns, from the batch alone."""
        ...

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        """Returns the logits and the weight of every answer, for `sift.adversarial_loss`."""
        ...

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns the arrays [B, ...] that `Task.score` and `Task.records` need."""
        ...


class Task(Protocol):
    """The examples of a task by split.

    Attributes:
      label_names: the name of each class by index; empty if the task has no classes.
      main_metric: the metric of `score` that selects the best model; `metrics.lower_is_better` knows the direction.
      splits: "train" and, where they exist, "validation", further validation splits by name, and "test".
      examples: for each split the examples as they were read, dataclasses of JSON values, for `digest.examples_digest`.
    """

    @property
    def name(self) -> str: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def main_metric(self) -> str: ...
    @property
    def splits(self) -> Mapping[str, Encoded]: ...
    @property
    def examples(self) -> Mapping[str, Sequence[Any]]: ...

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        """Returns the metrics of a labeled split.

        Raises:
          TrainingError: if a prediction is not finite.
        """
        ...

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        """Yields a JSON object for each example of the split: the input, the prediction and its probability."""
        ...

    def record_size(self, split: str) -> float:
        """Returns about how many bytes a record of the split will have, before there are any predictions."""
        ...

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Draws the predictions for a labeled split into a PNG file; does nothing for kinds without a picture."""
        ...

    def tuned(self, validation: Predictions) -> "Task":
        """Returns the task with what it learns from the predictions for the validation split, such as thresholds."""
        ...

    @property
    def extra_results(self) -> dict[str, Any]:
        """What results.json has besides the metrics of the splits."""
        ...


class WithoutTuning:
    """The methods of a `Task` that learns nothing from the validation split."""

    def tuned(self, validation: Predictions) -> Self:
        del validation
        return self

    @property
    def extra_results(self) -> dict[str, Any]:
        return {}
