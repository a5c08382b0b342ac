"""Examples of a split to batches: shuffled for training, in order for evaluation, padded no further than needed."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import grain
import numpy as np
from numpy.typing import NDArray

from deberta_jax.errors import UserError

from ..data.batches import GlobalBatches, check_batch_indices
from .base import Batch, Encoded

_SHORTEST = 64  # tokens; every further length, twice the one before, costs a compilation
_WINDOW = 50  # batches that are sorted among themselves where examples are grouped by length


def padded_length(longest: int, max_length: int) -> int:
    """The tokens that a batch is padded to: 64, 128, 256, ... or max_length, whichever is the first to hold `longest`.

    Few lengths, because every one is a program of its own.
    """
    length = _SHORTEST
    while length < longest:
        length *= 2
    return min(length, max_length)


class FinetuneBatches:
    """Endless training batches: the examples shuffled afresh every epoch, the epochs joined without a gap.

    Every host builds one with the same seed and the global `batch_size`, and gets those `rows` of each global batch
    that are its own (`sharding.local_batch_indices`; None: all). The state counts examples, not batches, and is the
    same on every host, so a run resumes exactly on another number of hosts.

    Args:
      max_length: what a batch is padded to at most; `padded_length` of its longest example on any host.
      group: batches of examples of about the same length, in random order. Of every 50 batches; each epoch still has
        every example once.

    Raises:
      ValueError: unlabeled examples, or rows that a batch does not have.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        group: bool = False,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        if not encoded.labeled:
            raise UserError("training needs labels; these examples have none")
        self._encoded, self._max_length = encoded, max_length
        self._own = check_batch_indices(batch_size, rows)
        examples = grain.MapDataset.range(len(encoded.lengths)).seed(seed).shuffle().repeat()
        if group:
            examples = _Grouped(examples, encoded.lengths, batch=batch_size, seed=seed)
        # The rows are in memory already: reading ahead in threads would only cost. Every host draws all numbers of a
        # batch, as its longest example may be another host's.
        read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._batches = GlobalBatches(examples, global_batch=batch_size, batch_indices=None, read_options=read_options)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        numbers = next(self._batches)
        length = padded_length(int(self._encoded.lengths[numbers].max()), self._max_length)
        return self._encoded.batch(numbers[self._own], length=length)

    def get_state(self) -> dict[str, int]:
        """The position, `{"global_next_index": examples drawn so far on all hosts}`; plain JSON."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to a position of `get_state`. Raises ValueError for anything else."""
        self._batches.set_state(state)


class _Grouped(grain.MapDataset):
    """The examples of every window of batches in an order in which those of a batch are about as long.

    A window ends where its epoch does, and batches keep their places, also across the end of an epoch.
    """

    def __init__(self, examples: grain.MapDataset, lengths: np.ndarray, *, batch: int, seed: int) -> None:
        super().__init__(examples)
        self._lengths, self._batch, self._seed = lengths, batch, seed
        self._first, self._window = 0, np.zeros(0, np.int64)  # the window read last

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        if not self._first <= index < self._first + len(self._window):
            self._read_window(index)
        return self._window[index - self._first]

    def _read_window(self, index: int) -> None:
        epoch, size = index // len(self._lengths), _WINDOW * self._batch
        starts = epoch * len(self._lengths)
        first = max(starts, index // size * size)
        last = min(starts + len(self._lengths), (index // size + 1) * size)
        numbers = np.array([self._parent[place] for place in range(first, last)])
        numbers = numbers[np.argsort(self._lengths[numbers], kind="stable")]
        # The whole batches of the window, in random order; what belongs to batches that begin or end outside keeps
        # its place, and gets the shortest and the longest examples.
        head = min(-first % self._batch, len(numbers))
        whole = (len(numbers) - head) // self._batch * self._batch
        body = numbers[head : head + whole].reshape(-1, self._batch)
        order = np.random.default_rng([self._seed, first]).permutation(len(body))
        self._first = first
        self._window = np.concatenate([numbers[:head], body[order].reshape(-1), numbers[head + whole :]])


def evaluation_batches(
    encoded: Encoded, *, batch_size: int, max_length: int, rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """One pass over all examples, those of about the same length together -> the examples' numbers, the batch.

    The numbers are those of the global batch; the last one has fewer than `batch_size`, and its batch is filled up
    with copies of its last example. A host gets its `rows` of every global batch (None: all); all hosts get the same
    number of batches, of the same lengths.
    """
    own = check_batch_indices(batch_size, rows)
    order = np.argsort(encoded.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        length = padded_length(int(encoded.lengths[numbers].max()), max_length)
        yield numbers, encoded.batch(numbers[np.minimum(own, len(numbers) - 1)], length=length)
