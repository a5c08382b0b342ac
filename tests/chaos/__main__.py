"""Injects faults into a run of four processes, again and again, until it has trained to its end: `make chaos`.

    python -m tests.chaos [--rounds 20] [--seed 0] [--folder DIR]

One run of pre-training on real text is left alone. In every round another run, with the same settings, meets a fault:

* One process is killed at a random moment or during a save, is frozen, hangs in its data loader, or receives SIGTERM.
  Every other process has to end by itself, with an exit code that asks for a restart and a message that names the lost
  process. Then all four are started again.
* The newest checkpoint is truncated or has flipped bits. The next start has to say so and to use an older one.
* The disk fills up, and is freed after some seconds. The run has to continue without a restart. If SIGTERM arrives
  meanwhile, it has to end although nothing can be saved.
* The thread that writes TensorBoard's file hangs. No step may wait for it, nor may the end of the run for long.
* Four other processes are started in the same folder, or the four processes are started with output folders of their
  own. They have to end at once, with exit code 1 and one line that says why, and leave the folder alone.

At the end the losses of all steps must equal those of the undisturbed run, bit for bit, and every row of the text must
have been trained on exactly as often. No round may take longer than its bound. Otherwise the exit status is 1, and a
list of the complaints is printed.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ..support.cluster import cluster
from ..support.recorded_runs import arguments, prepare_home
from ..support.small_disk import small_disk
from .broken_run import COUNT, BrokenRun
from .faults import FAULTS, plan, start_second_run
from .report import report
from .scene import Fault, Round, run_round

_DISK_MEGABYTES = 48


def run_undisturbed(home: Path, output: Path, settings: dict[str, Any]) -> str | None:
    """Runs all processes to the end. Returns a complaint if one of them fails."""
    with cluster(arguments(home, output, **settings), output / "logs", count=COUNT) as processes:
        for index, process in enumerate(processes):
            if code := process.wait_for_exit(1200):
                return f"process {index} of the undisturbed run ended with {code}:\n{process.output[-3000:]}"
    return None


def run_rounds(run: BrokenRun, faults: list[Fault], chance: random.Random, console: Console) -> list[Round]:
    """Runs one round for each fault, and prints what followed."""
    rounds = []
    for number, fault in enumerate(faults, start=1):
        rounds.append(run_round(run, fault, chance))
        console.print(f"round {number:2} of {len(faults)}: {rounds[-1]}", markup=False, soft_wrap=True)
    return rounds


def count_steps(faults: list[Fault]) -> int:
    """Returns the length of a run that meets these faults: it must not end before the last one."""
    # A second run takes half a minute to start, while the first one trains, slowed down.
    return 10 + 6 * len(faults) + 30 * sum(fault.inject is start_second_run for fault in faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="number of faults, at least 1")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults and their moments")
    parser.add_argument("--folder", type=Path, help="folder for everything (default: a temporary one)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmounts the disk and ends all processes
    began, chance, console = time.monotonic(), random.Random(options.seed), Console()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    home, undisturbed, broken = folder / "home", folder / "undisturbed", folder / "broken"
    prepare_home(home)
    with small_disk(folder / "disk", megabytes=_DISK_MEGABYTES) as mounted:
        faults = plan(options.rounds, chance, small_disk=mounted)
        if not mounted:
            names = ", ".join(fault.name for fault in FAULTS if fault.fills_disk)
            console.print(f"LEFT OUT, because mounting a small file system is not allowed here: {names}")
        steps = count_steps(faults)
        console.print(f"the undisturbed run: {COUNT} processes, {steps} steps")
        # Masked LM: it compiles one model, so every round starts in half the time of RTD with its two models.
        settings: dict[str, Any] = {"steps": steps, "save_every": 4, "options": ("--objective", "mlm")}
        if complaint := run_undisturbed(home, undisturbed, settings):
            console.print(complaint, markup=False)
            return 1
        output = folder / "disk" / "run"
        output.mkdir()
        with BrokenRun(home, output, broken, settings) as run:
            rounds = run_rounds(run, faults, chance, console)
        survived = report(output, undisturbed, rounds, steps=steps, console=console)
        left_out = ("records", "logs", *(["checkpoints"] if survived else []))
        shutil.copytree(output, broken, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes; everything is in {folder}")
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
