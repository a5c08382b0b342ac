"""The probabilities from which labels are predicted, chosen on the validation split."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

UNTUNED = 0.5


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds that the validation split gives.

    Attributes:
      single: the one for all classes with the best micro F1.
      per_class: the one of each class with the best F1 of the class.
    """

    single: float
    per_class: tuple[float, ...]

    @classmethod
    def of(cls, probabilities: Float[np.ndarray, "E C"], targets: Bool[np.ndarray, "E C"]) -> "Thresholds":
        """Returns the best thresholds for the labels `targets`; a class without examples gets the single one."""
        single = best_threshold(probabilities.ravel(), targets.ravel())
        per_class = (
            best_threshold(column, labels) if labels.any() else single
            for column, labels in zip(probabilities.T, targets.T, strict=True)
        )
        return cls(single, tuple(per_class))

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        return {"single": self.single, "per_class": dict(zip(classes, self.per_class, strict=True))}


def best_threshold(scores: Float[np.ndarray, "N"], labels: Bool[np.ndarray, "N"]) -> float:
    """Returns the threshold with the highest F1 of `scores >= threshold`; 0.5 if no label is true.

    It is in the middle between the scores that it separates. Of equally good ones the highest is chosen.
    """
    if not labels.any():
        return UNTUNED
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    right = np.cumsum(labels[order])
    f1 = 2 * right / (np.arange(1, len(scores) + 1) + right[-1])
    ends = np.append(ordered[:-1] > ordered[1:], True)  # only between different scores
    last = int(np.argmax(np.where(ends, f1, -1.0)))
    below = ordered[last + 1] if last + 1 < len(ordered) else 0.0
    return float((ordered[last] + below) / 2)
