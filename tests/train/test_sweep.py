"""Several runs from one command, with a stand-in for training."""

import contextlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from deberta_jax.errors import UserError
from deberta_jax.train.configs import GridConfig
from deberta_jax.train.engine.divergence import TrainingError
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.sweep import RunOutcome, grid_points, mean_and_margin, run_all

from ..support.configs import changed, finetune_config

ONE = finetune_config(output=Path("out"))


def test_one_run_has_the_folder_for_itself():
    assert [setting.runs for setting in grid_points(ONE)] == [(ONE,)]


def test_every_setting_with_every_seed():
    config = changed(ONE, seeds=(3, 5), grid=GridConfig(learning_rate=(1e-5, 2e-5), batch_size=(16,)))
    settings = grid_points(config)
    assert [setting.name for setting in settings] == [
        "learning_rate=1e-05,batch_size=16",
        "learning_rate=2e-05,batch_size=16",
    ]
    run = settings[1].runs[1]
    assert (run.seed, run.batch_size, run.optimizer.learning_rate) == (5, 16, 2e-5)
    assert run.output == Path("out/learning_rate=2e-05,batch_size=16/seed-5")


def test_the_best_seed_of_the_best_setting(tmp_path):
    scores = {(1e-5, 0): 0.5, (1e-5, 1): 0.9, (2e-5, 0): 0.75, (2e-5, 1): 0.8, (3e-5, 0): math.nan, (3e-5, 1): math.nan}
    config = changed(ONE, output=tmp_path, seeds=(0, 1), grid=GridConfig(learning_rate=(1e-5, 2e-5, 3e-5)))

    def run(one):
        value = scores[one.optimizer.learning_rate, one.seed]
        return RunOutcome({"validation": {"accuracy": value}, "test": {"accuracy": value / 2}}, "accuracy")

    assert run_all(config, run)["validation"]["accuracy"] == 0.8
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["settings"][2]["mean"] is None
    assert summary["settings"][2]["values"] == [None, None]
    assert summary["best"] == str(tmp_path / "learning_rate=2e-05/seed-1/model")
    assert [round(row["mean"], 3) for row in summary["settings"][:2]] == [0.7, 0.775]
    assert summary["settings"][1]["others"]["test/accuracy"]["values"] == [0.375, 0.4]


def test_diverged_runs_are_marked_and_the_others_follow(tmp_path, capsys):
    """A setting of which a run diverged is not the best, however good its other runs are."""
    scores = {(1e-5, 0): 0.5, (1e-5, 1): 0.6, (2e-5, 0): 0.9, (2e-5, 1): None, (3e-5, 0): None, (3e-5, 1): None}
    config = changed(ONE, output=tmp_path, seeds=(0, 1), grid=GridConfig(learning_rate=(3e-5, 2e-5, 1e-5)))

    def run(one):
        value = scores[one.optimizer.learning_rate, one.seed]
        if value is None:
            raise TrainingError(f"loss not finite\nwith {one.optimizer.learning_rate}")
        return RunOutcome({"validation": {"accuracy": value}}, "accuracy")

    assert run_all(config, run)["validation"]["accuracy"] == 0.6
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    nothing, half, whole = summary["settings"]
    assert summary["best"] == whole["best"] == str(tmp_path / "learning_rate=1e-05/seed-1/model")
    assert (whole["mean"], whole["diverged"]) == (0.55, [])
    assert (half["mean"], half["margin95"], half["values"]) == (0.9, None, [0.9, None])
    assert half["diverged"] == [{"seed": 1, "reason": "loss not finite with 2e-05"}]
    assert half["others"]["validation/accuracy"]["values"] == [0.9, None]
    assert half["best"] == str(tmp_path / "learning_rate=2e-05/seed-0/model")
    assert (nothing["mean"], nothing["values"], nothing["best"]) == (None, [None, None], None)
    assert [entry["seed"] for entry in nothing["diverged"]] == [0, 1]
    printed = capsys.readouterr()
    assert "diverged: 3 of 6 runs; means are those of the others, and summary.json has the reasons" in printed.out
    assert f"diverged: {tmp_path / 'learning_rate=2e-05/seed-1'}: loss not finite with 2e-05" in printed.err


def test_a_grid_of_which_all_runs_diverge_fails_with_a_summary(tmp_path):
    config = changed(ONE, output=tmp_path, grid=GridConfig(learning_rate=(1.0, 2.0)))

    def run(one):
        raise TrainingError(f"loss not finite at step {one.optimizer.learning_rate:g}")

    with pytest.raises(TrainingError, match=r"all 2 runs diverged, as .*summary.json lists; .* at step 1$"):
        run_all(config, run)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] is None
    assert [row["diverged"][0]["reason"][-1] for row in summary["settings"]] == ["1", "2"]


@pytest.mark.parametrize("error", [UserError("no such file"), OSError(28, "disk full"), StoppedError("stopped", 42)])
def test_other_errors_end_the_grid(tmp_path, error):
    def run(one):
        raise error

    with pytest.raises(type(error)):
        run_all(changed(ONE, output=tmp_path, seeds=(0, 1)), run)
    assert not (tmp_path / "summary.json").exists()


def test_every_run_has_a_folder_of_its_own(tmp_path):
    points = grid_points(changed(ONE, grid=GridConfig(learning_rate=(1e-5, 1.0000001e-5), batch_size=(1048575,))))
    assert [point.name for point in points] == [
        "learning_rate=1e-05,batch_size=1048575",
        "learning_rate=1.0000001e-05,batch_size=1048575",
    ]
    with pytest.raises(UserError, match="the grid has batch_size=8 twice; give every value once"):
        run_all(changed(ONE, output=tmp_path, grid=GridConfig(batch_size=(8, 8))), pytest.fail)


def test_the_interval_is_students():
    values = [0.91, 0.9, 0.93, 0.92, 0.9]
    mean, margin = mean_and_margin(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([mean - margin, mean + margin], [low, high])
    assert math.isnan(mean_and_margin([0.5])[1])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_table_that_cannot_be_printed_does_not_end_the_command(tmp_path, monkeypatch):
    """Everything is in summary.json, and another start would meet the same full disk."""
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        results = run_all(
            changed(ONE, output=tmp_path, seeds=(0, 1)),
            lambda one: RunOutcome({"validation": {"accuracy": 0.5 + one.seed / 10}}, "accuracy"),
        )
        with contextlib.suppress(OSError):
            full.close()
    assert results["validation"]["accuracy"] == 0.6
    assert json.loads((tmp_path / "summary.json").read_text())["settings"][0]["values"] == [0.5, 0.6]


def test_the_lowest_loss_is_the_best(tmp_path):
    scores = {(1e-5, 0): 0.5, (1e-5, 1): 0.3, (2e-5, 0): 0.75, (2e-5, 1): 0.2}
    config = changed(ONE, output=tmp_path, seeds=(0, 1), grid=GridConfig(learning_rate=(1e-5, 2e-5)))

    def run(one):
        return RunOutcome({"validation": {"log_loss": scores[one.optimizer.learning_rate, one.seed]}}, "log_loss")

    assert run_all(config, run)["validation"]["log_loss"] == 0.3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] == str(tmp_path / "learning_rate=1e-05/seed-1/model")
