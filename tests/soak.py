"""Trains for a while in one process and checks that nothing piles up: `make soak`.

    python -m tests.soak [--steps 3000] [--seeds 10] [--folder DIR]

One run of pre-training, with evaluations and checkpoints on the way, is followed by fine-tuning of its model with many
seeds. Meanwhile a thread samples what this process holds: its memory, threads, open files and child processes, and the
live arrays and compiled programs of JAX. The table shows the least and the most of each part of the run.

From the middle third of the steps, or of the seeds, to the last one, the least and the most of a figure must not both
grow. (A leak raises both, while a save, an evaluation or a short-lived thread moves only one of them. The first third
compiles programs and fills buffers.) Small differences are allowed, since pools of threads and the gaps between
allocations vary: see `_MAY_GROW`. Otherwise the exit status is 1, and a list of what has grown is printed.

Only for Linux with glibc 2.33 or newer: it reads /proc, and asks malloc. It takes about five minutes on two cores.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from deberta_jax.train import finetune, pretrain
from deberta_jax.train.configs import FinetuneConfig, PretrainConfig

from .support.configs import finetune_config
from .support.recorded_runs import home_settings, prepare_home

_PERIOD = 1.0  # seconds between two samples, which take some tenths of a second
# By how much a figure may grow: memory in megabytes. A leak of one thread or file per save or seed is more.
_MAY_GROW = {"resident": 32.0, "allocated": 4.0, "threads": 2, "files": 2, "children": 0, "arrays": 8, "programs": 0}
_STEPS_PER_SEED = 24


class _MallocInfo(ctypes.Structure):
    """The structure that mallinfo2 of glibc returns."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def allocated_bytes() -> int:
    """Returns how many bytes are allocated with malloc. Buffers of JAX on CPUs and Python's large objects are."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd


@dataclass(frozen=True)
class Sample:
    """What this process holds at one moment.

    Attributes:
      resident: megabytes of memory, without files that are mapped, which the system evicts as it likes.
      allocated: megabytes that are allocated with malloc.
    """

    resident: float
    allocated: float
    threads: int
    files: int
    children: int
    arrays: int
    programs: int

    @classmethod
    def take(cls) -> "Sample":
        """Returns what this process holds, without Python's garbage."""
        gc.collect()
        process = Path("/proc/self")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return cls(
            resident=int(status["RssAnon"].split()[0]) * 1024 / 1e6,
            allocated=allocated_bytes() / 1e6,
            threads=int(status["Threads"]),
            files=len(os.listdir(process / "fd")),
            children=sum(len(_children(task)) for task in (process / "task").iterdir()),
            arrays=len(jax.live_arrays()),
            programs=len(jax.devices()[0].client.live_executables()),
        )


FIGURES = tuple(field.name for field in fields(Sample))


def _children(task: Path) -> list[str]:
    with contextlib.suppress(OSError):  # the thread has ended
        return (task / "children").read_text().split()
    return []


