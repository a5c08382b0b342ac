"""The best evaluation and early stopping."""

import json
import math

from deberta_jax.train.engine.best import BestEvaluation


def test_patience_counts_evaluations_without_improvement():
    best = BestEvaluation("f1", patience=2)
    assert [best.record(step, {"f1": value}) for step, value in ((10, 0.2), (20, 0.5), (30, 0.5))] == [
        True,
        True,
        False,
    ]
    assert not best.should_stop
    resumed = BestEvaluation("f1", patience=2)
    resumed.set_state(json.loads(json.dumps(best.get_state())))
    assert not resumed.record(40, {"f1": math.nan})
    assert resumed.should_stop
    assert (resumed.step, resumed.value) == (20, 0.5)


def test_zero_patience_never_stops():
    best = BestEvaluation("f1")
    for step in range(1, 9):
        best.record(step, {"f1": math.nan})
    assert not best.should_stop
    assert json.loads(json.dumps(best.get_state())) == {"step": None, "value": None, "waited": 8, "unit": "fraction"}


def test_a_state_in_percent_of_an_earlier_version_becomes_a_fraction():
    old = {"step": 20, "value": 87.5, "waited": 1}
    spans, classes = BestEvaluation("f1", once_in_percent=True), BestEvaluation("f1")
    assert spans.set_state(old)
    assert not classes.set_state(old | {"value": 0.875})
    assert spans.value == classes.value == 0.875
    resumed = BestEvaluation("f1", once_in_percent=True)
    assert not resumed.set_state(json.loads(json.dumps(spans.get_state())))
    assert not BestEvaluation("f1", once_in_percent=True).set_state({"step": None, "value": None, "waited": 0})
    assert resumed == spans


def test_the_lowest_loss_is_the_best_also_after_resuming():
    best = BestEvaluation("log_loss", patience=1, lower_is_better=True)
    values = (math.nan, 0.7, 0.5, 0.6)
    recorded = [best.record(step, {"log_loss": value}) for step, value in enumerate(values)]
    assert recorded == [False, True, True, False]
    resumed = BestEvaluation("log_loss", patience=1, lower_is_better=True)
    resumed.set_state(json.loads(json.dumps(best.get_state())))
    assert (resumed.step, resumed.value, resumed.should_stop) == (2, 0.5, True)
    assert not resumed.record(4, {"log_loss": 0.5})
    assert resumed.record(5, {"log_loss": 0.4})
    fresh = BestEvaluation("log_loss", lower_is_better=True)
    fresh.set_state(json.loads(json.dumps(BestEvaluation("log_loss", lower_is_better=True).get_state())))
    assert fresh.record(1, {"log_loss": 9.0})
