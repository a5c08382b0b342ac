"""The threads in which Orbax writes one step at a time."""

import math
import time
from typing import Any

import orbax.checkpoint as ocp

from .storage_faults import StorageStuckError, outcome_of

_MOST_ERRORS = 100  # that one failed save may leave behind


class BackgroundSave:
    """Starts the threads of this process, waits for them, and gives up those that never return.

    Args:
      manager: the manager of the steps.
      timeout: seconds within which a thread has to have written its part, and again to have met the others.

    Attributes:
      running: whether a step is being written, or was and nobody has waited for it.
    """

    def __init__(self, manager: ocp.CheckpointManager, *, timeout: int) -> None:
        self._manager, self._timeout = manager, timeout
        self.running = False
        self._stuck = False  # whether a thread was given up
        self._began = 0.0

    def start(self, step: int, state: Any, manifest: dict) -> None:
        """Copies the arrays to the host and starts to write. Collective: Orbax has barriers here.

        Raises:
          OSError, ValueError: it cannot begin.
        """
        items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(manifest)}
        self._began = time.monotonic()
        # Forced: Orbax would skip a step that is older than its newest one.
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self.running = True

    def wait(self, seconds: float = math.inf) -> None:
        """Waits for the threads of this process.

        A thread waits for storage, and then for the threads of other processes, up to the time-out each. One that takes
        longer will not return.

        Raises:
          StorageStuckError: the threads have not ended.
          Exception: what a thread raised.
        """
        deadline = min(time.monotonic() + seconds, self._began + 2 * self._timeout + 10)
        while self._manager.is_saving_in_progress():
            if time.monotonic() > deadline:
                self._stuck = True
                raise StorageStuckError(f"storage has not answered for {time.monotonic() - self._began:.0f} s")
            time.sleep(0.005)
        self._manager.wait_until_finished()

    def drain_errors(self) -> None:
        """Waits for what Orbax still writes of a failed save, whose errors its next save would raise as its own."""
        for _ in range(_MOST_ERRORS):
            if self._stuck or outcome_of(self._manager.check_for_errors).error is None:
                return

    def close(self) -> None:
        """Ends the threads, unless one of them does not return."""
        self.running = False
        if not self._stuck:
            self._manager.close()
