"""Several fine-tuning runs from one command: over seeds and a grid of settings; means, intervals, and the best."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .configs import FinetuneConfig

Results = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of the grid, and its runs, one a seed."""

    name: str
    runs: tuple[FinetuneConfig, ...]


def settings_of(config: FinetuneConfig) -> tuple[Setting, ...]:
    """The runs that a command asks for: every combination of config.sweep.grid, with every seed of config.sweep.seeds.

    Without both it is the run itself, in its own folder; else each has a folder below it, such as
    `learning_rate=1e-05,batch_size=32/seed-3`.
    """
    grid = {name: values for name, values in dataclasses.asdict(config.sweep.grid).items() if values}
    settings = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = ",".join(f"{key}={value:g}" for key, value in point.items())
        one = dataclasses.replace(config, **{key: value for key, value in point.items() if key != "learning_rate"})
        if "learning_rate" in point:
            one = dataclasses.replace(
                one, optimizer=dataclasses.replace(one.optimizer, learning_rate=point["learning_rate"])
            )
        runs = []
        for seed in config.sweep.seeds or (config.seed,):
            folder = config.output / name if name else config.output
            folder = folder / f"seed-{seed}" if config.sweep.seeds else folder
            runs.append(dataclasses.replace(one, seed=seed, output=folder))
        settings.append(Setting(name, tuple(runs)))
    return tuple(settings)


def run_all(
    config: FinetuneConfig, run: Callable[[FinetuneConfig], tuple[Results, str]], *, report: bool = True
) -> Results:
    """Runs every setting with every seed; prints the table and writes `summary.json`, unless `report` is off.

    Args:
      run: one run; returns its results, and the name of the metric of the validation split that counts.

    Returns:
      The results of the best run: of the setting with the best mean the seed with the best validation metric.
    """
    rows, outcomes = [], []
    for setting in settings_of(config):
        found = [run(one) for one in setting.runs]
        metric = found[0][1]
        values = [results["validation"][metric] for results, _ in found]
        mean, margin = mean_and_margin(values)
        best = int(np.nanargmax(values)) if not np.isnan(values).all() else 0
        rows.append(
            {
                "setting": setting.name,
                "metric": metric,
                "mean": mean,
                "margin95": margin,
                "seeds": [one.seed for one in setting.runs],
                "values": values,
                "best": str(setting.runs[best].output / "model"),
                "others": _others([results for results, _ in found]),
            }
        )
        outcomes.append((-math.inf if math.isnan(mean) else mean, found[best][0]))
    chosen = max(range(len(rows)), key=lambda number: outcomes[number][0])
    if report:
        path = config.output / "summary.json"
        path.write_text(json.dumps({"settings": rows, "best": rows[chosen]["best"]}, indent=2) + "\n", encoding="utf-8")
        _print(rows, chosen)
    return outcomes[chosen][1]


def mean_and_margin(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval by Student's t; nan for a single value."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    quantile = float(stats.t.ppf(0.975, len(values) - 1))  # pyright: ignore[reportArgumentType]
    return mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _others(results: Sequence[Results]) -> dict[str, dict[str, Any]]:
    """Every figure of every split: mean, margin and values over the seeds."""
    found: dict[str, dict[str, Any]] = {}
    for split, figures in results[0].items():
        for metric in figures:
            values = [one[split][metric] for one in results]
            mean, margin = mean_and_margin(values)
            found[f"{split}/{metric}"] = {"mean": mean, "margin95": margin, "values": values}
    return found


def _print(rows: Sequence[dict[str, Any]], chosen: int) -> None:
    table = Table("setting", rows[0]["metric"], "95 %", "seeds", "best of them", title="validation")
    for number, row in enumerate(rows):
        margin = "-" if math.isnan(row["margin95"]) else f"± {row['margin95']:.4f}"
        name = (row["setting"] or "as given") + (" *" if number == chosen else "")
        table.add_row(name, f"{row['mean']:.4f}", margin, str(len(row["values"])), f"{max(row['values']):.4f}")
    console = Console()
    console.print(table)
    console.print(f"the best run's model: {rows[chosen]['best']}", markup=False, soft_wrap=True)
