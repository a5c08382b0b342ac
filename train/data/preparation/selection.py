"""The phase `select`: finds duplicates, and divides the documents that stay into chunks of text."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from .. import storage
from .near_duplicates import NUM_PERMUTATIONS, Signatures, near_duplicates
from .plan import Plan
from .reading import INDEX, ReadGroup

_HASHES_AT_ONCE = 1 << 22  # documents whose hashes are sorted together: 200 MB
_SIGNATURES_AT_ONCE = 1 << 14
_BYTES_PER_TOKEN = 3  # of English there are 4 to 5; a smaller number makes smaller files
_SPECIAL_TOKENS = 2  # per document


class Range(NamedTuple):
    """Consecutive documents of a group: the first, the one after the last, and the place of their text."""

    group: int
    first: int
    end: int
    offset: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is tokenized.

    Attributes:
      chunks: the documents of each chunk.
      starts: number of the first document of each group, before the filters.
      buckets: number of buckets of the training rows and of the held-out rows.
      removed: number of documents that each rule removed.
      documents: number of documents that stay.
    """

    chunks: tuple[tuple[Range, ...], ...]
    starts: tuple[int, ...]
    buckets: tuple[int, int]
    removed: dict[str, int]
    documents: int

    @classmethod
    def load(cls, plan: Plan) -> "Selection":
        fields = storage.read_json(plan.selection_file)
        chunks = tuple(tuple(Range(*part) for part in chunk) for chunk in fields["chunks"])
        return cls(chunks, tuple(fields["starts"]), tuple(fields["buckets"]), fields["removed"], fields["documents"])


def select(plan: Plan) -> Selection:
    """Returns the selection, which is made unless it exists. Memory is about 50 bytes per document."""
    if storage.exists(plan.selection_file):
        return Selection.load(plan)
    groups = [ReadGroup.load(plan.read_file(number, "json")) for number in range(len(plan.groups))]
    removed = Counter[str]()
    for group in groups:
        removed.update(group.removed)
    counts = np.array([group.kept for group in groups])
    kept = np.ones(counts.sum(), bool)
    if plan.rules.drop_duplicates:
        kept &= ~_exact_duplicates(plan, counts)
        removed["drop_duplicates"] = int(len(kept) - kept.sum())
    if plan.rules.near_duplicates is not None:
        before = kept.sum()
        numbers = np.flatnonzero(kept)
        kept[numbers[_near_duplicates(plan, counts, numbers)]] = False
        removed["near_duplicates"] = int(before - kept.sum())
    chunks, size = _chunks(plan, counts, kept)
    tokens = size / _BYTES_PER_TOKEN + _SPECIAL_TOKENS * int(kept.sum())
    shards = tokens * np.dtype(plan.dtype).itemsize / plan.shard_bytes
    shares = (1 - plan.held_out_fraction, plan.held_out_fraction)
    train, held_out = (max(1, int(np.ceil(shards * share))) for share in shares)
    starts = np.cumsum([0, *(group.documents for group in groups[:-1])]).tolist()
    selection = Selection(chunks, tuple(starts), (train, held_out), dict(removed), int(kept.sum()))
    storage.write_json(plan.selection_file, dataclasses.asdict(selection))
    return selection


def read_index(plan: Plan, group: int, first: int, end: int) -> np.ndarray:
    """Returns entries of the index of a group, of the type INDEX."""
    size = INDEX.itemsize
    return np.frombuffer(storage.read(plan.read_file(group, "index"), first * size, (end - first) * size), INDEX)


def read_kept(plan: Plan, group: int, first: int, end: int) -> Bool[np.ndarray, "documents"]:
    """Returns which documents of a group stay."""
    return np.frombuffer(storage.read(plan.read_file(group, "kept"), first, end - first), bool)


