"""The baseline on TF-IDF against scikit-learn's own pipeline, and its features of pairs."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from deberta_jax.train.tfidf import predict_by_tfidf

WORDS = "ship sea storm captain tea garden letter ball dance carriage".split()


def draw(rng: np.random.Generator, kind: int) -> str:
    return " ".join(rng.choice(WORDS, 12, p=np.where((np.arange(10) < 5) == bool(kind), 0.12, 0.08)))


def test_single_texts_equal_a_pipeline_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = [index % 2 for index in range(80)]
    texts = [draw(rng, label) for label in labels]
    test = [draw(rng, label) for label in labels]
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True), LogisticRegression(C=4.0, max_iter=1000)
    ).fit(texts, labels)
    predicted = predict_by_tfidf([(text,) for text in texts], labels, [(text,) for text in test], longest=3, strength=4)
    np.testing.assert_array_equal(predicted, pipeline.predict(test))
    assert set(predicted) == {0, 1}


def test_likeness_of_pairs_is_learned_across_words() -> None:
    """Scores are shares of common words, and the test pairs have words in other combinations."""
    rng = np.random.default_rng(1)

    def pairs(count: int) -> tuple[list[tuple[str, str]], list[float]]:
        drawn, scores = [], []
        for _ in range(count):
            first, common = rng.permutation(WORDS), int(rng.integers(0, 6))
            drawn.append((" ".join(first[:5]), " ".join([*first[:common], *first[5 : 10 - common]])))
            scores.append(common / 5)
        return drawn, scores

    predicted = predict_by_tfidf(*pairs(150), (test := pairs(50))[0], regression=True)
    assert np.corrcoef(predicted, test[1])[0, 1] > 0.9


def test_an_example_without_its_second_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        predict_by_tfidf([("a ship", "a ball"), ("a storm",)], [0, 1], [("the sea", "the ball")])
