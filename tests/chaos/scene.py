"""A round: a fault that is injected into the run, and a judgment of what follows."""

import collections
import random
import re
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from deberta_jax.train.reporting import goodput
from deberta_jax.train.reporting.jsonl import read_records

from ..support.cluster import Process, wait_until
from ..support.recorded_runs import last_step, losses
from .broken_run import COUNT, PATIENCE, BrokenRun

RESTART = (42, -signal.SIGABRT)  # JAX aborts a process that loses process 0; a shell shows 134


@dataclass
class Scene:
    """What a fault acts on, and what has been seen of it.

    Attributes:
      victim: the process that the fault hits.
      chance: draws the moments.
      step: the last logged step when the fault was injected.
      began: when it was injected (`time.monotonic`).
      seen: what ended, and how.
      complaints: what went wrong.
    """

    run: BrokenRun
    victim: int
    chance: random.Random
    step: int = 0
    began: float = 0.0
    seen: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Notes that the fault is injected now."""
        self.step, self.began = last_step(self.run.output), time.monotonic()

    def expect(self, condition: bool, complaint: str) -> None:
        if not condition:
            self.complaints.append(complaint)

    def expect_end(
        self,
        codes: Collection[int] = RESTART,
        *,
        victim_codes: Collection[int] | None = None,
        frozen: bool = False,
        named: bool = False,
    ) -> None:
        """Waits until the processes have ended by themselves, and checks how.

        Args:
          codes: the exit codes that are allowed.
          victim_codes: those of the victim (default: the same).
          frozen: whether the victim is frozen, so that only the others end.
          named: whether the others have to print that they lost the victim or wait for it.
        """
        processes, ended = self.run.processes, []
        for index, process in enumerate(processes):
            if frozen and index == self.victim:
                continue
            code = process.wait_for_exit(PATIENCE)
            ended.append(code)
            allowed = victim_codes if index == self.victim and victim_codes is not None else codes
            self.expect(code in allowed, f"process {index} ended with {code}: {self.run.printed(index)[-300:]!r}")
        self.saw_codes(ended)
        for index in set(range(COUNT)) - {self.victim} if named else ():
            self._expect_victim_named(index)
        self.run.forget_processes()

    def _expect_victim_named(self, index: int) -> None:
        """Checks that a process named the victim, itself or, if JAX aborted it, through its DeathNotice."""
        name = f"process {self.victim} on"
        message = re.compile(rf"(lost|wait for)[^\n]* {name}|{name} \S+, the coordinator, was lost")
        try:  # the notice is printed after the process has ended
            wait_until(lambda: message.search(self.run.printed(index)), seconds=10, purpose="the notice")
        except AssertionError:
            self.complaints.append(f"process {index} does not name {name}: {self.run.printed(index)[-300:]!r}")

    def expect_refusal(self, processes: list[Process], message: str) -> None:
        """Waits until processes that should not have been started have ended with 1 and a message of one line."""
        codes = [process.wait_for_exit(PATIENCE) for process in processes]
        self.saw_codes(codes)
        for index, (process, code) in enumerate(zip(processes, codes, strict=True)):
            self.expect(code == 1, f"process {index} ended with {code}: {process.output[-300:]!r}")
            lines = [line for line in process.output.splitlines() if re.search(message, line)]
            self.expect(len(lines) == 1, f"process {index} does not say {message!r} once: {process.output[-600:]!r}")
            self.expect("Traceback" not in process.output, f"process {index} prints a traceback")

    def expect_to_go_on(self, steps: int) -> None:
        """Waits for so many more steps of the same start, and checks that no line of its logs is missing."""
        starts = self.run.starts
        self.run.go_on(steps)
        reached = last_step(self.run.output)
        missing = set(range(1, reached + 1)) - set(losses(self.run.output))
        self.expect(not missing, f"metrics.jsonl has no lines of the steps {sorted(missing)}")
        lines = read_records(self.run.output / goodput.FILE)
        start = [line for line in lines if line["began"] == max(line["began"] for line in lines)]
        missing = set(range(start[0]["from_step"] + 1, start[-1]["step"])) - {line["step"] for line in start}
        self.expect(not missing, f"goodput.jsonl has no lines of the steps {sorted(missing)}")
        self.expect(self.run.starts == starts, "the run was started again")
        self.seen.append(f"continued to step {reached}")

    def saw_codes(self, codes: list[int]) -> None:
        counts = collections.Counter(codes)
        self.seen.append("exit " + ", ".join(f"{code} x{count}" for code, count in counts.items()))


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
      inject: injects it, and returns once everything that follows has happened.
      bound: the seconds from the injection within which that has to be.
      share: how many of 20 rounds have this fault.
      fills_disk: whether the run's folder has to be on a small disk.
    """

    name: str
    inject: Callable[[Scene], None]
    bound: float
    share: int
    fills_disk: bool = False


@dataclass(frozen=True)
class Round:
    """A fault and what followed, for the report."""

    fault: Fault
    step: int
    seen: str
    seconds: float
    complaints: tuple[str, ...]

    def __str__(self) -> str:
        verdict = "; ".join(self.complaints) or "survived"
        time_taken = f"{self.seconds:.1f} s of at most {self.fault.bound:g}"
        return f"{self.fault.name} at step {self.step}: {self.seen or 'nothing'}, {time_taken}: {verdict}"


def run_round(run: BrokenRun, fault: Fault, chance: random.Random) -> Round:
    """Injects a fault into the run, which is started if necessary, and judges what follows."""
    scene = Scene(run, chance.randrange(COUNT), chance, began=time.monotonic())
    try:
        run.start()
        fault.inject(scene)
        seconds = time.monotonic() - scene.began
        scene.expect(seconds <= fault.bound, f"it took {seconds:.1f} s, and {fault.bound:g} s are allowed")
    except AssertionError as error:
        seconds = time.monotonic() - scene.began
        scene.complaints.append(str(error))
    if scene.complaints:  # the next round starts the run again
        run.kill()
    return Round(fault, scene.step, ", ".join(scene.seen), seconds, tuple(scene.complaints))
