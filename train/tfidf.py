"""The baseline without a neural network: logistic or ridge regression on TF-IDF of words and groups of words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

Texts = Sequence[tuple[str, ...]]  # one text or two for each example


def predict_by_tfidf(
    train: Texts,
    labels: Sequence[Any],
    test: Texts,
    *,
    longest: int = 2,
    strength: float = 1.0,
    regression: bool = False,
) -> Shaped[np.ndarray, "E"]:
    """Fits the baseline and returns its predictions.

    The features of a pair are those of both texts, their absolute differences, their products and the cosine.

    Args:
      train: the texts to learn from; a vocabulary is made of them alone.
      labels: the class of each of them, or its score.
      test: the texts to predict.
      longest: number of words of the longest group of words that is a feature.
      strength: inverse of the weight of the penalty, as C of scikit-learn.
      regression: predict scores, with ridge regression.

    Example:
      predict_by_tfidf([("good",), ("bad",)], ["yes", "no"], [("bad",)])  # array(["no"])
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    vectorizer = TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True)
    vectorizer.fit(text for texts in train for text in texts)
    # The solver of Ridge is the one that reads sparse arrays without an intercept of dense size.
    model = (
        Ridge(alpha=1 / strength, solver="sparse_cg") if regression else LogisticRegression(C=strength, max_iter=1000)
    )
    model.fit(_features(vectorizer, train), labels)
    return np.asarray(model.predict(_features(vectorizer, test)))


def _features(vectorizer: Any, texts: Texts) -> Any:
    from scipy import sparse

    first, *others = (vectorizer.transform(column) for column in zip(*texts, strict=True))
    if not others:
        return first
    (second,) = others
    product = first.multiply(second)
    cosine = sparse.csr_matrix(product.sum(axis=1))  # TF-IDF rows have the length 1
    return sparse.hstack([first, second, abs(first - second), product, cosine], format="csr")
