"""Scores of one class against all others, by name: those that `--metric` accepts with the name of a class."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Shaped

# For lists of what there is; `binary_metric` accepts any number in place of these.
BINARY_NAMES = (
    "precision",
    "recall",
    "f1",
    "f0.5 (any F-beta)",
    "auc",
    "average_precision",
    "recall_at_precision_0.9",
    "precision_at_recall_0.9",
)
_NUMBER = r"([0-9]*\.?[0-9]+)"


@dataclasses.dataclass(frozen=True)
class Binary:
    """The predictions for E examples of a class.

    Attributes:
      scores: probability of the class.
      decisions: whether it is predicted.
      labels: whether it is right.
    """

    scores: Float[np.ndarray, "E"]
    decisions: Bool[np.ndarray, "E"]
    labels: Bool[np.ndarray, "E"]


def binary_metric(name: str) -> Callable[[Binary], float] | None:
    """Returns the metric with a name such as f1, f0.5, auc or recall_at_precision_0.9; None if there is no such one."""
    plain: dict[str, Callable[[Binary], float]] = {
        "precision": precision,
        "recall": recall,
        "auc": auc,
        "average_precision": average_precision,
    }
    if name in plain:
        return plain[name]
    if match := re.fullmatch(f"f{_NUMBER}", name):
        beta = float(match[1])
        return functools.partial(f_beta, beta=beta) if beta > 0 else None
    if match := re.fullmatch(f"(recall_at_precision|precision_at_recall)_{_NUMBER}", name):
        least = float(match[2])
        function = recall_at_precision if match[1] == "recall_at_precision" else precision_at_recall
        return functools.partial(function, least=least) if 0 < least <= 1 else None
    return None


def precision(binary: Binary) -> float:
    """Returns the share of the predicted examples that are right; 0 if none is predicted."""
    return _ratio((binary.decisions & binary.labels).sum(), binary.decisions.sum())


def recall(binary: Binary) -> float:
    """Returns the share of the examples of the class that are predicted; 0 if there are none."""
    return _ratio((binary.decisions & binary.labels).sum(), binary.labels.sum())


def f_beta(binary: Binary, *, beta: float) -> float:
    """Returns the harmonic mean of precision and recall, in which recall weighs beta times as much.

    It is 0 if nothing is predicted and nothing is right.
    """
    right, square = (binary.decisions & binary.labels).sum(), beta * beta
    return _ratio((1 + square) * right, square * binary.labels.sum() + binary.decisions.sum())


def auc(binary: Binary) -> float:
    """Returns the area under the ROC curve; NaN if all examples, or none, are of the class."""
    from sklearn.metrics import roc_auc_score

    if binary.labels.all() or not binary.labels.any():
        return math.nan
    return float(roc_auc_score(binary.labels, binary.scores))


def average_precision(binary: Binary) -> float:
    """Returns the mean of the precisions at the thresholds, weighted by the recall gained; NaN without the class."""
    from sklearn.metrics import average_precision_score

    if not binary.labels.any():
        return math.nan
    return float(average_precision_score(binary.labels, binary.scores))


def recall_at_precision(binary: Binary, *, least: float) -> float:
    """Returns the highest recall of the thresholds with a precision of at least `least`; NaN without the class."""
    if not binary.labels.any():
        return math.nan
    precisions, recalls = _curve(binary)
    return float(recalls[precisions >= least].max(initial=0.0))


def precision_at_recall(binary: Binary, *, least: float) -> float:
    """Returns the highest precision of the thresholds with a recall of at least `least`; NaN without the class."""
    if not binary.labels.any():
        return math.nan
    precisions, recalls = _curve(binary)
    return float(precisions[recalls >= least].max())


def _curve(binary: Binary) -> tuple[Float[np.ndarray, "thresholds"], Float[np.ndarray, "thresholds"]]:
    """Returns precision and recall at every threshold. scikit-learn adds a point without predictions, left out here."""
    from sklearn.metrics import precision_recall_curve

    precisions, recalls, _ = precision_recall_curve(binary.labels, binary.scores)
    return precisions[:-1], recalls[:-1]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def binary_log_loss(probabilities: Float[np.ndarray, "*shape"], targets: Shaped[np.ndarray, "*shape"]) -> float:
    """Returns the mean binary cross entropy with labels from 0 to 1. Lower is better."""
    shares, least = probabilities.astype(np.float64), np.finfo(np.float32).tiny
    right, wrong = np.log(np.maximum(shares, least)), np.log(np.maximum(1 - shares, least))
    return -float((targets * right + (1.0 - targets) * wrong).mean())
