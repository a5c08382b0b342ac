"""What a process is doing and where its time went: read by the watchdog and by the goodput log."""

import sys
import threading
import time
from typing import Literal, get_args

Phase = Literal[
    "import",
    "start",
    "data",
    "weights",
    "restore",
    "input",
    "compile",
    "first step",
    "step",
    "evaluate",
    "save",
    "finish",
]
PHASES: tuple[Phase, ...] = get_args(Phase)


class PhaseTimer:
    """Measures the time of each phase of a process. Every moment belongs to exactly one phase.

    The main thread enters the phases; other threads read them.

    * `import` is the time from the start of the process to the creation of the timer.
    * `start` is the connection to the devices and to the other processes.
    * `data` is the reading of text or examples before the first step, `weights` the creation of the state.
    * `compile` is the compilation of the step, and the whole first step with batches of a new length.
    * `first step` is the wait for the result of the first step of the process.
    * `step` is the dispatch of all other steps and the wait for their results.
    * `input` is the wait for a batch.
    * `finish` is everything after the last step.

    Attributes:
      phase: the current phase.
      step: the training step in progress.
      since: when the current phase was entered (`time.monotonic`).
      to_first_step: the seconds in each phase up to the end of the first step of the process, None before that.

    Args:
      began: when the process started (`time.monotonic`; default: now).
    """

    def __init__(self, began: float | None = None) -> None:
        self.phase: Phase = "start"
        self.step = 0
        self.since = time.monotonic()
        self.to_first_step: dict[str, float] | None = None
        self._began = self.since if began is None else began
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._seconds["import"] = self.since - self._began
        self._thread = threading.get_ident()

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Ends the current phase and enters another one.

        Args:
          step: the training step in progress (default: unchanged).
        """
        now = time.monotonic()
        self._seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now
        if step is not None:
            self.step = step

    def end_first_step(self) -> dict[str, float]:
        """Keeps and returns the seconds in each phase so far."""
        self.to_first_step = self.seconds()
        return self.to_first_step

    @property
    def elapsed(self) -> float:
        """Seconds since the process started, or since the timer was created if its start is unknown."""
        return time.monotonic() - self._began

    def seconds(self) -> dict[str, float]:
        """Returns the seconds spent in each phase so far, the current one included."""
        seconds = dict(self._seconds)
        seconds[self.phase] += time.monotonic() - self.since
        return seconds

    def innermost_functions(self, depth: int = 4) -> str:
        """Returns the innermost functions of the main thread, such as "loop.py:74 train > data.py:70 read"."""
        frame = sys._current_frames().get(self._thread)
        functions = []
        while frame is not None and len(functions) < depth:
            code = frame.f_code
            functions.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
            frame = frame.f_back
        return " > ".join(reversed(functions))
