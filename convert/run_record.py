"""What the folder of a finished run records about its model: settings, versions, scores and seeds.

The settings are those of `config.yaml` or, where a run has none, those that its newest checkpoint was saved with.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deberta_jax.checkpoint import holds_model
from deberta_jax.config_file import FILE as SETTINGS
from deberta_jax.errors import MissingFileError, UserError

_RESULTS, _SUMMARY = "results.json", "summary.json"
_MODELS = ("model", "discriminator", "generator")  # folders of models in the folder of a run


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of a metric over several seeds, and half the width of its 95 % confidence interval."""

    split: str
    metric: str
    mean: float
    margin: float | None
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What is known about how a model was trained; everything is empty for a model whose run is unknown.

    Attributes:
      settings: Values by the names of options, such as "optimizer.learning-rate"; options without a value are left out.
      versions: Versions of libraries by name.
      results: Metrics by split; those that are undefined are left out.
      mean: Of several seeds, the metric that decided between them.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    mean: Mean | None = None


def model_of_run(folder: Path) -> tuple[Path, RunRecord]:
    """Returns the folder of a model and what is recorded about it.

    Args:
      folder: The folder of a model or of a run, also of several seeds, whose best model is taken.

    Raises:
      MissingFileError: The run has no finished model.
      UserError: A run of pre-training has two models, or a file of the run is damaged.
    """
    if (folder / _SUMMARY).is_file():
        return _best_of(folder)
    found = [name for name in _MODELS if holds_model(folder / name)]
    if len(found) > 1:
        raise UserError(f"{folder} has the models {' and '.join(found)}; give one of them, such as {folder / found[0]}")
    if found:
        return folder / found[0], read_record(folder)
    is_run = any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", SETTINGS))
    if is_run and not (folder / "config.json").is_file():
        raise MissingFileError(f"the run {folder} has no finished model; run its command again until it has finished")
    known = folder.name in _MODELS and holds_model(folder)
    return folder, read_record(folder.parent) if known else RunRecord()


def read_record(run: Path) -> RunRecord:
    """Returns what the folder of a run records. It raises UserError if a file is damaged."""
    manifest = _newest_manifest(run)
    settings = dict(_flatten(manifest.get("identity", {})))
    versions = dict(manifest.get("versions", {}))
    if (run / SETTINGS).is_file():
        settings = dict(_flatten(_read_yaml(run / SETTINGS)))
    settings.pop("command", None)
    if version := settings.pop("version", None):
        versions = {"deberta-jax": str(version), **versions}
    results = _read_json(run / _RESULTS) if (run / _RESULTS).is_file() else {}
    results.pop("thresholds", None)  # of a multi-label classification; the other keys are splits
    return RunRecord(settings, versions, {split: _numbers(metrics) for split, metrics in results.items()})


def _best_of(folder: Path) -> tuple[Path, RunRecord]:
    """Returns the best model of several runs, and the record of its run with the mean over the seeds."""
    summary = _read_json(folder / _SUMMARY)
    row = next((row for row in summary.get("settings", ()) if row.get("best") == summary.get("best")), None)
    if row is None or not summary.get("best"):
        raise MissingFileError(f"{folder / _SUMMARY} names no best model; all runs diverged or have not finished")
    parts = Path(summary["best"]).parts  # as the run named it, which may have been elsewhere
    model = next((path for n in (2, 3) if holds_model(path := folder.joinpath(*parts[-n:]))), None)
    if model is None:
        raise MissingFileError(f"{folder / _SUMMARY} names the best model {summary['best']}, which is not in {folder}")
    record = read_record(model.parent)
    mean = row.get("mean")
    if mean is None or len(row["seeds"]) < 2:
        return model, record
    return model, dataclasses.replace(
        record, mean=Mean("validation", row["metric"], mean, row.get("margin95"), tuple(row["seeds"]))
    )


def _newest_manifest(run: Path) -> Mapping[str, Any]:
    """Returns the content of the newest checkpoint's manifest, or nothing: checkpoints may have been deleted."""
    steps = [path for path in run.glob("checkpoints/*/meta/metadata") if path.parent.parent.name.isdecimal()]
    if not steps:
        return {}
    content = _read_json(max(steps, key=lambda path: int(path.parent.parent.name))).get("content", {})
    return content if isinstance(content, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; copy it again, or delete it to leave it out")
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it has no settings; copy it again, or delete it to leave it out")
    return content


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings by the names of their options; those without a value are left out."""
    for name, value in settings.items():
        option = f"{prefix}{name}".replace("_", "-")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{option}.")
        elif value is not None and value not in ([], ""):
            yield option, value


def _numbers(metrics: Any) -> dict[str, float]:
    items = metrics.items() if isinstance(metrics, dict) else ()
    return {name: value for name, value in items if isinstance(value, int | float) and math.isfinite(value)}
