"""A grid of real runs of which one diverges."""

import json
from pathlib import Path

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train import finetune
from deberta_jax.train.configs import GridConfig, OptimizerConfig

from ..support.configs import finetune_config


def write_rows(path: Path, count: int) -> str:
    rows = [{"text": f"the house is {color}", "label": color} for color in ("red", "blue")] * (count // 2)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_one_diverging_setting_ends_alone_and_a_second_start_trains_nothing(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        train=write_rows(tmp_path / "train.jsonl", 16),
        validation=write_rows(tmp_path / "dev.jsonl", 8),
        max_length=16,
        batch_size=8,
        steps=2,
        save_every=1,
        optimizer=OptimizerConfig(warmup=0, schedule="warmup_constant"),
        grid=GridConfig(learning_rate=(1e38, 1e-3)),
    )
    results = finetune.main(config)
    listed = (tmp_path / "run" / "summary.json").read_text()
    diverged, finished = json.loads(listed, parse_constant=pytest.fail)["settings"]
    assert "not finite" in diverged["diverged"][0]["reason"]
    assert finished["diverged"] == []
    assert results["validation"]["accuracy"] == finished["mean"]
    assert not (tmp_path / "run" / "learning_rate=1e+38" / "model").exists()
    printed = capsys.readouterr()
    assert "diverged: 1 of 2 runs" in printed.out
    assert "learning_rate=1e+38: " in printed.err

    metrics = tmp_path / "run" / "learning_rate=0.001" / "checkpoints" / "2" / "meta" / "metadata"
    written = metrics.stat().st_mtime_ns
    assert finetune.main(config) == results
    assert metrics.stat().st_mtime_ns == written
    assert (tmp_path / "run" / "summary.json").read_text() == listed


def test_all_batch_sizes_of_a_grid_are_checked_before_the_first_run(small_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", 16)
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        train=train,
        validation=train,
        grid=GridConfig(batch_size=(8, 12)),
    )
    with pytest.raises(UserError, match="batch_size 12 does not divide"):
        finetune.main(config)
    assert not list((tmp_path / "run").glob("batch_size=*"))
