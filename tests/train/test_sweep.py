"""Several runs from one command, with a stand-in for training."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from deberta_jax.train.configs import GridConfig
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


def test_the_interval_is_students():
    values = [0.91, 0.9, 0.93, 0.92, 0.9]
    mean, margin = mean_and_margin(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([mean - margin, mean + margin], [low, high])
    assert math.isnan(mean_and_margin([0.5])[1])
