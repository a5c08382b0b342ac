"""Measures the CPU time of the input pipeline against what a host of a large slice needs: v3-base, RTD, on v5e:16x16.

    python -m tests.benchmarks.input_rate [--batches 40] [--rows 256] [--step-ms 208] [--workers 1]

The embedded novels, as often as fills the largest file that `prepare` writes, are tokenized into rows of 512 tokens
with a small tokenizer and then read in several ways: rows alone (reading, checksums, shuffling), `TrainingBatches`
(with masking) from one corpus and from a mixture of two, and its batches placed on devices as `pretrain` does, with the
memory of this machine in place of a TPU's. Last, worker processes read and mask; their CPU time includes their start,
and their memory is the largest that one has had.

Figures are means of CPU time over batches, so other work on the machine affects them little. They are given for all
threads ("cores, step/10" is the number of cores that prepare a batch in a tenth of a step) and for the training thread,
which masks and places a batch while the devices work on the previous one and other threads read ahead.

A host of v5e:16x16 has 4 or 8 chips, so 128 or 256 rows in a step at 32 rows per chip; the default is 256. The time of
a step is the compiler's estimate (`deberta-jax compile-ahead`). Such hosts have 112 or more vCPUs, two to a core; the
cores measured here are those of this machine.
"""

import argparse
import lzma
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from deberta_jax import Tokenizer
from deberta_jax.sharding import make_mesh, place_batch
from deberta_jax.train.corpus_options import Stage
from deberta_jax.train.data import batches as data
from deberta_jax.train.data.corpus import Corpus
from deberta_jax.train.data.curriculum import Curriculum, arrange
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.data.preparation.drivers import ProcessDriver
from deberta_jax.train.data.preparation.rules import TextRules
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.data.train_tokenizer import train_tokenizer
from deberta_jax.train.pretrain_setup import BATCH_FIELDS

LENGTH = 512
SETTINGS: dict[str, Any] = {"sequence_length": LENGTH, "boundary": "chapter"}
COPIES = 75
GLOBAL_BATCH = 256 * 32  # rows, over all chips
MASKINGS = {"RTD: single pieces": MaskingConfig(), "MLM: words up to 3": MaskingConfig(max_ngram=3, replace="mlm")}


def make_corpora(folder: Path) -> tuple[Corpus, Curriculum, Tokenizer]:
    """Trains a tokenizer on the embedded novels and packs copies of them into rows, in two orders.

    The cost of a read may depend on the rows of a file, so there are as many as in a file of a large corpus.

    Returns:
      One of them, a mixture of both, and the tokenizer.
    """
    text = embedded_corpus()
    tokenizer = Tokenizer.from_bytes(train_tokenizer(read_documents([text], boundary="line"), vocab_size=8000))
    copies = folder / "copies.txt"
    copies.write_bytes(lzma.decompress(text.read_bytes()) * COPIES)
    settings = SETTINGS | {"rules": TextRules(drop_duplicates=False), "driver": ProcessDriver(os.cpu_count() or 1)}
    given = [
        (f"{name}:{weight}", prepare([copies], tokenizer, folder / name, **settings, seed=seed))
        for seed, (name, weight) in enumerate((("corpus", 0.7), ("other", 0.3)))
    ]
    return given[0][1], arrange(given, [Stage(LENGTH, 10**6)], tokenizer=tokenizer), tokenizer


class CpuSeconds(NamedTuple):
    """CPU time of one batch: of all threads, and of the thread that trains."""

    process: float
    thread: float


def cpu_seconds(work: Callable[[], Any], *, times: int) -> CpuSeconds:
    """Returns the mean CPU time of a call. A single call would not do: threads that read ahead work in bursts."""
    for _ in range(20):  # fills the buffers of the threads that read ahead
        work()
    process_start, thread_start = time.process_time(), time.thread_time()
    for _ in range(times):
        work()
    return CpuSeconds((time.process_time() - process_start) / times, (time.thread_time() - thread_start) / times)


