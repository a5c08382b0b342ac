"""Turns packed rows into pre-training batches: grain reads and shuffles them, then whole batches are masked.

The content of a batch depends only on the corpora, the seed and the position in the stream, never on the number of
hosts or of worker processes. Therefore the position is the whole state of the stream.
"""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, Integer, UInt64

from deberta_jax.errors import UserError

from ..settings import check_seed
from .corpus import Corpus
from .curriculum import Curriculum, RowOrder
from .masking import MaskingConfig, MaskingTables, SupportsMasking, hash_uint64, mask_rows
from .row_files import RowFile
from .text import SupportsEncoding
from .worker_process import start_reader

Batch = dict[str, Integer[np.ndarray, "B ..."]]

EVALUATION_SEED = 0  # held-out rows have the same masks in every run
# Grain's default of 500 prefetched elements is meant for single records; 500 batches would take hundreds of MB.
_PREFETCH = grain.ReadOptions(num_threads=16, prefetch_buffer_size=16)
# A worker masks its next batch while the training thread takes the one before.
_BATCHES_PER_WORKER = 2
_ADVICE = "copy the folder again, or prepare the corpus again"
_ENDLESS = 2**53  # examples; below, a float is exact
_TRAINING, _EVALUATION, _ORDER = 0, 1, 2  # hash streams of the row keys, and of the seeds of corpora


class SupportsPretraining(SupportsEncoding, SupportsMasking, Protocol):
    """The part of a tokenizer that pre-training uses."""


