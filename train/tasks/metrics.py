"""Scores of fine-tuned models."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deberta_jax.errors import UserError

Score = Callable[[np.ndarray, np.ndarray], float]


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal entries; predictions and labels are class indices [E]."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 for two classes [E]; 0 where class 1 is never predicted correctly.

    Raises:
      ValueError: class indices other than 0 and 1; use macro_f1.
    """
    from sklearn.metrics import f1_score

    others = set(np.unique(np.concatenate([predictions, labels])).tolist()) - {0, 1}
    if others:
        raise UserError(f"f1 is for the classes 0 and 1, found {sorted(others)}; use macro_f1")
    # Its default, "warn", is all that the type checker sees of the type; numbers are documented.
    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Plain mean of the F1 of every class that occurs in the predictions or the labels [E]."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))  # pyright: ignore[reportArgumentType]


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation of class indices [E]; 0 where predictions or labels are all of one class."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        return 0.0  # scikit-learn's value too, but it warns on the way there
    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation of two arrays [E]; nan, without a warning, where either is constant (it is undefined)."""
    from scipy import stats

    if _constant(predictions) or _constant(labels):
        return math.nan
    with warnings.catch_warnings():
        # Nearly constant scores, as early in training, are worth a rough value but no warning at every evaluation.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        result = stats.pearsonr(predictions.astype(np.float64), labels.astype(np.float64))
    return float(result.statistic)  # pyright: ignore[reportAttributeAccessIssue] (scipy has no types)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman rank correlation, ties at their mean rank; nan, without a warning, where either is constant."""
    from scipy import stats

    if _constant(predictions) or _constant(labels):
        return math.nan
    result = stats.spearmanr(predictions, labels)
    return float(result.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _constant(values: np.ndarray) -> bool:
    return bool(np.all(values == values[0]))


METRICS: Mapping[str, Score] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


def compute_metrics(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of `names`, each a key of METRICS, in that order.

    Args:
      predictions: class indices (not logits) or scores, [E].
      labels: of the same kind and shape.

    Raises:
      ValueError: an unknown metric, shapes that are not two equal [E] with E > 0, or a prediction that is not finite.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"unknown metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    if predictions.ndim != 1 or predictions.shape != labels.shape or not len(labels):
        raise UserError(f"predictions {predictions.shape} and labels {labels.shape} must be of one shape [E], E > 0")
    if not np.all(np.isfinite(predictions)):
        row = int(np.argmin(np.isfinite(predictions)))
        raise UserError(f"the prediction of example {row} is {predictions[row]}; the model has diverged")
    return {name: METRICS[name](predictions, labels) for name in names}