def measure(
    corpus: Corpus, mixture: Curriculum, tokenizer: Tokenizer, rows: int, times: int
) -> Iterator[tuple[str, CpuSeconds]]:
    """Yields each way of reading and the CPU time of a batch."""

    def batches(masking: MaskingConfig, source: Corpus | Curriculum = corpus) -> data.TrainingBatches:
        return data.TrainingBatches(
            source,
            tokenizer=tokenizer,
            masking=masking,
            global_batch=GLOBAL_BATCH,
            seed=0,
            batch_indices=np.arange(rows),
        )

    def unmasked(ids: np.ndarray, row: np.ndarray, *_: Any) -> data.Batch:
        return {"ids": ids, "row": row}

    stream = batches(MaskingConfig())
    with mock.patch.object(data, "_mask_batch", unmasked):
        yield "rows, not masked", cpu_seconds(stream.__next__, times=times)
    stream.close()
    for name, masking in MASKINGS.items():
        stream = batches(masking)
        yield f"masked, {name}", cpu_seconds(stream.__next__, times=times)
        stream.close()

    stream = batches(MaskingConfig(), mixture)
    yield "mixture, RTD: single pieces", cpu_seconds(stream.__next__, times=times)
    stream.close()

    mesh = make_mesh()
    stream = batches(MaskingConfig())

    def place() -> None:
        batch = next(stream)
        jax.block_until_ready(place_batch({name: batch[name] for name in BATCH_FIELDS}, mesh))

    yield "masked for RTD and placed", cpu_seconds(place, times=times)
    stream.close()


class Workers(NamedTuple):
    """What worker processes need: CPU seconds of all of them, and the largest memory of one, in MB (10^6 bytes)."""

    cpu_seconds: float
    megabytes: float


def measure_workers(mixture: Curriculum, tokenizer: Tokenizer, rows: int, times: int, workers: int) -> Workers:
    """Reads and masks `times` batches of the mixture with worker processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    stream = data.TrainingBatches(
        mixture,
        tokenizer=tokenizer,
        masking=MASKINGS["MLM: words up to 3"],
        global_batch=GLOBAL_BATCH,
        seed=0,
        batch_indices=np.arange(rows),
        workers=workers,
    )
    for _ in range(times):
        next(stream)
    memory = max(peak_megabytes(process.pid) for process in multiprocessing.active_children())
    stream.close()
    return Workers(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, memory)


def peak_megabytes(process: int | None) -> float:
    """Returns the largest memory that a process has had, as Linux counts it."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rows", type=int, default=256, help="rows of a host in a step")
    parser.add_argument("--step-ms", type=float, default=208.0)
    parser.add_argument("--workers", type=int, default=1, help="worker processes of the last measurement")
    options = parser.parse_args()
    step = options.step_ms / 1000
    with tempfile.TemporaryDirectory() as folder:
        corpus, mixture, tokenizer = make_corpora(Path(folder))
        load = os.getloadavg()[0]
        print(
            f"{corpus.train.rows} rows of {LENGTH}; a host needs {options.rows} rows every {options.step_ms:g} ms, "
            f"{options.rows / step:,.0f} rows/s; the load of this machine is {load:.1f} on {os.cpu_count()} cores"
        )
        columns = ("tokens/s/core", "ms per batch", "of a step", "cores, step/10", "thread, ms", "of a step")
        print(f"{'':28}" + "".join(f"{column:>16}" for column in columns))
        for name, seconds in measure(corpus, mixture, tokenizer, options.rows, options.batches):
            cells = (
                f"{options.rows * LENGTH / seconds.process:,.0f}",
                f"{seconds.process * 1e3:.1f}",
                f"{seconds.process / step:.1%}",
                f"{seconds.process / (step / 10):.2f}",
                f"{seconds.thread * 1e3:.1f}",
                f"{seconds.thread / step:.1%}",
            )
            print(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
        workers = measure_workers(mixture, tokenizer, options.rows, options.batches, options.workers)
        tokens = options.batches * options.rows * LENGTH
        print(
            f"{options.workers} worker processes, mixture, MLM: {workers.cpu_seconds:.1f} s of CPU for {tokens:,} "
            f"tokens with their start; at most {workers.megabytes:.0f} MB each"
        )


if __name__ == "__main__":
    main()
