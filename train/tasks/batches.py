"""Batches of the examples of a split: shuffled for training, in a fixed order for evaluation, with little padding."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import grain
import numpy as np
from jaxtyping import Int

from ..data.batches import GlobalBatches, check_batch_indices
from .base import Encoded, ExampleBatch

_SHORTEST = 64  # tokens; each further padded length is twice the previous one and costs one compilation
_WINDOW = 50  # number of batches that are sorted by length together


def padded_length(longest: int, max_length: int) -> int:
    """Returns the length to pad a batch to: the first of 64, 128, 256, ... and `max_length` that fits `longest`.

    There are few lengths because XLA compiles a program for each.
    """
    length = _SHORTEST
    while length < longest:
        length *= 2
    return min(length, max_length)


class FinetuneBatches:
    """An endless stream of training batches. The examples are shuffled anew in each epoch.

    An epoch may end inside a batch. All hosts use the same seed and `batch_size`, and each host gets its
    `batch_indices` of every global batch. The position counts examples rather than batches and is the same on all
    hosts, so a run resumes exactly on another number of hosts.

    Args:
      encoded: the labeled examples.
      batch_size: number of examples per batch over all hosts.
      max_length: upper limit of the padded length, which otherwise is `padded_length` of the longest example of the
        global batch.
      seed: seed of the order.
      group: put examples of similar length into the same batch and shuffle these batches, within windows of 50
        batches. Each epoch still contains each example once.
      batch_indices: positions in the global batch of this host's examples, ascending (see
        `sharding.local_batch_indices`; default: all).

    Raises:
      ValueError: if the examples have no labels, or a position is outside the batch.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        group: bool = False,
        batch_indices: Int[np.ndarray, "B"] | None = None,
    ) -> None:
        if not encoded.labeled:
            raise ValueError("training needs labels; these examples have none")
        self._encoded, self._max_length = encoded, max_length
        self._batch_indices = check_batch_indices(batch_size, batch_indices)
        examples = grain.MapDataset.range(len(encoded.lengths)).seed(seed).shuffle().repeat()
        if group:
            examples = _GroupedByLength(examples, encoded.lengths, batch=batch_size, seed=seed)
        # The examples are already in memory, so that prefetching threads would only cost time. Each host draws the
        # whole global batch, because the padded length may depend on another host's example.
        read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._batches = GlobalBatches(examples, global_batch=batch_size, batch_indices=None, read_options=read_options)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ExampleBatch:
        indices = next(self._batches)
        length = padded_length(int(self._encoded.lengths[indices].max()), self._max_length)
        return self._encoded.batch(indices[self._batch_indices], length=length)

    def get_state(self) -> dict[str, int]:
        """Returns the position, `{"global_next_index": number of examples drawn by all hosts}`."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Restores a position that `get_state` returned. Raises UserError for any other value."""
        self._batches.set_state(state)


class _GroupedByLength(grain.MapDataset):
    """Reorders the examples inside each window of batches so that each batch has examples of similar length.

    A window ends with its epoch. Batches keep their positions even where an epoch ends inside one.
    """

    def __init__(self, examples: grain.MapDataset, lengths: Int[np.ndarray, "E"], *, batch: int, seed: int) -> None:
        super().__init__(examples)
        self._lengths, self._batch, self._seed = lengths, batch, seed
        self._first, self._window = 0, np.zeros(0, np.int64)  # the last window that was read, as a cache

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
        epoch_start = epoch * len(self._lengths)
        first = max(epoch_start, index // size * size)
        last = min(epoch_start + len(self._lengths), (index // size + 1) * size)
        examples = np.array([self._parent[position] for position in range(first, last)])
        examples = examples[np.argsort(self._lengths[examples], kind="stable")]
        # Only batches that lie completely inside the window are shuffled. A batch that crosses the start or the end
        # of the window keeps its position and takes the shortest or the longest examples.
        head = min(-first % self._batch, len(examples))
        whole = (len(examples) - head) // self._batch * self._batch
        batches = examples[head : head + whole].reshape(-1, self._batch)
        order = np.random.default_rng([self._seed, first]).permutation(len(batches))
        self._first = first
        self._window = np.concatenate([examples[:head], batches[order].reshape(-1), examples[head + whole :]])


def evaluation_batches(
    encoded: Encoded, *, batch_size: int, max_length: int, batch_indices: Int[np.ndarray, "B"] | None = None
) -> Iterator[tuple[Int[np.ndarray, "examples"], ExampleBatch]]:
    """Yields the indices of the examples of each global batch and this host's part of the batch, sorted by length.

    Each example occurs once. The last global batch may have fewer than `batch_size` indices; its batch is filled with
    copies of its last example. All hosts get the same number of batches, of the same lengths.

    Args:
      encoded: the examples.
      batch_size: number of examples per batch over all hosts.
      max_length: upper limit of the padded length.
      batch_indices: positions in the global batch of this host's examples, ascending (default: all).

    Raises:
      ValueError: if a position is outside the batch.
    """
    positions = check_batch_indices(batch_size, batch_indices)
    order = np.argsort(encoded.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        length = padded_length(int(encoded.lengths[indices].max()), max_length)
        yield indices, encoded.batch(indices[np.minimum(positions, len(indices) - 1)], length=length)
