"""How a run spent its time, over all of its starts: `goodput.jsonl` in the run's folder.

A line accounts for one start: when it began and when the line was written (Unix time), the step it resumed from and
the step it has reached, and the seconds in each phase of `hosts.phases.PhaseTimer`, also up to the end of the first
step (`to_first_step`). The last line of a start counts.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deberta_jax.strict_json import to_json

from ..hosts.phases import PhaseTimer
from .jsonl import read_records

FILE = "goodput.jsonl"


class GoodputLog:
    """The account of this start, in one process of the run."""

    def __init__(self, phases: PhaseTimer) -> None:
        self._phases = phases
        self._began = time.time() - phases.elapsed
        self._first = 0

    def resume_at(self, step: int) -> None:
        """Sets the step that this start resumes from."""
        self._first = step

    def account(self, step: int) -> str:
        """Returns the line up to this step. Write it periodically: time since the last line is lost on a crash."""
        line: dict[str, Any] = {
            "began": round(self._began, 3),
            "written": round(time.time(), 3),
            "from_step": self._first,
            "step": step,
            "seconds": _rounded(self._phases.seconds()),
        }
        if self._phases.to_first_step is not None:
            line["to_first_step"] = _rounded(self._phases.to_first_step)
        return to_json(line)


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {phase: round(value, 3) for phase, value in seconds.items()}


_SHOWN = {"import": "imports", "start": "devices"}  # names of phases for users, where they differ


def describe_start(seconds: dict[str, float]) -> str:
    """Returns how long the first step took from the start of the process, and the parts of that time.

        first step after 31.2 s: imports 3.1, devices 2.2, data 1.2, weights 4.0, compile 19.8, first step 0.9

    Args:
      seconds: seconds in each phase up to the end of the first step; those below 0.05 s are left out.
    """
    parts = ", ".join(
        f"{_SHOWN.get(phase, phase)} {value:.1f}" for phase, value in seconds.items() if round(value, 1) > 0
    )
    return f"first step after {sum(seconds.values()):.1f} s" + (f": {parts}" if parts else "")


@dataclass(frozen=True)
class Goodput:
    """How a run spent its time, in seconds; the parts sum to `total`.

    Attributes:
      starts: number of starts.
      useful: time in steps whose result was kept.
      lost: time in steps that a later start repeated.
      between: time from the last line of a start to the beginning of the next one.
      phases: all other time, by phase.
    """

    starts: int
    useful: float
    lost: float
    between: float
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return self.useful + self.lost + self.between + sum(self.phases.values())

    def __str__(self) -> str:
        def share(seconds: float) -> str:
            return f"{100 * seconds / max(self.total, 1e-9):.1f}%"

        parts = {"steps taken again": self.lost, "between starts": self.between, **self.phases}
        largest_first = sorted(
            ((name, value) for name, value in parts.items() if value > 0.0005 * self.total), key=lambda item: -item[1]
        )
        starts = "1 start" if self.starts == 1 else f"{self.starts} starts"
        others = ", ".join(f"{_SHOWN.get(name, name)} {share(value)}" for name, value in largest_first)
        return f"goodput {share(self.useful)} of {self.total:.0f} s in {starts}; {others}"


def read_goodput(folder: Path) -> Goodput:
    """Returns how the run in a folder spent its time, from the lines of its goodput.jsonl that are not damaged.

    Raises:
      FileNotFoundError: if the file does not exist.
    """
    starts = {line["began"]: line for line in read_records(folder / FILE) if _is_account(line)}
    lines = [starts[began] for began in sorted(starts)]
    useful = lost = between = 0.0
    phases: dict[str, float] = {}
    for number, line in enumerate(lines):
        # A start's steps count up to where the earliest later start resumed; the steps after that were repeated.
        later = lines[number + 1 :]
        kept = min([line["step"], *(other["from_step"] for other in later)])
        taken = line["step"] - line["from_step"]
        share = max(0, kept - line["from_step"]) / taken if taken else 1.0
        useful += share * line["seconds"]["step"]
        lost += (1 - share) * line["seconds"]["step"]
        for phase, seconds in line["seconds"].items():
            if phase != "step":
                phases[phase] = phases.get(phase, 0.0) + seconds
        if later:
            between += max(0.0, later[0]["began"] - line["written"])
    return Goodput(len(lines), useful, lost, between, phases)


def read_step_times(folder: Path) -> list[tuple[int, float, int]]:
    """Returns how long the steps of a run took: for each logged step the step, and the seconds and the number of steps
    since the one before, without evaluations, compilation and saving.

    The first logged step of a start has no entry. Steps that a later start repeated are those of the later start.

    Raises:
      FileNotFoundError: if the run has no goodput.jsonl.
    """
    intervals: dict[int, tuple[int, float, int]] = {}
    before: dict[str, Any] | None = None
    for line in filter(_is_account, read_records(folder / FILE)):
        if before is None or line["began"] != before["began"]:
            intervals = {step: value for step, value in intervals.items() if step <= line["from_step"]}
        elif line["step"] > before["step"]:
            seconds, earlier = (
                sum(each["seconds"].get(phase, 0.0) for phase in ("step", "input")) for each in (line, before)
            )
            if seconds > earlier:
                intervals[line["step"]] = (line["step"], seconds - earlier, line["step"] - before["step"])
        before = line
    return [intervals[step] for step in sorted(intervals)]


def _is_account(line: dict[str, Any]) -> bool:
    """Returns whether a line has everything that `GoodputLog.account` writes, as numbers."""
    seconds = line.get("seconds")
    if not isinstance(seconds, dict) or "step" not in seconds:
        return False
    values = [line.get("began"), line.get("written"), line.get("from_step"), line["step"], *seconds.values()]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
