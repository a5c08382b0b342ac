"""Packed rows to batches of pre-training: grain reads and shuffles, masks are drawn on the whole batch.

What a batch holds, and in which order, depends on the corpus, the seed and the place in the stream alone, not on the
number of hosts, and the place in the stream is all there is to save.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, Self

import grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from numpy.typing import NDArray

from deberta_jax.errors import UserError

from .masking import MaskingConfig, MaskingTables, SupportsMasking, hash_uint64, mask_rows
from .prepare import Corpus
from .text import SupportsEncoding

Batch = dict[str, NDArray[np.integer]]

EVALUATION_SEED = 0  # held-out rows carry the same masks in every run
# Batches read ahead. Grain's default, 500, is meant for single records; 500 batches would be hundreds of MB a host.
_PREFETCH = grain.ReadOptions(num_threads=16, prefetch_buffer_size=16)
_TRAINING, _EVALUATION = 0, 1  # streams of the row keys


class SupportsPretraining(SupportsEncoding, SupportsMasking, Protocol):
    """What pre-training needs of a tokenizer."""


class GlobalBatches:
    """Endless batches of an endless data set, this host's rows of each; the place is the same on every host.

    Args:
      dataset: repeated without end.
      global_batch: rows of a batch, over all hosts.
      rows: which of them are this host's, ascending (`sharding.local_batch_indices`); None: all.

    Raises:
      ValueError: rows that a batch does not have.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        *,
        global_batch: int,
        rows: NDArray[np.int64] | None,
        read_options: grain.ReadOptions,
    ) -> None:
        self._rows = own_rows(global_batch, rows)
        self._dataset, self._batch, self._read_options = dataset, global_batch, read_options
        self._next = 0  # rows that all hosts together have drawn
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Any:
        if self._iterator is None:
            own = _Part(self._dataset, start=self._next, batch=self._batch, rows=self._rows)
            self._iterator = iter(own.batch(len(self._rows)).to_iter_dataset(read_options=self._read_options))
        found = next(self._iterator)
        self._next += self._batch
        return found

    def get_state(self) -> dict[str, int]:
        """The place, `{"global_next_index": rows that all hosts have drawn}`; hosts and batch may change before it is
        set again."""
        return {"global_next_index": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to a place that `get_state` gave. Raises ValueError for anything else."""
        index = state.get("global_next_index")
        if set(state) != {"global_next_index"} or not isinstance(index, int) or index < 0:
            raise UserError(f"{dict(state)} is not a position; it must be {{'global_next_index': n}} with n >= 0")
        self.close()
        self._next = index

    def close(self) -> None:
        """Stops the threads that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def own_rows(global_batch: int, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The rows of a batch that are a host's, None being all of them. Raises ValueError for others than it has."""
    if global_batch < 1:
        raise UserError(f"the global batch is {global_batch} rows; it must be at least 1")
    if rows is None:
        return np.arange(global_batch)
    if not len(rows) or rows[0] < 0 or rows[-1] >= global_batch:
        raise UserError(f"a batch of {global_batch} rows has rows 0 to {global_batch - 1}; asked for {rows.tolist()}")
    return rows


class _Part(grain.MapDataset):
    """From `start` on, of every `batch` elements those at `rows`."""

    def __init__(self, dataset: grain.MapDataset, *, start: int, batch: int, rows: NDArray[np.int64]) -> None:
        super().__init__(dataset)
        self._start, self._batch, self._rows = start, batch, rows.tolist()

    def __len__(self) -> int:
        return (len(self._parent) - self._start) // self._batch * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        number, place = divmod(index, len(self._rows))
        return self._parent[self._start + number * self._batch + self._rows[place]]


class TrainingBatches:
    """An endless stream of this host's batches of the training rows, in a new order every epoch.

    A batch holds, as int32, `input_ids` [B, S] (masked), `segment_ids` [B, S] (1, 2, ... within a row, 0 padding),
    `masked_positions` [B, M] and `masked_labels` [B, M] (see `masking.mask_rows`), and, as int64, `row` [B], the
    rows' numbers in the stream; B is the number of this host's rows.

    Args:
      corpus: from `prepare.open_corpus` or `prepare.prepare`.
      global_batch: rows a step, over all hosts. It may be larger than the corpus.
      seed: of the order and of the masks.
      rows: which rows of each global batch are this host's, ascending (`sharding.local_batch_indices`); None: all.

    Raises:
      ValueError: rows that a batch does not have, another tokenizer than the corpus was made with, or a missing or
        truncated file.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        tokenizer: SupportsPretraining,
        masking: MaskingConfig,
        global_batch: int,
        seed: int,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
        if seed < 0:
            raise UserError(f"seed is {seed}; it must not be negative")
        self._tables = MaskingTables.of(tokenizer)
        self._masking = masking
        self._seed = seed
        stream = grain.MapDataset.source(_Rows(corpus, "train")).seed(seed).shuffle().repeat()
        self._batches = GlobalBatches(
            stream.map_with_index(lambda row, ids: {"row": np.int64(row), "ids": ids}),
            global_batch=global_batch,
            rows=rows,
            read_options=_PREFETCH,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        return _finish(
            batch["ids"], batch["row"], _keys(self._seed, _TRAINING, batch["row"]), self._tables, self._masking
        )

    def get_state(self) -> dict[str, int]:
        """The place in the stream, the same on every host; JSON. Hosts and global batch may change before it is set."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on from a place that `get_state` gave, exactly."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stops the threads that read ahead."""
        self._batches.close()


def evaluation_batches(
    corpus: Corpus,
    *,
    tokenizer: SupportsPretraining,
    masking: MaskingConfig,
    global_batch: int,
    rows: NDArray[np.int64] | None = None,
) -> Iterator[Batch]:
    """One pass over the held-out rows, each exactly once over all hosts, with the same masks every time.

    Batches are as in `TrainingBatches`. The last one is filled up with rows of padding alone: segment ids and labels
    0, `row` -1. Every host gets the same number of batches.

    Raises:
      ValueError: as `TrainingBatches`, or a corpus without held-out rows; raised at once, not at the first batch.
    """
    corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
    if not corpus.held_out.rows:
        raise UserError(f"{corpus.folder} has no held-out rows; prepare it with a held_out_fraction above 0")
    own = own_rows(global_batch, rows)
    source = _Rows(corpus, "held_out")
    tables = MaskingTables.of(tokenizer)

    def batches() -> Iterator[Batch]:
        for first in range(0, len(source), global_batch):
            row = first + own
            ids = np.zeros((len(row), corpus.sequence_length), corpus.dtype)
            real = row < len(source)
            for place in np.flatnonzero(real):
                ids[place] = source[int(row[place])]
            row[~real] = -1
            yield _finish(ids, row, _keys(EVALUATION_SEED, _EVALUATION, row), tables, masking)

    return batches()


class _Rows:
    """One split's rows, by number: a random-access source for grain."""

    def __init__(self, corpus: Corpus, split: Literal["train", "held_out"]) -> None:
        files = corpus.train.files if split == "train" else corpus.held_out.files
        self._folder, self._dtype = corpus.folder, np.dtype(corpus.dtype)
        for file in files:
            path = str(corpus.folder / file.name)
            rows = _count(path)
            if rows != file.rows:
                raise UserError(
                    f"{path} has {rows} rows instead of {file.rows}; copy it again, or prepare the corpus again"
                )
        self._source = ArrayRecordDataSource([str(corpus.folder / file.name) for file in files])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> NDArray[np.integer]:
        try:
            record = self._source[index]
        except RuntimeError as error:  # ArrayRecord found that a checksum is wrong; it does not say in which file
            raise UserError(
                f"{self._folder}: row {index} is damaged: {error}; copy the folder again, or prepare the corpus again"
            ) from None
        return np.frombuffer(record, self._dtype)


def _count(path: str) -> int:
    """The rows of a file. Some damaged files tell a wrong number, often 0, instead of failing."""
    try:
        return len(ArrayRecordDataSource(path))
    except RuntimeError as error:
        raise UserError(f"{path} is damaged: {error}; copy it again, or prepare the corpus again") from None


def _keys(seed: int, stream: int, row: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A random key for every row: masks depend on the row's place in the stream, hence change with every epoch."""
    return hash_uint64(hash_uint64(np.uint64(seed), stream), row)


def _finish(
    ids: NDArray[np.integer],
    row: NDArray[np.int64],
    keys: NDArray[np.uint64],
    tables: MaskingTables,
    masking: MaskingConfig,
) -> Batch:
    segment_ids = np.cumsum(ids == tables.cls_id, axis=1, dtype=np.int32) * (ids != 0)
    return {**mask_rows(ids, keys, tables, masking), "segment_ids": segment_ids, "row": row}
