"""Measures the memory that fine-tuning takes for its examples; the limit is twice the size of the file.

    python -m tests.benchmarks.finetune_memory [--kind classification] [--megabytes 50] [--tokenizer FOLDER]

Writes a file of each kind, with sentences of the embedded novels, and reads it in a separate process, from the file to
the first batches of training: reading, token ids, digests, shuffled batches. The figure is the largest resident
memory of that process in this time (VmHWM) minus its resident memory before, with everything imported and the
tokenizer loaded. The model is not loaded, because its memory does not depend on the file. Runs on Linux only.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from deberta_jax import Tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.finetune_setup import input_digests
from deberta_jax.train.tasks.batches import FinetuneBatches
from deberta_jax.train.tasks.loading import load_task
from tests.support.configs import finetune_config
from tests.support.paths import REPOSITORY

LIMIT = 2.0
Rows = Callable[[Iterator[str], random.Random], Iterator[str]]  # lines of a file, from sentences


def classification(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    yield "text\tlabel\n"
    for sentence in sentences:
        yield f"{sentence}\t{rng.choice(('good', 'bad', 'neither'))}\n"


def pairs(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    yield "text,pair,label\n"
    for first, second in _groups(sentences, 2):
        yield f"{_quoted(first)},{_quoted(second)},{rng.choice(('entailment', 'neutral', 'contradiction'))}\n"


def regression(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    for first, second in _groups(sentences, 2):
        yield json.dumps({"text": first, "pair": second, "label": round(rng.random() * 5, 3)}) + "\n"


def choice(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    for group in _groups(sentences, 6):
        yield json.dumps({"text": group[0], "pair": group[1], "choices": group[2:], "label": rng.randrange(4)}) + "\n"


def conll(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    for sentence in sentences:
        for word in re.findall(r"\w+|[^\w\s]", sentence):
            yield f"{word} {rng.choice(('O', 'O', 'O', 'B-PER', 'B-LOC'))}\n"
        yield "\n"


def words(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    for sentence in sentences:
        found = re.findall(r"\w+|[^\w\s]", sentence)
        labels = [rng.choice(("O", "O", "O", "B-PER", "B-LOC")) for _ in found]
        yield json.dumps({"words": found, "labels": labels}) + "\n"


def squad(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    """Yields one object in SQuAD's layout, whose contexts have six sentences and five questions."""
    yield '{"version": "1.1", "data": [{"title": "novels", "paragraphs": ['
    for number, group in enumerate(_groups(sentences, 11)):
        context = " ".join(group[:6])
        questions = [
            {"id": f"{rng.getrandbits(96):024x}", "question": text, "answers": [_answer(context, rng)]}
            for text in group[6:]
        ]
        yield ", " * bool(number) + json.dumps({"context": context, "qas": questions})
    yield "]}]}"


def spans(sentences: Iterator[str], rng: random.Random) -> Iterator[str]:
    for group in _groups(sentences, 7):
        context = " ".join(group[:6])
        answer = _answer(context, rng)
        yield json.dumps({"question": group[6], "context": context, "answers": [answer]}) + "\n"


def _answer(context: str, rng: random.Random) -> dict[str, Any]:
    word = rng.choice(list(re.finditer(r"\w+", context)))
    return {"text": word[0], "answer_start": word.start()}


def _groups(sentences: Iterator[str], size: int) -> Iterator[list[str]]:
    while group := list(itertools.islice(sentences, size)):
        if len(group) < size:
            return
        yield group


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


class Case(NamedTuple):
    """A form of file: its kind of task, its suffix, and its content."""

    kind: str
    suffix: str
    rows: Rows
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed


