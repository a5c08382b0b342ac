"""Tests of examples in little memory: what is read equals what was written."""

import random

import pytest

from deberta_jax.train.tasks.packed import PackedExamples, PackedRows, chunks, text_digest

ROWS = [("a text" * (number % 50), None, number, ("x", "\ud83d", number / 3)) for number in range(20_000)]


@pytest.fixture(scope="module")
def packed():
    rows = PackedRows()
    for row in ROWS:
        rows.append(row)
    return rows


def test_rows_are_read_in_any_order(packed):
    assert len(packed) == len(ROWS)
    assert list(packed) == ROWS
    places = random.Random(0).sample(range(-len(ROWS), len(ROWS)), 300)
    assert [packed[place] for place in places] == [ROWS[place] for place in places]
    assert packed[-3:] == tuple(ROWS[-3:])
    for place in (len(ROWS), -len(ROWS) - 1):
        with pytest.raises(IndexError):
            packed[place]


def test_rows_take_less_memory_than_their_texts(packed):
    assert sum(map(len, packed._blocks)) < sum(len(row[0]) for row in ROWS) / 4


def test_examples_equal_any_sequence_of_equal_examples(packed):
    examples = PackedExamples(packed, lambda index, row: (index, row[0]))
    expected = tuple((index, row[0]) for index, row in enumerate(ROWS))
    assert examples == expected
    assert expected == examples
    assert examples != expected[:-1]
    assert examples != (*expected[:-1], (0, ""))
    assert (examples[7], examples[-1], examples[2:4]) == (expected[7], expected[-1], expected[2:4])


def test_chunks_have_all_examples_in_order():
    texts = ["word " * (number % 3000) for number in range(200)]
    parts = list(chunks(texts, len))
    assert [text for part in parts for text in part] == texts
    assert len(parts) > 1
    assert max(sum(map(len, part[:-1])) for part in parts) < 1 << 16
    assert list(chunks([], len)) == []
    assert text_digest("a") == text_digest("a") != text_digest("b")
