"""Several fine-tuning runs from one command, over seeds and a grid of settings: means, intervals and the best run."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from deberta_jax.atomic_files import write_file
from deberta_jax.console import PlainConsole
from deberta_jax.strict_json import to_json

from .configs import FinetuneConfig

Results = dict[str, dict[str, float]]  # the metrics of each labeled split


class RunOutcome(NamedTuple):
    """The results of a run, and the metric of the validation split that decides; higher is better."""

    results: Results
    main_metric: str


@dataclasses.dataclass(frozen=True)
class GridPoint:
    """One combination of the grid's settings, and its runs, one per seed."""

    name: str
    runs: tuple[FinetuneConfig, ...]


def grid_points(config: FinetuneConfig) -> tuple[GridPoint, ...]:
    """Returns the runs of a command: every combination of the grid, with every seed.

    Without seeds and grid this is the run itself, in its own folder; otherwise each run has a folder below it, such as
    `learning_rate=1e-05,batch_size=32/seed-3`.
    """
    # Without a grid the product below has one element, the empty combination.
    grid = {name: values for name, values in dataclasses.asdict(config.sweep.grid).items() if values}
    points = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = ",".join(f"{key}={value:g}" for key, value in chosen.items())
        rate = chosen.pop("learning_rate", config.optimizer.learning_rate)
        optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
        folder = config.output / name if name else config.output
        points.append(
            GridPoint(
                name,
                tuple(
                    dataclasses.replace(
                        config,
                        **chosen,
                        optimizer=optimizer,
                        seed=seed,
                        output=folder / f"seed-{seed}" if config.sweep.seeds else folder,
                    )
                    for seed in config.sweep.seeds or (config.seed,)
                ),
            )
        )
    return tuple(points)


def run_all(config: FinetuneConfig, run: Callable[[FinetuneConfig], RunOutcome], *, report: bool = True) -> Results:
    """Runs every combination of the grid with every seed.

    Args:
      config: the settings of the command.
      run: trains with the settings of one run.
      report: print a table and write `summary.json` (default: True).

    Returns:
      The results of the best run: the best seed of the combination with the best mean, by the validation split. The
      mean is NaN, and null in `summary.json`, if the metric of a seed is.
    """
    rows, best_results = [], []
    for point in grid_points(config):
        outcomes = [run(single) for single in point.runs]
        metric = outcomes[0].main_metric
        values = [outcome.results["validation"][metric] for outcome in outcomes]
        mean, margin = mean_and_margin(values)
        # A run whose metric is NaN, because it is undefined, is never the best, unless all are NaN.
        best = int(np.nanargmax(values)) if not np.isnan(values).all() else 0
        rows.append(
            {
                "setting": point.name,
                "metric": metric,
                "mean": mean,
                "margin95": margin,
                "seeds": [single.seed for single in point.runs],
                "values": values,
                "best": str(point.runs[best].output / "model"),
                "others": _all_metrics([outcome.results for outcome in outcomes]),
            }
        )
        best_results.append(outcomes[best].results)
    means = [-math.inf if math.isnan(row["mean"]) else row["mean"] for row in rows]
    chosen = int(np.argmax(means))
    if report:
        summary = {"settings": rows, "best": rows[chosen]["best"]}
        write_file(config.output / "summary.json", to_json(summary, indent=2) + "\n")
        _print_table(rows, chosen)
    return best_results[chosen]


def mean_and_margin(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and half the width of its 95 % confidence interval by Student's t; NaN for a single value."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    quantile = float(stats.t.ppf(0.975, len(values) - 1))  # pyright: ignore[reportArgumentType]
    return mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _all_metrics(results: Sequence[Results]) -> dict[str, dict[str, Any]]:
    """Returns mean, margin and values over the seeds of every metric of every split."""
    metrics: dict[str, dict[str, Any]] = {}
    for split, figures in results[0].items():
        for metric in figures:
            values = [result[split][metric] for result in results]
            mean, margin = mean_and_margin(values)
            metrics[f"{split}/{metric}"] = {"mean": mean, "margin95": margin, "values": values}
    return metrics


def _print_table(rows: Sequence[dict[str, Any]], chosen: int) -> None:
    table = Table("setting", rows[0]["metric"], "95 %", "seeds", "best of them", title="validation")
    for number, row in enumerate(rows):
        margin = "-" if math.isnan(row["margin95"]) else f"± {row['margin95']:.4f}"
        finite = [value for value in row["values"] if not math.isnan(value)]
        best = f"{max(finite):.4f}" if finite else "-"
        mean = "-" if math.isnan(row["mean"]) else f"{row['mean']:.4f}"
        name = (row["setting"] or "as given") + (" *" if number == chosen else "")
        table.add_row(name, mean, margin, str(len(row["values"])), best)
    console = PlainConsole()
    console.print(table)
    console.print(f"the best run's model: {rows[chosen]['best']}", soft_wrap=True)
