"""The metrics of a classification by name."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.class_metrics import chosen_metric, class_metric

rng = np.random.default_rng(1)
LABELS = rng.integers(0, 3, 50)
SHARES = rng.dirichlet(np.ones(3), 50) * 0.6 + 0.4 * np.eye(3)[LABELS]
NAMES = ("a", "b:c", "d")


def value(name: str, labels: np.ndarray = LABELS) -> float:
    return class_metric(name, NAMES, positive=1)(SHARES, labels)


def test_values_are_those_of_scikit_learn() -> None:
    found = SHARES.argmax(axis=1)
    assert value("accuracy") == pytest.approx(sklearn.accuracy_score(LABELS, found))
    assert value("balanced_accuracy") == pytest.approx(sklearn.balanced_accuracy_score(LABELS, found))
    for average in ("macro", "micro", "weighted"):
        assert value(f"{average}_f1") == pytest.approx(sklearn.f1_score(LABELS, found, average=average))
    assert value("matthews_correlation") == pytest.approx(sklearn.matthews_corrcoef(LABELS, found))
    assert value("log_loss") == pytest.approx(sklearn.log_loss(LABELS, SHARES))
    assert value("auc") == pytest.approx(sklearn.roc_auc_score(LABELS, SHARES, multi_class="ovr"))
    assert value("f1:b:c") == pytest.approx(sklearn.f1_score(LABELS == 1, found == 1))
    assert value("auc:a") == pytest.approx(sklearn.roc_auc_score(LABELS == 0, SHARES[:, 0]))


def test_two_classes_have_a_positive_one() -> None:
    labels, shares = LABELS % 2, SHARES[:, :2] / SHARES[:, :2].sum(axis=1, keepdims=True)
    for positive in (0, 1):
        metric = class_metric("f2", ("no", "yes"), positive=positive)
        expected = sklearn.fbeta_score(labels == positive, shares.argmax(axis=1) == positive, beta=2)
        assert metric(shares, labels) == pytest.approx(expected)


def test_a_class_without_examples_is_left_out_of_means() -> None:
    labels = np.where(LABELS == 2, 0, LABELS)
    assert value("auc", labels) == pytest.approx(
        np.mean([sklearn.roc_auc_score(labels == index, SHARES[:, index]) for index in (0, 1)])
    )
    assert math.isnan(value("auc", np.zeros(50, int)))
    assert math.isnan(value("log_loss", np.full(50, 3)))  # a label that the model does not have


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f1", r"'f1', which is about one of the 3 classes; write f1:CLASS, such as f1:a"),
        ("f1:x", r"'x' is not one of the classes 'a', 'b:c', 'd'"),
        ("nonsense", r"'nonsense', which this task does not have; it has accuracy, .* log_loss, precision, recall, f1"),
        ("accuracy:a", r"which this task does not have"),
    ],
)
def test_unknown_names_are_listed(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        value(name)


def test_a_task_with_few_metrics_lists_them() -> None:
    assert chosen_metric(None, ("accuracy",)) is None
    assert chosen_metric("accuracy", ("accuracy",)) == "accuracy"
    with pytest.raises(UserError, match="'f1', which this task does not have; it has accuracy, log_loss"):
        chosen_metric("f1", ("accuracy", "log_loss"))
