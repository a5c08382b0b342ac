"""Packed rows to batches of pre-training: grain reads and shuffles, masks are drawn on the whole batch.

What a batch holds depends on the corpus, the seed and the place in the stream alone, not on the number of hosts, and
the place in the stream is all there is to save.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol, Self

import grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from grain.experimental import ElasticIterator
from numpy.typing import NDArray

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


class TrainingBatches:
    """An endless stream of this host's batches of the training rows, in a new order every epoch.

    A batch holds, as int32, `input_ids` [B, S] (masked), `segment_ids` [B, S] (1, 2, ... within a row, 0 padding),
    `masked_positions` [B, M] and `masked_labels` [B, M] (see `masking.mask_rows`), and, as int64, `row` [B], the
    rows' numbers in the stream; B = global_batch / process_count.

    Args:
      corpus: from `prepare.open_corpus` or `prepare.prepare`.
      global_batch: rows a step, over all hosts. It may be larger than the corpus.
      seed: of the order and of the masks.
      process_index, process_count: which part of each global batch; default: what JAX says.

    Raises:
      ValueError: a global batch that does not divide by the hosts, another tokenizer than the corpus was made with,
        or a missing or truncated file.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        tokenizer: SupportsPretraining,
        masking: MaskingConfig,
        global_batch: int,
        seed: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> None:
        corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        self._tables = MaskingTables.of(tokenizer)
        self._masking = masking
        self._seed = seed
        rows = grain.MapDataset.source(_Rows(corpus, "train")).seed(seed).shuffle().repeat()
        self._iterator = ElasticIterator(
            rows.map_with_index(lambda row, ids: {"row": np.int64(row), "ids": ids}),
            global_batch,
            _shard(global_batch, process_index, process_count),
            read_options=_PREFETCH,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        return _finish(
            batch["ids"], batch["row"], _keys(self._seed, _TRAINING, batch["row"]), self._tables, self._masking
        )

    def get_state(self) -> dict[str, Any]:
        """The place in the stream, the same on every host; JSON. Hosts and global batch may change before it is set."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a place that `get_state` gave, exactly."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Stops the threads that read ahead."""
        self._iterator.close()


def evaluation_batches(
    corpus: Corpus,
    *,
    tokenizer: SupportsPretraining,
    masking: MaskingConfig,
    global_batch: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Iterator[Batch]:
    """One pass over the held-out rows, each exactly once over all hosts, with the same masks every time.

    Batches are as in `TrainingBatches`. The last one is filled up with rows of padding alone: segment ids and labels
    0, `row` -1. Every host gets the same number of batches.

    Raises:
      ValueError: as `TrainingBatches`, or a corpus without held-out rows; raised at once, not at the first batch.
    """
    corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
    if not corpus.held_out.rows:
        raise ValueError(f"{corpus.folder} has no held-out rows; prepare it with a held_out_fraction above 0")
    shard = _shard(global_batch, process_index, process_count)
    source = _Rows(corpus, "held_out")
    tables = MaskingTables.of(tokenizer)

    def batches() -> Iterator[Batch]:
        for first in range(0, len(source), global_batch):
            row = np.arange(first + shard.shard_index, first + global_batch, shard.shard_count)
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
                raise ValueError(
                    f"{path} has {rows} rows instead of {file.rows}; copy it again, or prepare the corpus again"
                )
        self._source = ArrayRecordDataSource([str(corpus.folder / file.name) for file in files])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> NDArray[np.integer]:
        try:
            record = self._source[index]
        except RuntimeError as error:  # ArrayRecord found that a checksum is wrong; it does not say in which file
            raise ValueError(
                f"{self._folder}: row {index} is damaged: {error}; copy the folder again, or prepare the corpus again"
            ) from None
        return np.frombuffer(record, self._dtype)


def _count(path: str) -> int:
    """The rows of a file. Some damaged files tell a wrong number, often 0, instead of failing."""
    try:
        return len(ArrayRecordDataSource(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged: {error}; copy it again, or prepare the corpus again") from None


def _shard(global_batch: int, process_index: int | None, process_count: int | None) -> grain.sharding.ShardOptions:
    if process_index is None or process_count is None:
        import jax

        process_index = jax.process_index() if process_index is None else process_index
        process_count = jax.process_count() if process_count is None else process_count
    if global_batch < 1 or global_batch % process_count:
        raise ValueError(
            f"the global batch is {global_batch} rows; it must be a multiple of the {process_count} processes"
        )
    return grain.sharding.ShardOptions(shard_index=process_index, shard_count=process_count)


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
