"""The charts of a report as SVG elements of an HTML page: one metric each, one color for each run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..reporting.classification_plots import draw_confusion
from ..reporting.curves import running_mean
from ..reporting.pictures import svg_picture
from .run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#2563eb", "#d97706")  # of the first and the second run
_SIZE = (5.2, 2.7)  # inches
_MOST_POINTS = 1500  # of a curve
_MOST_CLASSES = 200  # of a confusion matrix


class Curve(NamedTuple):
    """The values of one metric of one run: those of training, and those of evaluations."""

    steps: Sequence[int]
    values: Sequence[float]
    evaluated_steps: Sequence[int] = ()
    evaluated_values: Sequence[float] = ()


class Chart(NamedTuple):
    """What a chart shows: its title, the unit of its values, a curve for each run, and whether these are noisy."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    is_noisy: bool = True


_PRETRAINING = {
    "generator_loss": ("Generator: loss per masked token", "nats"),
    "discriminator_loss": ("Discriminator: loss per token", "nats"),
    "masked_accuracy": ("Masked tokens predicted", "share"),
    "rtd_accuracy": ("Tokens judged correctly", "share"),
    "replaced_precision": ("Replaced tokens: precision", "share"),
    "replaced_recall": ("Replaced tokens: recall", "share"),
}
_BOTH = {"loss": ("Training loss", "nats"), "grad_norm": ("Gradient norm", ""), "learning_rate": ("Learning rate", "")}


def metric_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Returns a chart for each metric that at least one of the runs has logged."""
    known = {**_PRETRAINING, **_BOTH}
    evaluated = dict.fromkeys(
        key.removeprefix("eval/") for run in runs for record in run.records for key in record if key.startswith("eval/")
    )
    # Evaluations of fine-tuning have metrics of their own, such as accuracy.
    others = {name: (f"Validation: {name.replace('_', ' ')}", "") for name in evaluated if name not in known}
    hidden = {"perplexity", "replaced_f1"}  # functions of others that are shown
    charts = []
    for key, (title, unit) in {**known, **{key: value for key, value in others.items() if key not in hidden}}.items():
        curves = tuple(Curve(*run.series(key), *run.series(f"eval/{key}")) for run in runs)
        if any(len(curve.steps) + len(curve.evaluated_steps) for curve in curves):
            charts.append(Chart(title, unit, curves, is_noisy=key != "learning_rate"))
    return charts


def speed_chart(runs: Sequence[RunFolder]) -> Chart | None:
    """Returns the chart of the throughput over the steps; None if no run has recorded it."""
    units = {run.per_step[1] if run.per_step else "steps" for run in runs}
    if len(units) > 1 or not any(run.step_times for run in runs):
        return None
    curves = []
    for run in runs:
        size = run.per_step[0] if run.per_step else 1
        steps = [step for step, _, _ in run.step_times]
        curves.append(Curve(steps, [count * size / seconds for _, seconds, count in run.step_times]))
    return Chart("Throughput, without evaluations", f"{units.pop()}/s", tuple(curves))


def draw_chart(chart: Chart, names: Sequence[str]) -> str:
    """Returns a chart as an SVG element: the values faint, their running mean, and evaluations as dots.

    Args:
      chart: what to draw.
      names: the names of the runs.
    """

    def draw(figure: "Figure") -> None:
        axes: Any = figure.subplots()
        for number, (curve, name) in enumerate(zip(chart.curves, names, strict=True)):
            color = COLORS[number]
            label = name if len(names) > 1 else "training"
            if len(curve.steps):
                smooth = running_mean(list(curve.values)) if chart.is_noisy else curve.values
                steps, values, means = _thinned(curve.steps, curve.values, smooth)
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axes.plot(steps, means, color=color, linewidth=1.6, label=label)
            if len(curve.evaluated_steps):
                label = f"{name}, held-out" if len(names) > 1 else "held-out"
                axes.plot(
                    curve.evaluated_steps,
                    curve.evaluated_values,
                    "o--",
                    color=color if len(names) > 1 else COLORS[1],
                    markersize=4,
                    linewidth=1,
                    label=label,
                )
        axes.set(xlabel="step", ylabel=chart.unit)
        if chart.unit.endswith("/s"):
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")

    return svg_picture(draw, size=_SIZE, title=chart.title)


def draw_confusions(records: Sequence[dict[str, Any]], title: str) -> str | None:
    """Returns the confusion matrix of predictions as an SVG element; None if they are no classes, or too many.

    Args:
      records: predictions with `label` and `prediction`.
      title: describes the matrix to a reader that does not see it.
    """
    pairs = [(record.get("label"), record.get("prediction")) for record in records]
    if not all(isinstance(name, str) for pair in pairs for name in pair):
        return None
    names = tuple(sorted({str(name) for pair in pairs for name in pair}))
    if not 2 <= len(names) <= _MOST_CLASSES:
        return None
    numbers = {name: number for number, name in enumerate(names)}
    labels, predictions = np.array([[numbers[str(name)] for name in pair] for pair in pairs]).T
    width = 3.2 + 0.28 * min(len(names), 20)

    def draw(figure: "Figure") -> None:
        axes: Any = figure.subplots()
        draw_confusion(axes, predictions, labels, names)
        axes.set_title("")

    return svg_picture(draw, size=(width, width), title=title)


def draw_scores(records: Sequence[dict[str, Any]], title: str) -> str | None:
    """Returns predicted scores against those of the data as an SVG element; None if these are not numbers."""
    pairs = [(record.get("label"), record.get("prediction")) for record in records]
    if not all(isinstance(value, int | float) for pair in pairs for value in pair):
        return None
    labels, predictions = np.array(pairs[:_MOST_POINTS], float).T

    def draw(figure: "Figure") -> None:
        axes: Any = figure.subplots()
        axes.plot(labels, predictions, ".", color=COLORS[0], alpha=0.4)
        axes.set(xlabel="label", ylabel="prediction")
        axes.grid(alpha=0.25)

    return svg_picture(draw, size=(4, 4), title=title)


def _thinned(*columns: Sequence[float]) -> list[Sequence[float]]:
    """Returns every n-th element of each column, so that a long run does not make a large page."""
    every = -(-len(columns[0]) // _MOST_POINTS)
    return [column[::every] for column in columns]
