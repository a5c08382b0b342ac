"""Tests of the search for the best spans and of the predictions from several windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.tokenizers.tokenizer import Encoding
from deberta_jax.train.tasks.ragged import Ragged
from deberta_jax.train.tasks.spans.answers import SpanCandidate, best_spans, combine_windows
from deberta_jax.train.tasks.spans.questions import SpanQuestion
from deberta_jax.train.tasks.spans.windows import Windows


@pytest.mark.parametrize(("n_best", "most"), [(5, 3), (20, 30), (1000, 4)])
def test_best_spans_equal_an_exhaustive_search(n_best, most):
    rng = np.random.default_rng(1)
    start, end = rng.normal(size=(2, 2, 12)).astype(np.float32)
    is_context = np.zeros((2, 12), bool)
    is_context[0, 3:10] = is_context[1, 5:6] = True
    best = best_spans(*map(jnp.asarray, (start, end, is_context)), n_best=n_best, max_answer_length=most)
    starts, ends, scores = jax.device_get(best)
    for row in range(2):
        tokens = np.flatnonzero(is_context[row])
        spans = [(start[row, a] + end[row, b], a, b) for a in tokens for b in tokens if a <= b < a + most]
        spans.sort(reverse=True)
        kept = np.isfinite(scores[row])
        expected_scores, expected_starts, expected_ends = zip(*spans[:n_best], strict=True)
        assert starts[row][kept].tolist() == list(expected_starts)
        assert ends[row][kept].tolist() == list(expected_ends)
        np.testing.assert_allclose(scores[row][kept], expected_scores, rtol=1e-6)


class PiecesOfSpaces:
    """The offsets resemble those of v1's tokenizer, for which one of two spaces may be a piece."""

    pair_separators, cls_last = 1, False

    def __call__(self, text, *, return_offsets):
        return Encoding([1, 5, 6, 7, 5, 2], [0] * 6, [None, (0, 1), (2, 2), (3, 4), (5, 6), None])


def test_a_text_has_its_highest_score_and_no_white_space_around_it():
    questions = [SpanQuestion("1", "q", "a  b a", None)]
    ids = Ragged.of([[9]]), Ragged.of([[5, 6, 7, 5]])
    rows = np.array([[0, 0], [0, 1], [8, 7]], np.int32)  # owner, first, lengths
    two = Windows(PiecesOfSpaces(), questions, *ids, np.zeros(1, np.int32), *rows, None, ())
    other_arrays = {"null_score": np.float32(1), "finite": np.bool_(True)}
    predictions = [
        {"starts": np.array([6, 4]), "ends": np.array([6, 5]), "scores": np.array([3, 2], np.float32), **other_arrays},
        {"starts": np.array([3, 5]), "ends": np.array([3, 5]), "scores": np.array([9, 4], np.float32), **other_arrays},
    ]
    (prediction,) = combine_windows(questions, two, predictions, n_best=5)
    assert prediction.candidates == (SpanCandidate("a", 5, 4.0), SpanCandidate("b", 3, 2.0))
    assert (prediction.null_score, prediction.no_answer) == (1, -3)
