"""Batches of few shapes, and the order in which entries come out of them."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.predict.batching import Batch, BatchSizes, Entry, in_order, padded_length, plan_ahead
from deberta_jax.predict.pipeline import Row, Rows

SIZES = BatchSizes(batch_size=2, devices=4, steps=2)


def entry(index: int, *lengths: int, masks: int = 0) -> Entry[int]:
    rows = [Row(range(5, 5 + length), [0] * length, range(min(masks, length))) for length in lengths]
    return Entry(index, index, Rows(rows, None))


def planned(entries: list[Entry[int]]) -> list[Batch]:
    batches = plan_ahead(iter(entries), SIZES, deque())
    return [batch for batch in batches if batch is not None]


def test_lengths_are_few_and_waste_less_than_a_third_of_a_long_row() -> None:
    lengths = [padded_length(tokens, steps=2) for tokens in range(1, 1025)]
    assert sorted(set(lengths)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(tokens <= length <= 3 / 2 * tokens + 8 for tokens, length in enumerate(lengths, start=1))
    lengths = [padded_length(tokens, steps=4) for tokens in range(1, 257)]
    assert sorted(set(lengths)) == [*range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32)]
    assert all(tokens <= length <= 5 / 4 * tokens + 8 for tokens, length in enumerate(lengths, start=1))


def test_every_row_is_in_one_batch_and_shapes_are_few() -> None:
    rng = np.random.default_rng(0)
    entries = [entry(i, *rng.integers(1, 300, rng.integers(0, 4)).tolist()) for i in range(2000)]
    batches = planned(entries)
    places = [(slot.entry.index, slot.number) for batch in batches for slot in batch.slots]
    assert sorted(places) == [(e.index, number) for e in entries for number in range(e.missing)]
    shapes = {(batch.size, batch.length) for batch in batches}
    assert len(shapes) <= 18
    assert all(size == 4 or (size % 4 == 0 and size * length <= 4 * 2 * 128) for size, length in shapes)
    tokens = sum(len(slot.row.input_ids) for batch in batches for slot in batch.slots)
    assert sum(batch.size * batch.length for batch in batches) < 1.25 * tokens


def test_a_single_short_row_makes_a_small_batch() -> None:
    (batch,) = planned([entry(0, 7)])
    assert (batch.size, batch.length) == (4, 8)


def test_rows_with_many_masks_make_small_batches() -> None:
    batches = planned([entry(i, 16, masks=16) for i in range(64)])
    assert {batch.size for batch in batches} == {4 * 8}


def test_arrays_are_padded() -> None:
    (batch,) = planned([Entry(0, 0, Rows([Row([7, 8, 9], [0, 0, 1], [2]), Row([5], [0])], None))])
    arrays = batch.arrays(pad_id=3)
    np.testing.assert_array_equal(arrays["input_ids"][:, :4], [[7, 8, 9, 3], [5, 3, 3, 3], [3] * 4, [3] * 4])
    np.testing.assert_array_equal(arrays["attention_mask"].sum(axis=1), [3, 1, 0, 0])
    np.testing.assert_array_equal(arrays["token_type_ids"].sum(axis=1), [1, 0, 0, 0])
    np.testing.assert_array_equal(arrays["masked_positions"], [[2], [0], [0], [0]])


def run(entries: Iterator[Entry[int]], events: list[str] | None = None) -> Iterator[Entry[int]]:
    """Gives each row its own length as the output."""
    events = [] if events is None else events

    def dispatch(batch: Batch) -> dict[str, np.ndarray]:
        events.append("dispatch")
        return {"length": np.array([*(len(slot.row.input_ids) for slot in batch.slots), *[0] * batch.size])}

    def receive(batch: Batch, outputs: dict[str, np.ndarray]) -> None:
        events.append("receive")
        batch.deliver(outputs, {"length": None})

    waiting: deque[Entry[int]] = deque()
    return in_order(plan_ahead(entries, SIZES, waiting), waiting, dispatch, receive)


def test_entries_come_in_their_order_with_the_outputs_of_their_rows() -> None:
    rng = np.random.default_rng(1)
    lengths = [rng.integers(1, 200, rng.integers(0, 3)).tolist() for _ in range(1500)]
    entries = list(run(entry(i, *own) for i, own in enumerate(lengths)))
    assert [e.index for e in entries] == list(range(1500))
    assert [[int(output["length"]) for output in e.outputs] for e in entries] == lengths


def test_a_batch_is_read_while_the_next_is_computed() -> None:
    events: list[str] = []
    list(run((entry(i, 128) for i in range(8 * 5)), events))
    assert events == ["dispatch", *["dispatch", "receive"] * 4, "receive"]


@pytest.mark.parametrize("rows", [0, 1])
def test_an_endless_stream_is_read_at_most_two_windows_ahead(rows: int) -> None:
    numbers = iter(range(10**9))
    results = run(entry(i, *[20] * rows) for i in numbers)
    for wanted in range(5 * SIZES.window):
        assert next(results).index == wanted
        assert next(numbers) <= wanted + 2 * SIZES.window + 2 + wanted  # each look takes a number away
        if wanted > 3:
            break


def test_entries_with_errors_keep_their_place() -> None:
    entries = [Entry(i, i, UserError("bad")) if i % 2 else entry(i, 10) for i in range(2 * SIZES.window)]
    assert [e.index for e in run(iter(entries))] == list(range(2 * SIZES.window))
