"""The thresholds that the validation split gives."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from deberta_jax.train.tasks.multilabel.thresholds import Thresholds, best_threshold


def test_the_best_threshold_is_that_of_a_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.random(30) < 0.4
        scores = np.round(np.clip(rng.normal(0.5 + 0.2 * labels, 0.2), 0, 1), 1).astype(np.float32)
        search = max(f1_score(labels, scores >= least) for least in np.unique(scores)) if labels.any() else 0
        assert f1_score(labels, scores >= best_threshold(scores, labels)) == pytest.approx(search)


def test_a_threshold_lies_between_the_scores_that_it_separates() -> None:
    scores, labels = np.array([0.1, 0.2, 0.6, 0.8]), np.array([False, False, True, True])
    assert best_threshold(scores, labels) == pytest.approx(0.4)
    assert best_threshold(scores, ~labels & (scores > 1)) == 0.5  # no label
    assert best_threshold(scores, np.ones(4, bool)) == pytest.approx(0.05)


def test_a_class_without_examples_has_the_single_threshold() -> None:
    probabilities = np.array([[0.1, 0.9], [0.3, 0.8], [0.7, 0.2]])
    targets = np.array([[False, False], [False, False], [True, False]])
    found = Thresholds.of(probabilities, targets)
    assert found.per_class == (pytest.approx(0.5), found.single)
    assert found.to_json(("a", "b"))["per_class"] == {"a": found.per_class[0], "b": found.single}
