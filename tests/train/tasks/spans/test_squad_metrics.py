"""Tests of the scores of SQuAD against its published scripts, worked cases and another implementation."""

import json
import math
import random
import re

import numpy as np
import pytest

from deberta_jax.train.tasks.spans.squad_metrics import normalize, squad_v1, squad_v2

from ....support.paths import GOLDEN


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's, a-hat!", "cats ahat"),
        ("An apple a day", "apple day"),
        ("theatre Anna", "theatre anna"),
        ("«Thé» …", "«thé» …"),  # only ASCII punctuation is removed
        ("the-end a.", "theend"),  # articles are removed after punctuation
        ("\u00a0A\u00a0b\n", "b"),
        ("the", ""),
    ],
)
def test_texts_are_normalized_as_in_the_published_scripts(text, normal):
    assert normalize(text) == normal


def test_worked_cases():
    """Computed by hand from the definitions of the two scripts."""
    assert squad_v1([["a cat sat"], ["the"], ["x", "big dog"]], ["The cat.", "The", "dog"]) == {
        "exact_match": pytest.approx(1 / 3),  # "the" and "The" are equal, both empty
        "f1": pytest.approx((2 / 3 + 0 + 2 / 3) / 3),  # but have no word in common
    }
    golds = [["cat sat"], ["the", "dog"], ["the"], [], []]
    texts = ["cat", "the", "the", "", "an ox"]
    assert squad_v2(golds, texts) == {
        "exact_match": pytest.approx(2 / 5),  # the third, whose only answer is empty, and the fourth
        "f1": pytest.approx((2 / 3 + 0 + 1 + 1 + 0) / 5),
        "HasAns_exact": pytest.approx(1 / 3),
        "HasAns_f1": pytest.approx((2 / 3 + 1) / 3),
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
    }
    with pytest.raises(ValueError, match=r"a question has no answer, which SQuAD 1\.1 does not allow"):
        squad_v1(golds, texts)


def test_the_best_threshold_of_a_worked_case():
    golds, texts = [["cat"], [], ["dog"], []], ["cat", "ox", "a dog", "hat"]
    figures = squad_v2(golds, texts, [-3.0, 1.0, 2.5, 4.0], threshold=1.5)
    assert figures["exact_match"] == 0.5  # correct for the first and the last
    # With no answer at all 2 are correct. Adding cat gives 3, ox 2, dog 3, hat 2; the first maximum counts.
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (0.75, -3)
    assert squad_v2([[], ["x"]], ["y", "z"], [0.5, 0.6])["best_f1_thresh"] == 0  # no answer at all is best


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "squad_scores" / "cases.json").read_text()), ids=lambda case: case["name"]
)
def test_scores_equal_those_of_the_published_scripts(case):
    """tests/golden/README.md describes how the scripts were run."""
    expected = case["scores"]
    if case["script"] == "evaluate-v1.1.py":
        figures = squad_v1(case["golds"], case["predictions"])
    else:
        figures = squad_v2(case["golds"], case["predictions"], case["no_answer"], threshold=case["threshold"])
        expected = {"exact_match" if name == "exact" else name: value for name, value in expected.items()}
        expected = {name: value for name, value in expected.items() if not name.endswith("total")}
    # The scripts give percent. Thresholds are scores of the model, which have no unit.
    expected = {name: value if name.endswith("thresh") else value / 100 for name, value in expected.items()}
    assert figures == pytest.approx(expected, rel=1e-12, abs=1e-12)


WORDS = ["the", "a", "An", "cat", "Cat's", "dog,", "big", "…", "!", "é", "10-20", "The.", "  "]


def random_texts(rng, count):
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 5))) for _ in range(count)]


def words_of(text):
    """Returns the words of a normalized text, by other means than the library."""
    kept = re.sub("[!-/:-@[-`{-~]", "", text.lower())
    return re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", "\t", kept).split()


def f1_of(expected, predicted):
    unmatched, shared = list(expected), 0
    for word in predicted:
        if word in unmatched:
            unmatched.remove(word)
            shared += 1
    return 2 * shared / (len(expected) + len(predicted)) if shared else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_random_predictions_equal_another_implementation(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 30)
    predictions = random_texts(rng, count)
    golds = [random_texts(rng, rng.randint(1, 3)) for _ in range(count)]
    exact, shared = [], []
    for accepted, text in zip(golds, predictions, strict=True):
        exact.append(any(words_of(gold) == words_of(text) for gold in accepted))
        shared.append(max(f1_of(words_of(gold), words_of(text)) for gold in accepted))
    assert squad_v1(golds, predictions) == {
        "exact_match": pytest.approx(np.mean(exact)),
        "f1": pytest.approx(np.mean(shared)),
    }

    golds = [accepted if rng.random() < 0.6 else [] for accepted in golds]
    no_answer = [rng.gauss(0, 1) for _ in range(count)]  # all different
    threshold = rng.gauss(0, 1)

    def score(index, text):
        """Returns exact match and F1."""
        accepted = [gold for gold in golds[index] if words_of(gold)] or [""]
        predicted = words_of(text)
        pairs = [
            (
                predicted == words_of(gold),
                f1_of(words_of(gold), predicted) if words_of(gold) and predicted else predicted == words_of(gold),
            )
            for gold in accepted
        ]
        return np.max(np.array(pairs, float), axis=0)

    def scores_at(threshold, chosen=range(count)):
        """Returns mean scores where a higher no_answer means "", which is wrong if the question has an answer."""
        scores = [
            score(i, predictions[i]) if no_answer[i] <= threshold else np.full(2, float(not golds[i])) for i in chosen
        ]
        return np.mean(scores, axis=0)

    figures = squad_v2(golds, predictions, no_answer, threshold=threshold)
    assert (figures["exact_match"], figures["f1"]) == pytest.approx(scores_at(threshold))
    for part, chosen in (
        ("HasAns", [i for i in range(count) if golds[i]]),
        ("NoAns", [i for i in range(count) if not golds[i]]),
    ):
        if chosen:
            assert (figures[f"{part}_exact"], figures[f"{part}_f1"]) == pytest.approx(scores_at(threshold, chosen))
        else:
            assert f"{part}_f1" not in figures
    final = squad_v2(
        golds, [text if number <= threshold else "" for text, number in zip(predictions, no_answer, strict=True)]
    )
    assert set(final) == {name for name in figures if not name.startswith("best")}

    # The search of the script counts a prediction without words as wrong if the question has no answer.
    if all(golds[i] or words_of(predictions[i]) for i in range(count)):
        everywhere = np.array([scores_at(threshold) for threshold in [-math.inf, *no_answer]])
        assert (figures["best_exact"], figures["best_f1"]) == pytest.approx(everywhere.max(axis=0))
        if figures["best_f1_thresh"]:
            assert scores_at(figures["best_f1_thresh"])[1] == pytest.approx(figures["best_f1"])
