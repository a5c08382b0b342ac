"""Injects faults into a run of four processes, again and again, until it has trained to its end: `make chaos`.

    python -m tests.chaos [--rounds 20] [--seed 0] [--folder DIR]

One run of pre-training on real text is left alone. In every round another run, with the same settings, meets a fault:
one process is killed at a random moment or during a save, is frozen, hangs in its data loader, or receives SIGTERM; or
the newest checkpoint is truncated or has flipped bits. Every other process has to end by itself, with an exit code that
asks for a restart and a message that names the lost process. Then all four are started again.

At the end the losses of all steps must equal those of the undisturbed run, bit for bit, and every row of the text must
have been trained on exactly as often. Otherwise the exit status is 1, and a list of the complaints is printed.
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
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deberta_jax import DebertaConfig
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train.data import prepare
from deberta_jax.train.reporting.goodput import read_goodput
from deberta_jax.train.reporting.jsonl import read_records

from .support.cluster import Process, cluster, wait_while_running
from .support.novel import small_tokenizer
from .support.small_models import TINY

COUNT = 4
BATCH = 8
DEAD_AFTER, STALL_AFTER = 6.0, 12.0
PATIENCE = 300.0  # seconds that end a hang; the report shows how fast the processes were
RESTART = (42, -signal.SIGABRT)  # JAX aborts a process that loses process 0; a shell shows 134


def prepare_home(folder: Path, model: DebertaConfig = TINY) -> None:
    """Writes text, tokenizer, corpus and model configuration of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    small_tokenizer(folder / "tokenizer", text, lines=600)
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    settings = {"sequence_length": 32, "boundary": "blank_line", "held_out_fraction": 0.05, "seed": 0}
    prepare.prepare((text,), tokenizer, folder / "corpus", **settings)
    (folder / "model.json").write_text(json.dumps(model.to_json()), encoding="utf-8")


def arguments(home: Path, output: Path, *, steps: int, save_every: int, options: tuple[str, ...] = ()) -> list[str]:
    """Returns the arguments with which Python runs `recorded_pretrain`."""
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
    """Returns the loss of the generator, or of the masked language model, by step."""
    path = output / "metrics.jsonl"
    return {record["step"]: record["generator_loss"] for record in read_records(path)} if path.exists() else {}


def last_step(output: Path) -> int:
    """Returns the last step that was logged, or 0."""
    return max(losses(output), default=0)


@dataclass
class StepRows:
    """The rows that one step was taken on: their numbers in the stream and their fingerprints."""

    numbers: list[int]
    tokens: list[str]


def recorded_rows(output: Path, *, steps: int) -> list[StepRows]:
    """Returns the rows of every step, from the records of all processes.

    A step that was taken several times counts as it was taken last: a process may have read ahead of the last step of
    the others, or a restart has repeated steps.
    """
    taken: dict[int, dict[tuple[int, ...], list[str]]] = collections.defaultdict(dict)
    for path in sorted((output / "records").glob("rows-*.jsonl")):
        newest = {record["step"]: record for record in read_records(path)}
        for step, record in newest.items():
            taken[step][tuple(record["rows"])] = record["tokens"]
    return [
        StepRows(
            [number for numbers in sorted(taken[step]) for number in numbers],
            [token for numbers in sorted(taken[step]) for token in taken[step][numbers]],
        )
        for step in range(1, steps + 1)
    ]


def faulty_rows(output: Path, *, steps: int) -> tuple[int, int]:
    """Returns how many rows of the stream were left out, and how many were trained on again."""
    counts = collections.Counter(number for rows in recorded_rows(output, steps=steps) for number in rows.numbers)
    lost = sum(1 for number in range(steps * BATCH) if not counts[number])
    return lost, sum(count - 1 for count in counts.values() if count > 1)


# ---------------------------------------------------------------------------------------------- faults

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


@dataclass
class Round:
    """A fault and what followed.

    Attributes:
      seconds: how long it took until the last process had ended.
      codes: the exit codes of the processes that ended.
      complaints: what went wrong; empty if the run survived.
      step: the last step before the fault.
    """

    fault: str
    seconds: float = 0.0
    codes: list[int] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    step: int = 0


