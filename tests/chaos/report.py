"""The verdict on a run that met faults, beside one that was left alone."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deberta_jax.train.reporting.goodput import read_goodput

from ..support.recorded_runs import faulty_rows, losses, recorded_rows
from .faults import FAULTS, LAST
from .scene import Round


def report(broken: Path, undisturbed: Path, rounds: Sequence[Round], *, steps: int, console: Console) -> bool:
    """Prints the table and the verdict. Returns whether the run survived everything."""
    table = Table("fault", "injected", "survived", "longest, s", "at most, s", title="chaos")
    for fault in (*FAULTS, LAST):
        same_fault = [result for result in rounds if result.fault == fault]
        slowest = max((result.seconds for result in same_fault), default=None)
        survived = sum(not result.complaints for result in same_fault)
        time_taken = "-" if slowest is None else f"{slowest:.1f}"
        table.add_row(fault.name, str(len(same_fault)), str(survived), time_taken, f"{fault.bound:g}")
    console.print(table)
    lost, repeated = faulty_rows(broken, steps=steps)
    same_rows = recorded_rows(broken, steps=steps) == recorded_rows(undisturbed, steps=steps)
    reached = losses(broken)
    missing = sorted(set(range(1, steps + 1)) - set(reached))
    same_losses = reached == losses(undisturbed) and not missing
    complaints = [f"{result.fault.name}: {complaint}" for result in rounds for complaint in result.complaints]
    console.print(f"faults injected: {len(rounds)}, survived: {sum(not result.complaints for result in rounds)}")
    console.print(f"rows lost: {lost}, repeated: {repeated}; equal to the undisturbed run: {_yes(same_rows)}")
    console.print(f"steps without a line in metrics.jsonl: {missing or 'none'}")
    console.print(f"losses of all {steps} steps equal to the undisturbed run's, bit for bit: {_yes(same_losses)}")
    console.print(str(read_goodput(broken)))
    for complaint in complaints:
        console.print(f"WRONG: {complaint}", markup=False, soft_wrap=True)
    return not complaints and same_rows and same_losses and not lost and not repeated


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
