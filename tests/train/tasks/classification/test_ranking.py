"""Ranking: labels from 0 to 1, its scores and records."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.classification import ranking

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import json_lines

ROWS = [
    {"text": "q", "pair": "a", "label": 1},
    {"text": "q", "pair": "b", "label": False},
    {"text": "r", "pair": "c", "label": "0"},
]


def load(write, rows=ROWS, **options):
    config = finetune_config(
        train=write("train.jsonl", json_lines(*rows)), kind="ranking", pair_column="pair", max_length=8, **options
    )
    return ranking.load(config, Letters())


def predictions_of(*scores):
    return [{"score": np.float32(score)} for score in scores]


def test_labels_of_0_and_1_have_the_scores_of_a_class(write):
    task = load(write)
    scores, labels = [0.75, 0.875, 0.25], [1, 0, 0]
    figures = task.score("train", predictions_of(*scores))
    assert task.main_metric == "average_precision"
    assert figures == pytest.approx(
        {
            "average_precision": sklearn.average_precision_score(labels, scores),
            "auc": sklearn.roc_auc_score(labels, scores),
            "f1": 2 / 3,
            "accuracy": 2 / 3,
            "log_loss": sklearn.log_loss(labels, scores),
        }
    )
    assert list(task.records("train", predictions_of(*scores)))[1] == {
        "text": "q",
        "pair": "b",
        "label": 0.0,
        "prediction": 0.875,
    }
    one = load(write, [{"text": "q", "pair": "a", "label": 1}])
    assert math.isnan(one.score("train", predictions_of(0.5))["auc"])


def test_probabilities_as_labels_have_correlations(write):
    rows = [{"text": "q", "pair": str(share), "label": share} for share in (0.1, 0.6, 1)]
    task = load(write, rows)
    figures = task.score("train", predictions_of(0.2, 0.3, 0.9))
    assert task.main_metric == "spearman"
    assert set(figures) == {"spearman", "pearson", "log_loss"}
    assert figures["spearman"] == pytest.approx(1)
    with pytest.raises(UserError, match="'auc', which this task does not have; it has pearson, spearman, mse"):
        load(write, rows, metric="auc")


@pytest.mark.parametrize("label", [1.2, -1, "yes", None])
def test_other_labels_are_named(write, label):
    with pytest.raises(UserError, match=r"train.jsonl, line 1: label .* is (outside 0 to 1|not a finite number)"):
        load(write, [{"text": "q", "pair": "a", "label": label}])


def test_a_hidden_label_of_the_test_is_none(write):
    test = write("test.jsonl", json_lines({"text": "q", "pair": "a", "label": -1}))
    assert not load(write, test=test).splits["test"].labeled
    with pytest.raises(UserError, match="'x', which this task does not have; it has accuracy, precision"):
        load(write, metric="x")
    assert load(write, metric="recall_at_precision_0.9").main_metric == "recall_at_precision_0.9"
