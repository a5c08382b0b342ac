"""Documents in the order of their scores."""

import pytest

from deberta_jax.errors import UserError

from ...support.predictor import random_classifier

DOCUMENTS = ["It was a house.", "", "the family of them " * 60, "It was a house.", "running"]


def test_documents_are_sorted_by_the_score_of_their_best_window() -> None:
    model = random_classifier(1)
    results = model.rank("a house", DOCUMENTS, max_length=64)
    assert sorted(result.index for result in results) == list(range(5))
    assert [result.text for result in results] == [DOCUMENTS[result.index] for result in results]
    scores = model.score(["a house"] * 5, DOCUMENTS, max_length=64, windows="max")
    assert [result.score for result in results] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    equal = [result.index for result in results if result.text == DOCUMENTS[0]]
    assert equal == [0, 3]
    assert model.rank("a house", DOCUMENTS, top_k=2, max_length=64) == results[:2]


@pytest.mark.parametrize(
    ("query", "documents", "top_k", "message"),
    [
        (None, ["text"], None, "the query is a NoneType"),
        ("query", "text", None, "documents is a str; give"),
        ("query", ["text", 1], None, "document 1 is a int"),
        ("query", ["text"], 0, "top_k is 0; it must be at least 1"),
    ],
)
def test_unusable_input_is_named(query, documents, top_k, message: str) -> None:
    with pytest.raises(UserError, match=message):
        random_classifier(1).rank(query, documents, top_k=top_k)
