"""Times `deberta-jax prepare` per core, part by part, against transformers' fast tokenizer with `datasets.map`.

    python -m tests.benchmarks.prepare_speed TEXT [--tokenizer FOLDER] [--megabytes 4] [--sequence-length 512]

TEXT is a file of text, plain or compressed, of which the first megabytes are used. Without --tokenizer, one of 8,000
pieces is trained on it. Everything runs in one process and one thread.

* read, tokenize, pack and write are the parts of the work alone: documents from the file, ids from documents, rows from
  ids, ArrayRecord from rows.
* prepare is the whole command on one core: these parts, the hashes and the files between the phases, the shuffle, and
  the digests.
* mask is an epoch of training batches of the result: random access, the checks of each row, and masks of words.
* transformers is the recipe of its run_mlm.py: `load_dataset("text")`, a `map` that tokenizes with the fast tokenizer
  of the same SentencePiece model, and a `map` that joins the ids and cuts them into rows; it neither shuffles nor
  respects documents. Its result is an Arrow file.

Figures are MB of text per second of CPU time of all threads, so other work on the machine affects them little, and of
wall time. The script ends with the ratio of both ends, and with how long 160 GB take on one core.
"""

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from deberta_jax import Tokenizer
from deberta_jax.train.data.corpus import Corpus
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.row_files import create_row_file
from deberta_jax.train.data.text import RowPacker, encode_documents, read_documents
from deberta_jax.train.data.text_files import text_bytes
from deberta_jax.train.data.train_tokenizer import train_tokenizer

MEGABYTE = 10**6
CORPUS_BYTES = 160e9
BATCH = 32  # rows


class Timer:
    """Prints how fast each part is."""

    def __init__(self, size: int) -> None:
        self._megabytes = size / MEGABYTE
        self.cpu_seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self.cpu_seconds[name] = cpu
        rates = f"{self._megabytes / cpu:8.2f} MB/s of CPU time {self._megabytes / wall:8.2f} MB/s of wall time"
        print(f"{name:14}{rates}", flush=True)


def plain_copy(text: Path, folder: Path, size: int) -> Path:
    """Writes the first bytes of a text, up to the end of a line, as a plain file."""
    content = bytearray()
    for chunk in text_bytes(text):
        content += chunk
        if len(content) >= size:
            break
    end = content.rfind(b"\n", 0, size) + 1 or len(content)
    path = folder / "text.txt"
    path.write_bytes(content[:end])
    return path


def time_parts(text: Path, tokenizer: Tokenizer, folder: Path, timer: Timer, length: int) -> None:
    """Times the parts of the work one after the other."""
    with timer.part("read"):
        documents = list(read_documents([text]))
    with timer.part("tokenize"):
        encoded = list(encode_documents(documents, tokenizer, text))
    packer = RowPacker(length, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, dtype="uint16")
    with timer.part("pack"):
        rows = [row for tokens in encoded for row in packer.add(tokens)]
        rows += packer.finish()
    with timer.part("write"):
        writer = create_row_file(str(folder / "rows"))
        for row in rows:
            writer.write(row.tobytes())
        writer.close()
    print(f"{len(documents):,} documents, {sum(map(len, encoded)):,} tokens, {len(rows):,} rows")


def time_prepare(text: Path, tokenizer: Tokenizer, folder: Path, timer: Timer, length: int) -> Corpus:
    """Times the whole command on one core."""
    with timer.part("prepare"):
        return prepare([text], tokenizer, folder / "corpus", sequence_length=length, boundary="blank_line")


def time_masking(corpus: Corpus, tokenizer: Tokenizer, timer: Timer) -> None:
    """Times an epoch of training batches."""
    from deberta_jax.train.data.batches import TrainingBatches
    from deberta_jax.train.data.masking import MaskingConfig

    masking = MaskingConfig(max_ngram=3, replace="mlm")
    batches = TrainingBatches(corpus, tokenizer=tokenizer, masking=masking, global_batch=BATCH, seed=0)
    with timer.part("mask"):
        for _ in range(-(-corpus.train.rows // BATCH)):
            next(batches)
    batches.close()
    tokens = corpus.train.rows * corpus.sequence_length
    print(f"{'':14}{tokens / timer.cpu_seconds['mask']:,.0f} tokens/s of CPU time with masks, padding included")


def time_transformers(text: Path, model: Path, folder: Path, timer: Timer, length: int) -> None:
    """Times the recipe of transformers' run_mlm.py."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    (folder / "fast").mkdir()
    shutil.copyfile(model, folder / "fast" / "spm.model")
    (folder / "fast" / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer"}')
    fast: Callable[..., Any] = transformers.AutoTokenizer.from_pretrained(str(folder / "fast"), use_fast=True)
    assert getattr(fast, "is_fast", False), f"{type(fast).__name__} is not a fast tokenizer"

    def join(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        ids = [token for part in batch["input_ids"] for token in part]
        return {"input_ids": [ids[start : start + length] for start in range(0, len(ids), length)]}

    with timer.part("transformers"):
        lines = datasets.load_dataset(
            "text", data_files=str(text), split="train", cache_dir=str(folder / "datasets"), keep_in_memory=False
        )
        encoded = lines.map(
            lambda batch: {"input_ids": fast(batch["text"])["input_ids"]}, batched=True, remove_columns=["text"]
        )
        rows = encoded.map(join, batched=True)
    print(f"transformers {transformers.__version__}: {sum(map(len, rows['input_ids'])):,} tokens, {len(rows):,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with an spm.model (default: 8,000 pieces of the text)")
    parser.add_argument("--megabytes", type=float, default=4, help="how much of the text to use")
    parser.add_argument("--sequence-length", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = plain_copy(options.text, folder, int(options.megabytes * MEGABYTE))
        if options.tokenizer:
            model = options.tokenizer / "spm.model"
        else:
            model = folder / "spm.model"
            model.write_bytes(train_tokenizer(read_documents([text], boundary="line"), vocab_size=8000))
        tokenizer = Tokenizer.from_file(model)
        tokenizer.encode_batch(["warm up"])
        size = text.stat().st_size
        timer = Timer(size)
        print(f"{size / MEGABYTE:.1f} MB of text, {tokenizer.vocab_size:,} pieces")
        time_parts(text, tokenizer, folder, timer, options.sequence_length)
        corpus = time_prepare(text, tokenizer, folder, timer, options.sequence_length)
        time_masking(corpus, tokenizer, timer)
        try:
            time_transformers(text, model, folder, timer, options.sequence_length)
        except ModuleNotFoundError as error:
            print(f"not compared: {error}; pip install transformers datasets sentencepiece")
    seconds = timer.cpu_seconds
    if "transformers" in seconds:
        print(
            f"prepare is {seconds['transformers'] / seconds['prepare']:.2f} times as fast as transformers, end to end"
        )
    hours = seconds["prepare"] * CORPUS_BYTES / size / 3600
    print(f"160 GB of such text take {hours:.1f} hours of one core")


if __name__ == "__main__":
    main()
