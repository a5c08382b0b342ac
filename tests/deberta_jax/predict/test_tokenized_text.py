"""Tests of the windows over a text."""

import pytest

from deberta_jax.predict.tokenized_text import cut_windows


@pytest.mark.parametrize("tokens", [0, 1, 9, 10, 11, 57])
@pytest.mark.parametrize("stride", [1, 4, 10])
def test_windows_cover_a_context_and_end_with_it(tokens, stride):
    seen = list(cut_windows(tokens, room=10, stride=stride))
    assert seen[0][0] == 0
    assert sum(seen[-1]) == tokens
    assert [first for first, _ in seen] == [stride * number for number in range(len(seen))]
    assert all(size == 10 for _, size in seen[:-1])
    assert set().union(*(range(first, first + size) for first, size in seen)) == set(range(tokens))
    assert all(first + size < tokens for first, size in seen[:-1])  # no window is superfluous
