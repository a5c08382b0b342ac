"""Multi-label classification: thresholds, records, and what the objective computes."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import sift
from deberta_jax.errors import UserError
from deberta_jax.train.tasks.multilabel import task as multilabel
from deberta_jax.train.tasks.multilabel.task import Multilabel

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import json_lines

ROWS = [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": ["a", "b"]}, {"text": "z", "labels": []}]
SHARES = [(0.4, 0.1), (0.35, 0.3), (0.2, 0.25)]


def load(write, **options: Any) -> multilabel.MultilabelTask:
    paths = {
        name: write(f"{name}.jsonl", json_lines(*rows))
        for name, rows in (("train", ROWS), ("validation", ROWS), ("test", ROWS[:2]))
    }
    return multilabel.load(finetune_config(**paths, kind="multilabel", max_length=8, **options), Letters())


def predictions_of(*shares: tuple[float, ...]) -> list[dict[str, np.ndarray]]:
    return [{"probabilities": np.array(row)} for row in shares]


def test_thresholds_of_the_validation_split_hold_for_every_split(write) -> None:
    task, predictions = load(write), predictions_of(*SHARES)
    figures = task.score("validation", predictions)
    assert list(figures) == ["micro_f1", "macro_f1", "accuracy", "mean_average_precision", "auc"]
    tuned = task.tuned(predictions)
    assert tuned.score("validation", predictions) == figures
    found = tuned.extra_results["thresholds"]
    assert found == {
        "used": "single",
        "single": pytest.approx(0.275),
        "per_class": {"a": pytest.approx(0.275), "b": pytest.approx(0.275)},
    }
    assert figures["micro_f1"] == 1
    test = predictions_of((0.28, 0.1), (0.1, 0.27))
    assert [record["predictions"] for record in tuned.records("test", test)] == [["a"], []]
    assert list(tuned.records("test", test))[1] == {
        "text": "y",
        "labels": ["a", "b"],
        "predictions": [],
        "probabilities": {"a": 0.1, "b": 0.27},
    }


def test_a_threshold_may_be_fixed_or_one_for_each_class(write) -> None:
    predictions = predictions_of((0.4, 0.9), (0.35, 0.95), (0.2, 0.92))
    fixed = load(write, threshold=0.3).tuned(predictions)
    assert fixed.used_thresholds.tolist() == [0.3, 0.3]
    assert fixed.extra_results["thresholds"]["used"] == "fixed"
    each = load(write, per_class_thresholds=True).tuned(predictions)
    assert each.used_thresholds == pytest.approx([0.275, 0.935])
    assert each.score("validation", predictions)["accuracy"] == 1
    untuned = load(write)
    assert untuned.used_thresholds.tolist() == [0.5, 0.5]
    assert untuned.extra_results == {"thresholds": {"used": "fixed", "fixed": 0.5}}


def test_the_metric_of_the_user_is_the_main_one(write) -> None:
    task = load(write, metric="f2:b", select="best")
    assert task.main_metric == "f2:b"
    assert list(task.score("test", predictions_of(*SHARES[:2])))[-1] == "f2:b"
    with pytest.raises(UserError, match="metric is 'f2', which this task does not have"):
        load(write, metric="f2")


def test_balanced_weights_are_those_of_the_examples_with_the_label(write) -> None:
    assert load(write, class_weights=("balanced",)).objective.positive_weights == (0.5, 2.0)
    assert load(write, class_weights=("b=4",)).objective.positive_weights == (1, 4)


def test_the_divergence_of_sift_is_that_of_sigmoids() -> None:
    logits, target = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 0.5]])
    (answers, weight), (targets, _) = (
        Multilabel().answers(SimpleNamespace(logits=value), {}) for value in (logits, target)
    )
    p, q = jax.nn.sigmoid(logits), jax.nn.sigmoid(target)
    expected = ((p - q) * (logits - target)).mean()  # KL(p || q) + KL(q || p) of Bernoulli variables
    assert weight is not None
    np.testing.assert_allclose((sift.symmetric_kl(answers, targets) * weight).sum(), expected, rtol=1e-5)
