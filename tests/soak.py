"""Trains for a while in one process and checks that nothing piles up: `make soak`.

    python -m tests.soak [--steps 3000] [--seeds 10] [--folder DIR]

One run of pre-training, with evaluations and checkpoints on the way, is followed by fine-tuning of its model with many
seeds. Meanwhile a thread samples the resident memory, threads, open files and child processes of this process, and
JAX's live arrays and compiled programs. They are flat if the last third of the steps, or of the seeds, is not above the
middle third. The first third may grow: programs are compiled and buffers are allocated.

The exit status is 1 if something is not flat. Works on Linux only, because it reads /proc.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from deberta_jax.train import finetune, pretrain
from deberta_jax.train.reporting.jsonl import read_records

from .support.configs import finetune_config, pretrain_config
from .support.recorded_runs import prepare_home

_PERIOD = 0.2  # seconds between two samples
_ROWS = 9  # of the table; a third of them is a third of the run
_MOST_MEGABYTES, _MOST_MEMORY_GROWTH = 16.0, 0.01  # the larger of the two is allowed
_EXAMPLES = 64


@dataclass(frozen=True)
class Sample:
    """What this process holds at one moment."""

    megabytes: float
    threads: int
    files: int
    children: int
    arrays: int
    programs: int

    @classmethod
    def take(cls) -> "Sample":
        process = Path("/proc/self")
        pages = int((process / "statm").read_text().split()[1])
        tasks = list((process / "task").iterdir())
        return cls(
            megabytes=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            threads=len(tasks),
            files=len(os.listdir(process / "fd")),
            children=sum(len(_text(task / "children").split()) for task in tasks),
            arrays=len(jax.live_arrays()),
            programs=len(jax.devices()[0].client.live_executables()),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the thread has ended
        return ""


@contextmanager
def sampling(progress: Callable[[], int]) -> Iterator[list[tuple[int, Sample]]]:
    """Samples in a thread inside the context. Yields the samples, each with the progress when it was taken."""
    samples: list[tuple[int, Sample]] = []
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(_PERIOD):
            samples.append((progress(), Sample.take()))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


def by_part(samples: Sequence[tuple[int, Sample]], *, total: int, parts: int) -> list[list[Sample]]:
    """Returns the samples of each equal part of the progress from 0 to `total`."""
    return [
        [sample for done, sample in samples if part * total <= done * parts < (part + 1) * total]
        for part in range(parts)
    ]


def summary(samples: Sequence[Sample]) -> Sample:
    """Returns the median of each figure: a save or an evaluation raises them for a moment."""
    return Sample(**{field.name: statistics.median(getattr(s, field.name) for s in samples) for field in fields(Sample)})


def complaints(samples: Sequence[tuple[int, Sample]], *, total: int) -> list[str]:
    """Returns what is not flat."""
    _, middle, last = (summary(part) for part in by_part(samples, total=total, parts=3))
    allowed = max(_MOST_MEGABYTES, _MOST_MEMORY_GROWTH * middle.megabytes)
    found = []
    for field in fields(Sample):
        before, after = getattr(middle, field.name), getattr(last, field.name)
        if after > before + (allowed if field.name == "megabytes" else 0):
            found.append(f"{field.name}: {before:g} in the middle third, {after:g} in the last one")
    return found


def show(samples, unit, *, total, parts, console):
    table = Table(unit, *(field.name for field in fields(Sample)), "samples")
    for number, part in enumerate(by_part(samples, total=total, parts=parts)):
        if part:
            m = summary(part)
            table.add_row(f"{number * total // parts}", *(f"{getattr(m, f.name):g}/{max(getattr(s, f.name) for s in part):g}" for f in fields(Sample)), str(len(part)))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    o = parser.parse_args()
    console = Console(width=150)
    folder = o.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    home = folder / "home"
    prepare_home(home)
    out = folder / "pretrain"
    began = time.monotonic()

    def last_step():
        try:
            with open(out / "metrics.jsonl", "rb") as f:
                f.seek(max(0, f.seek(0, 2) - 4000))
                lines = f.read().decode().splitlines()
            return max([json.loads(l)["step"] for l in lines[1:]], default=0)
        except (OSError, ValueError):
            return 0

    with sampling(last_step) as samples:
        pretrain.main(pretrain_config(output=out, tokenizer=home / "tokenizer", corpus=home / "corpus", model=str(home / "model.json"), sequence_length=32, batch_size=8, steps=o.steps, save_every=50, evaluate_every=100, keep=2, log_every=10))
    show(samples, "steps", total=o.steps + 1, parts=12, console=console)
    print(complaints(samples, total=o.steps + 1), time.monotonic() - began)
    ex = [{"text": f"the {w} dog", "label": l} for w, l in zip("abcdefgh" * 8, "xyyx" * 16)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ex)))
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, ex[:16])))
    f = folder / "finetune"
    began = time.monotonic()
    with sampling(lambda: len(list(f.glob("*/results.json")))) as samples:
        finetune.main(finetune_config(output=f, model=out / "discriminator", train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl"), max_length=16, batch_size=8, steps=40, evaluate_every=20, save_every=20, seeds=tuple(range(o.seeds))))
    show(samples, "seeds", total=o.seeds, parts=o.seeds, console=console)
    print(complaints(samples, total=o.seeds), time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
