"""What the folder of a run says about its model: settings of either file, scores, seeds, and damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.convert.run_record import Mean, RunRecord, model_of_run, read_record
from deberta_jax.errors import MissingFileError, UserError


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(run: Path) -> Path:
    """Writes a finished run with one checkpoint and returns the folder of its model."""
    (run / "model" / "params").mkdir(parents=True)
    write_json(run / "results.json", {"validation": {"accuracy": 0.5, "mcc": None}})
    identity = {"model": "org/base", "seed": 3, "optimizer": {"learning_rate": 1e-5}, "kind": None, "labels": []}
    for step, seed in ((8, 3), (10, 4)):
        content = {"identity": identity | {"seed": seed}, "versions": {"jax": "0.10.2"}}
        write_json(run / "checkpoints" / str(step) / "meta" / "metadata", {"content": content})
    return run / "model"


def test_settings_come_from_the_newest_checkpoint(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run")
    expected = RunRecord(
        {"model": "org/base", "seed": 4, "optimizer.learning-rate": 1e-5},
        {"jax": "0.10.2"},
        {"validation": {"accuracy": 0.5}},
    )
    assert model_of_run(tmp_path / "run") == (model, expected)
    assert model_of_run(model) == (model, expected)


def test_settings_come_from_config_yaml_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "command: finetune\nversion: 0.2.0\nmodel: org/other\noptimizer: {warmup: 0.1}"
    )
    record = read_record(tmp_path)
    assert record.settings == {"model": "org/other", "optimizer.warmup": 0.1}
    assert record.versions == {"deberta-jax": "0.2.0", "jax": "0.10.2"}


def test_of_several_seeds_the_best_model_is_taken(tmp_path: Path) -> None:
    model = write_run(tmp_path / "seed-2")
    row = {"best": "elsewhere/seed-2/model", "metric": "accuracy", "mean": 0.4, "margin95": 0.1, "seeds": [1, 2]}
    write_json(tmp_path / "summary.json", {"settings": [row], "best": row["best"]})
    found, record = model_of_run(tmp_path)
    assert found == model
    assert record.mean == Mean("validation", "accuracy", 0.4, 0.1, (1, 2))
    write_json(tmp_path / "summary.json", {"settings": [row], "best": None})
    with pytest.raises(MissingFileError, match="names no best model; all runs diverged"):
        model_of_run(tmp_path)


def test_other_folders(tmp_path: Path) -> None:
    assert model_of_run(tmp_path) == (tmp_path, RunRecord())
    for name in ("generator", "discriminator"):
        (tmp_path / name / "params").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has the models discriminator and generator; give one of them, such as "):
        model_of_run(tmp_path)
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingFileError, match="has no finished model; run its command again"):
        model_of_run(tmp_path / "unfinished")


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "checkpoints/10/meta/metadata"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    write_run(tmp_path)
    (tmp_path / name).write_text("[")
    with pytest.raises(UserError, match=rf"{name} is damaged: .* or delete it to leave it out$"):
        model_of_run(tmp_path)