class GlobalBatches:
    """An endless stream of this host's share of each global batch. The position is the same on all hosts.

    Args:
      dataset: an endless dataset.
      global_batch: number of examples per batch over all hosts.
      batch_indices: positions in the global batch of this host's examples, ascending (see
        `sharding.local_batch_indices`; default: all).
      read_options: threads and buffers for reading, of each process that reads.
      finish: applied to each batch; it can be pickled if there are workers.
      workers: number of processes that read and finish the batches; 0 leaves it to this process.

    Raises:
      ValueError: if a position is outside the batch.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        *,
        global_batch: int,
        batch_indices: Int[np.ndarray, "B"] | None,
        read_options: grain.ReadOptions,
        finish: Callable[[Any], Any] | None = None,
        workers: int = 0,
    ) -> None:
        self._batch_indices = check_batch_indices(global_batch, batch_indices)
        self._dataset, self._global_batch, self._read_options = dataset, global_batch, read_options
        self._finish, self._workers = finish, workers
        self._next = 0  # examples that all hosts together have drawn
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if self._workers and "terminated unexpectedly" in str(error):
                raise OSError(
                    "a worker process that reads rows ended unexpectedly, most likely for lack of memory; the same "
                    "command resumes the run, also with another number of --data-workers"
                ) from None
            raise
        self._next += self._global_batch
        # Here, and not in the threads that read ahead, where NumPy would hold up the training thread.
        return batch if self._finish is None or self._workers else self._finish(batch)

    def _start(self) -> grain.DatasetIterator:
        """Starts to read at the current position."""
        local = _LocalExamples(self._dataset, self._next, self._global_batch, self._batch_indices)
        batches = local.batch(len(self._batch_indices)).to_iter_dataset(read_options=self._read_options)
        if not self._workers:
            return iter(batches)
        if self._finish is not None:
            batches = batches.map(self._finish)
        flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which only programs of absl parse
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_BATCHES_PER_WORKER)
        return iter(batches.mp_prefetch(options, worker_init_fn=start_reader))

    def get_state(self) -> dict[str, int]:
        """Returns the position, `{"global_next_index": number of examples drawn by all hosts}`.

        It can be restored with another number of hosts and another batch size.
        """
        return {"global_next_index": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Restores a position that `get_state` returned. Raises UserError for any other value."""
        index = state.get("global_next_index")
        if set(state) != {"global_next_index"} or not isinstance(index, int) or not 0 <= index < _ENDLESS:
            raise UserError(
                f"{dict(state)} is not a position; it must be {{'global_next_index': n}} with n from 0 to 2^53"
            )
        self.close()
        self._next = index

    def close(self) -> None:
        """Stops the threads and processes that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def check_batch_indices(global_batch: int, batch_indices: Int[np.ndarray, "B"] | None) -> Int[np.ndarray, "B"]:
    """Returns a host's positions in the global batch; `None` means all positions.

    Raises:
      ValueError: if the batch is empty, or a position is outside it.
    """
    if global_batch < 1:
        raise UserError(f"the global batch has {global_batch} rows; it must have at least 1")
    if batch_indices is None:
        return np.arange(global_batch)
    if not len(batch_indices) or batch_indices[0] < 0 or batch_indices[-1] >= global_batch:
        raise ValueError(
            f"a batch of {global_batch} rows has positions 0 to {global_batch - 1}; given {batch_indices.tolist()}"
        )
    return batch_indices


class _LocalExamples(grain.MapDataset):
    """The examples at `batch_indices` of each global batch, where the first batch begins at element `start`."""

    def __init__(
        self, dataset: grain.MapDataset, start: int, global_batch: int, batch_indices: Int[np.ndarray, "B"]
    ) -> None:
        super().__init__(dataset)
        self._start, self._global_batch, self._batch_indices = start, global_batch, batch_indices.tolist()

    def __len__(self) -> int:
        # An endless dataset has 2^63 - 1 examples. Grain divides their number as a float, which must be exact: with
        # batches of one example the quotient would be 2^63, more than a length can be.
        examples = (len(self._parent) - self._start) // self._global_batch * len(self._batch_indices)
        return min(examples, _ENDLESS)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, position = divmod(index, len(self._batch_indices))
        return self._parent[self._start + batch * self._global_batch + self._batch_indices[position]]


class TrainingBatches:
    """An endless stream of this host's batches of the training rows, in a new order each epoch.

    A batch contains the int32 arrays `input_ids` [B, S] (masked), `segment_ids` [B, S] (1, 2, ... within a row, 0 for
    padding), `masked_positions` [B, M] and `masked_labels` [B, M] (see `masking.MaskedRows`), and the int64 array `row`
    [B], the number of each row in the stream. B is the number of this host's rows. S is that of the current phase of
    the curriculum.

    Args:
      rows: a curriculum, or a corpus, the result of `corpus.open_corpus` or `prepare.prepare`.
      global_batch: rows per step over all hosts. It may exceed the size of the corpus.
      seed: seed of the order and of the masks.
      batch_indices: positions in the global batch of this host's rows, ascending (see `sharding.local_batch_indices`;
        default: all).
      workers: number of processes that read and mask rows; 0 leaves it to this process.

    Raises:
      UserError: if a corpus was made with another tokenizer, or if a file is missing or truncated.
      ValueError: if a position is outside the batch.
    """

    def __init__(
        self,
        rows: Corpus | Curriculum,
        *,
        tokenizer: SupportsPretraining,
        masking: MaskingConfig,
        global_batch: int,
        seed: int,
        batch_indices: Int[np.ndarray, "B"] | None = None,
        workers: int = 0,
    ) -> None:
        curriculum = Curriculum.of(rows) if isinstance(rows, Corpus) else rows
        check_seed(seed)
        for corpus in curriculum.corpora:
            corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
        streams = [
            grain.MapDataset.source(_Rows(corpus, "train")).seed(_corpus_seed(seed, number)).shuffle().repeat()
            for number, corpus in enumerate(curriculum.corpora)
        ]
        stream = streams[0]
        if not curriculum.is_single:
            order: Any = RowOrder(curriculum, global_batch)  # grain does not export the base class of such maps
            stream = grain.MapDataset.select_from_datasets(streams, order)
        self._batches = GlobalBatches(
            stream.map_with_index(_number_row),
            global_batch=global_batch,
            batch_indices=batch_indices,
            read_options=_PREFETCH,
            finish=functools.partial(
                _mask_training_rows, seed=seed, tables=MaskingTables.of(tokenizer), masking=masking
            ),
            workers=workers,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        """Returns the position in the stream as JSON values, the same on all hosts (see `GlobalBatches.get_state`)."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues exactly at a position that `get_state` returned."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stops the threads and processes that read ahead."""
        self._batches.close()


def held_out_batches(
    corpus: Corpus,
    *,
    tokenizer: SupportsPretraining,
    masking: MaskingConfig,
    global_batch: int,
    batch_indices: Int[np.ndarray, "B"] | None = None,
) -> Iterator[Batch]:
    """Returns one pass over the held-out rows: each exactly once over all hosts, always with the same masks.

    Batches are as in `TrainingBatches`. The last batch is completed with rows of padding, whose segment ids and labels
    are 0 and whose `row` is -1, so that all hosts get the same number of batches.

    Raises:
      UserError, ValueError: as `TrainingBatches`, or if the corpus has no held-out rows. Errors are raised by the call,
        not by the first batch.
    """
    corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
    if not corpus.held_out.rows:
        raise UserError(f"{corpus.folder} has no held-out rows; prepare it with a held_out_fraction above 0")
    local = check_batch_indices(global_batch, batch_indices)
    source = _Rows(corpus, "held_out")
    tables = MaskingTables.of(tokenizer)

    def batches() -> Iterator[Batch]:
        for first in range(0, len(source), global_batch):
            row = first + local
            ids = np.zeros((len(row), corpus.sequence_length), corpus.dtype)
            real = row < len(source)
            for index in np.flatnonzero(real):
                ids[index] = source[int(row[index])]
            row[~real] = -1
            yield _mask_batch(ids, row, _row_keys(EVALUATION_SEED, _EVALUATION, row), tables, masking)

    return batches()


def held_out_rows(corpus: Corpus, count: int) -> list[list[int]]:
    """Returns the first held-out rows as they are on disk, without padding. Raises the errors of `held_out_batches`."""
    if not corpus.held_out.rows:
        return []
    source = _Rows(corpus, "held_out")
    return [[int(i) for i in source[index] if i] for index in range(min(count, len(source)))]


class _Rows:
    """Random access to the rows of a split, as a data source for grain. Every row is verified when it is read."""

    def __init__(self, corpus: Corpus, split: Literal["train", "held_out"]) -> None:
        files = corpus.train.files if split == "train" else corpus.held_out.files
        self._paths = [corpus.folder / file.name for file in files]
        self._ends = list(itertools.accumulate(file.rows for file in files))  # number of rows up to the end of each
        self._dtype, self._length = np.dtype(corpus.dtype), corpus.sequence_length
        self._files = [_open_file(path, file.rows) for path, file in zip(self._paths, files, strict=True)]
        self[0]  # rows of another length are an error before training starts

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Integer[np.ndarray, "S"]:
        number = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        try:
            record = self._files[number][row]
        except RuntimeError as error:  # most likely a wrong checksum
            raise self._damaged(number, row, str(error)) from None
        if len(record) != self._length * self._dtype.itemsize:
            fault = f"it has {len(record)} bytes, not {self._length} ids of {self._dtype.itemsize} bytes"
            raise self._damaged(number, row, fault)
        return np.frombuffer(record, self._dtype)

    def _damaged(self, number: int, row: int, fault: str) -> UserError:
        _check_storage(self._paths[number])
        return UserError(f"{self._paths[number]}: row {row} is damaged: {fault}; {_ADVICE}")


def _open_file(path: Path, rows: int) -> RowFile:
    """Opens a file that should have a number of rows; some damaged files show another number, without an error."""
    try:
        file = RowFile(str(path))
    except RuntimeError as error:
        _check_storage(path)
        raise UserError(f"{path} is damaged: {error}; {_ADVICE}") from None
    if len(file) != rows:
        raise UserError(f"{path} has {len(file)} rows instead of {rows}; {_ADVICE}")
    return file


def _check_storage(path: Path) -> None:
    """Raises OSError if a file cannot be read, in which case storage is at fault and not the content of the file.

    ArrayRecord raises the same error for both, but only after a fault of storage it helps to start again.
    """
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def _corpus_seed(seed: int, number: int) -> int:
    """Returns the seed of the order of a corpus, by its number in the curriculum; of the first, that of the run."""
    return seed if number == 0 else int(hash_uint64(hash_uint64(np.uint64(seed), _ORDER), number) >> np.uint64(1))


def _number_row(row: int, ids: Integer[np.ndarray, "S"]) -> dict[str, Any]:
    return {"row": np.int64(row), "ids": ids}


def _mask_training_rows(batch: dict[str, Any], *, seed: int, tables: MaskingTables, masking: MaskingConfig) -> Batch:
    """Returns the batch of rows that `TrainingBatches` documents."""
    return _mask_batch(batch["ids"], batch["row"], _row_keys(seed, _TRAINING, batch["row"]), tables, masking)


def _row_keys(seed: int, stream: int, row: Int[np.ndarray, "B"]) -> UInt64[np.ndarray, "B"]:
    """Returns a random key per row. It depends on the row's number in the stream, so that masks change each epoch."""
    return hash_uint64(hash_uint64(np.uint64(seed), stream), row)


def _mask_batch(
    ids: Integer[np.ndarray, "B S"],
    row: Int[np.ndarray, "B"],
    keys: UInt64[np.ndarray, "B"],
    tables: MaskingTables,
    masking: MaskingConfig,
) -> Batch:
    """Returns the batch of rows that `TrainingBatches` documents."""
    segment_ids = np.cumsum(ids == tables.cls_id, axis=1, dtype=np.int32) * (ids != 0)
    return {**mask_rows(ids, keys, tables, masking)._asdict(), "segment_ids": segment_ids, "row": row}
