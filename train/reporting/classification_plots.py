"""Confusion matrix and calibration of a classifier on a labeled split."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .pictures import open_figure, picture_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 15  # as in Guo et al. 2017
_MOST_NAMES = 20  # classes whose names and numbers are large enough to read
_MOST_CELLS = 500  # rows and columns of a confusion matrix, about as many as it has pixels


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
    """Draws the confusion matrix and the calibration into a PNG file. `names` are those of the classes."""
    with open_figure(path, size=(11, 5)) as figure:
        matrix, curve = figure.subplots(1, 2)
        draw_confusion(matrix, probabilities.argmax(axis=1), labels, names)
        _draw_calibration(curve, calibration(probabilities, labels))


def draw_confusion(
    axes: "Axes", predictions: Int[np.ndarray, "E"], labels: Int[np.ndarray, "E"], names: tuple[str, ...]
) -> None:
    """Draws a confusion matrix. Rows are labels, columns predictions, and colors are shares of a row."""
    together = -(-len(names) // _MOST_CELLS)  # classes in a cell
    cells = -(-len(names) // together)
    confusion = np.zeros((cells, cells), np.int64)
    np.add.at(confusion, (labels // together, predictions // together), 1)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _MOST_NAMES:
        for row, column in np.ndindex(*confusion.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color)
        short = [picture_name(name) for name in names]
        axes.set_xticks(range(len(names)), short, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), short)
    title = "Confusion" if together == 1 else f"Confusion, {together} classes in a cell"
    axes.set(title=title, xlabel="predicted", ylabel="label")


def _draw_calibration(axes: "Axes", result: Calibration) -> None:
    error, accuracies, confidences, counts = result
    used = counts > 0
    axes.plot([0, 1], [0, 1], ":", color="gray", label="perfect calibration")
    axes.plot(confidences[used], accuracies[used], "o-", label="model")
    axes.bar((np.arange(_BINS) + 0.5) / _BINS, counts / counts.sum(), width=1 / _BINS, alpha=0.2, label="share")
    axes.set(title=f"Calibration, expected error {error:.3f}", xlabel="confidence", ylabel="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
