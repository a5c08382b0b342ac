"""Ends the only process of a run when it hangs, so that whatever started it starts it again."""

import os
import sys
import threading
import time
from collections.abc import Callable

from deberta_jax.terminal import say

from ..configs import HostsConfig
from .exit_codes import RESTART
from .phases import Phase, PhaseTimer
from .stacks import say_stacks
from .step_limit import StepLimit

_UNLIMITED: tuple[Phase, ...] = ("start", "data", "weights", "finish")
_PERIOD = 1.0
_SUSPENDED_SECONDS = 30.0  # the process, or its machine, was stopped if the watchdog slept so long


class SoloWatchdog:
    """Judges what the main thread does once a second, in a thread, from `start` to `stop`.

    The limits are those of several processes (see `watchdog`), but no other host waits meanwhile. So until the duration
    of a step is known, a step may take `slow_after`; reading data before the first step, and what follows the last one,
    has no limit; and time in a debugger, or while the process was suspended, does not count.

    Args:
      phases: what this process is doing.
      config: the limits.
      terminate: ends the process with the exit code that it receives, after the reason was printed.
    """

    def __init__(self, phases: PhaseTimer, config: HostsConfig, *, terminate: Callable[[int], None] = os._exit) -> None:
        self._phases, self._terminate = phases, terminate
        self._limit = StepLimit(config)
        self._stopped = threading.Event()
        self._awake_since = time.monotonic()
        self._looked = self._awake_since
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_PERIOD):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Judges what the main thread is doing at `now`."""
        if now - self._looked > _SUSPENDED_SECONDS or sys.gettrace() is not None:
            self._awake_since = now
        self._looked = now
        step, phase = self._phases.step, self._phases.phase
        self._limit.time_step(step, now)
        if phase in _UNLIMITED:
            return
        seconds = now - max(self._phases.since, self._awake_since)
        limit = self._limit.of_phases([phase] if self._limit.knows_steps else ["compile"])
        if seconds <= limit or self._stopped.is_set():
            return
        self._stopped.set()
        say(
            f"stalled: step {step}, {phase} for {seconds:.0f} s (limit {limit:.0f}): "
            f"{self._phases.innermost_functions()}. Exit code {RESTART}; run the same command again to continue",
            error=True,
        )
        say_stacks()
        self._terminate(RESTART)
