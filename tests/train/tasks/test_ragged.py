"""Tests of rows of different lengths without padding."""

import numpy as np

from deberta_jax.train.tasks.ragged import Blocks, Ragged

BLOCK = 1 << 18


def test_rows_are_read_as_they_were_written():
    """Among them are empty rows, rows that fill a block to its end, and rows of several blocks."""
    rng = np.random.default_rng(0)
    sizes = [0, 3, BLOCK - 3, 0, 1, BLOCK, 2 * BLOCK + 5, 7, BLOCK - 1, 0, 2, *rng.integers(0, 50_000, 40).tolist()]
    rows = [rng.integers(0, 1 << 31, size).astype(np.int32) for size in sizes]
    ragged = Ragged.of(rows)
    assert len(ragged) == len(rows)
    assert ragged.lengths.tolist() == sizes
    for index in rng.permutation(len(rows)).tolist():
        np.testing.assert_array_equal(ragged[index], rows[index])
    assert len(Ragged.of([])) == 0


def test_another_dtype_keeps_the_positions():
    blocks, rows = Blocks(np.int8), [[1, -2], [3] * BLOCK, [4]]
    starts = [blocks.append(row) for row in rows]
    wide = blocks.astype(np.int32)
    starts.append(wide.append([1 << 20]))
    for start, row in zip(starts, [*rows, [1 << 20]], strict=True):
        assert wide.row(start, len(row)).tolist() == row
