"""Several fine-tuning runs from one command, over seeds and a grid of settings: means, intervals and the best run."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from deberta_jax.atomic_files import write_file
from deberta_jax.console import PlainConsole
from deberta_jax.errors import UserError, one_line
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import say

from .configs import FinetuneConfig
from .engine.divergence import TrainingError
from .tasks.metrics import lower_is_better

Results = dict[str, dict[str, float]]  # the metrics of each labeled split


class RunOutcome(NamedTuple):
    """The results of a run, and the metric of the validation split that decides."""

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
        name = ",".join(f"{key}={_short(value)}" for key, value in chosen.items())
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


def _short(value: float) -> str:
    """Returns a number as the name of a folder has it: six digits, or all if there are more."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def run_all(config: FinetuneConfig, run: Callable[[FinetuneConfig], RunOutcome], *, report: bool = True) -> Results:
    """Runs every combination of the grid with every seed.

    A run that diverges (TrainingError) ends alone: the others follow, and the table and `summary.json` mark it. Every
    other error ends the command. Finished runs are on disk, and the same command continues: it does not train finished
    runs again, and repeats a diverged one from its last checkpoint.

    Args:
      config: the settings of the command.
      run: trains with the settings of one run.
      report: print a table and write `summary.json` (default: True).

    Returns:
      The results of the best run: the best seed of the combination with the best mean, by the validation split. Means
      are those of the runs that did not diverge. A combination of which a run diverged is the best only if that is so
      for all. The mean is NaN, and null in `summary.json`, if the metric of a seed is.

    Raises:
      TrainingError: all runs diverged. `summary.json` is written.
      UserError: two runs would have the same folder.
    """
    points = grid_points(config)
    _check_folders(points)
    rows: list[_Row] = []
    for point in points:
        attempts = [_attempt(run, single, report=report) for single in point.runs]
        rows.append(_Row(point, attempts))
    best = max(rows, key=lambda row: row.rank)  # the first of equals
    chosen = best if best.finished else None
    if report:
        summary = {
            "settings": [row.to_json() for row in rows],
            "best": chosen.best_model if chosen else None,
        }
        write_file(config.output / "summary.json", to_json(summary, indent=2) + "\n")
        with contextlib.suppress(OSError):  # standard output is on a full disk; summary.json has everything
            _print_table(rows, chosen)
    if chosen is None:
        count = sum(len(row.attempts) for row in rows)
        listed = config.output / "summary.json"
        raise TrainingError(f"all {count} runs diverged, as {listed} lists; the first: {rows[0].attempts[0]}")
    return chosen.best[1].results


def _attempt(run: Callable[[FinetuneConfig], RunOutcome], single: FinetuneConfig, *, report: bool) -> RunOutcome | str:
    """Returns the outcome of a run or, if it diverged, the reason."""
    try:
        return run(single)
    except TrainingError as error:  # all processes raise it alike, and the memory of the run is freed here
        reason = one_line(error)
    if report:
        say(f"diverged: {single.output}: {reason}", error=True)
    return reason


def _check_folders(points: Sequence[GridPoint]) -> None:
    """Raises UserError if a combination occurs twice, so that its runs would have the same folders."""
    names = [point.name for point in points]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the grid has {twice} twice; give every value once")


class Interval(NamedTuple):
    """A mean and half the width of its 95 % confidence interval."""

    mean: float
    margin: float


def mean_and_margin(values: Sequence[float]) -> Interval:
    """Returns the mean, NaN for no value, and its confidence interval by Student's t, NaN for fewer than two."""
    from scipy import stats

    mean = float(np.mean(values)) if values else math.nan
    if len(values) < 2:
        return Interval(mean, math.nan)
    quantile = float(stats.t.ppf(0.975, len(values) - 1))  # pyright: ignore[reportArgumentType]
    return Interval(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values)))


