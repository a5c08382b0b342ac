"""Runs worker processes, one at a time: a case that crashes, hangs or runs out of memory costs only itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deberta_jax.atomic_files import write_file

from .cases import Result, Work

WORKER = (sys.executable, "-m", "tests.benchmarks.gpu.worker")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the processes of a program are run.

    Attributes:
      seconds: limit for all cases of the program.
      environment: variables besides those of this process.
      command: what is run, with the work as its last argument.
      errors: file that what they write to stderr is appended to (default: it is not kept).
    """

    seconds: float = 180
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: Sequence[str] = WORKER
    errors: Path | None = None


def run_program(work: Work, launch: Launch, *, log: Callable[[str], None] = lambda line: None) -> list[Result]:
    """Runs all cases of one program and returns a result for each, which may be a failure.

    After a crash the cases that had not begun run in a new process.

    Args:
      work: the program and its cases; `started` is set here.
      launch: how its processes are run.
      log: receives a line about each process that fails.
    """
    deadline = time.monotonic() + launch.seconds
    results: dict[str, Result] = {}
    while pending := [name for name in work.cases if name not in results]:
        part = dataclasses.replace(work, cases=tuple(pending), started=time.time())
        reason, timed_out = _run_process(part, launch, deadline)
        begun, finished = read_lines(work.lines)
        results |= finished
        if reason:
            log(f"{work.program}: {reason}" + (f" (see {launch.errors})" if launch.errors else ""))
        reason = reason or "the process ended without a result"
        lost = [name for name in pending if name not in finished]
        # Without a case to blame, a new process would fail, too.
        blamed = lost if timed_out or not begun & set(lost) else [name for name in lost if name in begun]
        for name in blamed:
            text = reason if name in begun or not timed_out else f"not run: {reason}"
            results[name] = Result(work.program, name, failure=text)
    return [results[name] for name in work.cases]


def _run_process(work: Work, launch: Launch, deadline: float) -> tuple[str, bool]:
    """Returns why a process failed (empty if it did not), and whether it ran out of time."""
    with (
        tempfile.TemporaryFile() if launch.errors is None else launch.errors.open("a+b") as errors,
        subprocess.Popen(
            [*launch.command, work.to_json()],
            env={**os.environ, **launch.environment},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            process_group=0,
        ) as process,
    ):
        start = errors.seek(0, os.SEEK_END)
        try:
            status = process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return "over the time limit", True
        finally:
            if process.poll() is None:  # after an interruption as well
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(start)
        last = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()][-1:]
    if not status:
        return "", False
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return ": ".join([how, *last])[:300], False


def read_lines(path: Path) -> tuple[set[str], dict[str, Result]]:
    """Returns the cases that a worker began, and its results by case. A line that was cut short is ignored."""
    begun: set[str] = set()
    finished: dict[str, Result] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "begin" in fields:
            begun.add(fields["begin"])
        else:
            finished[fields["case"]] = Result.from_json(fields)
    return begun, finished


# ---------------------------------------------------------------- results on disk


def check_same_machine(path: Path, machine: dict[str, str]) -> None:
    """Refuses to mix results.

    Raises:
      SystemExit: if the file has results of another card, driver or version.
    """
    if path.exists():
        old, _ = read_results(path)
        changed = [name for name in (old | machine).keys() - {"date"} if old.get(name) != machine.get(name)]
        if changed:
            raise SystemExit(
                f"{path} has results of another {', '.join(sorted(changed))}; choose another folder with --results, "
                "or run all programs anew"
            )


def recover(folder: Path, machine: dict[str, str]) -> None:
    """Adds the results of workers of a run that was cut short to those of the folder."""
    for lines in sorted(folder.glob("*.jsonl")):
        merge(folder / "results.json", machine, list(read_lines(lines)[1].values()))
        lines.unlink()


def merge(path: Path, machine: dict[str, str], results: Sequence[Result]) -> None:
    """Adds results to a file; those of the same program and case are replaced."""
    old = read_results(path)[1] if path.exists() else []
    merged = {(result.program, result.case): result for result in [*old, *results]}
    fields = {"machine": machine, "results": [result.to_json() for result in merged.values()]}
    write_file(path, json.dumps(fields, indent=1) + "\n")


def read_results(path: Path) -> tuple[dict[str, str], list[Result]]:
    """Returns the facts about the machine, and the results."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return fields["machine"], [Result.from_json(result) for result in fields["results"]]
