"""Confusion matrix and calibration of a classifier on a labeled split."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_BINS = 15  # as in Guo et al. 2017


class Calibration(NamedTuple):
    """The expected calibration error, and accuracy, mean confidence and number of examples of each bin."""

    error: float
    accuracies: Float[np.ndarray, "bins"]
    confidences: Float[np.ndarray, "bins"]
    counts: Int[np.ndarray, "bins"]


def calibration(probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"]) -> Calibration:
    """Computes the calibration in 15 equal bins of confidence.

    The expected calibration error is the mean of |accuracy - confidence| over the bins, weighted by their counts
    (Guo et al. 2017, "On calibration of modern neural networks").
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    shares = np.maximum(counts, 1)
    accuracies = np.bincount(bins, weights=right, minlength=_BINS) / shares
    confidences = np.bincount(bins, weights=confidence, minlength=_BINS) / shares
    error = float((counts * np.abs(accuracies - confidences)).sum() / len(labels))
    return Calibration(error, accuracies, confidences, counts)


def plot_answers(
    path: Path, probabilities: Float[np.ndarray, "E C"], labels: Int[np.ndarray, "E"], names: tuple[str, ...]
) -> None:
    """Draws the confusion matrix and the calibration into a PNG file. `names` are the names of the classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    matrix, curve = figure.subplots(1, 2)

    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(len(names)))
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:  # more numbers would be too small to read
        for row, column in np.ndindex(*confusion.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            matrix.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color)
        matrix.set_xticks(range(len(names)), names, rotation=45, ha="right")
        matrix.set_yticks(range(len(names)), names)
    matrix.set(title="Confusion", xlabel="predicted", ylabel="label")

    error, accuracies, confidences, counts = calibration(probabilities, labels)
    used = counts > 0
    curve.plot([0, 1], [0, 1], ":", color="gray", label="perfect calibration")
    curve.plot(confidences[used], accuracies[used], "o-", label="model")
    curve.bar((np.arange(_BINS) + 0.5) / _BINS, counts / counts.sum(), width=1 / _BINS, alpha=0.2, label="share")
    curve.set(title=f"Calibration, expected error {error:.3f}", xlabel="confidence", ylabel="accuracy")
    curve.set(xlim=(0, 1), ylim=(0, 1))
    curve.grid(alpha=0.3)
    curve.legend()
    figure.savefig(path, dpi=120)
