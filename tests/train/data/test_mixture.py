"""A mixture takes the rows of each corpus in order, and in proportion to its weight."""

import random
from fractions import Fraction

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.corpus_options import parse_weighted
from deberta_jax.train.data.mixture import count_rows, integer_shares, locate_row, short_names

DRAW = random.Random(0)
SHARES = [
    (1,),
    (1, 1),
    (7, 3),
    (1, 10**12),
    (10**12, 1, 10**12),
    *(tuple(DRAW.randint(1, 10 ** DRAW.randint(1, 12)) for _ in range(DRAW.randint(2, 6))) for _ in range(40)),
]
TOTALS = [*range(30), *(DRAW.randrange(10 ** DRAW.randint(2, 15)) for _ in range(40))]
both = pytest.mark.parametrize("shares", SHARES, ids=str)


@both
def test_counts_add_up_and_follow_the_shares(shares):
    for total in TOTALS:
        counts = count_rows(total, shares)
        assert sum(counts) == total
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - Fraction(share, sum(shares)) * total) < len(shares)


@both
def test_rows_of_each_corpus_are_taken_in_order(shares):
    for first in TOTALS:
        taken = list(count_rows(first, shares))
        for number in range(first, first + 20):
            corpus, index = locate_row(number, shares)
            assert index == taken[corpus]
            taken[corpus] += 1
        assert tuple(taken) == count_rows(first + 20, shares)


def test_shares_that_are_numbers_of_rows_read_each_row_once():
    rows = [43, 7, 110]
    shares = integer_shares(["a", "b", "c"], [None] * 3, rows)
    for epoch in range(1, 4):
        assert count_rows(epoch * sum(rows), shares) == tuple(epoch * count for count in rows)


def test_weights_are_exact_and_need_not_sum_to_one():
    weights = [parse_weighted(f"a:{text}").weight for text in ("0.7", "0.2", ".1")]
    assert integer_shares(["a", "b", "c"], weights, [9, 9, 9]) == (7, 2, 1)
    assert integer_shares(["a", "b"], [Fraction(14), Fraction(6)], [9, 9]) == (7, 3)
    assert integer_shares(["a"], [Fraction(3)], [9]) == (1,)
    with pytest.raises(UserError, match="'b' has no weight, but other corpora have one; give every corpus a weight"):
        integer_shares(["a", "b"], [Fraction(1), None], [9, 9])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["rows"], ["rows"]),
        (["data/wiki/", "data/books"], ["wiki", "books"]),
        (["wiki/128", "wiki/512", "books/128"], ["wiki-128", "wiki-512", "books-128"]),
        ([r"C:\wiki", "gs://bucket/wiki"], ["C:-wiki", "bucket-wiki"]),
        (["a", "./a"], ["a-1", "a-2"]),
        (["/"], ["/"]),
    ],
)
def test_names_for_the_log_are_short_and_distinct(folders, names):
    assert short_names(folders) == names
