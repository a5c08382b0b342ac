"""Rows of integers of different lengths, without padding."""

import dataclasses
from array import array
from collections.abc import Iterable
from typing import Self

import numpy as np
from jaxtyping import Int32, Int64


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of N integers in all.

    Attributes:
      values: the rows one after the other.
      offsets: where each row begins in `values`, and the end of the last one.
    """

    values: Int32[np.ndarray, "N"]
    offsets: Int64[np.ndarray, "ends"]

    @classmethod
    def of(cls, rows: Iterable[Iterable[int]]) -> Self:
        builder = RaggedBuilder()
        for row in rows:
            builder.append(row)
        return cls(as_numpy(builder.values), as_numpy(builder.offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Int32[np.ndarray, "tokens"]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class RaggedBuilder:
    """Collects rows. None can be appended after `build`, which shares the memory instead of copying it."""

    def __init__(self) -> None:
        self.values, self.offsets = array("i"), array("q", [0])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def append(self, row: Iterable[int]) -> None:
        self.values.extend(row)
        self.offsets.append(len(self.values))

    def build(self) -> Ragged:
        return Ragged(as_numpy(self.values), as_numpy(self.offsets))


def as_numpy(values: "array[int]") -> np.ndarray:
    """Returns an array that shares the memory of `values`, which cannot grow afterwards."""
    return np.frombuffer(values, values.typecode)
