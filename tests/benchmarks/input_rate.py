"""What the input pipeline costs a host, against what a large slice needs of it: v3-base, RTD, on v5e:16x16.

    python -m tests.benchmarks.input_rate [--batches 40] [--rows 256] [--step-ms 208]

The embedded novels are prepared as rows of 512 tokens with a small tokenizer, then read in three ways: rows alone
(reading, checksums, shuffling), `TrainingBatches` (masking besides), and its batches placed on devices as `pretrain`
places them, with the host's memory in place of a TPU's. Figures are processor time, so that other work on the machine
falls on them little, the mean over the batches: of all threads (what cores have to do: "cores, step/10" is how many do
it in a tenth of a step), and of the thread that trains, which masks and places, while others read ahead. That thread
prepares a batch while the devices work on the one before.

A host of v5e:16x16 has 4 or 8 chips, so 128 or 256 rows a step at 32 rows a chip; the larger is the default. The step's
time is the compiler's estimate (`deberta-jax compile-ahead`). Such hosts have 112 or more vCPUs, two of which share a
core; the cores measured are those of this machine.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from deberta_jax import Tokenizer
from deberta_jax.sharding import make_mesh, place_batch
from deberta_jax.train.data import batches as data
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.data.prepare import Corpus, prepare
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.data.train_tokenizer import train_tokenizer
from deberta_jax.train.pretrain import BATCH_FIELDS

LENGTH = 512
GLOBAL_BATCH = 256 * 32  # rows of all chips
MASKINGS = {"RTD: single pieces": MaskingConfig(), "MLM: words up to 3": MaskingConfig(max_ngram=3, replace="mlm")}


def make_corpus(folder: Path) -> tuple[Corpus, Tokenizer]:
    text = embedded_corpus()
    tokenizer = Tokenizer.from_bytes(train_tokenizer(read_documents([text], boundary="line"), vocab_size=8000))
    corpus = prepare([text], tokenizer, folder / "corpus", sequence_length=LENGTH, boundary="chapter")
    return corpus, tokenizer


Seconds = tuple[float, float]  # of processor time of one batch: in all threads, and in the thread that trains


def processor_seconds(work: Callable[[], Any], *, times: int) -> Seconds:
    """Of one call: the mean, as threads that read ahead work in bursts. The first calls fill what they read into."""
    for _ in range(20):
        work()
    clocks = (time.process_time, time.thread_time)
    began = [clock() for clock in clocks]
    for _ in range(times):
        work()
    every, own = ((clock() - start) / times for clock, start in zip(clocks, began, strict=True))
    return every, own


def measure(corpus: Corpus, tokenizer: Tokenizer, rows: int, times: int) -> Iterator[tuple[str, Seconds]]:
    """What is done, and what a batch takes."""

    def batches(masking: MaskingConfig) -> data.TrainingBatches:
        return data.TrainingBatches(
            corpus,
            tokenizer=tokenizer,
            masking=masking,
            global_batch=GLOBAL_BATCH,
            seed=0,
            batch_indices=np.arange(rows),
        )

    def unmasked(ids: np.ndarray, row: np.ndarray, *_: Any) -> data.Batch:
        return {"ids": ids, "row": row}

    stream = batches(MaskingConfig())
    with mock.patch.object(data, "_finish", unmasked):
        yield "rows, not masked", processor_seconds(stream.__next__, times=times)
    stream.close()
    for name, masking in MASKINGS.items():
        stream = batches(masking)
        yield f"masked, {name}", processor_seconds(stream.__next__, times=times)
        stream.close()

    mesh = make_mesh()
    stream = batches(MaskingConfig())

    def place() -> None:
        batch = next(stream)
        jax.block_until_ready(place_batch({name: batch[name] for name in BATCH_FIELDS}, mesh))

    yield "masked for RTD and placed", processor_seconds(place, times=times)
    stream.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rows", type=int, default=256, help="of a host, a step")
    parser.add_argument("--step-ms", type=float, default=208.0)
    options = parser.parse_args()
    step = options.step_ms / 1000
    with tempfile.TemporaryDirectory() as folder:
        corpus, tokenizer = make_corpus(Path(folder))
        print(
            f"{corpus.train.rows} rows of {LENGTH}; a host needs {options.rows} rows in {options.step_ms:g} ms, "
            f"{options.rows / step:,.0f} rows a second"
        )
        columns = ("rows/s/core", "ms a batch", "of a step", "cores, step/10", "thread, ms", "of a step")
        print(f"{'':28}" + "".join(f"{column:>16}" for column in columns))
        for name, (every, own) in measure(corpus, tokenizer, options.rows, options.batches):
            cells = (
                f"{options.rows / every:,.0f}",
                f"{every * 1e3:.1f}",
                f"{every / step:.1%}",
                f"{every / (step / 10):.2f}",
                f"{own * 1e3:.1f}",
                f"{own / step:.1%}",
            )
            print(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
