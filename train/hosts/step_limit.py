"""How long a process may stay in one phase before it counts as hanging."""

from collections.abc import Iterable

from ..configs import HostsConfig
from .phases import Phase

_STEP_PHASES: tuple[Phase, ...] = ("input", "step")  # phases that take no longer than a step
_STEPS_REMEMBERED = 100


class StepLimit:
    """The limits of all phases; that of a step grows with the duration of the steps so far."""

    def __init__(self, config: HostsConfig) -> None:
        self._config = config
        self._seconds: list[float] = []  # durations of the last steps of this process
        self._first_step, self._newest_step, self._entered = 0, 0, 0.0

    @property
    def knows_steps(self) -> bool:
        """Whether the duration of a step is known."""
        return bool(self._seconds)

    def time_step(self, step: int, now: float) -> None:
        """Notes that this process works on `step` at `now`, in seconds of `time.monotonic`."""
        if step <= self._newest_step:
            return
        self._first_step = self._first_step or step
        if self._newest_step > self._first_step:  # the first step includes its compilation
            seconds = (now - self._entered) / (step - self._newest_step)
            self._seconds = [*self._seconds[-_STEPS_REMEMBERED + 1 :], seconds]
        self._newest_step, self._entered = step, now

    def of_phases(self, phases: Iterable[str]) -> float:
        """Returns how many seconds a process may go without progress while it, or one it waits for, is in `phases`.

        A process that waits in a step for one that still compiles has the limit of a compilation: not all processes
        find a program in the compilation cache.
        """
        if any(phase not in _STEP_PHASES for phase in phases):
            return self._config.slow_after
        # The fastest step and not the median: the first steps after a start wait for the last process that compiles.
        return max(self._config.stall_after, 10 * min(self._seconds, default=0.0))
