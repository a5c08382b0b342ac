"""What a classifier confuses, and whether its probabilities mean what they say: two plots of a labeled split."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BINS = 15  # as Guo et al. 2017


def calibration(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Expected calibration error, and of each of 15 bins of confidence the accuracy, mean confidence and count.

    The error is the mean of |accuracy - confidence| over the bins, each weighed by its count (Guo et al. 2017, "On
    calibration of modern neural networks").

    Args:
      probabilities: [E, C]; labels: class indices [E].
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    shares = np.maximum(counts, 1)
    accuracies = np.bincount(bins, weights=right, minlength=_BINS) / shares
    confidences = np.bincount(bins, weights=confidence, minlength=_BINS) / shares
    error = float((counts * np.abs(accuracies - confidences)).sum() / len(labels))
    return error, accuracies, confidences, counts


def plot_answers(
    path: Path, probabilities: NDArray[np.floating], labels: NDArray[np.integer], names: tuple[str, ...]
) -> None:
    """Draws the confusion matrix and the calibration of [E, C] probabilities into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    matrix, curve = figure.subplots(1, 2)

    counts = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:  # more numbers could not be read
        for row, column in np.ndindex(*counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            matrix.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
        matrix.set_xticks(range(len(names)), names, rotation=45, ha="right")
        matrix.set_yticks(range(len(names)), names)
    matrix.set(title="Confusion", xlabel="predicted", ylabel="label")

    error, accuracies, confidences, sizes = calibration(probabilities, labels)
    used = sizes > 0
    curve.plot([0, 1], [0, 1], ":", color="gray", label="as sure as right")
    curve.plot(confidences[used], accuracies[used], "o-", label="model")
    curve.bar((np.arange(_BINS) + 0.5) / _BINS, sizes / sizes.sum(), width=1 / _BINS, alpha=0.2, label="share")
    curve.set(title=f"Calibration, expected error {error:.3f}", xlabel="confidence", ylabel="accuracy")
    curve.set(xlim=(0, 1), ylim=(0, 1))
    curve.grid(alpha=0.3)
    curve.legend()
    figure.savefig(path, dpi=120)
