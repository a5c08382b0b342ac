"""The metrics of multi-label classification equal scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.multilabel.metrics import METRICS, LabelPredictions, label_metric

rng = np.random.default_rng(0)
TARGETS = rng.random((40, 3)) < (0.3, 0.5, 0.1)
SHARES = np.clip(0.3 * TARGETS + 0.6 * rng.random((40, 3)), 0, 1)
PREDICTIONS = LabelPredictions(SHARES, SHARES >= 0.5, TARGETS)


def test_values_are_those_of_scikit_learn() -> None:
    decisions = PREDICTIONS.decisions
    expected = {
        "micro_f1": sklearn.f1_score(TARGETS, decisions, average="micro"),
        "macro_f1": sklearn.f1_score(TARGETS, decisions, average="macro"),
        "weighted_f1": sklearn.f1_score(TARGETS, decisions, average="weighted"),
        "samples_f1": sklearn.f1_score(TARGETS, decisions, average="samples", zero_division=1.0),
        "accuracy": sklearn.accuracy_score(TARGETS, decisions),
        "mean_average_precision": sklearn.average_precision_score(TARGETS, SHARES, average="macro"),
        "auc": sklearn.roc_auc_score(TARGETS, SHARES, average="macro"),
        "micro_auc": sklearn.roc_auc_score(TARGETS, SHARES, average="micro"),
        "precision": sklearn.precision_score(TARGETS, decisions, average="micro"),
        "recall": sklearn.recall_score(TARGETS, decisions, average="micro"),
        "hamming_loss": sklearn.hamming_loss(TARGETS, decisions),
        "log_loss": np.mean([sklearn.log_loss(TARGETS[:, index], SHARES[:, index]) for index in range(3)]),
    }
    assert {name: metric(PREDICTIONS) for name, metric in METRICS.items()} == pytest.approx(expected)
    one = label_metric("f2:b", ("a", "b", "c"))(PREDICTIONS)
    assert one == pytest.approx(sklearn.fbeta_score(TARGETS[:, 1], decisions[:, 1], beta=2))


def test_the_auc_leaves_out_classes_for_which_it_is_undefined() -> None:
    targets = TARGETS.copy()
    targets[:, 2] = False
    some = LabelPredictions(SHARES, PREDICTIONS.decisions, targets)
    assert METRICS["auc"](some) == pytest.approx(sklearn.roc_auc_score(targets[:, :2], SHARES[:, :2]))
    none = LabelPredictions(SHARES, PREDICTIONS.decisions, np.zeros_like(targets))
    assert math.isnan(METRICS["auc"](none))
    assert math.isnan(METRICS["mean_average_precision"](none))
    assert METRICS["weighted_f1"](none) == 0


def test_unknown_names_are_listed() -> None:
    with pytest.raises(UserError, match=r"'f1', which this task does not have; it has micro_f1, .* as in f1:CLASS"):
        label_metric("f1", ("a", "b"))
    with pytest.raises(UserError, match="'x' is not one of the classes 'a', 'b'"):
        label_metric("f1:x", ("a", "b"))
