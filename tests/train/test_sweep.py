"""Several runs from one command, the best evaluation, and what is drawn of the answers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from deberta_jax.train.configs import GridConfig
from deberta_jax.train.engine.best import Best
from deberta_jax.train.reporting.classification_plots import calibration, plot_answers
from deberta_jax.train.sweep import mean_and_margin, run_all, settings_of

from ..support.configs import changed, finetune_config

ONE = finetune_config(output=Path("out"))


def test_one_run_has_the_folder_for_itself():
    assert [setting.runs for setting in settings_of(ONE)] == [(ONE,)]


def test_every_setting_with_every_seed():
    config = changed(ONE, seeds=(3, 5), grid=GridConfig(learning_rate=(1e-5, 2e-5), batch_size=(16,)))
    settings = settings_of(config)
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
        return {"validation": {"accuracy": value}, "test": {"accuracy": value / 2}}, "accuracy"

    assert run_all(config, run)["validation"]["accuracy"] == 0.8
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] == str(tmp_path / "learning_rate=2e-05/seed-1/model")
    assert [round(row["mean"], 3) for row in summary["settings"][:2]] == [0.7, 0.775]
    assert summary["settings"][1]["others"]["test/accuracy"]["values"] == [0.375, 0.4]


def test_the_interval_is_students():
    values = [0.91, 0.9, 0.93, 0.92, 0.9]
    mean, margin = mean_and_margin(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([mean - margin, mean + margin], [low, high])
    assert math.isnan(mean_and_margin([0.5])[1])


def test_bad_settings():
    with pytest.raises(ValueError, match="repeat one; give every seed once"):
        changed(ONE, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"grid\.epochs and steps are given"):
        changed(ONE, grid=GridConfig(epochs=(3.0,)), steps=10)
    with pytest.raises(ValueError, match="label_smoothing is 1; it must be at least 0 and below 1"):
        changed(ONE, label_smoothing=1.0)
    with pytest.raises(ValueError, match="freeze_layers is -1; it must be at least 0"):
        changed(ONE, freeze_layers=-1)


# ------------------------------------------------------------------------------------------------- the best


def test_patience_counts_evaluations_without_a_better_one():
    best = Best("f1", patience=2)
    assert [best.record(step, {"f1": value}) for step, value in ((10, 0.2), (20, 0.5), (30, 0.5))] == [
        True,
        True,
        False,
    ]
    assert not best.done
    resumed = Best("f1", patience=2)
    resumed.set_state(json.loads(json.dumps(best.get_state())))
    assert not resumed.record(40, {"f1": math.nan})
    assert resumed.done
    assert (resumed.step, resumed.value) == (20, 0.5)


def test_no_patience_is_never_done():
    best = Best("f1")
    for step in range(1, 9):
        best.record(step, {"f1": math.nan})
    assert not best.done
    assert json.loads(json.dumps(best.get_state())) == {"step": None, "value": None, "waited": 8}


# ------------------------------------------------------------------------------------------------- plots


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    error, accuracies, confidences, counts = calibration(probabilities, labels)
    assert counts.sum() == 4
    # 0.9: half of them right; 0.7 and 0.6: all right
    np.testing.assert_allclose(error, (2 * 0.4 + 0.3 + 0.4) / 4)
    np.testing.assert_allclose(accuracies[counts == 2], 0.5)
    np.testing.assert_allclose(confidences[counts == 2], 0.9)


def test_a_model_as_sure_as_right_has_no_error():
    draw = np.random.default_rng(0)
    sure = draw.uniform(0.5, 1, 200_000)
    labels = (draw.uniform(size=len(sure)) > sure).astype(int)
    assert calibration(np.stack([sure, 1 - sure], axis=1), labels)[0] < 0.01


def test_the_plot_is_drawn(tmp_path):
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(3), 50)
    plot_answers(tmp_path / "answers.png", probabilities, draw.integers(0, 3, 50), ("no", "maybe", "yes"))
    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")
