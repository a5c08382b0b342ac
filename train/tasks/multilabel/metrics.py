"""The metrics of multi-label classification by name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from ..binary_metrics import (
    BINARY_NAMES,
    Binary,
    auc,
    average_precision,
    binary_log_loss,
    binary_metric,
    f_beta,
    precision,
    recall,
)
from ..class_metrics import defined_mean, split_name, unknown_metric


@dataclasses.dataclass(frozen=True)
class LabelPredictions:
    """The predictions of C classes for E examples.

    Attributes:
      probabilities: the probability of each class.
      decisions: whether it is predicted.
      targets: whether it is right.
    """

    probabilities: Float[np.ndarray, "E C"]
    decisions: Bool[np.ndarray, "E C"]
    targets: Bool[np.ndarray, "E C"]

    @property
    def together(self) -> Binary:
        """All decisions as those of one class."""
        return Binary(self.probabilities.ravel(), self.decisions.ravel(), self.targets.ravel())

    @property
    def classes(self) -> list[Binary]:
        columns = (self.probabilities.T, self.decisions.T, self.targets.T)
        return [Binary(*column) for column in zip(*columns, strict=True)]


LabelMetric = Callable[[LabelPredictions], float]


def _weighted(all_of: LabelPredictions) -> float:
    """Returns the mean of the F1 of the classes, weighted by their numbers of examples; 0 without any."""
    counts = all_of.targets.sum(axis=0)
    values = [f_beta(one, beta=1) for one in all_of.classes]
    return float(np.average(values, weights=counts)) if counts.any() else 0.0


def _of_samples(all_of: LabelPredictions) -> float:
    """Returns the mean of the F1 of the examples; 1 for one without labels for which none is predicted."""
    right = (all_of.decisions & all_of.targets).sum(axis=1)
    both = all_of.decisions.sum(axis=1) + all_of.targets.sum(axis=1)
    return float(np.where(both > 0, 2 * right / np.maximum(both, 1), 1.0).mean())


# The means over classes leave out the classes for which a metric is undefined, such as the AUC of one without examples.
METRICS: Mapping[str, LabelMetric] = {
    "micro_f1": lambda all_of: f_beta(all_of.together, beta=1),
    "macro_f1": lambda all_of: float(np.mean([f_beta(one, beta=1) for one in all_of.classes])),
    "accuracy": lambda all_of: float((all_of.decisions == all_of.targets).all(axis=1).mean()),
    "mean_average_precision": lambda all_of: defined_mean([average_precision(one) for one in all_of.classes]),
    "auc": lambda all_of: defined_mean([auc(one) for one in all_of.classes]),
    "weighted_f1": _weighted,
    "samples_f1": _of_samples,
    "precision": lambda all_of: precision(all_of.together),
    "recall": lambda all_of: recall(all_of.together),
    "micro_auc": lambda all_of: auc(all_of.together),
    "hamming_loss": lambda all_of: float((all_of.decisions != all_of.targets).mean()),
    "log_loss": lambda all_of: binary_log_loss(all_of.probabilities, all_of.targets),
}
REPORTED = ("micro_f1", "macro_f1", "accuracy", "mean_average_precision", "auc")  # the first is the main one


def label_metric(name: str, classes: Sequence[str]) -> LabelMetric:
    """Returns the metric with a name: one of METRICS, or one of `binary_metrics` with a class, as in f1:toxic.

    Raises:
      UserError: if there is no such metric or class; the message lists the metrics.
    """
    if name in METRICS:
        return METRICS[name]
    base, label = split_name(name, classes)
    binary = binary_metric(base)
    if binary is None or label is None:
        raise unknown_metric(name, [*METRICS, "and of a class, as in f1:CLASS,", *BINARY_NAMES])
    index = list(classes).index(label)
    return lambda all_of: binary(all_of.classes[index])
