"""Rows of integers of different lengths, without padding.

The integers are in blocks that never move. One array that grows would leave holes of its former sizes in memory.
"""

import dataclasses
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

Row = Sequence[int] | np.ndarray

_SHIFT = 18
_BLOCK = 1 << _SHIFT  # integers


class Blocks:
    """Rows of integers of one dtype, of which each is found by its position. A row never crosses the end of a block."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._blocks: list[np.ndarray] = []  # a row of several blocks is an array at the position of the first one
        self._next = 0

    def append(self, row: Row) -> int:
        """Adds a row, whose numbers the dtype can represent, and returns its position."""
        start = self._next
        if (start & (_BLOCK - 1)) + len(row) > _BLOCK or start >> _SHIFT == len(self._blocks):
            start, count = len(self._blocks) << _SHIFT, max(1, -(-len(row) // _BLOCK))
            block = np.empty(count * _BLOCK, self.dtype)  # takes memory as it is filled
            self._blocks += [block] * count
        offset = start & (_BLOCK - 1)
        self._blocks[start >> _SHIFT][offset : offset + len(row)] = row
        # The row after one of several blocks begins a new block.
        self._next = start + len(row) if len(row) <= _BLOCK else len(self._blocks) << _SHIFT
        return start

    def row(self, start: int, length: int) -> Int[np.ndarray, "tokens"]:
        """Returns the row of this length at a position."""
        offset = start & (_BLOCK - 1)
        return self._blocks[start >> _SHIFT][offset : offset + length]

    def astype(self, dtype: Any) -> "Blocks":
        """Returns a copy in another dtype, with the same positions."""
        copy = Blocks(dtype)
        copy._blocks, copy._next = [block.astype(dtype) for block in self._blocks], self._next
        return copy


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """R rows of int32.

    Attributes:
      values: the rows.
      starts: the position of each row in `values`; int32 if that is enough.
      lengths: number of integers of each row.
    """

    values: Blocks
    starts: Int[np.ndarray, "R"]
    lengths: Int32[np.ndarray, "R"]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Ragged":
        """Returns rows that are given as lists or arrays."""
        builder = RaggedBuilder()
        for row in rows:
            builder.append(row)
        return builder.build()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Int32[np.ndarray, "tokens"]:
        return self.values.row(int(self.starts[index]), int(self.lengths[index]))


class RaggedBuilder:
    """Collects rows. None can be appended after `build`, which shares the memory instead of copying it."""

    def __init__(self) -> None:
        self._values = Blocks(np.int32)
        self._starts, self._lengths = array("i"), array("i")

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, row: Row) -> None:
        start = self._values.append(row)
        if start >= 1 << 31 and self._starts.typecode == "i":
            self._starts = array("q", self._starts)
        self._starts.append(start)
        self._lengths.append(len(row))

    def build(self) -> Ragged:
        return Ragged(self._values, as_numpy(self._starts), as_numpy(self._lengths))


def as_numpy(values: "array[int]") -> np.ndarray:
    """Returns an array that shares the memory of `values`, which cannot grow afterwards."""
    return np.frombuffer(values, values.typecode)
