"""Where the time of a run has gone, over all of its starts: `goodput.jsonl` in the run's folder.

A line is the account of one start so far: when it began and when the line was written (Unix time), the step it went on
from and the one it has reached, and the seconds in each phase of `phases.PhaseTimer`. Its last line counts.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..hosts.phases import PhaseTimer
from .jsonl import read_records

FILE = "goodput.jsonl"


class GoodputLog:
    """Writes the account of this start; one process of a run has one."""

    def __init__(self, folder: Path, activity: PhaseTimer) -> None:
        self._path, self._activity = folder / FILE, activity
        self._began = time.time() - activity.elapsed
        self._first = 0

    def resume_at(self, step: int) -> None:
        """The step that this start goes on from."""
        self._first = step

    def write(self, step: int) -> None:
        """Call it now and then: what comes after the last call is lost to the account when the process is killed."""
        line = {
            "began": round(self._began, 3),
            "written": round(time.time(), 3),
            "from_step": self._first,
            "step": step,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self._activity.seconds().items()},
        }
        with open(self._path, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Goodput:
    """The account of a run. All times in seconds; the parts sum to `total`.

    Attributes:
      useful: in steps whose result was kept.
      lost: in steps that a later start took again.
      between: from the last line of a start to the beginning of the next.
      phases: everything else, by phase.
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
        rest = sorted(
            ((name, value) for name, value in parts.items() if value > 0.0005 * self.total), key=lambda item: -item[1]
        )
        starts = "1 start" if self.starts == 1 else f"{self.starts} starts"
        others = ", ".join(f"{name} {share(value)}" for name, value in rest)
        return f"goodput {share(self.useful)} of {self.total:.0f} s in {starts}; {others}"


def read_goodput(folder: Path) -> Goodput:
    """The account of the run in a folder, from its goodput.jsonl; a line cut short by a kill is left out.

    Raises:
      FileNotFoundError: there is none.
    """
    starts = {line["began"]: line for line in read_records(folder / FILE)}
    lines = [starts[began] for began in sorted(starts)]
    useful = lost = between = 0.0
    phases: dict[str, float] = {}
    for number, line in enumerate(lines):
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
