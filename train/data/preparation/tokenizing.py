"""The phase `tokenize`: turns a chunk of documents into rows of token ids, each in a random bucket."""

import dataclasses
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt32

from .. import storage
from ..masking import hash_uint64
from ..text import RowPacker, encode_documents
from .plan import SPLITS, Job, Plan, SplitName
from .reading import ReadGroup
from .selection import Range, Selection, read_index, read_kept

# Streams of random numbers, beside those of other uses of the seed.
_BUCKET_STREAM, ORDER_STREAM = 1, 2
Row = Integer[np.ndarray, "S"]
_OFFSET = np.dtype("<u4")


@dataclasses.dataclass
class Totals:
    """Totals of a split in a chunk. `checksum` is the sum of the CRC-32 of its rows, in any order."""

    documents: int = 0
    tokens: int = 0
    rows: int = 0
    checksum: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def tokenize_chunk(job: Job, chunk: int) -> None:
    """Encodes and packs the documents of a chunk, and writes its rows by bucket.

    The buckets of training rows come first, those of held-out rows follow.

    Raises:
      TextError: text encodes to a special token.
    """
    plan = job.plan
    if storage.exists(plan.chunk_file(chunk, "json")):
        return
    selection = Selection.load(plan)
    totals = {name: Totals() for name in SPLITS}
    rows: dict[SplitName, list[Row]] = {name: [] for name in SPLITS}
    packers = {name: _packer(job) for name in SPLITS}
    for part in selection.chunks[chunk]:
        for tokens, is_held_out in _encoded(job, part, selection.starts[part.group]):
            name = SPLITS[is_held_out]
            totals[name].documents += 1
            totals[name].tokens += len(tokens)
            rows[name] += packers[name].add(tokens)
    rng = np.random.default_rng([plan.seed, _BUCKET_STREAM, chunk])
    ordered, counts = [], []
    for name, buckets in zip(SPLITS, selection.buckets, strict=True):
        rows[name] += packers[name].finish()
        totals[name].rows = len(rows[name])
        totals[name].checksum = sum(zlib.crc32(row.data) for row in rows[name])
        bucket = rng.integers(buckets, size=len(rows[name]))
        ordered += [rows[name][place] for place in np.argsort(bucket, kind="stable")]
        counts.append(np.bincount(bucket, minlength=buckets))
    offsets = np.cumsum([0, *np.concatenate(counts)]).astype(_OFFSET)
    with storage.replacing(plan.chunk_file(chunk, "rows")) as file:
        file.write(offsets.tobytes())
        for row in ordered:
            file.write(row.tobytes())
    storage.write_json(plan.chunk_file(chunk, "json"), {name: dataclasses.asdict(totals[name]) for name in SPLITS})


def chunk_totals(plan: Plan, chunk: int) -> dict[SplitName, Totals]:
    """Returns the totals of a chunk that was tokenized."""
    return {name: Totals(**fields) for name, fields in storage.read_json(plan.chunk_file(chunk, "json")).items()}


def bucket_range(plan: Plan, chunk: int, bucket: int) -> tuple[int, int]:
    """Returns the first row of a bucket in a chunk, and the one after the last."""
    content = storage.read(plan.chunk_file(chunk, "rows"), bucket * _OFFSET.itemsize, 2 * _OFFSET.itemsize)
    first, end = np.frombuffer(content, _OFFSET).tolist()
    return first, end


def read_rows(plan: Plan, chunk: int, first: int, end: int, *, buckets: int) -> Integer[np.ndarray, "rows S"]:
    """Returns rows of a chunk. `buckets` is the number of buckets of both splits."""
    size = plan.sequence_length * np.dtype(plan.dtype).itemsize
    start = (buckets + 1) * _OFFSET.itemsize + first * size
    content = storage.read(plan.chunk_file(chunk, "rows"), start, (end - first) * size)
    return np.frombuffer(content, plan.dtype).reshape(-1, plan.sequence_length)


def _packer(job: Job) -> RowPacker:
    tokenizer = job.tokenizer
    return RowPacker(job.plan.sequence_length, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, dtype=job.plan.dtype)


def _encoded(job: Job, part: Range, start: int) -> Iterator[tuple[UInt32[np.ndarray, "tokens"], bool]]:
    """Yields the tokens of the documents that stay, and whether each is held out.

    Args:
      start: number of the group's first document.
    """
    plan = job.plan
    index = read_index(plan, part.group, part.first, part.end)
    kept = read_kept(plan, part.group, part.first, part.end)
    text = storage.read(plan.read_file(part.group, "documents"), part.offset, part.bytes)
    held_out = _is_held_out(plan, start + index["number"].astype(np.int64))
    ends = np.cumsum(index["bytes"], dtype=np.int64)
    starts = ends - index["bytes"]
    inputs = ReadGroup.load(plan.read_file(part.group, "json")).inputs
    owner = np.searchsorted([given.first for given in inputs], index["number"], side="right") - 1
    for number in np.unique(owner):  # documents are in the order of their inputs
        places = np.flatnonzero(kept & (owner == number))
        documents = (text[starts[place] : ends[place]].decode() for place in places)
        encoded = encode_documents(documents, job.tokenizer, inputs[number].name)
        yield from zip(encoded, held_out[places].tolist(), strict=True)


def _is_held_out(plan: Plan, numbers: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    share = hash_uint64(np.uint64(plan.seed), numbers) / 2**64
    return share < plan.held_out_fraction
