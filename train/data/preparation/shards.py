"""The phase `write`: writes the rows of a bucket from all chunks in random order into a file of the corpus."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from deberta_jax.errors import UserError

from .. import storage
from ..corpus import RowFile, Split, ends_digest, file_sha256
from ..row_files import create_row_file
from .plan import SPLITS, Job, Plan, SplitName
from .selection import Selection
from .tokenizing import ORDER_STREAM, Totals, bucket_range, chunk_totals, read_rows


def write_shard(job: Job, bucket: int) -> None:
    """Writes the rows of a bucket. Memory is the size of the file before compression.

    An empty bucket, which there is only in small corpora, makes no file.
    """
    plan = job.plan
    if storage.exists(plan.bucket_file(bucket)):
        return
    selection = Selection.load(plan)
    buckets = sum(selection.buckets)
    ranges = [bucket_range(plan, chunk, bucket) for chunk in range(len(selection.chunks))]
    rows = np.empty((sum(end - first for first, end in ranges), plan.sequence_length), plan.dtype)
    start = 0
    for chunk, (first, end) in enumerate(ranges):
        if end > first:
            rows[start : start + end - first] = read_rows(plan, chunk, first, end, buckets=buckets)
            start += end - first
    totals = {"rows": len(rows), "checksum": sum(zlib.crc32(row.data) for row in rows), "file": None}
    if len(rows):
        path = plan.corpus / bucket_name(selection, bucket)
        order = np.random.default_rng([plan.seed, ORDER_STREAM, bucket]).permutation(len(rows))
        with storage.replacing_path(path) as partial:
            writer = create_row_file(partial)
            for place in order:
                writer.write(rows[place].tobytes())
            writer.close()
            written = Path(partial)  # which is on this machine, also if `path` is in a store
            file = RowFile(path.name, len(rows), storage.size(written), ends_digest(written), file_sha256(written))
        totals["file"] = dataclasses.asdict(file)
    storage.write_json(plan.bucket_file(bucket), totals)


def bucket_name(selection: Selection, bucket: int) -> str:
    """Returns the name of the file of a bucket."""
    train, _ = selection.buckets
    return f"train-{bucket:05d}.array_record" if bucket < train else f"held_out-{bucket - train:05d}.array_record"


def collect_splits(plan: Plan, selection: Selection) -> dict[SplitName, Split]:
    """Returns the splits of the corpus.

    Raises:
      UserError: the files do not have exactly the rows that the chunks have.
    """
    expected = {name: Totals() for name in SPLITS}
    for chunk in range(len(selection.chunks)):
        for name, totals in chunk_totals(plan, chunk).items():
            expected[name] += totals
    splits, bucket = {}, 0
    for name, buckets in zip(SPLITS, selection.buckets, strict=True):
        written = [storage.read_json(plan.bucket_file(number)) for number in range(bucket, bucket + buckets)]
        bucket += buckets
        found = tuple(sum(part[key] for part in written) for key in ("rows", "checksum"))
        if found != (expected[name].rows, expected[name].checksum):
            raise UserError(
                f"the {name} files have {found[0]} rows, and the chunks of text have {expected[name].rows}, or their "
                f"contents differ (checksums {found[1]} and {expected[name].checksum}): work was lost or damaged; "
                "repeat the command, which begins anew"
            )
        files = tuple(RowFile(**part["file"]) for part in written if part["file"])
        totals = expected[name]
        splits[name] = Split(totals.documents, totals.tokens, totals.rows, files, totals.checksum)
    return splits