def _exact_duplicates(plan: Plan, counts: Int[np.ndarray, "groups"]) -> Bool[np.ndarray, "documents"]:
    """Returns which documents have the hash of an earlier one.

    The hashes are compared in several passes, each of those with another remainder, which bounds memory.
    """
    total = int(counts.sum())
    duplicate = np.zeros(total, bool)
    passes = -(-total // _HASHES_AT_ONCE)
    for remainder in range(passes):
        numbers, hashes, start = [], [], 0
        for group, count in enumerate(counts):
            found = read_index(plan, group, 0, int(count))["hash"]
            chosen = np.flatnonzero(found[:, 0] % np.uint64(passes) == remainder)
            numbers.append(start + chosen)
            hashes.append(found[chosen])
            start += int(count)
        number, value = np.concatenate(numbers), np.concatenate(hashes)
        order = np.lexsort((number, value[:, 1], value[:, 0]))
        repeats = (value[order][1:] == value[order][:-1]).all(axis=1)
        duplicate[number[order][1:][repeats]] = True
    return duplicate


def _near_duplicates(
    plan: Plan, counts: Int[np.ndarray, "groups"], numbers: Int[np.ndarray, "documents"]
) -> Bool[np.ndarray, "documents"]:
    """Returns which of the documents with these numbers are near-duplicates of an earlier one of them."""
    starts = np.cumsum([0, *counts])

    def signatures_of(places: Int[np.ndarray, "n"]) -> Signatures:
        wanted = numbers[places]
        group = np.searchsorted(starts, wanted, side="right") - 1
        return np.concatenate(
            [_read_signatures(plan, int(g), int(n - starts[g]), 1) for g, n in zip(group, wanted, strict=True)]
        )

    def blocks() -> Iterator[Signatures]:
        for group, count in enumerate(counts):
            for first in range(0, int(count), _SIGNATURES_AT_ONCE):
                size = min(_SIGNATURES_AT_ONCE, int(count) - first)
                low, high = np.searchsorted(numbers, (starts[group] + first, starts[group] + first + size))
                yield _read_signatures(plan, group, first, size)[numbers[low:high] - starts[group] - first]

    threshold = plan.rules.near_duplicates
    assert threshold is not None
    return near_duplicates(blocks, signatures_of, len(numbers), threshold)


def _read_signatures(plan: Plan, group: int, first: int, count: int) -> Signatures:
    size = NUM_PERMUTATIONS * np.dtype(np.uint32).itemsize
    content = storage.read(plan.read_file(group, "signatures"), first * size, count * size)
    return np.frombuffer(content, np.uint32).reshape(-1, NUM_PERMUTATIONS)


def _chunks(
    plan: Plan, counts: Int[np.ndarray, "groups"], kept: Bool[np.ndarray, "documents"]
) -> tuple[tuple[tuple[Range, ...], ...], int]:
    """Writes which documents of each group stay, and returns the chunks and the size of their text in bytes.

    A chunk ends with the document that reaches a multiple of `chunk_bytes`, so that chunks do not depend on how the
    text is divided into files or compressed. A range ends there too, and also where the file does, counting the
    documents that were removed, because the text of a range is in memory with these.
    """
    chunks: dict[int, list[Range]] = {}
    start = size = 0
    for group, count in enumerate(counts.tolist()):
        stays = kept[start : start + count]
        start += count
        with storage.replacing(plan.read_file(group, "kept")) as file:
            file.write(stays.tobytes())
        lengths = read_index(plan, group, 0, count)["bytes"].astype(np.int64)
        ends = np.cumsum(lengths)
        before = size + np.cumsum(lengths * stays) - lengths * stays
        size = int(size + (lengths * stays).sum())
        numbers = np.flatnonzero(stays)
        if not len(numbers):
            continue
        labels = np.stack([before[numbers], (ends - lengths)[numbers]]) // plan.chunk_bytes
        firsts = np.flatnonzero(np.diff(labels, prepend=-1).any(axis=0))
        for first, last in zip(numbers[firsts], numbers[np.append(firsts[1:], len(numbers)) - 1], strict=True):
            offset = int(ends[first] - lengths[first])
            part = Range(group, int(first), int(last) + 1, offset, int(ends[last]) - offset)
            chunks.setdefault(int(before[first] // plan.chunk_bytes), []).append(part)
    return tuple(tuple(chunks[label]) for label in sorted(chunks)), size