@dataclass(frozen=True)
class Samples:
    """The samples of a run.

    Attributes:
      unit: what the progress counts.
      total: the progress at the end.
      taken: pairs of the progress and a sample.
    """

    unit: str
    total: int
    taken: Sequence[tuple[int, Sample]]

    def parts(self, count: int) -> list[list[Sample]]:
        """Returns the samples of each of `count` equal parts of the progress."""
        parts: list[list[Sample]] = [[] for _ in range(count)]
        for progress, sample in self.taken:
            if progress < self.total:  # what follows the last step, such as saving the model, is a separate part
                parts[progress * count // self.total].append(sample)
        return parts

    def complaints(self) -> list[str]:
        """Returns what has grown from the middle third to the last one."""
        _, middle, last = self.parts(3)
        if not middle or not last:
            return [f"{self.unit}: too few samples; give more of them"]
        found = []
        for name in FIGURES:
            before, after = ([getattr(sample, name) for sample in part] for part in (middle, last))
            if min(min(after) - min(before), max(after) - max(before)) > _MAY_GROW[name]:
                found.append(
                    f"{self.unit}: {name} grew from {min(before):g} to {max(before):g} in the middle third "
                    f"to {min(after):g} to {max(after):g} in the last"
                )
        return found

    def table(self) -> Table:
        """Returns the least and the most of every figure in each part of the run."""
        title = f"{self.total} {self.unit}: least-most of each part"
        table = Table(self.unit, *FIGURES, "samples", title=title, box=None, padding=(0, 1, 0, 0))
        count = min(12, self.total)
        for number, part in enumerate(self.parts(count)):
            cells = []
            for name in FIGURES if part else ():
                values = [getattr(sample, name) for sample in part]
                cells.append(f"{min(values):.0f}-{max(values):.0f}")
            table.add_row(
                str(number * self.total // count), *cells, *[""] * (0 if part else len(FIGURES)), str(len(part))
            )
        return table


@contextlib.contextmanager
def sampling(unit: str, total: int, progress: Callable[[], int]) -> Iterator[Samples]:
    """Takes samples in a thread inside the context."""
    taken: list[tuple[int, Sample]] = []
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(_PERIOD):
            taken.append((progress(), Sample.take()))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Samples(unit, total, taken)
    finally:
        stopped.set()
        thread.join()


def pretraining(home: Path, output: Path, *, steps: int) -> PretrainConfig:
    """Returns the settings of a run that evaluates 30 times and saves 60 times."""
    return home_settings(
        home,
        output,
        steps=steps,
        evaluate_every=max(1, steps // 30),
        save_every=max(1, steps // 60),
        keep=2,
        log_every=max(1, steps // 150),
    )


def fine_tuning(home: Path, output: Path, *, model: Path, seeds: int) -> FinetuneConfig:
    """Returns the settings of short runs, each of which evaluates and saves twice."""
    chance = random.Random(0)
    words = (home / "text.txt").read_text(encoding="utf-8").split()
    examples = [{"text": " ".join(chance.sample(words, 6)), "label": chance.choice("ab")} for _ in range(96)]
    for name, part in (("train", examples[:64]), ("validation", examples[64:])):
        lines = "\n".join(json.dumps(example) for example in part)
        (home / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return finetune_config(
        output=output,
        model=model,
        train=str(home / "train.jsonl"),
        validation=str(home / "validation.jsonl"),
        max_length=32,
        batch_size=8,
        steps=_STEPS_PER_SEED,
        evaluate_every=_STEPS_PER_SEED // 2,
        save_every=_STEPS_PER_SEED // 2,
        seeds=tuple(range(seeds)),
    )


def last_logged_step(path: Path) -> int:
    """Returns the step of the last line of metrics.jsonl, or 0. Reads only the end of the file."""
    with contextlib.suppress(OSError, ValueError, IndexError), path.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - 2000))
        return json.loads(lines.read().splitlines()[-1])["step"]
    return 0


def soak(folder: Path, *, steps: int, seeds: int) -> list[Samples]:
    """Trains in this process. Returns the samples of pre-training and of fine-tuning; 0 steps or seeds have none.

    Fine-tuning starts from the pre-trained model.
    """
    home, output = folder / "home", folder / "pretrained"
    prepare_home(home)
    with sampling("steps", steps, lambda: last_logged_step(output / "metrics.jsonl")) as of_steps:
        pretrain.main(pretraining(home, output, steps=steps))
    tuned = folder / "tuned"
    config = fine_tuning(home, tuned, model=output / "discriminator", seeds=seeds)
    with sampling("seeds", seeds, lambda: len(list(tuned.glob("*/results.json")))) as of_seeds:
        finetune.main(config)
    return [of_steps, of_seeds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="steps of pre-training, at least 60")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of fine-tuning, at least 3")
    parser.add_argument("--folder", type=Path, help="folder for everything (default: a temporary one)")
    options = parser.parse_args()
    began, console = time.monotonic(), Console()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    runs = soak(folder, steps=options.steps, seeds=options.seeds)
    for samples in runs:
        console.print(samples.table())
    found = [complaint for samples in runs for complaint in samples.complaints()]
    for complaint in found:
        console.print(f"WRONG: {complaint}", markup=False, soft_wrap=True)
    console.print("something has grown" if found else "nothing has grown: memory, threads, files and arrays are flat")
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes; everything is in {folder}", soft_wrap=True)
    if not found and options.folder is None:
        shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
