"""Labels, probabilities and scores of texts."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification
from deberta_jax.errors import UserError
from deberta_jax.predict.classification import ClassifyTexts, classification, sigmoid
from deberta_jax.predict.windows import Windows

from ...support.predictor import random_classifier, random_predictor

LONG = "It was a fine house of them. " * 20


def logits_of(model: Any, *texts: str) -> np.ndarray:
    run = jax.jit(DebertaForSequenceClassification(model.config).apply)
    ids = np.array([model.tokenizer(*texts).input_ids])
    output: Any = run({"params": model.params}, ids)
    return np.asarray(output.logits[0], np.float64)


def test_probabilities_are_a_softmax_of_the_logits() -> None:
    model = random_classifier(label_names=("bad", "fair", "good"))
    (result,) = model.classify(["It was"], ["a house"])
    weights = np.exp(logits_of(model, "It was", "a house"))
    expected = dict(zip(("bad", "fair", "good"), weights / weights.sum(), strict=True))
    assert result.probabilities == pytest.approx(expected, abs=1e-5)
    assert result.label == max(expected, key=lambda name: expected[name])
    assert result.labels == (result.label,)
    assert result.windows == 1


def test_several_labels_apply_at_once() -> None:
    model = random_classifier(problem_type="multi_label_classification")
    expected = sigmoid(logits_of(model, "It was a fine house"))
    (result,) = model.run(ClassifyTexts(threshold=float(np.sort(expected)[1])), ["It was a fine house"])
    assert len(result.labels) in (1, 2)  # the middle one is at the threshold
    for i, probability in enumerate(expected):
        assert result.probabilities[f"LABEL_{i}"] == pytest.approx(probability, abs=1e-5)


def test_only_the_first_classes_are_returned() -> None:
    (result,) = random_classifier().classify(["It was"], top_k=2)
    assert len(result.probabilities) == 2
    assert next(iter(result.probabilities)) == result.label


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_windows_of_a_long_text_are_combined(combine: Any) -> None:
    model, windows = random_classifier(), Windows(24, combine, 15)
    ids = [row.input_ids for row in windows.rows(model, LONG)]
    run = jax.jit(DebertaForSequenceClassification(model.config).apply)
    output: Any = run({"params": model.params}, np.array(ids))
    weights = np.exp(np.asarray(output.logits, np.float64))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    expected = getattr(probabilities, combine)(axis=0)
    (result,) = model.classify([LONG], max_length=24, windows=combine, stride=15)
    assert result.windows == len(ids) > 5
    for i, probability in enumerate(expected):
        assert result.probabilities[f"LABEL_{i}"] == pytest.approx(probability, abs=1e-5)


def test_scores_are_logits_of_a_regression_and_else_their_sigmoid() -> None:
    reranker = random_classifier(1)
    regression = dataclasses.replace(reranker, config=reranker.config.replace(problem_type="regression"))
    logit = float(logits_of(reranker, "It was", "a house")[0])
    pair = [("It was", "a house")]
    assert regression.score(pair) == pytest.approx([logit], abs=1e-4)
    assert reranker.score(pair) == pytest.approx(sigmoid(np.array([logit])), abs=1e-5)
    assert reranker.score(pair, raw=True) == pytest.approx([logit], abs=1e-4)
    with pytest.raises(UserError, match=r"random weights gives scores \(regression\), not classes; score the texts"):
        regression.classify(["text"])


def test_a_classifier_gives_no_scores() -> None:
    with pytest.raises(UserError, match="random weights has 3 classes, not one score; classify the texts instead"):
        random_classifier().score(["text"])


@pytest.mark.parametrize(
    ("texts", "pairs", "message"),
    [
        ("text", None, "texts is a str; give a string, a list of strings"),
        (["a", 3], None, "text 1 is a int"),
        (["a"], ["b", "c"], "there are 1 texts and 2 pairs"),
        ([("a", "b", "c")], None, "text 0 is a tuple of 3"),
        (["\ud800"], None, "text 0 has half of a surrogate pair"),
    ],
)
def test_what_is_not_text_is_named(texts: Any, pairs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        random_classifier().classify(texts, pairs)


def test_the_text_that_cannot_be_used_is_named() -> None:
    with pytest.raises(UserError, match=r"text 1: the text has .* tokens, more than max_length 12"):
        random_classifier().classify(["It was", LONG], max_length=12, windows="error")


@pytest.mark.parametrize(("options", "message"), [({"top_k": 0}, "top_k is 0"), ({"threshold": 2}, "threshold is 2")])
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassifyTexts(**options)


def test_no_texts_give_no_results() -> None:
    assert random_classifier().classify([]) == []


def test_a_classifier_of_tokens_is_no_classifier_of_texts() -> None:
    model = random_predictor()
    params = {**model.params, "classifier": {}}
    with pytest.raises(UserError, match=r"has no pooler; it has .* classifier \(labels or scores texts, tokens or cho"):
        dataclasses.replace(model, params=params).classify(["text"])
    with pytest.raises(UserError, match=r"has a classifier of texts, not of tokens; .*--kind tokens"):
        random_classifier().parts(("classifier",))


def test_equal_probabilities_keep_the_order_of_the_classes() -> None:
    result = classification(("a", "b", "c"), np.array([0.2, 0.4, 0.4]), thresholds=dict.fromkeys("abc", 0.3))
    assert list(result.probabilities) == ["b", "c", "a"]
    assert result.labels == ("b", "c")
