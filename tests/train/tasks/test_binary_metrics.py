"""The scores of one class against the others equal scikit-learn's, and are NaN where they are undefined."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from deberta_jax.train.tasks.binary_metrics import Binary, binary_log_loss, binary_metric

rng = np.random.default_rng(0)
LABELS = rng.random(60) < 0.3
SCORES = np.round(np.clip(0.4 * LABELS + 0.6 * rng.random(60), 0, 1), 1)  # many equal ones
BINARY = Binary(SCORES, SCORES >= 0.5, LABELS)


def value(name: str, binary: Binary = BINARY) -> float:
    metric = binary_metric(name)
    assert metric is not None
    return metric(binary)


def test_values_are_those_of_scikit_learn() -> None:
    truth, decisions = LABELS, BINARY.decisions
    assert value("precision") == pytest.approx(sklearn.precision_score(truth, decisions))
    assert value("recall") == pytest.approx(sklearn.recall_score(truth, decisions))
    for beta in (0.5, 1, 2):
        assert value(f"f{beta}") == pytest.approx(sklearn.fbeta_score(truth, decisions, beta=beta))
    assert value("auc") == pytest.approx(sklearn.roc_auc_score(truth, SCORES))
    assert value("average_precision") == pytest.approx(sklearn.average_precision_score(truth, SCORES))
    assert binary_log_loss(SCORES, truth) == pytest.approx(sklearn.log_loss(truth, np.clip(SCORES, 1e-38, 1)), rel=1e-3)


def test_recall_at_a_precision_is_the_best_over_all_thresholds() -> None:
    points = [
        (sklearn.precision_score(LABELS, least <= SCORES), sklearn.recall_score(LABELS, least <= SCORES))
        for least in np.unique(SCORES)
    ]
    for least in (0.3, 0.6, 0.9):
        assert value(f"recall_at_precision_{least}") == max([r for p, r in points if p >= least], default=0)
        assert value(f"precision_at_recall_{least}") == max(p for p, r in points if r >= least)
    wrong = Binary(np.array([0.9, 0.1]), np.array([True, False]), np.array([False, True]))
    assert value("recall_at_precision_0.9", wrong) == 0


def test_undefined_scores_are_nan_and_ratios_without_a_denominator_0() -> None:
    none = Binary(SCORES, np.zeros(60, bool), np.zeros(60, bool))
    for name in ("auc", "average_precision", "recall_at_precision_0.5", "precision_at_recall_0.5"):
        assert math.isnan(value(name, none))
    assert math.isnan(value("auc", Binary(SCORES, BINARY.decisions, np.ones(60, bool))))
    assert [value(name, none) for name in ("precision", "recall", "f1")] == [0, 0, 0]


@pytest.mark.parametrize("name", ["f", "f0", "fx", "recall_at_precision_0", "recall_at_precision_1.5", "F1", "auc_1"])
def test_other_names_are_unknown(name: str) -> None:
    assert binary_metric(name) is None
