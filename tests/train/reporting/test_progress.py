"""Numbers as text."""

import math

import pytest

from deberta_jax.train.reporting.progress import format_count, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (100 * 3600, "4d04h"), (math.nan, "-")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(3.25, "3.25"), (950, "950"), (999.9, "1k"), (12345, "12.3k"), (1.234e6, "1.23M"), (2e9, "2G")]
)
def test_counts(count, text):
    assert format_count(count) == text
