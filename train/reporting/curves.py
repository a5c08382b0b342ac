"""The curves of a pre-training run, drawn from its `metrics.jsonl`."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deberta_jax.errors import UserError

from .jsonl import read_records
from .pictures import open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_curves(jsonl_path: Path | str, png_path: Path | str) -> None:
    """Draws the curves of a pre-training run from its `metrics.jsonl` into a PNG file.

    Raises:
      FileNotFoundError: if the metrics file does not exist.
      UserError: if it holds no step.
    """
    records = read_records(Path(jsonl_path))
    if not records:
        raise UserError(f"{jsonl_path} holds no step, so there is nothing to draw; train first")
    with open_figure(Path(png_path), size=(11, 7)) as figure:
        generator, discriminator, shares, rate = figure.subplots(2, 2, sharex=True).flat
        _draw(generator, records, "Generator loss (masked tokens)", "nats", {"generator_loss": "train"})
        _draw(discriminator, records, "Discriminator loss (replaced tokens)", "nats", {"discriminator_loss": "train"})
        names = {"masked_accuracy": "masked accuracy", "replaced_precision": "precision", "replaced_recall": "recall"}
        _draw(shares, records, "Masked and replaced tokens", "share", names)
        shares.set_ylim(-0.02, 1.02)
        rate.plot(*_series(records, "learning_rate"))
        rate.set(title="Learning rate", ylabel="rate")
        rate.grid(alpha=0.3)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for axes in (shares, rate):
            axes.set_xlabel("step")


def _draw(axes: "Axes", records: list[dict[str, Any]], title: str, unit: str, names: dict[str, str]) -> None:
    """Draws one panel: the values of each metric, faint, their running mean, and its evaluations as dots."""
    for number, (key, name) in enumerate(names.items()):
        color = f"C{number}"
        steps, values = _series(records, key)
        if steps:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, running_mean(values), color=color, label=name)
        steps, values = _series(records, f"eval/{key}")
        if steps:
            label = "held-out" if len(names) == 1 else f"{name}, held-out"
            axes.plot(steps, values, "o--", markersize=4, color="C1" if len(names) == 1 else color, label=label)
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="small")


def _series(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def running_mean(values: list[float]) -> list[float]:
    """Returns the mean of the 2 % of the values around each one, of few values about the ten around it.

    It is centered, so that the curve does not lag.
    """
    half = max(len(values) // 100, min(5, len(values) // 10))
    sums = [0.0, *itertools.accumulate(values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]
