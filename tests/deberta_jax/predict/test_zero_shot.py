"""Classes that are only named."""

from typing import Any

import numpy as np
import pytest

from deberta_jax.errors import UserError

from ...support.predictor import random_classifier

NLI = ("entailment", "neutral", "contradiction")
LABELS = ("house", "family", "running")
LONG = "It was a fine house of them. " * 20


def entailment_logits(model: Any, text: str) -> np.ndarray:
    pairs = [(text, f"This example is {label}.") for label in LABELS]
    return np.log([[result.probabilities[name] for name in NLI] for result in model.classify(pairs)])


def test_labels_exclude_each_other() -> None:
    model = random_classifier(label_names=NLI)
    (result,) = model.zero_shot(["It was a house"], LABELS)
    assert sum(result.probabilities.values()) == pytest.approx(1)
    assert result.labels == (result.label,)
    assert set(result.probabilities) == set(LABELS)


def test_several_labels_apply() -> None:
    model = random_classifier(label_names=NLI)
    logits = entailment_logits(model, "It was a house")
    expected = 1 / (1 + np.exp(logits[:, 2] - logits[:, 0]))
    (result,) = model.zero_shot(["It was a house"], LABELS, multi_label=True)
    for label, probability in zip(LABELS, expected, strict=True):
        assert result.probabilities[label] == pytest.approx(probability, abs=1e-5)
    assert set(result.labels) == {label for label, p in zip(LABELS, expected, strict=True) if p >= 0.5}


def test_every_window_of_a_long_text_has_every_hypothesis() -> None:
    model = random_classifier(label_names=NLI)
    (result,) = model.zero_shot([LONG], LABELS, max_length=48)
    assert result.windows > 3
    assert sum(result.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("names", [("bad", "fair", "good"), ()])
def test_a_model_of_something_else_is_refused(names: tuple[str, ...]) -> None:
    message = r"with a class called entailment; the classes of random weights are '(bad|LABEL_0)'"
    with pytest.raises(UserError, match=message):
        random_classifier(label_names=names).zero_shot(["text"], LABELS)


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ((), "It is {}.", "needs the names of the classes, none of them empty"),
        (("a", " "), "It is {}.", "needs the names of the classes, none of them empty"),
        (("a", "a"), "It is {}.", "the labels are 'a', 'a'; give each only once"),
        ("ab", "It is {}.", "labels is a str; give"),
        (("a", "b"), "It is a.", r"the template is 'It is a.'; it must have {} where the label belongs"),
    ],
)
def test_unusable_settings_are_named(labels: Any, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        random_classifier(label_names=NLI).zero_shot(["text"], labels, template=template)
