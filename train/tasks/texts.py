"""What the kinds of tasks have in common whose examples are a text or a pair of texts with one row of logits."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deberta_jax.config import DebertaConfig
from deberta_jax.models import DebertaForSequenceClassification

from .base import PROBABILITY_BYTES, Arrays, Predictions, mean_json_size, most_probable, shown_classes
from .metrics import check_predictions


class TextExample(Protocol):
    """A text or a pair of texts."""

    @property
    def text(self) -> str: ...
    @property
    def pair(self) -> str | None: ...


class TextData(Protocol):
    """The examples of a task; the attributes are those of `base.Task`, with the examples as `splits`."""

    @property
    def name(self) -> str: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def splits(self) -> Mapping[str, Sequence[Any]]: ...


Data = TypeVar("Data", bound=TextData)


class TextObjective:
    """The model of an objective with one row of logits for an example, and the count if all examples weigh 1."""

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForSequenceClassification(config, dtype=dtype, remat=remat)

    def count(self, batch: Arrays) -> Float[Array, ""]:
        return jnp.asarray(batch["input_ids"].shape[0], jnp.float32)


@dataclasses.dataclass(frozen=True)
class TextTask(Generic[Data]):
    """The part of a `base.Task` that its data gives."""

    data: Data

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.data.label_names

    @property
    def examples(self) -> Mapping[str, Sequence[Any]]:
        return self.data.splits


def stack_scores(predictions: Predictions) -> Float[np.ndarray, "E"]:
    """Returns the `score` of all examples. Raises TrainingError if one is not finite."""
    scores = np.array([prediction["score"] for prediction in predictions])
    check_predictions(scores)
    return scores


def text_fields(example: TextExample) -> dict[str, Any]:
    """Returns the texts of an example as the first fields of its record."""
    return {"text": example.text} | ({} if example.pair is None else {"pair": example.pair})


def shown_probabilities(
    probabilities: Float[np.ndarray, "C"], names: tuple[str, ...], top_k: int | None
) -> dict[str, float]:
    """Returns the probabilities in a record by the names of their classes (see `base.shown_classes`)."""
    shown = most_probable(probabilities, shown_classes(len(probabilities), top_k))
    return {names[index]: float(probabilities[index]) for index in shown}


def class_record_size(examples: Sequence[TextExample], names: Sequence[str], top_k: int | None) -> float:
    """Returns about how many bytes a record with `shown_probabilities` will have."""
    shown = shown_classes(len(names), top_k)
    return mean_json_size(examples) + shown * (mean_json_size(names) + PROBABILITY_BYTES)
