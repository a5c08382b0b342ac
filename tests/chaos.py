"""Faults on a run of four processes, again and again, until it has trained to its end: `make chaos`.

    python -m tests.chaos [--rounds 20] [--seed 0] [--folder DIR]

One run of pre-training on real text is left alone. Another, with the same settings, is hit by a fault in every round:
a process killed at a random moment or during a save, frozen, stuck in its data loader, told to stop (SIGTERM), or the
newest checkpoint truncated or with flipped bits. Every other process has to end by itself within a bound, with an exit
code that asks for a restart and with a message that names the lost process; then all four are started again. At the end
the losses of all steps must be those of the unbroken run, bit for bit, and every row of the text must have been trained
on exactly as often. Exit status 1 and a list of what went wrong otherwise.
"""

import argparse
import collections
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train.data import prepare
from deberta_jax.train.reporting.goodput import read_goodput
from deberta_jax.train.reporting.jsonl import read_records

from .support.cluster import Process, cluster, wait_until
from .support.novel import small_tokenizer
from .support.small_models import TINY

COUNT = 4
BATCH = 8
DEAD_AFTER, STALL_AFTER = 6.0, 12.0
BOUND = 40.0  # seconds in which the others have to end; a busy machine is slow to see that time is up
RESTART = (42, -signal.SIGABRT)  # JAX aborts by itself where it loses process 0; a shell sees 134


