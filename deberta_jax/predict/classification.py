"""Labels and probabilities of texts and pairs, and the scores of regression and of rerankers."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float

from ..config import DebertaConfig
from ..errors import UserError
from ..models import DebertaForSequenceClassification
from .checks import check_at_least_one
from .loaded_model import LoadedModel
from .pipeline import Arrays, Item, Pipeline, Result, RowOutputs, Rows, TextPair
from .windows import Windows

THRESHOLD = 0.5  # of a class that applies, unless the model has its own


@dataclasses.dataclass(frozen=True)
class Classification:
    """The classes of a text.

    Attributes:
      label: The most probable class.
      probability: Its probability.
      labels: All classes that apply: those of at least the threshold in multi-label classification, else the label.
      probabilities: The probability of each class, the most probable first; only the first `top_k` if that is set.
      windows: Number of windows that the text was read in. Above 1, the probabilities are those of the windows,
        combined.
    """

    label: str
    probability: float
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    windows: int


class TextLogits(Pipeline[Item, Result]):
    """A use of the logits of texts and pairs. All such uses of a model share their programs."""

    heads: ClassVar[tuple[str, ...]] = ("pooler", "classifier")

    def model(self, config: DebertaConfig, **attributes: Any) -> DebertaForSequenceClassification:
        return DebertaForSequenceClassification(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        return {"logits": out.logits}

    def traced_settings(self) -> Hashable:
        return TextLogits


@dataclasses.dataclass(frozen=True)
class ClassifyTexts(TextLogits[str | TextPair, Classification]):
    """Finds the class of a text or a pair.

    The probabilities are a softmax of the logits, or a sigmoid of each if the configuration's `problem_type` is
    multi_label_classification or there is one logit only: transformers' rule.

    Attributes:
      windows: What happens to long texts.
      top_k: Number of classes in the result (default: all).
      threshold: Smallest probability of a class that applies, in multi-label classification (default: the thresholds
        of the run that trained the model, else 0.5).

    Raises:
      UserError: A value is out of range.
    """

    windows: Windows = Windows()
    top_k: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_at_least_one(top_k=self.top_k)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}; it must be 0 to 1")

    def check(self, model: LoadedModel) -> None:
        if model.config.problem_type == "regression":
            raise UserError(f"{model.source} gives scores (regression), not classes; score the texts instead")

    def encode(self, model: LoadedModel, item: str | TextPair) -> Rows[None]:
        return Rows(self.windows.rows(model, item), None)

    def decode(
        self, model: LoadedModel, item: str | TextPair, rows: Rows[None], outputs: Sequence[RowOutputs]
    ) -> Classification:
        is_multi_label = model.config.is_multi_label
        logits = np.stack([output["logits"] for output in outputs])
        probabilities = sigmoid(logits) if is_multi_label or logits.shape[1] == 1 else softmax(logits)
        return classification(
            model.label_names,
            self.windows.combined(probabilities),
            windows=len(outputs),
            top_k=self.top_k,
            thresholds=self._thresholds(model) if is_multi_label else None,
        )

    def _thresholds(self, model: LoadedModel) -> Mapping[str, float]:
        if self.threshold is None and model.thresholds:
            return model.thresholds
        return dict.fromkeys(model.label_names, THRESHOLD if self.threshold is None else self.threshold)


@dataclasses.dataclass(frozen=True)
class ScoreTexts(TextLogits[str | TextPair, float]):
    """Scores a text or a pair with a model of one logit: regression, a reranker or a reward model.

    Attributes:
      windows: What happens to long texts.
      raw: Return the logit. Otherwise a score is the sigmoid of it, as `CrossEncoder` of sentence-transformers returns
        (default: the logit if the configuration's `problem_type` is regression, else the sigmoid). Models whose
        config.json names another activation for `CrossEncoder`, usually the identity, need True for equal scores.
    """

    windows: Windows = Windows()
    raw: bool | None = None

    def check(self, model: LoadedModel) -> None:
        if model.config.num_labels != 1:
            raise UserError(
                f"{model.source} has {model.config.num_labels} classes, not one score; classify the texts instead"
            )

    def encode(self, model: LoadedModel, item: str | TextPair) -> Rows[None]:
        return Rows(self.windows.rows(model, item), None)

    def decode(
        self, model: LoadedModel, item: str | TextPair, rows: Rows[None], outputs: Sequence[RowOutputs]
    ) -> float:
        logits = np.stack([output["logits"] for output in outputs])
        raw = model.config.problem_type == "regression" if self.raw is None else self.raw
        return float(self.windows.combined(logits if raw else sigmoid(logits))[0])


def classification(
    names: tuple[str, ...],
    probabilities: Float[np.ndarray, "classes"],
    *,
    windows: int = 1,
    top_k: int | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Classification:
    """Returns the result of a text.

    Args:
      names: Names of the classes.
      probabilities: Their probabilities.
      windows: Number of windows that the text was read in.
      top_k: Number of classes in the result (default: all).
      thresholds: Smallest probability of each class that applies (default: only the most probable applies).
    """
    ranked: list[tuple[str, float]] = [
        (names[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")
    ]
    label, probability = ranked[0]
    labels = (label,) if thresholds is None else tuple(name for name, value in ranked if value >= thresholds[name])
    return Classification(label, probability, labels, dict(ranked[:top_k]), windows)


def softmax(logits: Float[np.ndarray, "*rows classes"]) -> Float[np.ndarray, "*rows classes"]:
    """Returns the probabilities of classes that exclude each other."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(logits: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Returns the probability of each class by itself."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