def run_round(command: list[str], output: Path, fault: str, chance: random.Random) -> Round:
    """Starts all processes, waits for some steps, injects the fault and watches the processes end."""
    result = Round(fault)
    victim = chance.randrange(COUNT)
    logs = [_text(output / "logs" / f"{index}.log") for index in range(COUNT)]
    goal = last_step(output) + chance.randint(1, 4)
    with cluster(command, output / "logs", count=COUNT) as processes:
        wait_while_running(processes, lambda: last_step(output) >= goal, seconds=PATIENCE, purpose="steps")
        if fault in DAMAGES:  # there has to be an older checkpoint to use instead
            wait_while_running(
                processes, lambda: len(checkpoints(output)) > 1, seconds=PATIENCE, purpose="two checkpoints"
            )
        if fault == "SIGKILL during a save":
            unfinished = output / "checkpoints"
            wait_while_running(
                processes,
                lambda: any(unfinished.glob("*.orbax-checkpoint-tmp")),
                seconds=PATIENCE,
                purpose="a save",
                interval=0.0,
            )
        else:
            time.sleep(chance.uniform(0, 0.5))
        result.step = last_step(output)
        must_name_victim = _inject(fault, victim, processes, output)
        began = time.monotonic()
        for index, process in enumerate(processes):
            if fault == "SIGSTOP" and index == victim:
                continue
            code = process.wait_for_exit(PATIENCE)
            result.codes.append(code)
            if not _is_right_code(fault, code, hit=index == victim):
                result.complaints.append(f"process {index} ended with {code}")
        result.seconds = time.monotonic() - began
        for index, process in enumerate(processes):
            printed = process.output[len(logs[index]) :]
            named = re.search(rf"(lost|wait for)[^\n]* process {victim} on", printed)
            if index != victim and must_name_victim and not named:
                result.complaints.append(f"process {index} does not name process {victim}: {printed[-300:]!r}")
    return result


def _inject(fault: str, victim: int, processes: list[Process], output: Path) -> bool:
    """Injects a fault. Returns whether the other processes have to name the victim."""
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
        case _:  # the checkpoint is damaged once all processes are killed
            for process in processes:
                process.popen.kill()
            return False
    return True


def _is_right_code(fault: str, code: int, *, hit: bool) -> bool:
    """Returns whether a process may end with this code.

    Args:
      hit: whether it is the one that was killed, frozen or stuck.
    """
    if fault == "SIGTERM":
        return code == RESTART[0]
    if fault in DAMAGES:
        return code == -signal.SIGKILL
    return code in RESTART or (fault != "stuck data loader" and hit and code == -signal.SIGKILL)


def checkpoints(output: Path) -> list[int]:
    """Returns the steps that are complete on disk, ascending."""
    return sorted(int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit())


def damage(fault: str, output: Path, chance: random.Random) -> str:
    """Damages the newest checkpoint. Returns a part of the message that the next start has to print about it."""
    step = checkpoints(output)[-1]
    newest = output / "checkpoints" / str(step)
    files = [path for path in newest.rglob("d/*") if path.is_file() and path.stat().st_size > 1000]
    if fault == DAMAGES[0]:
        path = chance.choice(files)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:  # one bit of every file, since some files hold bytes that nothing refers to any more
        for path in files:
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
    return f"the checkpoint of step {step} in"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


# ---------------------------------------------------------------------------------------------- the whole


def run_undisturbed(command: list[str], output: Path) -> str | None:
    """Runs all processes to the end. Returns a complaint if one of them fails."""
    with cluster(command, output / "logs", count=COUNT) as processes:
        for index, process in enumerate(processes):
            if code := process.wait_for_exit(1200):
                return f"process {index} of the last start ended with {code}:\n{process.output[-3000:]}"
    return None