def prepare_home(folder: Path) -> None:
    """Text, tokenizer, corpus and model of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    small_tokenizer(folder / "tokenizer", text, lines=600)
    spm = Tokenizer.from_folder(folder / "tokenizer")
    settings = {"sequence_length": 32, "boundary": "blank_line", "held_out_fraction": 0.05, "seed": 0}
    prepare.prepare((text,), spm, folder / "corpus", **settings)
    (folder / "model.json").write_text(json.dumps(TINY.to_json()), encoding="utf-8")


def arguments(home: Path, output: Path, *, steps: int, save_every: int, options: tuple[str, ...] = ()) -> list[str]:
    """What Python is called with."""
    records = output / "records"
    records.mkdir(parents=True, exist_ok=True)
    return [
        *("-m", "tests.support.recorded_pretrain", str(records)),
        *("--output", str(output), "--tokenizer", str(home / "tokenizer"), "--corpus", str(home / "corpus")),
        *("--model", str(home / "model.json"), "--sequence-length", "32", "--batch-size", str(BATCH)),
        *("--steps", str(steps), "--save-every", str(save_every), "--evaluate-every", "0", "--log-every", "1"),
        *("--optimizer.learning-rate", "2e-3", "--keep", "3"),
        *("--hosts.dead-after", str(DEAD_AFTER), "--hosts.stall-after", str(STALL_AFTER)),
        *("--compilation-cache", str(home / "compiled")),
        *options,
    ]


def losses(output: Path) -> dict[int, float]:
    """The generator's loss, or the masked LM's, of every step."""
    path = output / "metrics.jsonl"
    return {record["step"]: record["generator_loss"] for record in read_records(path)} if path.exists() else {}


def rows_of(output: Path, *, steps: int) -> tuple[list[list[int]], list[list[str]]]:
    """Rows and fingerprints of every step, from what all processes wrote down. Of a step taken twice the last counts.

    A process may have read ahead of the others' last step: what counts is what it took at the step's last turn."""
    taken: dict[int, dict[tuple[int, ...], list[str]]] = collections.defaultdict(dict)
    for path in sorted((output / "records").glob("rows-*.jsonl")):
        own = {record["step"]: record for record in read_records(path)}
        for step, record in own.items():
            taken[step][tuple(record["rows"])] = record["tokens"]
    rows, tokens = [], []
    for step in range(1, steps + 1):
        parts = sorted(taken[step].items())
        rows.append([row for part, _ in parts for row in part])
        tokens.append([token for _, part in parts for token in part])
    return rows, tokens


def faulty_rows(output: Path, *, steps: int) -> tuple[int, int]:
    """How many rows of the stream were left out, and how many were trained on twice."""
    found = collections.Counter(row for rows in rows_of(output, steps=steps)[0] for row in rows)
    lost = sum(1 for row in range(steps * BATCH) if not found[row])
    return lost, sum(count - 1 for count in found.values() if count > 1)


# ---------------------------------------------------------------------------------------------- faults


@dataclass
class Round:
    """What was done to a run, and what came of it."""

    fault: str
    seconds: float = 0.0
    codes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    step: int = 0


def run_round(command: list[str], output: Path, fault: str, chance: random.Random) -> Round:
    """Starts all four, waits for some steps, hits them, and watches them end."""
    found = Round(fault)
    victim = chance.randrange(COUNT)
    before = max(losses(output), default=0)
    logs = {index: len(_text(output / "logs" / f"{index}.log")) for index in range(COUNT)}
    with cluster(command, output / "logs", count=COUNT) as processes:
        goal = before + chance.randint(1, 4)

        def running_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
            def check() -> bool:
                ended = [process.popen.poll() for process in processes if process.popen.poll() is not None]
                if ended:
                    raise AssertionError(f"ended with {ended} before the fault:\n{processes[0].said[-3000:]}")
                return condition()

            wait_until(check, seconds=seconds, what=what)

        running_until(lambda: max(losses(output), default=0) >= goal, seconds=180, what="steps")
        if fault in DAMAGES:  # there has to be another to fall back on
            running_until(lambda: len(checkpoints(output)) > 1, seconds=60, what="two checkpoints")
        if fault == "SIGKILL during a save":
            pending = output / "checkpoints"
            running_until(lambda: any(pending.glob("*.orbax-checkpoint-tmp")), seconds=60, what="a save")
        else:
            time.sleep(chance.uniform(0, 0.5))
        found.step = max(losses(output))
        named = _hit(fault, victim, processes, output)
        began = time.monotonic()
        for index, process in enumerate(processes):
            if fault == "SIGSTOP" and index == victim:
                continue
            found.codes.append(process.ends_within(BOUND))
        found.seconds = time.monotonic() - began
        for index, process in enumerate(processes):
            told = process.said[logs[index] :]
            if index != victim and named and not re.search(rf"(lost|wait for)[^\n]* process {victim} on", told):
                found.wrong.append(f"process {index} does not name process {victim}: {told[-300:]!r}")
    expected = {
        "SIGTERM": lambda index, code: code == 42,
        **dict.fromkeys(DAMAGES, lambda index, code: code == -signal.SIGKILL),
        "stuck data loader": lambda index, code: code in RESTART,
    }.get(fault, lambda index, code: code in RESTART or (index == victim and code == -signal.SIGKILL))
    for index, code in enumerate(found.codes):
        if not expected(index, code):
            found.wrong.append(f"process {index} ended with {code}")
    return found


def _hit(fault: str, victim: int, processes: list[Process], output: Path) -> bool:
    """Does it. Returns whether the others have to name the victim."""
    match fault:
        case "SIGKILL" | "SIGKILL during a save":
            processes[victim].popen.kill()
        case "SIGSTOP":
            processes[victim].popen.send_signal(signal.SIGSTOP)
        case "stuck data loader":
            (output / "records" / f"stuck-{victim}").touch()
        case "SIGTERM":
            processes[victim].popen.send_signal(signal.SIGTERM)
            return False
        case _:  # damage on disk, done when all have been killed
            for process in processes:
                process.popen.kill()
            return False
    return True


def checkpoints(output: Path) -> list[int]:
    """The steps that are whole on disk, ascending."""
    return sorted(int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit())


def damage(fault: str, output: Path, chance: random.Random) -> str:
    """Damages the newest checkpoint. Returns what has to be said of it at the next start."""
    steps = checkpoints(output)
    newest = output / "checkpoints" / str(steps[-1])
    files = [path for path in newest.rglob("d/*") if path.is_file() and path.stat().st_size > 1000]
    if fault == DAMAGES[0]:
        path = chance.choice(files)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:  # one bit of every file, as some hold bytes that nothing refers to any more
        for path in files:
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
    return f"the checkpoint of step {steps[-1]} in"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


DAMAGES = ("checkpoint truncated", "checkpoint with flipped bits")
FAULTS = (
    *["SIGKILL"] * 6,
    *["SIGKILL during a save"] * 5,
    *["SIGSTOP"] * 2,
    *["stuck data loader"] * 2,
    *["SIGTERM"] * 2,
    DAMAGES[0],
    *[DAMAGES[1]] * 2,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one, which is kept on failure")
    options = parser.parse_args()
    began, chance, console = time.monotonic(), random.Random(options.seed), Console()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    steps = 5 * options.rounds
    prepare_home(folder / "home")

    console.print(f"the unbroken run: {COUNT} processes, {steps} steps")
    # Masked LM, as one model compiles, and so every round starts, in half the time of RTD's two.
    settings: dict = {"steps": steps, "save_every": 4, "options": ("--objective", "mlm")}
    command = arguments(folder / "home", folder / "unbroken", **settings)
    with cluster(command, folder / "unbroken/logs", count=COUNT) as processes:
        for process in processes:
            if code := process.ends_within(600):
                console.print(f"the unbroken run failed with {code}:\n{process.said[-3000:]}")
                return 1

    output = folder / "broken"
    command = arguments(folder / "home", output, **settings)
    faults = [*FAULTS] * -(-options.rounds // len(FAULTS))
    chance.shuffle(faults)
    del faults[options.rounds :]
    rounds: list[Round] = []
    expected = ""
    for number, fault in enumerate(faults, start=1):
        try:
            found = run_round(command, output, fault, chance)
        except AssertionError as error:
            found = Round(fault, wrong=[str(error)])
        for path in (output / "records").glob("stuck-*"):
            path.unlink()
        if expected and expected not in _text(output / "logs" / "0.log"):
            found.wrong.append(f"nothing was said of the damage of the round before: {expected!r}")
        # Where the round failed there may be nothing to damage.
        expected = damage(fault, output, chance) if fault in DAMAGES and not found.wrong else ""
        rounds.append(found)
        state = "; ".join(found.wrong) or "survived"
        console.print(
            f"round {number:2} of {len(faults)}: {fault} at step {found.step}: codes {found.codes} after "
            f"{found.seconds:.1f} s: {state}",
            markup=False,
        )
    console.print("to the end, undisturbed")
    with cluster(command, output / "logs", count=COUNT) as processes:
        ends = [process.ends_within(600) for process in processes]
    return report(folder, rounds, ends, steps, expected, time.monotonic() - began, console)


def report(
    folder: Path, rounds: list[Round], ends: list[int], steps: int, expected: str, seconds: float, console: Console
) -> int:
    """Prints the table and the verdict. Returns the exit status."""
    output = folder / "broken"
    wrong = [complaint for one in rounds for complaint in one.wrong]
    if any(ends):
        wrong.append(f"the last start ended with {ends}")
    if expected and expected not in _text(output / "logs" / "0.log"):
        wrong.append(f"nothing was said of the damage of the last round: {expected!r}")
    table = Table("fault", "injected", "survived", "others ended within, s", title="chaos")
    for fault in dict.fromkeys(FAULTS):
        own = [one for one in rounds if one.fault == fault]
        if own:
            slowest = max(one.seconds for one in own)
            table.add_row(fault, str(len(own)), str(sum(not one.wrong for one in own)), f"{slowest:.1f}")
    console.print(table)
    lost, repeated = faulty_rows(output, steps=steps)
    same_rows = rows_of(output, steps=steps) == rows_of(folder / "unbroken", steps=steps)
    same_losses = losses(output) == losses(folder / "unbroken") and len(losses(output)) == steps
    survived = sum(not one.wrong for one in rounds)
    console.print(f"faults injected: {len(rounds)}, survived: {survived}")
    console.print(f"examples lost: {lost}, repeated: {repeated}; the same as in the unbroken run: {_yes(same_rows)}")
    console.print(f"losses of all {steps} steps equal to the unbroken run's, bit for bit: {_yes(same_losses)}")
    console.print(str(read_goodput(output)))
    console.print(f"{seconds / 60:.1f} minutes; everything is in {folder}")
    for complaint in wrong:
        console.print(f"WRONG: {complaint}", markup=False)
    good = not wrong and same_rows and same_losses and not lost and not repeated
    if good:
        shutil.rmtree(folder / "broken" / "checkpoints", ignore_errors=True)
    return 0 if good else 1


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


if __name__ == "__main__":
    sys.exit(main())