CASES = {
    "classification": Case("classification", ".tsv", classification),
    "pairs": Case("classification", ".csv", pairs, {"pair_column": "pair"}),
    "regression": Case("regression", ".jsonl", regression, {"pair_column": "pair"}),
    "choice": Case("choice", ".jsonl", choice, {"pair_column": "pair"}),
    "tokens, CoNLL": Case("tokens", ".conll", conll),
    "tokens, lists": Case("tokens", ".jsonl", words),
    "spans, SQuAD": Case("span", ".json", squad, {"max_length": 384}),
    "spans, lines": Case("span", ".jsonl", spans, {"max_length": 384}),
}


def sentences(seed: int) -> Iterator[str]:
    """Yields sentences of the novels without end, in an order that never repeats, so that no text occurs twice."""
    text = " ".join(read_documents([embedded_corpus()], boundary="chapter"))
    found = [part for part in re.split(r"(?<=[.!?;])\s+", " ".join(text.split())) if part.strip()]
    rng = random.Random(seed)
    while True:
        rng.shuffle(found)
        yield from found


def write_file(path: Path, case: Case, size: int) -> None:
    """Writes a file of at least `size` bytes. The rows of a case end when its sentences do."""
    with path.open("w", encoding="utf-8") as file:
        source = itertools.takewhile(lambda _: file.tell() < size, sentences(0))
        for row in case.rows(source, random.Random(1)):
            file.write(row)


# ------------------------------------------------------------------------------------------------ the measured process


class Measured(NamedTuple):
    """Figures of a process: bytes of memory above its start, seconds of reading, and examples."""

    read: int
    peak: int
    seconds: float
    examples: int


def measure(path: Path, case: Case, tokenizer: str) -> Measured:
    """Reads a file in a fresh process. Raises SystemExit with its errors."""
    given = json.dumps([str(path.absolute()), case.kind, case.settings, str(Path(tokenizer).absolute())])
    command = [sys.executable, "-m", "tests.benchmarks.finetune_memory", "--child", given]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if process.returncode:
        raise SystemExit(process.stderr)
    return Measured(*json.loads(process.stdout.splitlines()[-1]))


def child(path: str, kind: str, settings: dict[str, Any], tokenizer_folder: str) -> Measured:
    """Reads a file and draws batches in this process."""
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    config = finetune_config(train=path, kind=kind, **settings)
    tokenizer.encode_batch(["warm", "up"])
    start, started = _memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
    task = load_task(config, tokenizer)
    seconds = time.perf_counter() - started
    read = _memory("VmHWM")
    input_digests(config, task, {})
    batches = FinetuneBatches(task.splits["train"], batch_size=32, max_length=config.data.max_length, seed=0)
    for _ in range(20):
        next(batches)
    peak = _memory("VmHWM")
    return Measured(read - start, peak - start, seconds, len(task.splits["train"].lengths))


def _memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=CASES, action="append", help="may be repeated (default: all)")
    parser.add_argument("--megabytes", type=float, action="append", help="may be repeated (default: 50)")
    parser.add_argument("--tokenizer", default="../shared/real/deberta-v3", help="folder of a tokenizer")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*json.loads(options.child))))
        return
    columns = ("file, MB", "examples", "reading, MB", "peak, MB", "peak / file", "seconds")
    print(f"{'':16}" + "".join(f"{column:>13}" for column in columns))
    over_limit = []
    for name, megabytes in itertools.product(options.kind or CASES, options.megabytes or [50]):
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"train{case.suffix}"
            write_file(path, case, int(megabytes * 1e6))
            size = path.stat().st_size
            measured = measure(path, case, options.tokenizer)
        cells = (
            f"{size / 1e6:.1f}",
            f"{measured.examples:,}",
            f"{measured.read / 1e6:.0f}",
            f"{measured.peak / 1e6:.0f}",
            f"{measured.peak / size:.2f}",
            f"{measured.seconds:.0f}",
        )
        print(f"{name:16}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
        if measured.peak > LIMIT * size:
            over_limit.append(name)
    if over_limit:
        sys.exit(f"over twice the file: {', '.join(over_limit)}")


if __name__ == "__main__":
    main()
