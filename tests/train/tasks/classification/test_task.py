"""Tests of the scores and the records of classification."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, fbeta_score

from deberta_jax.errors import UserError
from deberta_jax.outputs import HeadOutput
from deberta_jax.strict_json import to_json
from deberta_jax.train.tasks.classification import task as classification
from deberta_jax.train.tasks.sources.classes import NO_HEAD, Head

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import MULTIRC, RECORD, json_lines


def load(write, rows, *, name="", kind="classification", head=NO_HEAD, **columns):
    """Returns the task of a file, or of a file of the published set with this name."""
    path = write("train.jsonl", json_lines(*rows))
    config = finetune_config(train=f"{name}:{path}" if name else path, max_length=16, **columns)
    return classification.load(config, Letters(), kind=kind, head=head)


def predictions_of(*probabilities):
    return [{"probabilities": np.array(shares)} for shares in probabilities]


def test_records_have_texts_labels_and_probabilities(write):
    rows = [{"text": "a", "pair": "b", "label": "no"}, {"text": "c", "pair": "d", "label": "yes"}]
    test = write("test.jsonl", json_lines({"text": "e", "pair": "f"}))
    task = load(write, rows, test=test, pair_column="pair")
    predictions = predictions_of([0.75, 0.25], [0.75, 0.25])
    assert task.score("train", predictions) == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert next(task.records("train", predictions)) == {
        "text": "a",
        "pair": "b",
        "label": "no",
        "prediction": "no",
        "probabilities": {"no": 0.75, "yes": 0.25},
    }
    assert "label" not in next(task.records("test", predictions[:1]))
    with pytest.raises(ValueError, match="the test split has no labels to compare with"):
        task.score("test", predictions[:1])


@pytest.mark.parametrize(("classes", "top_k", "shown"), [(200, None, 200), (201, None, 20), (300, 5, 5), (3, 9, 3)])
def test_records_of_many_classes_have_the_most_probable_ones(write, classes, top_k, shown):
    rows = [{"text": f"text {number} é", "label": f"class {number}"} for number in range(classes)]
    task = load(write, rows, top_k=top_k)
    shares = np.random.default_rng(0).dirichlet(np.ones(classes), classes).astype(np.float32)
    shares[0] = 1 / classes  # all are the most probable one
    records = list(task.records("train", predictions_of(*shares)))
    for record, row in zip(records, shares, strict=True):
        known = dict(zip(task.label_names, map(float, row), strict=True))
        best = sorted(known, key=known.__getitem__, reverse=True)[:shown]
        assert list(record["probabilities"]) == (best if shown < classes else list(task.label_names))
        assert record["probabilities"].items() <= known.items()
        assert record["prediction"] in record["probabilities"]
    size = sum(len(to_json(record).encode()) + 1 for record in records)
    assert classes * task.record_size("train") == pytest.approx(size, rel=0.25)


def test_records_of_regression_have_scores(write):
    task = load(write, [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}], kind="regression")
    predictions = [{"score": np.float32(score)} for score in (1, 3)]
    assert task.score("train", predictions) == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    assert list(task.records("train", predictions))[1] == {"text": "b", "label": 2.0, "prediction": 3.0}


def test_probabilities_that_are_not_finite_are_an_error(write):
    task = load(write, [{"text": "a", "label": "no"}, {"text": "c", "label": "yes"}])
    with pytest.raises(UserError, match="the probabilities of example 1 are not finite; the model has diverged"):
        task.score("train", predictions_of([0.5, 0.5], [np.nan, 0.5]))


def test_multirc_is_scored_by_answers_and_by_questions(write):
    task = load(write, [MULTIRC, {**MULTIRC, "idx": 4}], name="super_glue/multirc")
    figures = task.score("train", predictions_of([0.2, 0.8], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]))
    assert figures == {"f1": pytest.approx(f1_score([1, 0, 1, 0], [1, 0, 1, 1])), "exact_match": 0.5}
    assert task.main_metric == "f1"


def test_record_is_scored_by_its_answers(write):
    task = load(write, [RECORD], name="super_glue/record")
    predictions = predictions_of(*([1 - share, share] for share in (0.1, 0.3, 0.2)))
    assert task.score("train", predictions) == {"answer_f1": 0, "answer_exact_match": 0}
    assert task.main_metric == "answer_f1"
    assert next(task.records("train", predictions))["group"] == "5/9"


def test_official_metrics_follow_the_name_of_the_class(write):
    """The model numbers true 0, false 1, and has a third class; the figures are those of the official order."""
    head = Head(3, ("TRUE", "other", "FALSE"))
    official = load(write, [MULTIRC, {**MULTIRC, "idx": 4}], name="super_glue/multirc")
    task = load(write, [MULTIRC, {**MULTIRC, "idx": 4}], name="super_glue/multirc", head=head)
    assert task.label_names == head.names
    shares = [[0.2, 0.8], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]
    expected = official.score("train", predictions_of(*shares))
    assert task.score("train", predictions_of(*([true, 0, false] for false, true in shares))) == expected
    record = load(write, [RECORD], name="super_glue/record", head=head)
    right = predictions_of(*([share, 0, 1 - share] for share in (0.3, 0.1, 0.2)))
    assert record.score("train", right)["answer_f1"] == pytest.approx(
        load(write, [RECORD], name="super_glue/record").score(
            "train", predictions_of(*([1 - share, share] for share in (0.3, 0.1, 0.2)))
        )["answer_f1"]
    )


def test_a_label_that_only_the_test_has_is_wrong(write, tmp_path):
    rows = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}]
    test = write("test.jsonl", json_lines({"text": "c", "label": "never"}, {"text": "d", "label": "yes"}))
    task = load(write, rows, test=test)
    predictions = predictions_of([0.9, 0.1], [0.2, 0.8])
    assert task.score("test", predictions)["accuracy"] == 0.5
    first = next(task.records("test", predictions))
    assert (first["label"], first["prediction"], set(first["probabilities"])) == ("never", "no", {"no", "yes"})
    task.plot(tmp_path / "plot.png", "test", predictions)
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert task.splits["test"].notes[-1].startswith("'never' counted as wrongly predicted")


def test_any_metric_may_be_the_main_one(write):
    rows = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}, {"text": "c", "label": "yes"}]
    predictions = predictions_of([0.8, 0.2], [0.6, 0.4], [0.1, 0.9])
    values = {"f1": 2 / 3, "f1:no": 2 / 3, "auc": 1, "recall_at_precision_0.9": 1, "macro_f1": 2 / 3}
    for name, value in values.items():
        task = load(write, rows, metric=name)
        assert task.main_metric == name
        assert task.score("train", predictions)[name] == pytest.approx(value)
    with pytest.raises(UserError, match="metric is 'nonsense', which this task does not have; it has accuracy"):
        load(write, rows, metric="nonsense")
    scores = load(write, [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}], kind="regression", metric="rmse")
    found = scores.score("train", [{"score": np.float32(score)} for score in (1.5, 2)])
    assert list(found) == ["pearson", "spearman", "rmse"]
    assert found["rmse"] == pytest.approx(0.5**0.5)
    with pytest.raises(UserError, match="this task does not have; it has pearson, spearman, mse, rmse, mae"):
        load(write, [{"text": "a", "label": 0.5}], kind="regression", metric="f1")


def test_a_metric_of_a_class_is_that_of_the_models_name(write):
    head = Head(3, ("TRUE", "other", "FALSE"))
    task = load(write, [MULTIRC, {**MULTIRC, "idx": 4}], name="super_glue/multirc", head=head, metric="f2:TRUE")
    shares = [[0.2, 0, 0.8], [0.1, 0, 0.9], [0.8, 0, 0.2], [0.9, 0, 0.1]]
    labels = task.splits["train"].labels == 0
    expected = fbeta_score(labels, [0, 0, 1, 1], beta=2)
    assert task.score("train", predictions_of(*shares))["f2:TRUE"] == pytest.approx(expected)


def test_losses_of_chunks_add_up_with_class_weights(write):
    """Gradient accumulation relies on this: `count` is what the loss of a whole batch is divided by."""
    rows = [{"text": letter, "label": label} for letter, label in zip("abcd", ("no", "no", "yes", "no"), strict=True)]
    task = load(write, rows, class_weights=("balanced",), focal_gamma=2.0, label_smoothing=0.1)
    assert task.objective.class_weights == pytest.approx((2 / 3, 2))
    logits = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)

    def loss(indices):
        batch = task.splits["train"].batch(np.array(indices), length=4)
        out = HeadOutput(jnp.asarray(logits[indices]))
        total, count = task.objective.loss(out, batch)
        assert float(count) == pytest.approx(float(task.objective.count(batch)))
        assert float(task.objective.answers(out, batch).weight.sum()) == pytest.approx(float(count))
        return np.array([float(total), float(count)])

    np.testing.assert_allclose(loss([0, 2]) + loss([1, 3]), loss([0, 1, 2, 3]), rtol=1e-6)
