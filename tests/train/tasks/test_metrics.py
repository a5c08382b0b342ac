"""Tests metrics against values computed by hand, in degenerate cases, and on bad input."""

import math

import numpy as np
import pytest

from deberta_jax.train.tasks.metrics import METRICS, compute_metrics


def test_metrics_of_two_classes_equal_worked_values():
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    predictions = np.array([1, 1, 0, 0, 0, 1, 0, 0])  # 2 true positives, 1 false, 2 missed, 3 true negatives
    scores = compute_metrics(("accuracy", "f1", "macro_f1", "matthews_correlation"), predictions, labels)
    assert list(scores) == ["accuracy", "f1", "macro_f1", "matthews_correlation"]
    assert scores["accuracy"] == 5 / 8
    assert scores["f1"] == pytest.approx(4 / 7)
    assert scores["macro_f1"] == pytest.approx((4 / 7 + 6 / 9) / 2)
    assert scores["matthews_correlation"] == pytest.approx((2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5))
    assert all(type(value) is float for value in scores.values())


def test_macro_f1_weights_classes_equally():
    labels, predictions = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 0, 2, 2])
    assert compute_metrics(["macro_f1"], predictions, labels)["macro_f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_correlations_equal_worked_values():
    labels, predictions = np.array([1.0, 2.0, 3.0, 4.0], np.float32), np.array([1.0, 4.0, 9.0, 16.0], np.float32)
    scores = compute_metrics(("pearson", "spearman"), predictions, labels)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(25 / math.sqrt(5 * 129))
    tied = compute_metrics(["spearman"], np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert tied["spearman"] == pytest.approx(math.sqrt(3) / 2)


# Warnings are errors in tests, so these tests also show that there are none.
@pytest.mark.parametrize("predicted", [0, 1])
def test_metrics_of_a_single_predicted_class(predicted):
    labels, predictions = np.array([0, 1, 1]), np.full(3, predicted)
    scores = compute_metrics(("matthews_correlation", "f1", "macro_f1"), predictions, labels)
    assert scores["matthews_correlation"] == 0
    assert scores["f1"] == pytest.approx(0.8 if predicted else 0.0)
    assert compute_metrics(["matthews_correlation", "f1"], np.zeros(3, int), np.zeros(3, int)) == {
        "matthews_correlation": 0.0,
        "f1": 0.0,
    }


def test_correlation_of_a_constant_is_nan():
    varying, constant = np.array([0.1, 0.2, 0.3]), np.full(3, 0.1)
    for pair in ((varying, constant), (constant, varying), (varying[:1], varying[:1])):
        assert all(math.isnan(value) for value in compute_metrics(("pearson", "spearman"), *pair).values())


def test_correlation_of_nearly_constant_scores_does_not_warn():
    predictions = np.array([1.0, 1.0 + 1e-14, 1.0 + 2e-14])
    assert abs(compute_metrics(["pearson"], predictions, np.array([1.0, 2.0, 3.0]))["pearson"]) <= 1


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "message"),
    [
        (["accurracy"], [0], [0], r"unknown metric accurracy; there are accuracy, f1"),
        (["f1"], [0, 2], [0, 1], r"classes 0 and 1, got \[2\]; use macro_f1"),
        (["accuracy"], [], [], r"there are no predictions"),
        (["pearson"], [1.0, math.nan], [1.0, 2.0], r"example 1 is nan"),
    ],
)
def test_bad_input_is_named(names, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(names, np.array(predictions), np.array(labels))


def test_every_metric_is_one_for_perfect_predictions():
    labels = np.array([0, 1, 1, 0])
    assert compute_metrics(tuple(METRICS), labels, labels) == pytest.approx(dict.fromkeys(METRICS, 1.0))
