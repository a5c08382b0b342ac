"""How far every process of a run has come, and the verdict whether one of them has died or hangs.

Nothing here waits or reads a clock: the time is an argument (`now`, in seconds of `time.monotonic`).
"""

import dataclasses
import json
from collections.abc import Sequence

from deberta_jax.terminal import list_names

from ..configs import HostsConfig
from .step_limit import StepLimit

# The order of the phases within a step. All phases that are missing come first.
_PHASE_ORDER = {"input": 0, "compile": 1, "first step": 1, "step": 1, "save": 2, "evaluate": 2}
_FINISHED = -1  # the beat of a process that has ended as it should


@dataclasses.dataclass(frozen=True)
class Report:
    """What a process is doing: published by each of them every few seconds, and read by all others.

    Attributes:
      beat: number of the report. It shows that a process is alive, whatever its clock: a beat that changes was written
        since the last look.
      step: the training step in progress.
      phase: the phase in progress.
      seconds: for how long the process had been in that phase.
      where: the innermost functions of its main thread.
    """

    beat: int
    step: int
    phase: str
    seconds: float
    where: str

    @classmethod
    def from_json(cls, text: str) -> "Report":
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def finished(self) -> bool:
        """Whether the process has ended as it should, so that its silence means nothing."""
        return self.beat == _FINISHED

    def as_finished(self) -> "Report":
        return dataclasses.replace(self, beat=_FINISHED)

    @property
    def position(self) -> tuple[int, int]:
        """How far the process has come: processes compare like these tuples."""
        return self.step, _PHASE_ORDER.get(self.phase, 0)


@dataclasses.dataclass(frozen=True)
class _Heard:
    """The newest report of a process (None before the first), and when it was first seen here."""

    report: Report | None
    seen: float


class Progress:
    """Collects the reports of all processes and judges them.

    One thread records reports while another one reads them: `_heard` maps each process to an immutable record that is
    replaced as a whole.

    Args:
      index: the index of this process.
      names: the name of every process, for messages.
    """

    def __init__(self, index: int, names: Sequence[str], config: HostsConfig) -> None:
        self._index, self._names, self._config = index, names, config
        self._heard: dict[int, _Heard] = {}
        self._answered = 0.0
        self._step_limit = StepLimit(config)

    def start(self, now: float) -> None:
        """Counts every process as alive at `now`: JAX's runtime starts only when all of them have connected."""
        self._heard = {process: _Heard(None, now) for process in range(len(self._names))}
        self._answered = now

    def record(self, reports: dict[int, Report], now: float) -> None:
        """Stores reports just read from the coordination service, which has answered at `now`."""
        for process, report in reports.items():
            known = self._heard[process].report
            if known is None or known.beat != report.beat:
                self._heard[process] = _Heard(report, now)
        self._answered = now

    def failure(self, mine: Report, now: float) -> str | None:
        """Returns why the run cannot continue, naming the guilty processes, or None.

        Args:
          mine: what this process is doing at `now`. The durations of its steps set the limit for one step.
        """
        self._step_limit.time_step(mine.step, now)
        if silent := self.silent_processes(now):
            names = list_names([self._names[process] for process in silent])
            return f"lost {names}: nothing heard for {self._config.dead_after:g} s"
        running = self._running()
        behind = _furthest_behind({process: report for process, (report, _) in running.items()})
        blockers = [running[process] for process in behind if process != self._index]
        # The blockers' time counts as well: a process that waited a minute for one that compiled has not waited a
        # minute for the step which that one takes now.
        seconds = min([mine.seconds, *(report.seconds + now - seen for report, seen in blockers)])
        limit = self._step_limit.of_phases([mine.phase, *(report.phase for report, _ in blockers)])
        if seconds > limit:
            return (
                f"stalled: {self._names[self._index]} has been in step {mine.step}, {mine.phase} for {seconds:.0f} s "
                f"(limit {limit:.0f}). All wait for {list_names([self._names[process] for process in behind])}"
            )
        return None

    def silent_processes(self, now: float) -> list[int]:
        """Returns the processes from which nothing was heard for `dead_after` seconds.

        If the coordination service does not answer, that is process 0, which runs it: nothing is known of the others.
        """
        limit = self._config.dead_after
        if self._index and now - self._answered > limit:
            return [0]
        return [
            process
            for process, heard in dict(self._heard).items()
            if now - heard.seen > limit and not (heard.report and heard.report.finished)
        ]

    def describe(self, now: float) -> list[str]:
        """Returns one line for each process: what it was doing when it was last heard."""
        lines = []
        for process, heard in sorted(dict(self._heard).items()):
            report, silence = heard.report, now - heard.seen
            if report is None:
                lines.append(f"{self._names[process]}: never heard of")
                continue
            last = "ended" if report.finished else f"heard {silence:.0f} s ago"
            doing = f"step {report.step}, {report.phase} for {report.seconds} s"
            lines.append(f"{self._names[process]}: {doing}, {last}; {report.where}")
        return lines

    def _running(self) -> dict[int, tuple[Report, float]]:
        """Returns the newest report of each process that has sent one and has not ended, and when it was seen."""
        return {
            process: (last.report, last.seen)
            for process, last in dict(self._heard).items()
            if last.report and not last.report.finished
        }


def _furthest_behind(reports: dict[int, Report]) -> list[int]:
    """Returns the processes that are furthest behind: in a collective, all others wait for them."""
    first = min((report.position for report in reports.values()), default=None)
    return [process for process, report in reports.items() if report.position == first]
