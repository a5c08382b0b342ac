"""Tests of the search for the best spans of rows, and for their texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.predict.span_search import best_spans


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
