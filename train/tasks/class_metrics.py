"""The metrics of a classification by name: those of the task, and any other one that `--metric` names."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names, quote_names

from .binary_metrics import BINARY_NAMES, Binary, binary_metric
from .metrics import METRICS

# Of the probabilities of E examples and the indices of their classes; an index may be beyond the classes (see
# `sources.classes.Classes.unseen`).
ClassMetric = Callable[[Float[np.ndarray, "E C"], Int[np.ndarray, "E"]], float]

_OF_CLASSES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "matthews_correlation",
    "log_loss",
)
_MEANS = ("auc", "average_precision")  # of three classes and more: the mean over the classes


def unknown_metric(name: str, known: Sequence[str]) -> UserError:
    """Returns the error for a metric that a task does not have."""
    return UserError(f"metric is {name!r}, which this task does not have; it has {list_names(known, most=30)}")


def chosen_metric(name: str | None, known: Sequence[str]) -> str | None:
    """Returns the metric that the user named, if any. Raises UserError if the task does not have it."""
    if name is not None and name not in known:
        raise unknown_metric(name, known)
    return name


def split_name(name: str, classes: Sequence[str]) -> tuple[str, str | None]:
    """Returns a metric and the class that follows it, as in f1:yes, if there is one.

    Raises:
      UserError: if there is no such class.
    """
    base, colon, label = name.partition(":")
    if not colon:
        return name, None
    if label not in classes:
        raise UserError(f"metric is {name!r}, but {label!r} is not one of the classes {quote_names(classes)}")
    return base, label


def class_metric(name: str, classes: Sequence[str], *, positive: int) -> ClassMetric:
    """Returns the metric with a name.

    Args:
      name: a metric of `binary_metrics` for one class, as in f1:yes; or for two classes without a class, which is then
        `positive`; or one of all classes.
      classes: the names of the classes by index.
      positive: the index of the class that metrics of two classes are about.

    Raises:
      UserError: if there is no such metric or class; the message lists the metrics.
    """
    base, label = split_name(name, classes)
    if label is None and base in _OF_CLASSES:
        return _of_classes(base)
    binary = binary_metric(base)
    if binary is None or (label is None and len(classes) != 2 and base not in _MEANS):
        if binary is not None:
            raise UserError(
                f"metric is {name!r}, which is about one of the {len(classes)} classes; write {name}:CLASS, such as "
                f"{name}:{classes[0]}"
            )
        raise unknown_metric(name, [*_OF_CLASSES, *BINARY_NAMES, "and of the latter those of a class, as in f1:CLASS"])
    if label is not None or len(classes) == 2:
        index = positive if label is None else list(classes).index(label)
        return lambda probabilities, labels: binary(one_class(probabilities, labels, index))

    def mean(probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"]) -> float:
        return defined_mean([binary(one_class(probabilities, labels, index)) for index in range(len(classes))])

    return mean


def one_class(probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"], index: int) -> Binary:
    """Returns the predictions for one class, which is predicted where it is the most probable one."""
    return Binary(probabilities[:, index], probabilities.argmax(axis=1) == index, labels == index)


def defined_mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are numbers; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def log_loss(probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"]) -> float:
    """Returns the mean of -log p of the right class; NaN if one is beyond the classes. Lower is better."""
    if not len(labels) or labels.max() >= probabilities.shape[1]:
        return math.nan
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def _of_classes(name: str) -> ClassMetric:
    if name == "log_loss":
        return log_loss
    if name == "balanced_accuracy":
        return _balanced_accuracy
    if name in METRICS:
        return lambda probabilities, labels: METRICS[name](probabilities.argmax(axis=1), labels)
    average = name.removesuffix("_f1")

    def averaged_f1(probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"]) -> float:
        from sklearn.metrics import f1_score

        predictions = probabilities.argmax(axis=1)
        # pyright infers the type of zero_division from its default "warn"; numbers are documented.
        return float(f1_score(labels, predictions, average=average, zero_division=0.0))  # pyright: ignore

    return averaged_f1


def _balanced_accuracy(probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"]) -> float:
    """Returns the mean of the recalls of the classes that occur among the labels."""
    right = probabilities.argmax(axis=1) == labels
    return float(np.mean([right[labels == index].mean() for index in np.unique(labels)])) if len(labels) else math.nan