def run_rounds(
    command: list[str], output: Path, faults: list[str], chance: random.Random, console: Console
) -> list[Round]:
    """Runs one round for each fault, then without a fault to the end. Complaints of that are in a last round."""
    rounds: list[Round] = []
    expected_message = ""
    for number, fault in enumerate([*faults, "none"], start=1):
        try:
            if fault == "none":
                console.print("to the end, without a fault")
                complaint = run_undisturbed(command, output)
                result = Round(fault, complaints=[complaint] if complaint else [])
            else:
                result = run_round(command, output, fault, chance)
        except AssertionError as error:
            result = Round(fault, complaints=[str(error)])
        for path in (output / "records").glob("stuck-*"):
            path.unlink()
        if expected_message not in _text(output / "logs" / "0.log"):
            result.complaints.append(f"the damage of the round before was not reported: {expected_message!r}")
        # If the round failed, there may be nothing to damage.
        expected_message = damage(fault, output, chance) if fault in DAMAGES and not result.complaints else ""
        rounds.append(result)
        if fault != "none":
            console.print(
                f"round {number:2} of {len(faults)}: {fault} at step {result.step}: codes {result.codes} after "
                f"{result.seconds:.1f} s: {'; '.join(result.complaints) or 'survived'}",
                markup=False,
            )
    return rounds


def report(folder: Path, rounds: list[Round], *, steps: int, console: Console) -> bool:
    """Prints the table and the verdict. Returns whether the run survived everything."""
    output, undisturbed = folder / "broken", folder / "unbroken"
    table = Table("fault", "injected", "survived", "others ended within, s", title="chaos")
    injected = [result for result in rounds if result.fault in FAULTS]
    for fault in dict.fromkeys(FAULTS):
        same_fault = [result for result in injected if result.fault == fault]
        if same_fault:
            slowest = max(result.seconds for result in same_fault)
            survived = sum(not result.complaints for result in same_fault)
            table.add_row(fault, str(len(same_fault)), str(survived), f"{slowest:.1f}")
    console.print(table)
    lost, repeated = faulty_rows(output, steps=steps)
    same_rows = recorded_rows(output, steps=steps) == recorded_rows(undisturbed, steps=steps)
    same_losses = losses(output) == losses(undisturbed) and len(losses(output)) == steps
    survived = sum(not result.complaints for result in injected)
    console.print(f"faults injected: {len(injected)}, survived: {survived}")
    console.print(f"rows lost: {lost}, repeated: {repeated}; equal to the undisturbed run: {_yes(same_rows)}")
    console.print(f"losses of all {steps} steps equal to the undisturbed run's, bit for bit: {_yes(same_losses)}")
    console.print(str(read_goodput(output)))
    complaints = [complaint for result in rounds for complaint in result.complaints]
    for complaint in complaints:
        console.print(f"WRONG: {complaint}", markup=False)
    return not complaints and same_rows and same_losses and not lost and not repeated


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=len(FAULTS), help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults and their moments")
    parser.add_argument("--folder", type=Path, help="folder for everything (default: a temporary one)")
    options = parser.parse_args()
    began, chance, console = time.monotonic(), random.Random(options.seed), Console()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    steps = 5 * options.rounds
    prepare_home(folder / "home")
    faults = [*FAULTS] * -(-options.rounds // len(FAULTS))
    chance.shuffle(faults)

    console.print(f"the undisturbed run: {COUNT} processes, {steps} steps")
    # Masked LM: it compiles one model, so every round starts in half the time of RTD with its two models.
    settings: dict = {"steps": steps, "save_every": 4, "options": ("--objective", "mlm")}
    if complaint := run_undisturbed(arguments(folder / "home", folder / "unbroken", **settings), folder / "unbroken"):
        console.print(complaint, markup=False)
        return 1
    command = arguments(folder / "home", folder / "broken", **settings)
    rounds = run_rounds(command, folder / "broken", faults[: options.rounds], chance, console)
    survived = report(folder, rounds, steps=steps, console=console)
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes; everything is in {folder}")
    if survived:
        shutil.rmtree(folder / "broken" / "checkpoints", ignore_errors=True)
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
