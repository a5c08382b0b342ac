"""What a process is doing, and where its time has gone: the watchdog reads the one, the goodput account the other."""

import sys
import threading
import time
from typing import Literal, get_args

Phase = Literal["start", "restore", "compile", "input", "step", "evaluate", "save", "finish"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Activity:
    """One phase at a time, entered by the main thread and read by others. Every moment belongs to one phase.

    `compile` is the first step of a process, and the first with batches of another length, compilation included;
    `step` the dispatch of the others and the wait for results; `input` the wait for a batch; `finish` what comes after
    the last step.
    """

    def __init__(self) -> None:
        self.phase: Phase = "start"
        self.step = 0
        self.since = time.monotonic()  # when the phase was entered
        self._began = self.since
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._thread = threading.get_ident()

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Ends the phase before. `step`: the one that is being worked on; None: as before."""
        now = time.monotonic()
        self._seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now
        if step is not None:
            self.step = step

    @property
    def elapsed(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._began

    def seconds(self) -> dict[str, float]:
        """Time spent in every phase so far, the present one included."""
        found: dict[str, float] = {**self._seconds}
        found[self.phase] += time.monotonic() - self.since
        return found

    def where(self, depth: int = 4) -> str:
        """The innermost functions of the main thread, outermost first, such as "loop.py:74 train > data.py:70 read"."""
        frame = sys._current_frames().get(self._thread)
        names = []
        while frame is not None and len(names) < depth:
            code = frame.f_code
            names.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
            frame = frame.f_back
        return " > ".join(reversed(names))
