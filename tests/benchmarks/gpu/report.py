"""The results as Markdown."""

from collections.abc import Sequence

from ..table import table
from . import programs
from .cases import Case, Result

# Kinds of cases that compare a result in bfloat16 with one in float32: what it is, what with, the difference allowed.
COMPARISONS = {
    "error": ("the encoder", "transformers", 0.03),
    "gradients": ("attention's gradients in two layers", "plain XLA", 0.05),
}

NOT_RUN = "not run"


def report(machine: dict[str, str], results: Sequence[Result], *, dry_run: bool) -> str:
    """Returns facts of the machine, correctness and the tables.

    Args:
      machine: card, driver, versions and date, by name.
      results: in any order.
      dry_run: marks the tables as those of a dry run.
    """
    heading = "**Dry run at small sizes on a CPU: no figure below is a measurement.**"
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    parts = [heading] if dry_run else []
    parts += [f"{facts}.", correctness(results), speed(results), first_steps(results), *remarks(results)]
    return "\n\n".join(part for part in parts if part)


def correctness(results: Sequence[Result]) -> str:
    """Returns a list of what was compared and what came out."""
    golden = [result for result in results if result.case.startswith("golden:")]
    failed = [result for result in golden if result.failure]
    met = f"{len(golden) - len(failed)} of {len(golden)}"
    lines = [f"* Golden cases, float32 with highest precision: {met} within 1e-4."]
    lines += [f"  * {Case.parse(result.case).size}: {result.failure}" for result in failed]
    if not golden:
        lines = [f"* Golden cases: {NOT_RUN}."]
    for result in results:
        kind = Case.parse(result.case).kind
        if kind not in COMPARISONS:
            continue
        what, reference, allowed = COMPARISONS[kind]
        verdict = result.failure or f"{result.difference:.1e}"
        if result.difference is not None and not result.difference <= allowed:
            verdict += f", more than the {allowed} that is allowed"
        name = programs.label(result.program)
        lines.append(f"* Relative error of {what} in bfloat16, against {reference} in float32, {name}: {verdict}.")
    return "\n".join(lines)


def speed(results: Sequence[Result]) -> str:
    """Returns the table of forward passes and training steps."""
    rows = []
    timed = [(Case.parse(result.case), result) for result in results]
    for case in sorted({case for case, _ in timed if case.kind in ("forward", "step")}, key=_order):
        same = [result for other, result in timed if other == case]
        for result in sorted(same, key=lambda result: _program_order(result.program)):
            kind = {"forward": "forward", "step": "training step"}[case.kind]
            rows.append([kind, case.size.replace("x", " x "), programs.label(result.program), *_cells(case, result)])
    if not rows:
        return ""
    header = [
        "work",
        "rows x tokens",
        "program",
        "median, ms",
        "all rounds, ms",
        "tokens/s",
        "memory, GB",
    ]
    return table(header, rows)


def _cells(case: Case, result: Result) -> list[str]:
    if result.failure:
        return [result.failure, "-", "-", "-"]
    rows, tokens = case.shape
    milliseconds = result.median
    spread = f"{min(result.milliseconds):.1f} to {max(result.milliseconds):.1f}"
    memory = "-" if result.memory is None else f"{result.memory / 1e9:.1f}"
    return [f"{milliseconds:.1f}", spread, f"{rows * tokens / milliseconds * 1e3:,.0f}", memory]


def first_steps(results: Sequence[Result]) -> str:
    """Returns the table of times from the start of a process to the end of its first training step."""
    rows = []
    for program in sorted({result.program for result in results}, key=_program_order):
        starts = {
            Case.parse(result.case).kind: result
            for result in results
            if result.program == program and result.case.startswith(("start:", "warm:"))
        }
        if starts:
            rows.append([programs.label(program), *(_seconds(starts.get(kind)) for kind in ("start", "warm"))])
            cold = starts.get("start")
            parts = cold.parts if cold else {}
            rows[-1].append(", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items()) or "-")
    header = ["first training step of a process", "from nothing, s", "with a warm compile cache, s", "of the former, s"]
    return table(header, rows) if rows else ""


def _seconds(result: Result | None) -> str:
    if result is None:
        return "-"
    return result.failure or f"{result.seconds:.1f}"


def remarks(results: Sequence[Result]) -> list[str]:
    """Returns how the work of some programs differs."""
    present = {result.program for result in results}
    notes = [f"{peer.label} {peer.notes}." for name, peer in programs.PEERS.items() if peer.notes and name in present]
    return [" ".join(notes)] if notes else []


def _order(case: Case) -> tuple[str, int, int]:
    rows, tokens = case.shape
    return case.kind, tokens, rows


def _program_order(program: str) -> tuple[int, str]:
    names = list(programs.PEERS)
    return (names.index(program) + 1 if program in names else 0), program
