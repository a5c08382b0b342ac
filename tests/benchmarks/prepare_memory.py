"""Measures the memory of `deberta-jax prepare`; the limit is 2 GB for any size of text.

    python -m tests.benchmarks.prepare_memory TEXT [--megabytes 2000] [--workers 2]

TEXT is a file of text, plain or compressed. It is repeated up to the given size, and each copy of a document is
numbered, so that it is no duplicate. The figure is the largest sum of the resident memory of the command and its worker
processes, seen every 0.1 s in /proc. Memory that processes share counts several times. Runs on Linux only.
"""

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from deberta_jax import Tokenizer
from deberta_jax.train.data.preparation.drivers import ProcessDriver
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text import read_documents
from deberta_jax.train.data.train_tokenizer import train_tokenizer

MEGABYTE = 10**6
LIMIT = 2000
INTERVAL = 0.1  # seconds


def write_copies(text: Path, path: Path, size: int) -> int:
    """Writes the documents of a text again and again until a size is reached, and returns the size."""
    with path.open("w", encoding="utf-8") as file:
        for copy in itertools.count():
            for number, document in enumerate(read_documents([text])):
                file.write(f"{copy} {number} {document}\n\n")
                if file.tell() >= size:
                    return file.tell()
    raise AssertionError


def family(process: int) -> Iterator[int]:
    """Yields a process and those that it started."""
    yield process
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        yield from family(int(child))


def resident(process: int) -> int:
    """Returns the resident memory in bytes of a process and those that it started."""
    total = 0
    try:
        for member in family(process):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # one of them has ended
        pass
    return total


class MemoryWatch:
    """Keeps the largest memory of this process and those that it starts, in bytes, while the block runs."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.peak = max(self.peak, resident(os.getpid()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer (default: 8,000 pieces of the text)")
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = Path(name, "text.txt")
        size = write_copies(options.text, text, int(options.megabytes * MEGABYTE))
        if options.tokenizer:
            tokenizer = Tokenizer.from_folder(options.tokenizer)
        else:
            lines = itertools.islice(read_documents([text], boundary="line"), 20_000)
            tokenizer = Tokenizer.from_bytes(train_tokenizer(lines, vocab_size=8000))
        began = time.monotonic()
        with MemoryWatch() as watch:
            corpus = prepare(
                [text],
                tokenizer,
                Path(name, "corpus"),
                sequence_length=512,
                boundary="blank_line",
                driver=ProcessDriver(options.workers),
            )
        seconds = time.monotonic() - began
        print(
            f"{size / MEGABYTE:,.0f} MB of text, {options.workers} workers, {seconds:,.0f} s: "
            f"{corpus.train.documents + corpus.held_out.documents:,} documents, {corpus.train.rows:,} rows"
        )
    peak = watch.peak / MEGABYTE
    print(f"peak {peak:,.0f} MB; the limit is {LIMIT:,} MB")
    raise SystemExit(peak > LIMIT)


if __name__ == "__main__":
    main()
