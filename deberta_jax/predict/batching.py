"""Batches of few shapes for items of any number and length, in the order of the items.

Rows are read ahead in windows, sorted by length and padded to the lengths of a short list. So little of a batch is
padding, few programs are compiled, and memory does not depend on the number of items.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int32, Shaped

from ..errors import UserError
from ..tokenizers.batch import pad
from .pipeline import Row, RowOutputs, Rows

Item = TypeVar("Item")

BatchArrays = dict[str, Int32[np.ndarray, "B ..."]]
_LEAST_STEP = 8
_TOKENS_PER_ROW = 128  # of the batch size: shorter rows make larger batches, longer ones smaller
_MOST_MASKS = 128  # in a batch: each has as many logits as the vocabulary has pieces
_WINDOW = 64  # batch sizes that are read ahead


def padded_length(tokens: int, *, steps: int) -> int:
    """Returns the smallest of a few lengths that holds a row.

    Args:
      tokens: Number of tokens of the row.
      steps: Number of lengths from one power of two to the next; 2 gives 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, ...
    """
    step = max(_LEAST_STEP, _power_of_two(max(1, tokens - 1), up=False) // steps)
    return -(-max(1, tokens) // step) * step


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """How many rows a batch has.

    Attributes:
      batch_size: Rows of 128 tokens on each device.
      devices: Number of devices that a batch is split over.
      steps: How many lengths there are; see `padded_length`. More of them have less padding, and more programs.
    """

    batch_size: int
    devices: int
    steps: int

    @property
    def window(self) -> int:
        """Number of rows that are read ahead, sorted and put into batches."""
        return _WINDOW * self.batch_size * self.devices

    def most_rows(self, length: int, masks: int) -> int:
        """Returns the size of a full batch of rows of one padded length, with so many masked positions each."""
        rows = max(1, self.batch_size * _TOKENS_PER_ROW // length)
        if masks:
            rows = min(rows, max(1, _MOST_MASKS // masks))
        return self.devices * _power_of_two(rows, up=False)

    def round_up(self, rows: int) -> int:
        """Returns the size of a batch that holds the rows that are left."""
        return self.devices * _power_of_two(-(-rows // self.devices), up=True)


def _power_of_two(number: int, *, up: bool) -> int:
    return 1 << ((number - 1).bit_length() if up else number.bit_length() - 1)


class Entry(Generic[Item]):
    """One item: its rows or the reason why it has none, and the outputs of the rows as they arrive."""

    def __init__(self, index: int, item: Item, rows: Rows[Any] | UserError) -> None:
        self.index, self.item, self.rows = index, item, rows
        count = 0 if isinstance(rows, UserError) else len(rows.rows)
        self.outputs: list[RowOutputs] = [{}] * count
        self.missing = count


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A row's place in a batch, and where its outputs belong."""

    row: Row
    entry: Entry[Any]
    number: int  # of the row among those of the entry


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that are computed together.

    Attributes:
      slots: The rows.
      size: Number of rows of the arrays; those beyond the slots are padding.
      length: Number of tokens of the arrays.
    """

    slots: Sequence[_Slot]
    size: int
    length: int

    def arrays(self, pad_id: int) -> BatchArrays:
        """Returns the arrays that `Pipeline.outputs` describes, padded."""
        rows: list[tuple[Sequence[int], Sequence[int]]] = [
            (slot.row.input_ids, slot.row.token_type_ids) for slot in self.slots
        ]
        rows += [((), ())] * (self.size - len(rows))
        arrays: BatchArrays = dict(vars(pad(rows, padding="max_length", max_length=self.length, pad_id=pad_id)))
        most = max(len(slot.row.masked_positions) for slot in self.slots)
        if most:
            masked = arrays["masked_positions"] = np.zeros((self.size, _power_of_two(most, up=True)), np.int32)
            for i, slot in enumerate(self.slots):
                masked[i, : len(slot.row.masked_positions)] = slot.row.masked_positions
        return arrays

    def deliver(self, outputs: Mapping[str, Shaped[np.ndarray, "B ..."]], token_axes: Mapping[str, int | None]) -> None:
        """Hands the outputs to the entries, without padding.

        Raises:
          FloatingPointError: An output is NaN or infinite.
        """
        for i, slot in enumerate(self.slots):
            own, count = {}, len(slot.row.input_ids)
            for name, array in outputs.items():
                axis = token_axes[name]
                value = array[i, ...]  # an array also where it has no other axis
                if axis is not None:
                    value = value[(slice(None),) * (axis - 1) + (slice(count),)]
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise FloatingPointError(name)
                own[name] = value
            slot.entry.outputs[slot.number] = own
            slot.entry.missing -= 1


def plan(slots: Iterable[_Slot], sizes: BatchSizes) -> list[Batch]:
    """Returns the batches of a window. Only the last, of the shortest rows, may have empty rows."""
    waiting = sorted(slots, key=lambda slot: len(slot.row.input_ids), reverse=True)
    batches, start = [], 0
    while start < len(waiting):
        length = padded_length(len(waiting[start].row.input_ids), steps=sizes.steps)
        taken = waiting[start : start + sizes.most_rows(length, 0)]
        masks = max(len(slot.row.masked_positions) for slot in taken)
        most = sizes.most_rows(length, masks)
        taken = taken[:most]
        batches.append(Batch(taken, min(most, sizes.round_up(len(taken))), length))
        start += len(taken)
    return batches


def plan_ahead(
    entries: Iterator[Entry[Item]], sizes: BatchSizes, waiting: deque[Entry[Item]]
) -> Iterator[Batch | None]:
    """Yields the batches of all entries, and None for a window without rows.

    While the batches of a window are computed, the entries of the next window are read bit by bit.

    Args:
      entries: The entries.
      sizes: How many rows batches and windows have.
      waiting: Every entry is appended to it when its window is planned.
    """
    window = _take(entries, sizes.window)
    while window:
        waiting.extend(window)
        batches = plan([_Slot(row, entry, i) for entry in window for i, row in _rows(entry)], sizes)
        ahead: list[Entry[Item]] = []
        for done, batch in enumerate(batches, start=1):
            yield batch
            ahead += _take(entries, sizes.window * done // len(batches) - sum(map(_weight, ahead)))
        if not batches:
            yield None
            ahead = _take(entries, sizes.window)
        window = ahead


def _rows(entry: Entry[Any]) -> Iterable[tuple[int, Row]]:
    return () if isinstance(entry.rows, UserError) else enumerate(entry.rows.rows)


def _weight(entry: Entry[Any]) -> int:
    """Number of rows; one for an entry without rows, so that a window of such entries ends, too."""
    return max(1, len(entry.outputs))


def _take(entries: Iterator[Entry[Item]], rows: int) -> list[Entry[Item]]:
    """Returns the next entries, which have at least so many rows together unless no more entries are left."""
    taken = []
    while rows > 0 and (entry := next(entries, None)) is not None:
        taken.append(entry)
        rows -= _weight(entry)
    return taken


def in_order(
    batches: Iterator[Batch | None],
    waiting: deque[Entry[Item]],
    dispatch: Callable[[Batch], Any],
    receive: Callable[[Batch, Any], None],
) -> Iterator[Entry[Item]]:
    """Computes batches and yields entries in their order as soon as they and all before them are complete.

    Args:
      batches: The batches; see `plan_ahead`.
      waiting: The entries whose batches have been planned.
      dispatch: Starts a batch and returns at once.
      receive: Waits for what `dispatch` returned, and calls `Batch.deliver`.
    """
    running: tuple[Batch, Any] | None = None
    for batch in itertools.chain(batches, [None]):
        newest = None if batch is None else (batch, dispatch(batch))
        if running is not None:  # the device computes the newest batch while the one before is read
            receive(*running)
        running = newest
        while waiting and not waiting[0].missing:
            yield waiting.popleft()
