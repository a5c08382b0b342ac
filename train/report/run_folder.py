"""What the folder of a run holds, for its report: settings, metrics, time, results and predictions."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from deberta_jax.checkpoint import holds_model
from deberta_jax.config_file import FILE as SETTINGS
from deberta_jax.config_file import recorded_settings
from deberta_jax.errors import MissingFileError, UserError, one_line

from ..reporting.goodput import Goodput, read_goodput, read_step_times
from ..reporting.jsonl import read_records

METRICS, RESULTS, SUMMARY = "metrics.jsonl", "results.json", "summary.json"
_LARGEST_PREDICTIONS = 200_000  # records of a split; a confusion matrix of more says the same


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run, finished or not.

    Attributes:
      path: The folder.
      command: The command that made the run.
      settings: Values by the names of options; None for an option without a value, a list for one of several.
      version: Version of the library; empty if it is not recorded.
      records: The lines of metrics.jsonl.
      goodput: How the run spent its time; None if it is not recorded.
      step_times: What `read_step_times` returns.
      results: Metrics by split.
      predictions: The first lines of the predictions, by split.
      summary: summary.json of several runs, of which this is the best one; empty for a single run.
      notes: What is missing or damaged, a sentence each.
    """

    path: Path
    command: Literal["pretrain", "finetune"]
    settings: Mapping[str, Any]
    version: str
    records: list[dict[str, Any]]
    goodput: Goodput | None
    step_times: list[tuple[int, float, int]]
    results: Mapping[str, Mapping[str, float | None]]
    predictions: Mapping[str, list[dict[str, Any]]]
    summary: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def last_step(self) -> int:
        """The last step of which something was logged; 0 if there is none."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its model and results."""
        if self.command == "finetune":
            return bool(self.results)
        return any(holds_model(self.path / name) for name in ("discriminator", "model"))

    @property
    def per_step(self) -> tuple[int, str] | None:
        """The size of a step and its unit: tokens of pre-training, examples of fine-tuning; None if unknown."""
        batch, length = self.setting("batch-size"), self.setting("sequence-length")
        if self.command == "finetune":
            return (batch, "examples") if batch else None
        return (batch * length, "tokens") if batch and length else None

    def setting(self, name: str) -> int | None:
        """Returns a setting that is a whole number; None if it is not recorded."""
        value = self.settings.get(name)
        return int(value) if isinstance(value, str) and value.isdecimal() else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Returns steps and values of a metric; values that are not finite are left out."""
        points = [(record["step"], record[key]) for record in self.records if _is_number(record.get(key))]
        return [step for step, _ in points], [float(value) for _, value in points]


def open_run(path: Path) -> RunFolder:
    """Reads the folder of a run; of several seeds or a grid, the best run.

    Damaged lines and files are left out and named in `notes`, so that a report of the rest can be made.

    Raises:
      MissingFileError: There is no such folder, it is not one of a run, or the run has logged nothing yet.
      UserError: `summary.json` names no run that is there.
    """
    if not path.is_dir():
        raise MissingFileError(f"no folder {path}; give the --output of `deberta-jax pretrain` or `finetune`")
    notes: list[str] = []
    summary = _read_object(path / SUMMARY, notes)
    run = _best_run(path, summary) if (path / SUMMARY).is_file() else path
    records = read_records(run / METRICS, log=notes.append) if (run / METRICS).is_file() else []
    settings = _read_settings(run, notes)
    results = {
        split: {name: value for name, value in figures.items() if value is None or _is_number(value)}
        for split, figures in _read_object(run / RESULTS, notes).items()
        if isinstance(figures, dict) and split != "thresholds"
    }
    if not records and not results:
        if (run / SETTINGS).is_file() or (run / METRICS).is_file():
            raise MissingFileError(f"the run {run} has logged no step yet; report on it after its first steps")
        raise MissingFileError(
            f"{run} is not the folder of a run: it has no {METRICS} and no {RESULTS}; give the --output of "
            "`deberta-jax pretrain` or `finetune`"
        )
    command = settings.pop("command", None)
    if command not in ("pretrain", "finetune"):  # a run of an earlier version
        command = "pretrain" if any("masked_accuracy" in record for record in records) else "finetune"
    try:
        goodput, step_times = read_goodput(run), read_step_times(run)
    except FileNotFoundError:
        goodput, step_times = None, []
    return RunFolder(
        path=run,
        command=command,
        version=str(settings.pop("version", None) or ""),
        settings=settings,
        records=records,
        goodput=goodput if goodput and goodput.total else None,
        step_times=step_times,
        results=results,
        predictions=dict(_read_predictions(run / "predictions", notes)),
        summary=summary,
        notes=tuple(notes),
    )


def _best_run(path: Path, summary: Mapping[str, Any]) -> Path:
    """Returns the folder of the best of several runs, which `summary.json` names as it was when it ran."""
    best = summary.get("best")
    if isinstance(best, str):
        parts = Path(best).parts[:-1]  # without the folder of the model
        for count in (2, 1):
            if parts and (folder := path.joinpath(*parts[-count:])).is_dir():
                return folder
    raise UserError(f"{path / SUMMARY} names no best run that is in {path}; give the folder of one run below it")


def _read_settings(run: Path, notes: list[str]) -> dict[str, Any]:
    if not (run / SETTINGS).is_file():
        notes.append(f"there is no {SETTINGS}, so the settings are unknown")
        return {}
    try:
        return recorded_settings(run / SETTINGS)
    except UserError as error:
        notes.append(one_line(error))
        return {}


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        notes.append(f"{path.name} is damaged: it is not a JSON object")
        return {}
    return content


def _read_predictions(folder: Path, notes: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path in sorted(folder.glob("*.jsonl")):
        records, damaged = [], 0
        with path.open("rb") as lines:
            for line, _ in zip(lines, range(_LARGEST_PREDICTIONS), strict=False):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict):
                    records.append(record)
                else:
                    damaged += 1
        if damaged:
            notes.append(f"predictions/{path.name}: {damaged} damaged lines are left out")
        if records:
            yield path.stem, records


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