@dataclasses.dataclass(frozen=True)
class _Row:
    """One combination with the outcomes of its runs; the outcome of a diverged run is the reason."""

    point: GridPoint
    attempts: Sequence[RunOutcome | str]

    @property
    def finished(self) -> list[RunOutcome]:
        return [attempt for attempt in self.attempts if isinstance(attempt, RunOutcome)]

    @property
    def metric(self) -> str:
        return self.finished[0].main_metric if self.finished else ""

    @property
    def values(self) -> list[float]:
        """The metric of every run; NaN if it is undefined or the run diverged."""
        return [
            attempt.results["validation"][self.metric] if isinstance(attempt, RunOutcome) else math.nan
            for attempt in self.attempts
        ]

    @property
    def interval(self) -> Interval:
        return mean_and_margin([outcome.results["validation"][self.metric] for outcome in self.finished])

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Sorts combinations without a diverged run above the others, and by their means."""
        goodness = _goodness(self.metric, self.interval.mean)
        return bool(self.finished), len(self.finished) == len(self.attempts), goodness

    @property
    def best(self) -> tuple[FinetuneConfig, RunOutcome]:
        """The finished run with the best metric. One whose metric is undefined is the best only if all are."""
        pairs = zip(self.point.runs, self.attempts, strict=True)
        finished = [(single, attempt) for single, attempt in pairs if isinstance(attempt, RunOutcome)]
        return max(finished, key=lambda pair: _goodness(self.metric, pair[1].results["validation"][self.metric]))

    @property
    def best_model(self) -> str:
        return str(self.best[0].output / "model")

    def to_json(self) -> dict[str, Any]:
        mean, margin = self.interval
        seeds = [single.seed for single in self.point.runs]
        return {
            "setting": self.point.name,
            "metric": self.metric or None,
            "mean": mean,
            "margin95": margin,
            "seeds": seeds,
            "values": self.values,
            "diverged": [
                {"seed": seed, "reason": attempt}
                for seed, attempt in zip(seeds, self.attempts, strict=True)
                if isinstance(attempt, str)
            ],
            "best": self.best_model if self.finished else None,
            "others": _all_metrics(self.attempts),
        }


def _all_metrics(attempts: Sequence[RunOutcome | str]) -> dict[str, dict[str, Any]]:
    """Returns mean, margin and values over the seeds of every metric of every split; null for a diverged run."""
    finished = [attempt.results for attempt in attempts if isinstance(attempt, RunOutcome)]
    names = [(split, metric) for split, figures in finished[0].items() for metric in figures] if finished else []
    metrics: dict[str, dict[str, Any]] = {}
    for split, metric in names:
        mean, margin = mean_and_margin([results[split][metric] for results in finished])
        values = [None if isinstance(attempt, str) else attempt.results[split][metric] for attempt in attempts]
        metrics[f"{split}/{metric}"] = {"mean": mean, "margin95": margin, "values": values}
    return metrics


def _print_table(rows: Sequence[_Row], chosen: _Row | None) -> None:
    metric = chosen.metric if chosen else "metric"
    table = Table("setting", metric, "95 %", "seeds", "best of them", title="validation")
    diverged = 0
    for row in rows:
        mean, margin = row.interval
        name = (row.point.name or "as given") + (" *" if row is chosen else "")
        lost = len(row.attempts) - len(row.finished)
        diverged += lost
        seeds = f"{len(row.attempts)}, {lost} diverged" if lost else str(len(row.attempts))
        best = row.best[1].results["validation"][row.metric] if row.finished else math.nan
        table.add_row(name, _shown(mean), _shown(margin, "± "), seeds, _shown(best))
    console = PlainConsole()
    console.print(table)
    if diverged:
        console.print(
            f"diverged: {diverged} of {sum(len(row.attempts) for row in rows)} runs; means are those of the others, "
            "and summary.json has the reasons",
            soft_wrap=True,
        )
    if chosen is not None:
        console.print(f"the best run's model: {chosen.best_model}", soft_wrap=True)


def _goodness(metric: str, value: float) -> float:
    """Returns a number that is higher the better a value of a metric is; lowest for NaN."""
    if math.isnan(value):
        return -math.inf
    return -value if lower_is_better(metric) else value


def _shown(value: float, prefix: str = "") -> str:
    return "-" if math.isnan(value) else f"{prefix}{value:.4f}"
