"""Tests of the scores of grouped examples against the definitions of their scorers."""

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.classification.grouped_metrics import answer_scores, exact_match


@pytest.mark.parametrize("seed", range(5))
def test_exact_match_equals_superglues_scorer(seed):
    """A question is correct if all its answers are."""
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    predictions = np.where(rng.random(60) < 0.7, labels, predictions)
    groups = [f"0/{number}" for number in rng.integers(0, 15, 60)]
    correct_of_group: dict[str, list[bool]] = {}
    for group, prediction, label in zip(groups, predictions, labels, strict=True):
        correct_of_group.setdefault(group, []).append(prediction == label)
    expected = sum(all(correct) for correct in correct_of_group.values()) / len(correct_of_group)
    assert exact_match(predictions, labels, groups) == pytest.approx(expected)
    assert 0 < expected < 1


def test_the_most_probable_answer_of_each_query_is_scored():
    """The evaluation of ReCoRD compares texts as SQuAD's does, with the closest accepted text."""
    probabilities, labels = [0.2, 0.9, 0.3, 0.8, 0.1], np.array([0, 1, 1, 0, 1])
    groups = ["a", "a", "b", "b", "b"]
    figures = answer_scores(probabilities, labels, groups, ["Paris", "The Rhine", "New York", "York City", "Rome"])
    assert figures == {"answer_f1": pytest.approx(0.75), "answer_exact_match": 0.5}  # York is one word of two: F1 1/2
    exact = answer_scores([0.6, 0.4], np.array([0, 1]), ["a", "a"], ["the rhine!", "Rhine"])
    assert exact == {"answer_f1": 1, "answer_exact_match": 1}


def test_a_query_without_a_correct_answer_is_named():
    with pytest.raises(UserError, match="query a has no correct answer among its entities"):
        answer_scores([0.5], np.array([0]), ["a"], ["Paris"])
