"""Rows of texts in little memory: in compressed blocks, of which one at a time is unpacked.

A text in memory as Python holds it takes several times its bytes in the file: 50 bytes for each string, 2 or 4 for each
character if one of them is not in Latin-1, and the objects around it.
"""

import bisect
import hashlib
import marshal
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow

from .on_demand import OnDemand

Row = tuple[Any, ...]  # of texts, numbers, None, and tuples of them
Item = TypeVar("Item")

_BLOCK = 1 << 18  # bytes before compression
_CHUNK = 1 << 16  # characters


class PackedRows(OnDemand[Row]):
    """Rows in memory, which can be appended and read in any order; reading them in their order is fast."""

    def __init__(self) -> None:
        self._codec = pyarrow.Codec("zstd", compression_level=1)
        self._blocks: list[bytes] = []  # compressed
        self._sizes: list[int] = []  # of the blocks before compression
        self._starts: list[int] = []  # the first row of each block
        self._pending: list[bytes] = []  # the rows after the last block
        self._pending_size = 0
        self._count = 0
        self._unpacked: tuple[int, Sequence[bytes]] = -1, ()  # the block that was read last, as a cache

    def append(self, row: Row) -> None:
        packed = marshal.dumps(row)
        self._pending.append(packed)
        self._pending_size += len(packed)
        self._count += 1
        if self._pending_size >= _BLOCK:
            block = marshal.dumps(self._pending)
            self._starts.append(self._count - len(self._pending))
            self._sizes.append(len(block))
            # A copy, because the buffer of the codec has room for a block that cannot be compressed.
            self._blocks.append(self._codec.compress(block).to_pybytes())
            self._pending, self._pending_size = [], 0

    def __len__(self) -> int:
        return self._count

    def _build(self, position: int) -> Row:
        if position >= self._count - len(self._pending):
            return marshal.loads(self._pending[position - self._count])
        number = bisect.bisect_right(self._starts, position) - 1
        if self._unpacked[0] != number:
            self._unpacked = number, self._block(number)
        return marshal.loads(self._unpacked[1][position - self._starts[number]])

    def __iter__(self) -> Iterator[Row]:
        for number in range(len(self._blocks)):
            yield from map(marshal.loads, self._block(number))
        yield from map(marshal.loads, self._pending)

    def _block(self, number: int) -> Sequence[bytes]:
        return marshal.loads(self._codec.decompress(self._blocks[number], self._sizes[number], asbytes=True))


class PackedExamples(OnDemand[Item]):
    """Examples that are built from packed rows whenever they are read. Equals any sequence of equal examples.

    Args:
      rows: what the examples are built from.
      build: returns an example from its index and its row.
    """

    def __init__(self, rows: PackedRows, build: Callable[[int, Row], Item]) -> None:
        self._rows, self._from_row = rows, build

    def __len__(self) -> int:
        return len(self._rows)

    def _build(self, position: int) -> Item:
        return self._from_row(position, self._rows[position])

    def __iter__(self) -> Iterator[Item]:
        for index, row in enumerate(self._rows):
            yield self._from_row(index, row)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType] (as for lists)


def text_digest(text: str) -> bytes:
    """Returns 16 bytes by which a text is found again, instead of the text itself."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def chunks(examples: Iterable[Item], characters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yields lists of successive examples of about 65,000 characters, to be tokenized together.

    Args:
      examples: the examples.
      characters: returns the number of characters of an example.
    """
    chunk: list[Item] = []
    size = 0
    for example in examples:
        chunk.append(example)
        size += characters(example) + 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
