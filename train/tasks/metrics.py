"""Scores of fine-tuned models."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Num, Shaped

from ..engine.divergence import TrainingError

Metric = Callable[[np.ndarray, np.ndarray], float]  # of predictions and labels, each [E]


def accuracy(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the share of correct class indices; NaN if there are none."""
    if not len(labels):
        return math.nan
    return float(np.mean(predictions == labels))


def f1(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the F1 of class 1 among the classes 0 and 1; 0 if class 1 is never predicted correctly.

    Raises:
      ValueError: if there are other class indices, for which `macro_f1` is defined.
    """
    from sklearn.metrics import f1_score

    others = set(np.unique(np.concatenate([predictions, labels])).tolist()) - {0, 1}
    if others:
        raise ValueError(f"f1 is for the classes 0 and 1, got {sorted(others)}; use macro_f1")
    # The type checker infers the type of zero_division from its default "warn"; numbers are documented.
    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def macro_f1(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the unweighted mean of the F1 of every class that occurs in the predictions or the labels."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))  # pyright: ignore[reportArgumentType]


def matthews_correlation(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the Matthews correlation of class indices; 0 if all predictions or all labels are equal."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        return 0.0  # scikit-learn returns 0 as well, but it warns
    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the Pearson correlation; NaN without a warning if either array is constant, as it is undefined then."""
    from scipy import stats

    if _constant(predictions) or _constant(labels):
        return math.nan
    with warnings.catch_warnings():
        # Scores are nearly constant early in training. A rough value is fine, a warning per evaluation is not.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        result = stats.pearsonr(predictions.astype(np.float64), labels.astype(np.float64))
    return float(result.statistic)  # pyright: ignore[reportAttributeAccessIssue] (scipy has no types)


def spearman(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the Spearman rank correlation, with mean ranks for ties; NaN if an array is constant."""
    from scipy import stats

    if _constant(predictions) or _constant(labels):
        return math.nan
    result = stats.spearmanr(predictions, labels)
    return float(result.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def mse(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the mean of the squared errors. Lower is better."""
    return float(np.mean(np.square(predictions.astype(np.float64) - labels)))


def mae(predictions: Shaped[np.ndarray, "E"], labels: Shaped[np.ndarray, "E"]) -> float:
    """Returns the mean of the absolute errors. Lower is better."""
    return float(np.mean(np.abs(predictions.astype(np.float64) - labels)))


def _constant(values: Shaped[np.ndarray, "E"]) -> bool:
    return bool(np.all(values == values[0]))


REGRESSION_METRICS: Mapping[str, Metric] = {
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
    "rmse": lambda predictions, labels: math.sqrt(mse(predictions, labels)),
    "mae": mae,
}
_LOWER_IS_BETTER = {"log_loss", "hamming_loss", "mse", "rmse", "mae"}


def lower_is_better(metric: str) -> bool:
    """Returns whether a model with a lower value of a metric is better, as of errors and losses."""
    return metric in _LOWER_IS_BETTER


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


def compute_metrics(
    names: Sequence[str], predictions: Num[np.ndarray, "E"], labels: Num[np.ndarray, "E"]
) -> dict[str, float]:
    """Returns the metrics with these names, in this order.

    Args:
      names: keys of METRICS.
      predictions: class indices (not logits) or scores, at least one.
      labels: the correct class indices or scores.

    Raises:
      ValueError: if a metric is unknown or there is no prediction.
      TrainingError: if a prediction is not finite.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"unknown metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    if not len(labels):
        raise ValueError("there are no predictions to compare with labels")
    check_predictions(predictions)
    return {name: METRICS[name](predictions, labels) for name in names}


def check_predictions(predictions: Num[np.ndarray, "E"]) -> None:
    """Raises TrainingError if a prediction is not finite."""
    finite = np.isfinite(predictions)
    if not finite.all():
        index = int(np.argmin(finite))
        raise TrainingError(f"the prediction of example {index} is {predictions[index]}; the model has diverged")
